//! From Kubernetes to the data plane: watches, what is kept of each object, and how they meet.
//!
//! Everything here runs beside the request path. Most objects translate one to one; a Route is
//! served only while the Claim of its host names it, and that meeting is `hosts`.
//!
//! Entry point: [`Feed::start`]. Invariants: a Route without its Claim is not served; no Secret is
//! read outside the namespace of the Route that names it; until every cache has been read once,
//! the ingress is not marked synced, also when a snapshot was loaded: then it is marked restored.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use portolan_api::{App, Claim, Route, SandboxPool, labels};
use portolan_reconcile::{Cache, Change, Connections, Context, ObjectKey, RunError, Watch};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::Ingress;
use crate::feed::certificates::{Certificates, Wanted};
use crate::feed::facts::{AppFacts, ClaimFacts, PodFacts, RouteFacts};
use crate::feed::hosts::Hosts;
use crate::feed::names::Names;
use crate::feed::snapshot::{Caches, Directory, Keeper};
use crate::feed::staleness::Staleness;
use crate::model::{Activation, RouteId, ServiceKey};
use crate::peers::Absent;
use crate::report::{Identity, State};

mod certificates;
mod facts;
mod gateways;
mod hosts;
mod names;
mod snapshot;
mod staleness;

pub(crate) use facts::PoolFacts;
pub use gateways::watch_gateways;
pub use snapshot::SnapshotSettings;

/// The component name in metrics and field managers.
const COMPONENT: &str = "gateway";

/// A task of the feed, to be joined with the others of the process.
pub type FeedTask = Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>;

/// What the feed is started with.
#[derive(Debug)]
pub struct FeedSettings {
    /// This gateway, to whose process slots are granted.
    pub identity: Identity,
    /// The certificate for hosts without their own.
    pub default_certificate: Option<ObjectKey>,
    /// Where what is known is kept for the next process of this Pod; `None`: nowhere.
    pub snapshot: Option<SnapshotSettings>,
    /// For the watches of Secrets, of which there is one for each.
    pub connections: Connections,
    /// Which other gateways are there no more; `None`: there are no links that could tell.
    pub absent: Option<watch::Receiver<Absent>>,
}

/// The running feed.
pub struct Feed {
    /// The pools, for the scale-down delays that reports are rounded by.
    pub(crate) pools: Cache<SandboxPool, PoolFacts>,
    caches: Caches,
    directory: Option<Directory>,
    /// When what a snapshot said was true; `None` if none was loaded.
    restored: Option<Timestamp>,
    started: Timestamp,
}

impl Feed {
    /// Loads the snapshot, if there is a good one, feeds it, and starts all watches. The tasks run
    /// until the context shuts down and must be joined by the caller.
    pub fn start(
        ctx: &Context,
        ingress: &Ingress,
        state: &State,
        settings: FeedSettings,
    ) -> (Self, Vec<(&'static str, FeedTask)>) {
        let directory = settings.snapshot.as_ref().and_then(Directory::open);
        let loaded = directory.as_ref().and_then(|directory| directory.load(SystemTime::now()));
        let restored = loaded.as_ref().map(|loaded| loaded.vouched);
        let kept = loaded.map(|loaded| loaded.kept).unwrap_or_default();
        let (wanted, wishes) = watch::channel(Wanted::default());
        let routing = Arc::new(Mutex::new(Routing {
            hosts: Hosts::default(),
            ingress: ingress.clone(),
            wanted,
            default: settings.default_certificate,
        }));
        routing.lock().want_certificates();
        let on = Wiring { ctx, ingress, changed: Arc::default() };
        let (routes, route_task) = watch_routes(&on, &routing, kept.routes);
        let (claims, claim_task) = watch_claims(&on, &routing, kept.claims);
        let (apps, app_task) = watch_apps(&on, state, kept.apps);
        let (pools, pool_task) = watch_pools(&on, kept.pools);
        let sandboxes = Sandboxes {
            ingress: ingress.clone(),
            pools: pools.clone(),
            absent: Mutex::new(Absent::default()),
        };
        let sandboxes = Arc::new(sandboxes);
        let (pods, pod_task) = watch_pods(&on, settings.identity, &sandboxes, kept.pods);
        let changed = on.changed;
        if restored.is_some() {
            ingress.mark_restored();
        }
        let certificates =
            Certificates::new(ctx, ingress, state, directory.clone(), settings.connections);
        let mut tasks: Vec<(&'static str, FeedTask)> = vec![
            ("routes", Box::pin(route_task)),
            ("claims", Box::pin(claim_task)),
            ("apps", Box::pin(app_task)),
            ("pools", Box::pin(pool_task)),
            ("pods", Box::pin(pod_task)),
            ("certificates", Box::pin(certificates.run(wishes))),
        ];
        if let Some(absent) = settings.absent {
            let follow = sandboxes.follow(pods.clone(), absent, ctx.shutdown());
            tasks.push(("absent", Box::pin(follow)));
        }
        let caches = Caches { routes, claims, apps, pools: pools.clone(), pods };
        if let Some(directory) = directory.clone() {
            let keeper = Keeper { directory, caches: caches.clone(), changed };
            tasks.push(("snapshot", Box::pin(keeper.run(ctx.shutdown()))));
        }
        (Self { pools, caches, directory, restored, started: ctx.now() }, tasks)
    }

    /// Waits until everything that exists has been fed once.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn synced(&self) {
        self.caches.synced().await;
    }

