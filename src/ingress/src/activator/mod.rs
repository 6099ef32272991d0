//! Slots on demand: gives each request a slot on a ready sandbox, or a place in the queue.
//!
//! - [`ledger`]: the arithmetic, pure.
//! - [`loans`]: a pool's part in lending slots to other gateways, and borrowing theirs.
//! - [`member`]: what is known of one sandbox, and whether requests may go there.
//! - [`pool`]: ledger and members behind one lock; hands slots to waiters.
//! - [`service`]: follows switches of the active pool, bounds the wait.
//! - [`registry`]: what the feed said, and the links between its parts.
//! - [`probe`]: asks new sandboxes whether they answer yet.

mod ledger;
mod loans;
mod member;
mod pool;
mod probe;
mod registry;
mod service;
mod wake;

pub(crate) use ledger::{Index, Ledger};
pub(crate) use pool::{Pool, Slot};
pub(crate) use registry::Registry;
pub(crate) use service::{Refusal, Service, Turn};
pub(crate) use wake::Wake;

#[cfg(test)]
mod tests;
