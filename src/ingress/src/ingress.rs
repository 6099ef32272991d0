//! The one handle to everything: fed on one side, serving on the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::activator::{Pool, Registry};
use crate::core::Core;
use crate::demand::PoolDemand;
use crate::host::HostPattern;
use crate::lending::PeerEnd;
use crate::lending::link::Link;
use crate::listener::{self, Listener, ServeError};
use crate::metrics::Metrics;
use crate::model::{
    Activation, BootFailure, PlainHttp, PoolConfig, PoolId, RouteConfig, RouteId, RouteTimeouts,
    SandboxConfig, ServiceKey,
};
use crate::settings::Settings;
use crate::table::Table;
use crate::tls::{Certificate, Certificates};

/// The data plane of one gateway. Clones share everything.
///
/// The feeding methods may be called in any order and from any thread; what refers to something
/// not fed yet takes effect when that comes. Each returns when requests that start from then on
/// see the change, within microseconds.
#[derive(Debug, Clone)]
pub struct Ingress {
    shared: Arc<Shared>,
}

/// What requests and the feed meet in.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    pub(crate) table: Table,
    /// The names of services inside the cluster. A table of their own, so that neither listener
    /// can answer what is the other's.
    pub(crate) names: Table,
    pub(crate) certificates: Arc<Certificates>,
    is_restored: AtomicBool,
    is_synced: AtomicBool,
    is_leaving: AtomicBool,
    pub(crate) registry: Mutex<Registry>,
}

/// How much of what exists has been fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// Some of it, in no particular order, or nothing.
    Part,
    /// All that a snapshot said. What is newer may be missing.
    Snapshot,
    /// Everything.
    All,
}

impl Shared {
    pub(crate) fn known(&self) -> Known {
        if self.is_synced() {
            Known::All
        } else if self.is_restored.load(Ordering::Acquire) {
            Known::Snapshot
        } else {
            Known::Part
        }
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced.load(Ordering::Acquire)
    }

    /// Whether shutdown has begun.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// All pools, to be locked one at a time.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.registry.lock().pools().cloned().collect()
    }

    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }
}

