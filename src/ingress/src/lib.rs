//! The gateway's data plane: route table, activator, proxy.
//!
//! Takes HTTP requests from outside, finds the service that answers their host, gets a slot on one
//! of its sandboxes, wakes one if none is awake, and forwards both ways without buffering.
//!
//! **Does not know** Kubernetes. It is fed plain values through [`Ingress`] (by the modules that
//! watch, which are the only ones here that may name an API type) and says what it sees through
//! [`Ingress::take_changes`]. Nothing on a request path waits for whoever feeds it, except that a
//! cold start needs a sandbox from somewhere.
//!
//! # Entry points
//!
//! - [`Ingress::new`], then the feeding methods in any order, then [`Ingress::mark_synced`];
//! - [`Ingress::serve`] with one or several [`Listener`]s;
//! - [`Ingress::changed`] and [`Ingress::take_changes`] for the reporter of demand.
//!
//! # Layout
//!
//! `listener` takes connections, `proxy` their requests; `table` finds the service, `activator` a
//! slot on one of its sandboxes, `upstream` the connection there. `model` is what may be fed,
//! `demand` what is seen; `buffers` is what is held for clients; `settings`, `error` and `metrics` are
//! the knobs, the answers in our own name and the counters. `feed` and `report` are the side that knows Kubernetes; `peers` keeps the
//! connections to other gateways, which it knows by their Leases.
//!
//! # Invariants
//!
//! - On no sandbox do more requests hold a slot at once than were granted. A slot is held until
//!   the response has ended or its connection is closed; see [`Concurrency`] for what happens
//!   when a client gives up.
//! - A request that waits is in exactly one queue; queues are served in order of arrival, also
//!   across a switch of the active pool.
//! - A request is sent to a sandbox at most once; a second sandbox is tried only if no connection
//!   to the first could be made.
//! - After [`Ingress::activate`] returns, no request goes to the pool before.
//! - Every queue, connection count, head, silence and wait has a bound in [`Settings`] or in the
//!   route; a body has one where one is set.
//! - What is held for clients that do not take it has one bound for all, and its parts for each.
//! - What was not read is not denied: before `mark_synced` an unknown host is 503, not 404. Nor is
//!   it another's: before that or `mark_restored`, wildcards and the default route answer nothing.

pub mod feed;
pub mod peers;
pub mod report;

mod activator;
mod buffers;
mod cidr;
mod core;
mod demand;
mod error;
mod host;
mod ingress;
mod lending;
mod listener;
mod metrics;
mod model;
mod moved;
mod proxy;
mod settings;
mod sharded;
mod table;
mod tls;
mod upstream;

pub use cidr::{Cidr, CidrError};
pub use demand::{PoolDemand, SandboxLoad};
pub use error::Code;
pub use host::{HostError, HostPattern};
pub use ingress::Ingress;
pub use lending::link::Link;
pub use lending::message::{Hold, Message};
pub use lending::{PeerEnd, ProtocolError};
pub use listener::{Listener, ListenerConfig, ProxyProtocol, Scheme, ServeError};
pub use metrics::Metrics;
pub use model::{
    Activation, AppProtocol, BootFailure, Concurrency, FailureKind, PlainHttp, PoolConfig, PoolId,
    PoolName, Probe, RouteConfig, RouteId, RouteTimeouts, SandboxConfig, SandboxId, SandboxPhase,
    ServiceKey, Slots,
};
pub use settings::{AccessLog, Settings};
pub use tls::{Certificate, CertificateError};
