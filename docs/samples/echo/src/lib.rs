//! A program to try Portolan with: HTTP, WebSocket and gRPC on one port, TCP and UDP echo on two
//! others.
//!
//! It is an ordinary program that knows nothing of Portolan but two variables, `PORT` and
//! `PORTOLAN_SANDBOX`. The end-to-end tests use it as a probe: each answer says which version and
//! which sandbox gave it, it counts the requests it serves at once, and it misbehaves on request.
//!
//! Entry points: [`Server::bind`], then [`Server::serve`]. Pages are listed at [`pages`].
//!
//! Invariants: what runs when [`Server::serve`] is told to stop may end within the drain limit;
//! no task outlives it.

pub mod client;
mod concurrency;
mod grpc;
pub mod pages;
mod protobuf;
mod server;
mod streams;
mod websocket;

pub use server::{Ended, Listen, Server};
