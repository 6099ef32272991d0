//! Portolan as administrators install it: what its processes may do, what the samples show, and
//! what upgrade, rollback and removal leave.

mod identity;
mod later;
mod lifecycle;
mod permissions;
mod rendered;
mod samples;
mod straight;