    /// Whether a snapshot was loaded: what it knew is served, and what it did not know is not
    /// denied until everything has been read.
    pub fn is_restored(&self) -> bool {
        self.restored.is_some()
    }

    /// Registers how old what is known may be, and what became of snapshots.
    pub fn register(&self, registry: &mut Registry) {
        let mut staleness = Staleness::new(self.restored.unwrap_or(self.started));
        staleness.add(&self.caches.routes);
        staleness.add(&self.caches.claims);
        staleness.add(&self.caches.apps);
        staleness.add(&self.caches.pools);
        staleness.add(&self.caches.pods);
        registry.register_collector(Box::new(staleness));
        if let Some(directory) = &self.directory {
            directory.register(registry);
        }
    }
}

/// What every watch is connected to.
struct Wiring<'a> {
    ctx: &'a Context,
    ingress: &'a Ingress,
    /// Told of every change, for the snapshot.
    changed: Arc<Notify>,
}

impl Wiring<'_> {
    fn note<T>(&self) -> impl Fn(Change<'_, T>) + Send + Sync + 'static + use<T> {
        let changed = Arc::clone(&self.changed);
        move |_| changed.notify_one()
    }
}

/// Where Routes and Claims meet, and what follows from it.
struct Routing {
    hosts: Hosts,
    ingress: Ingress,
    wanted: watch::Sender<Wanted>,
    default: Option<ObjectKey>,
}

impl Routing {
    fn serve(&mut self, changes: hosts::Changes) {
        for key in &changes.withdrawn {
            self.ingress.remove_route(&route_id(key));
        }
        for route in &changes.served {
            self.ingress.upsert_route(route_id(&route.key), &route.config);
        }
        if changes.certificates {
            self.want_certificates();
        }
    }

    fn want_certificates(&self) {
        let wanted = self.hosts.certificates(self.default.as_ref());
        self.wanted.send_if_modified(|current| {
            let is_new = *current != wanted;
            *current = wanted;
            is_new
        });
    }
}

fn route_id(key: &ObjectKey) -> RouteId {
    RouteId { namespace: key.namespace.as_str().into(), name: key.name.as_str().into() }
}

/// Where sandboxes meet what is known of the gateways that share them.
struct Sandboxes {
    ingress: Ingress,
    pools: Cache<SandboxPool, PoolFacts>,
    /// Held while a sandbox is shown, so that the last word is by all that is known.
    absent: Mutex<Absent>,
}

impl Sandboxes {
    fn show(&self, pod: &PodFacts) {
        self.show_by(&self.absent.lock(), pod);
    }

    fn show_by(&self, absent: &Absent, pod: &PodFacts) {
        let name = &pod.pool.name;
        let pool = self.pools.get(&ObjectKey::new(&*name.namespace, &*name.name));
        self.ingress.upsert_sandbox(&pod.pool, &pod.usable(pool.as_deref(), absent));
    }

