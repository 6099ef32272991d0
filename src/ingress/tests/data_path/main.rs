//! The data plane from socket to socket, on loopback: real clients, real programs as sandboxes,
//! and the tests in the role of the feed.

#![expect(clippy::unwrap_used, reason = "a helper that panics fails its test, as it should")]

mod answers;
mod buffers;
mod client;
mod downgrade;
mod floods;
mod forwarding;
mod frames;
mod gateway;
mod lending;
mod lifecycle;
mod limits;
mod log;
mod names;
mod program;
mod protocols;
mod restart;
mod slots;
mod smuggling;
mod stress;
mod strict;
mod tls;
mod upgrades;
mod wake;
