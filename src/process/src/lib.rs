//! What every Portolan process needs: logs, metrics, an admin server, tasks, shutdown.
//!
//! The crate deliberately knows nothing of Kubernetes and of any other crate of ours: a program
//! that only forwards packets links it as well as one that reconciles.
//!
//! Entry points, in the order a `main` uses them:
//!
//! 1. [`logs::init`] sends logs to standard error as JSON or text.
//! 2. [`Metrics`] and [`Readiness`] are cheap handles; components register what they measure and
//!    open their [`Gate`] when they are ready.
//! 3. [`Tasks`] holds every long-lived future of the process.
//! 4. [`AdminServer`] answers `/metrics`, `/healthz` and `/readyz`.
//! 5. [`Tasks::run`] ends the process when a signal arrives or when any task ends unasked.
//!
//! Invariants: no task is detached; nothing here is global but the log subscriber; a process is
//! ready only while every gate is open.

pub mod logs;

mod admin;
mod bindable;
mod chain;
mod metrics;
mod readiness;
mod tasks;

pub use admin::{AdminError, AdminServer};
pub use bindable::bindable;
pub use chain::ErrorChain;
pub use metrics::Metrics;
pub use readiness::{Gate, Readiness};
pub use tasks::{Signals, TaskError, Tasks};