impl Ingress {
    /// An ingress that knows nothing yet.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime: probes run on the one it is made in.
    #[must_use]
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        metrics.connections_max.set(i64::try_from(settings.connections_max).unwrap_or(i64::MAX));
        metrics.queue_limit.set(i64::try_from(settings.queue_limit).unwrap_or(i64::MAX));
        let buffers_max = i64::try_from(settings.response_buffers_max).unwrap_or(i64::MAX);
        metrics.response_buffers_max.set(buffers_max);
        let core = Arc::new(Core::new(settings, metrics));
        Self {
            shared: Arc::new(Shared {
                registry: Mutex::new(Registry::new(Arc::clone(&core))),
                core,
                table: Table::new(),
                names: Table::new(),
                certificates: Arc::new(Certificates::new()),
                is_restored: AtomicBool::new(false),
                is_synced: AtomicBool::new(false),
                is_leaving: AtomicBool::new(false),
            }),
        }
    }

    /// Enters or changes a route. If another route holds the host, the one entered last answers.
    pub fn upsert_route(&self, id: RouteId, config: &RouteConfig) {
        let mut registry = self.shared.registry.lock();
        let service = registry.service(&config.service);
        for key in self.shared.table.upsert(id, config, service) {
            registry.release(&key);
        }
        self.measure(&registry);
    }

    /// Removes a route; one not known is no error.
    pub fn remove_route(&self, id: &RouteId) {
        let mut registry = self.shared.registry.lock();
        if let Some(key) = self.shared.table.remove(id) {
            registry.release(&key);
        }
        self.measure(&registry);
    }

    /// Says which service answers a name inside the cluster, `<name>.<namespace>` in lower case;
    /// `None`: none. Names are answered on [`Scheme::Internal`](crate::Scheme::Internal) only, as
    /// a route without a certificate and with the standard limits is elsewhere.
    pub fn set_service_name(&self, name: &str, service: Option<&ServiceKey>) {
        let mut registry = self.shared.registry.lock();
        // A name has one entry, so the name is the entry's identity too, and there is one for each
        // service of the cluster.
        let name: Arc<str> = name.into();
        let id = RouteId { namespace: Arc::default(), name: Arc::clone(&name) };
        let released = match service {
            Some(service) => {
                let config = RouteConfig {
                    host: HostPattern::Exact(name),
                    service: service.clone(),
                    timeouts: RouteTimeouts::standard(),
                    request_body_max: None,
                    plain_http: PlainHttp::Serve,
                };
                let service = registry.service(service);
                self.shared.names.upsert(id, &config, service)
            }
            None => self.shared.names.remove(&id).into_iter().collect(),
        };
        for key in released {
            registry.release(&key);
        }
        self.measure(&registry);
    }

    /// Switches a service to a pool. Requests that wait move along; those that run end where they
    /// are. An epoch below the one followed is ignored, unless the app is another object.
    ///
    /// When this returns, no request will be sent to the previous pool: report the epoch then.
    pub fn activate(&self, service: &ServiceKey, activation: Activation) {
        let mut registry = self.shared.registry.lock();
        registry.activate(service, activation);
        self.measure(&registry);
    }

    /// Says that a service has no active version (any more): its requests get `no_version`.
    pub fn deactivate(&self, service: &ServiceKey) {
        let mut registry = self.shared.registry.lock();
        registry.deactivate(service);
        self.measure(&registry);
    }

    /// Enters or changes a pool. One whose UID differs from that of the known pool of its name
    /// takes the name over.
    pub fn upsert_pool(&self, id: &PoolId, config: PoolConfig) {
        let mut registry = self.shared.registry.lock();
        registry.upsert_pool(id, config);
        self.measure(&registry);
    }

    /// Removes a pool with its sandboxes. Requests that run there go on.
    pub fn remove_pool(&self, id: &PoolId) {
        let mut registry = self.shared.registry.lock();
        registry.remove_pool(id);
        self.measure(&registry);
    }

    /// Says that no sandbox of the pool comes up, or, with `None`, that this is over.
    ///
    /// Requests that wait fail at once unless a sandbox is usable; later ones fail as long as the
    /// pool has sandboxes of which none is. A pool without sandboxes is asked for one again.
    pub fn set_pool_failure(&self, pool: &PoolId, failure: Option<BootFailure>) {
        self.shared.registry.lock().set_failure(&pool.uid, failure);
    }

    /// Enters or changes a sandbox of a pool.
    pub fn upsert_sandbox(&self, pool: &PoolId, sandbox: &SandboxConfig) {
        self.shared.registry.lock().upsert_sandbox(pool, sandbox);
    }

    /// Removes a sandbox by its UID. Requests that run there go on as long as it lives.
    pub fn remove_sandbox(&self, pool: &PoolId, sandbox_uid: &str) {
        self.shared.registry.lock().remove_sandbox(&pool.uid, sandbox_uid);
    }

    /// Sets or, with `None`, removes the certificate of a host; [`HostPattern::Default`] is the one
    /// for names without their own. New handshakes use it; open connections keep theirs.
    pub fn set_certificate(&self, host: &HostPattern, certificate: Option<Certificate>) {
        self.shared.certificates.set(host, certificate);
    }

    /// Says that all that a snapshot said has been fed. From then on wildcards and the default
    /// route answer too; what is unknown is still 503.
    pub fn mark_restored(&self) {
        self.shared.is_restored.store(true, Ordering::Release);
    }

    /// Says that everything that exists has been fed once. Until then, what is unknown is 503.
    pub fn mark_synced(&self) {
        self.shared.is_synced.store(true, Ordering::Release);
    }

    /// Whether [`mark_synced`](Self::mark_synced) was called.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.is_synced()
    }

    /// Waits until at least one pool changed since [`take_changes`](Self::take_changes).
    ///
    /// # Cancel safety
    ///
    /// Safe; a change is not lost. One caller at a time is woken.
    pub async fn changed(&self) {
        self.shared.core.changes.wait().await;
    }

    /// What changed since the last call: each pool once, in no particular order, as it is now.
    #[must_use]
    pub fn take_changes(&self) -> Vec<PoolDemand> {
        self.shared.core.changes.take().iter().map(|pool| pool.demand()).collect()
    }

    /// Every pool as it is now, for a first or a repeated full report.
    #[must_use]
    pub fn demand(&self) -> Vec<PoolDemand> {
        self.shared.pools().iter().map(|pool| pool.demand()).collect()
    }

    /// Serves the listeners until `shutdown`, then leaves in two steps: for
    /// [`Settings::lame_duck`] it still takes connections and asks clients to go elsewhere; then it
    /// takes none, requests that run may end within [`Settings::drain`], and what is left is cut.
    /// Background work ends with it, so this is called once.
    ///
    /// # Errors
    ///
    /// [`ServeError`] if the TLS set-up is refused; accept errors are logged and retried.
    pub async fn serve(
        &self,
        listeners: Vec<Listener>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let result = listener::serve(&self.shared, listeners, shutdown).await;
        self.shared.core.stop().await;
        result
    }

    /// Begins to lend and borrow slots over a new connection to another gateway, by its instance.
    /// A link that there is with it already ends.
    #[must_use]
    pub fn link(&self, peer: Arc<str>) -> Link {
        Link::new(Arc::clone(&self.shared), peer)
    }

    /// Says that another gateway will never come back. What it was lent is free; under `Strict`
    /// and without an orderly end, the sandboxes concerned are retired instead.
    pub fn forget_peer(&self, peer: &str, end: PeerEnd) {
        self.shared.end_link(peer, None);
        for pool in self.shared.pools() {
            pool.forget_peer(peer, end);
        }
    }

    /// Calls all lent slots home, and returns borrowed ones as soon as no request wants them.
    /// Nothing is lent from now on.
    pub fn call_home(&self) {
        for pool in self.shared.pools() {
            pool.call_home();
        }
    }

    /// Whether nothing runs here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.pools().iter().all(|pool| pool.is_idle())
    }

    /// Whether nothing runs, and nothing is borrowed, retired, or lent where a limit is strict: the
    /// gateway may end without leaving anything behind.
    #[must_use]
    pub fn is_square(&self) -> bool {
        self.shared.pools().iter().all(|pool| pool.is_square())
    }

    #[cfg(test)]
    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn measure(&self, registry: &Registry) {
        let (services, pools) = registry.sizes();
        let metrics = &self.shared.core.metrics;
        for (gauge, count) in [
            (&metrics.services, services),
            (&metrics.pools, pools),
            (&metrics.routes, self.shared.table.len()),
            (&metrics.names, self.shared.names.len()),
        ] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
