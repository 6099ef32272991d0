//! Stories on the real cluster: what a team and its visitors see of the whole platform.

mod broken;
mod certificates;
mod demand;
mod lifecycle;
mod load;
mod ownership;
mod peers;
mod protocols;
mod support;
mod tenancy;
mod visitor;
