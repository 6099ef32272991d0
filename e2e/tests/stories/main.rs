//! Stories on the real cluster: what a team and its visitors see of the whole platform.

mod lifecycle;
mod ownership;
mod support;