    /// Shows those anew that have slots of gateways which went, or came back.
    async fn follow(
        self: Arc<Self>,
        pods: Cache<Pod, PodFacts>,
        mut news: watch::Receiver<Absent>,
        shutdown: CancellationToken,
    ) -> Task {
        loop {
            {
                let mut absent = self.absent.lock();
                let before = std::mem::replace(&mut *absent, news.borrow_and_update().clone());
                let is_concerned = |(gateway, _): &(Arc<str>, u32)| {
                    before.instances.contains(gateway) || absent.instances.contains(gateway)
                };
                for pod in pods.list() {
                    if pod.others.iter().any(is_concerned) {
                        self.show_by(&absent, &pod);
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Ok(()) = news.changed() => {}
            }
        }
    }
}

type Task = Result<(), RunError>;

fn watch_routes(
    on: &Wiring<'_>,
    routing: &Arc<Mutex<Routing>>,
    kept: Vec<(ObjectKey, RouteFacts)>,
) -> (Cache<Route, RouteFacts>, impl Future<Output = Task> + Send + use<>) {
    let routing = routing.clone();
    Watch::<Route>::new()
        .project(RouteFacts::of)
        .on_change(move |change| {
            let mut routing = routing.lock();
            let changes = routing.hosts.route(change.key, change.new.cloned());
            routing.serve(changes);
        })
        .on_change(on.note())
        .seed(kept)
        .start(on.ctx, COMPONENT)
}

fn watch_claims(
    on: &Wiring<'_>,
    routing: &Arc<Mutex<Routing>>,
    kept: Vec<(ObjectKey, ClaimFacts)>,
) -> (Cache<Claim, ClaimFacts>, impl Future<Output = Task> + Send + use<>) {
    let routing = routing.clone();
    Watch::<Claim>::new()
        .project(ClaimFacts::of)
        .on_change(move |change| {
            let mut routing = routing.lock();
            let host = change.new.or(change.old).map(|claim| claim.host.clone());
            let Some(host) = host else { return };
            let changes = routing.hosts.claim(&host, change.new.cloned());
            routing.serve(changes);
        })
        .on_change(on.note())
        .seed(kept)
        .start(on.ctx, COMPONENT)
}

fn watch_apps(
    on: &Wiring<'_>,
    state: &State,
    kept: Vec<(ObjectKey, AppFacts)>,
) -> (Cache<App, AppFacts>, impl Future<Output = Task> + Send + use<>) {
    let (ingress, state) = (on.ingress.clone(), state.clone());
    let names = Mutex::new(Names::default());
    Watch::<App>::new()
        .project(AppFacts::of)
        .on_change(move |change| {
            follow(&ingress, &state, &change);
            name(&ingress, &mut names.lock(), &change);
        })
        .on_change(on.note())
        .seed(kept)
        .start(on.ctx, COMPONENT)
}

/// Keeps the names that the services of an App have inside the cluster.
fn name(ingress: &Ingress, names: &mut Names, change: &Change<'_, AppFacts>) {
    let services = |app: Option<&Arc<AppFacts>>| -> Vec<ServiceKey> {
        app.map(|app| app.services.iter().map(|(key, _)| key.clone()).collect()).unwrap_or_default()
    };
    for (name, bearer) in names.change(&services(change.old), &services(change.new)) {
        ingress.set_service_name(&name, bearer.as_ref());
    }
}

/// Follows an activation: all services of the App first, then the report.
fn follow(ingress: &Ingress, state: &State, change: &Change<'_, AppFacts>) {
    let services =
        |app: Option<&Arc<AppFacts>>| app.map(|app| app.services.clone()).unwrap_or_default();
    let (old, new) = (services(change.old), services(change.new));
    for (service, _) in old.iter().filter(|(key, _)| new.iter().all(|(other, _)| other != key)) {
        ingress.deactivate(service);
    }
    let Some(app) = change.new else {
        state.forget(change.key);
        return;
    };
    for (service, pool) in &app.services {
        let activation =
            Activation { app_uid: app.uid.clone(), epoch: app.epoch, pool: pool.clone() };
        ingress.activate(service, activation);
    }
    if app.is_settled {
        state.forget(change.key);
    } else {
        state.follow(change.key, app.epoch);
    }
}

fn watch_pools(
    on: &Wiring<'_>,
    kept: Vec<(ObjectKey, PoolFacts)>,
) -> (Cache<SandboxPool, PoolFacts>, impl Future<Output = Task> + Send + use<>) {
    let ingress = on.ingress.clone();
    Watch::<SandboxPool>::new()
        .project(PoolFacts::of)
        .on_change(move |change| {
            if let Some(old) = change.old
                && change.new.is_none_or(|new| new.id != old.id)
            {
                ingress.remove_pool(&old.id);
            }
            let Some(new) = change.new else { return };
            if change.old.is_none_or(|old| old.id != new.id || old.config != new.config) {
                ingress.upsert_pool(&new.id, new.config.clone());
            }
            ingress.set_pool_failure(&new.id, new.failure.clone());
        })
        .on_change(on.note())
        .seed(kept)
        .start(on.ctx, COMPONENT)
}

fn watch_pods(
    on: &Wiring<'_>,
    identity: Identity,
    sandboxes: &Arc<Sandboxes>,
    kept: Vec<(ObjectKey, PodFacts)>,
) -> (Cache<Pod, PodFacts>, impl Future<Output = Task> + Send + use<>) {
    let (ingress, sandboxes) = (on.ingress.clone(), Arc::clone(sandboxes));
    Watch::<Pod>::new()
        .labels(labels::POOL)
        .project(move |pod| PodFacts::of(&pod, &identity))
        .on_change(move |change| {
            if let Some(old) = change.old {
                let is_other = |new: &Arc<PodFacts>| {
                    new.pool != old.pool || new.sandbox.id.uid != old.sandbox.id.uid
                };
                if change.new.is_none_or(is_other) {
                    ingress.remove_sandbox(&old.pool, &old.sandbox.id.uid);
                }
            }
            if let Some(new) = change.new {
                sandboxes.show(new);
            }
        })
        .on_change(on.note())
        .seed(kept)
        .start(on.ctx, COMPONENT)
}
