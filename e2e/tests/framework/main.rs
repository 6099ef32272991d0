//! What the controller framework relies on, against the real API server: preconditions, apply and
//! what it leaves alone, watches over a gap, leadership, and settling after a crash.

mod crashes;
mod events;
mod leaders;
mod support;
mod watches;
mod writes;
