//! What the feed says: routes, services, pools and sandboxes as plain values.
//!
//! Nothing here knows where the values come from. Names are reference-counted strings, because the
//! same namespace or app name is held by thousands of entries and cloned on request paths.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::host::HostPattern;

/// Identity of a route object: unique per cluster, stable over updates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId {
    /// Namespace of the route object.
    pub namespace: Arc<str>,
    /// Name of the route object.
    pub name: Arc<str>,
}

/// A host and the service that answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfig {
    /// Which hosts this route answers.
    pub host: HostPattern,
    /// The service requests go to; it need not be known yet.
    pub service: ServiceKey,
    /// How long the sandbox may keep silent.
    pub timeouts: RouteTimeouts,
    /// Largest request body in bytes; `None`: the process-wide limit alone holds.
    pub request_body_max: Option<u64>,
    /// What a request in plain text gets while the host has a certificate.
    pub plain_http: PlainHttp,
}

/// Silence limits of one route. They bound gaps, never the whole request, so that streams live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the last byte of the request sent to the sandbox to the head of its response.
    pub response_header: Duration,
    /// Longest time without a byte of either body, the request's or the response's.
    pub idle: Duration,
    /// Longest time without a byte in either direction on an upgraded connection.
    pub upgrade_idle: Duration,
}

impl RouteTimeouts {
    /// The defaults: 60 s of silence as specified for plain requests. One hour for upgraded
    /// connections, because chat clients ping at up to several minutes and many never ping.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            response_header: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            upgrade_idle: Duration::from_secs(3600),
        }
    }
}

/// What a plain-text request gets on a host that has a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainHttp {
    /// A redirect to `https`. Hosts without a certificate are served.
    Redirect,
    /// The answer itself.
    Serve,
}

/// Identity of a service of an app.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the app.
    pub namespace: Arc<str>,
    /// Name of the app.
    pub app: Arc<str>,
    /// Name of the service within the app.
    pub service: Arc<str>,
}

/// Which pool answers for a service, and since which switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    /// UID of the app object. Epochs of different UIDs are not comparable: an app that was deleted
    /// and made again starts anew.
    pub app_uid: Arc<str>,
    /// Number of the switch; grows by one with each. A lower one than the one followed is ignored.
    pub epoch: u64,
    /// The pool to send new requests to; it need not be known yet.
    pub pool: PoolName,
}

/// Name of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName {
    /// Namespace of the pool object.
    pub namespace: Arc<str>,
    /// Name of the pool object.
    pub name: Arc<str>,
}

/// Identity of a pool: its name says what an activation means, its UID which object it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId {
    /// Namespace and name.
    pub name: PoolName,
    /// UID of the pool object; sandboxes belong to a UID, never to a name.
    pub uid: Arc<str>,
}

/// What the gateway must know of a pool's template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Port the program listens on.
    pub port: u16,
    /// What the program speaks there.
    pub protocol: AppProtocol,
    /// How the gateway finds out by itself that a sandbox answers.
    pub probe: Probe,
    /// What happens to the slot of a request that the client gave up.
    pub concurrency: Concurrency,
}

/// Protocol of a sandbox's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP/1.1. Requests whose content type is gRPC go over HTTP/2 nevertheless.
    Http1,
    /// HTTP/2 in plain text with prior knowledge.
    H2c,
}

/// The gateway's own readiness check, run as soon as a sandbox has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `GET` of a path; a status of 200 to 399 is success.
    Http {
        /// Port to ask.
        port: u16,
        /// Path with optional query, starting with `/`.
        path: Arc<str>,
        /// Value of the `Host` header; `None`: the address.
        host: Option<Arc<str>>,
        /// How long the answer may take, within the bounds of an attempt.
        timeout: Duration,
    },
    /// A TCP connection that is accepted.
    Tcp {
        /// Port to connect to.
        port: u16,
    },
    /// Only the feed can tell (exec and gRPC probes).
    Feed,
}

/// How strictly the slot count holds when a client gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// The slot is free once the connection to the sandbox is closed.
    Soft,
    /// The slot is free once the sandbox has ended its response; one that does not within
    /// [`Settings::strict_wait`](crate::Settings::strict_wait) is retired.
    Strict,
}

/// Identity of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId {
    /// Name, for people.
    pub name: Arc<str>,
    /// UID, for identity.
    pub uid: Arc<str>,
}

/// What is known of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Which one.
    pub id: SandboxId,
    /// Its address, once it has one.
    pub address: Option<IpAddr>,
    /// How far it is.
    pub phase: SandboxPhase,
    /// How many requests this gateway may run on it at once.
    pub slots: Slots,
}

/// How far a sandbox is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxPhase {
    /// It exists.
    Created,
    /// It has a node.
    Scheduled,
    /// The feed says it is ready.
    Ready,
    /// It takes no new requests; those running may end.
    Draining {
        /// Epoch of the mark, to be reported back.
        epoch: u64,
    },
}

/// Slots granted to this gateway on one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// At most this many requests at once; zero is legal and means none.
    Limited(u32),
    /// Not counted against a limit.
    Unlimited,
}

/// Why no sandbox of a pool comes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFailure {
    /// Which error code visitors get.
    pub kind: FailureKind,
    /// Reason in CamelCase, as in the pool's condition. Shown to visitors.
    pub reason: Arc<str>,
}

/// The two ways a wake can be known to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Sandboxes start and end, or cannot start: `boot_failed`.
    Boot,
    /// There is no room for one: `no_capacity`.
    NoCapacity,
}
