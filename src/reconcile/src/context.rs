//! What every controller of a process shares, and the knobs of the framework.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::Client;
use portolan_process::{Metrics, Readiness};
use tokio_util::sync::CancellationToken;

use crate::{Backoff, Writer, metrics::ReconcileMetrics};

/// Where a pass gets its time from; called once per pass.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// The knobs of the framework. All durations are wall time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Passes of one controller at once.
    pub concurrency: usize,
    /// How long a pass may take before it is dropped and tried again.
    pub pass_timeout: Duration,
    /// How often every object is looked at although nothing changed; spread by a tenth.
    pub resync_every: Duration,
    /// Delays between failures of one key.
    pub backoff: Backoff,
    /// Distinct keys one queue may hold.
    pub queue_capacity: usize,
    /// Who this process is: the Pod's name. Reported in Events and held in Leases.
    pub instance: String,
    /// How leaders are elected; `None` to lead at once, where only one process exists.
    pub lease: Option<LeaseSettings>,
}

/// How leaders are elected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSettings {
    /// The namespace of the Leases: the system's.
    pub namespace: String,
    /// How long a Lease holds after its last renewal. Whole seconds.
    pub duration: Duration,
    /// How long before that the holder renews. Without success it stops leading when a quarter of
    /// this is left, which is also the clock skew that is tolerated, and the time that one try
    /// gets. Whole seconds, at least 1, less than `duration`.
    pub grace: Duration,
}

impl Settings {
    /// The values that fit a cluster of up to some thousand Apps.
    pub fn standard(instance: impl Into<String>) -> Self {
        Self {
            // A pass spends its time waiting for the API server.
            concurrency: 16,
            // Longer than the client's own retries of one write take.
            pass_timeout: Duration::from_secs(60),
            resync_every: Duration::from_secs(600),
            // A lost race is over within a millisecond; an API server that is down should not be
            // met by everybody at once when it returns.
            backoff: Backoff { min: Duration::from_millis(50), max: Duration::from_secs(60) },
            queue_capacity: 100_000,
            instance: instance.into(),
            lease: None,
        }
    }
}

impl LeaseSettings {
    /// A Lease that is taken over 15 s after its holder died, and survives two tries to renew it
    /// that got no answer.
    pub fn standard(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            duration: Duration::from_secs(15),
            grace: Duration::from_secs(8),
        }
    }
}

/// What a [`Context`] is made of.
pub struct ContextParts {
    /// Metrics are registered here, once.
    pub metrics: Metrics,
    /// Each controller adds a gate that opens when its caches are synced.
    pub readiness: Readiness,
    /// Ends all controllers.
    pub shutdown: CancellationToken,
    /// The knobs.
    pub settings: Settings,
    /// The time.
    pub clock: Clock,
}

/// What every controller of a process shares. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    client: Client,
    metrics: ReconcileMetrics,
    readiness: Readiness,
    shutdown: CancellationToken,
    settings: Arc<Settings>,
    clock: Clock,
}

impl Context {
    /// Registers the framework's metrics; so call it once per process.
    pub fn new(client: Client, parts: ContextParts) -> Self {
        let ContextParts { metrics, readiness, shutdown, settings, clock } = parts;
        let metrics = metrics.register(ReconcileMetrics::register);
        Self { client, metrics, readiness, shutdown, settings: Arc::new(settings), clock }
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A writer for a component that is no controller; its field manager is
    /// `portolan-<component>`.
    pub fn writer(&self, component: &'static str) -> Writer {
        Writer::new(self.client(), component, self.metrics.clone())
    }

    /// The framework's metrics.
    pub fn metrics(&self) -> &ReconcileMetrics {
        &self.metrics
    }

    /// The process's readiness.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Cancelled when the process shall stop.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// The same with another end, for what outlives the rest of the process.
    pub fn until(&self, end: CancellationToken) -> Self {
        Self { shutdown: end, ..self.clone() }
    }

    /// The knobs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where the time comes from, for what outlives a borrow of this.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }
}
