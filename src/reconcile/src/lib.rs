//! The controller framework: queue, caches, watches, writes, conditions, events, leadership.
//!
//! A controller implements [`Reconciler`] and puts itself together with a [`Controller`]: its
//! watches fill [`Cache`]s and name the keys to look at, and the framework calls the reconciler
//! for each of them, never twice at once for one key. A pass observes (caches), plans (pure),
//! applies (through its [`Writer`]) and reports ([`Conditions`], [`Events`]).
//!
//! The crate deliberately knows no kind of ours and no controller.
//!
//! Invariants:
//!
//! - A key that was added is worked on at least once afterwards; one that is added while it is in
//!   work is worked on once more.
//! - A cache is never behind our own writes that were handed to it, and a watch that broke
//!   reports everything that happened meanwhile, deletions included.
//! - An object that cannot be understood never stops the others, and never looks absent.
//! - A write reaches only the object the plan saw: UIDs are preconditions.
//! - A process competes to lead a controller only once that controller's caches are synced.
//! - Passes run only while this process leads; they are dropped before another can lead.
//! - Every queue is bounded, every bound is a metric; no label comes from a tenant.

pub mod metrics;
#[cfg(feature = "testing")]
pub mod testing;

mod cache;
mod compare;
mod conditions;
mod connection;
mod context;
mod controller;
mod events;
mod feed;
mod guard;
mod key;
mod leader;
mod observed;
mod packed;
mod pass;
mod progress;
mod queue;
mod runner;
mod shelf;
mod uid;
mod watch;
mod writer;

pub use cache::{Cache, Change};
pub use compare::APPLIED_HASH;
pub use conditions::{Conditions, Transition, Verdict};
pub use connection::{ApiServer, ConnectError, Connections, Place, connect};
pub use context::{Clock, Context, ContextParts, LeaseSettings, Settings, system_clock};
pub use controller::{Controller, RunError};
pub use events::Events;
pub use key::ObjectKey;
pub use kube::runtime::events::EventType;
pub use metrics::ReconcileMetrics;
pub use observed::Observed;
pub use packed::Packed;
pub use pass::{Next, Pass, ReconcileError, Reconciler, Retry};
pub use progress::Progress;
pub use queue::{Backoff, Queue};
pub use uid::Uid;
pub use watch::{Watch, Watched};
pub use writer::{
    Applied, Created, Deleted, Precondition, StatusWrite, Target, Writable, WriteCause, WriteError,
    Writer,
};
