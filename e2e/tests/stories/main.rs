//! Stories on the real cluster: what a team and its visitors see of the whole platform.

mod broken;
mod lifecycle;
mod load;
mod ownership;
mod support;
