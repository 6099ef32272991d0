//! All controllers together, on a cluster without Portolan: what crashes leave, what writes cost.

mod stage;
mod story;
mod writes;
