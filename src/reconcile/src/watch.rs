//! Watches: from the API server into a cache, and from there to whoever must know.

use std::{fmt::Debug, future::Future, time::Duration};

use futures::{StreamExt, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use portolan_process::ErrorChain;
use prometheus_client::metrics::counter::Counter;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    Cache, Change, Context, ObjectKey, Queue,
    cache::{CacheParts, Handler, IndexBy, IsSame, Project, Sighting},
    controller::RunError,
    guard::Guarded,
    metrics::WatchLabel,
};

/// How often a quiet watch looks after entries that only our own writes vouch for.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// About how long to rest before everything is listed again.
const RELIST_AFTER: Duration = Duration::from_secs(1);

/// What can be watched: any typed kind, or `PartialObjectMeta` of one for its metadata only.
pub trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// A watch to be started: which objects, what is kept of them, how they are found, who is told.
///
/// `K` is the kind as the API server sends it, `T` what is kept. A malformed object is logged,
/// counted and skipped; it never stops the rest. A watch that breaks is begun again after a
/// jittered, growing delay, and what changed meanwhile, deletions included, arrives as changes.
#[must_use = "a watch does nothing until it is started"]
pub struct Watch<K: Watched, T = K> {
    api: Box<dyn FnOnce(Client) -> Api<Guarded<K>> + Send>,
    config: watcher::Config,
    project: Project<K, T>,
    indexes: Vec<(&'static str, IndexBy<T>)>,
    handlers: Vec<Handler<T>>,
    is_same: Option<IsSame<T>>,
}

impl<K: Watched> Watch<K> {
    /// All objects of the kind, kept whole.
    pub fn new() -> Self {
        Self {
            api: Box::new(Api::all),
            // A list as a stream costs the API server and us one object at a time.
            config: watcher::Config::default().streaming_lists(),
            project: Box::new(Some),
            indexes: Vec::new(),
            handlers: Vec::new(),
            is_same: None,
        }
    }

    /// Drops `managedFields`, which are often half of an object and nothing we read.
    pub fn prune(mut self) -> Self {
        self.project = Box::new(|mut object: K| {
            object.meta_mut().managed_fields = None;
            Some(object)
        });
        self
    }

    /// Keeps only what `project` makes of an object; nothing of those it answers `None` for.
    ///
    /// # Panics
    ///
    /// When an index or a handler was added before: these see what is kept.
    pub fn project<T>(
        self,
        project: impl Fn(K) -> Option<T> + Send + Sync + 'static,
    ) -> Watch<K, T> {
        assert!(
            self.indexes.is_empty() && self.handlers.is_empty() && self.is_same.is_none(),
            "the projection comes before indexes and handlers"
        );
        Watch {
            api: self.api,
            config: self.config,
            project: Box::new(project),
            indexes: Vec::new(),
            handlers: Vec::new(),
            is_same: None,
        }
    }
}

impl<K: Watched> Default for Watch<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Watched, T: Send + Sync + 'static> Watch<K, T> {
    /// Only the objects of one namespace.
    pub fn in_namespace(mut self, namespace: impl Into<String>) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        let namespace = namespace.into();
        self.api = Box::new(move |client| Api::namespaced(client, &namespace));
        self
    }

    /// Only objects that match a label selector, such as `portolan.dev/pool`.
    pub fn labels(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    /// Only objects that match a field selector, such as `type=kubernetes.io/tls`.
    pub fn fields(mut self, selector: &str) -> Self {
        self.config = self.config.fields(selector);
        self
    }

    /// Lets objects be found by what `by` says of them; see [`Cache::by_index`].
    pub fn index<I>(
        mut self,
        name: &'static str,
        by: impl Fn(&T) -> I + Send + Sync + 'static,
    ) -> Self
    where
        I: IntoIterator<Item = String>,
    {
        let by: IndexBy<T> = Box::new(move |value| by(value).into_iter().collect());
        self.indexes.push((name, by));
        self
    }

    /// Tells nobody of an object that changed in nothing that is kept of it, for example of a Pod
    /// of which only the heartbeat moved. The cache takes it in all the same.
    pub fn distinct(mut self) -> Self
    where
        T: PartialEq,
    {
        self.is_same = Some(Box::new(T::eq));
        self
    }

    /// Calls `handler` with every change, from inside the watch: it must be short and never block.
    ///
    /// Changes of the watch come in order. Those of [`Cache::observe`] come from the pass that
    /// wrote, so a handler that keeps state of its own should not share a cache with passes.
    pub fn on_change(mut self, handler: impl Fn(Change<'_, T>) + Send + Sync + 'static) -> Self {
        self.handlers.push(Box::new(move |change, _| {
            handler(Change { key: change.key, old: change.old, new: change.new });
        }));
        self
    }

    /// Adds the keys that `keys` names for a change to a queue.
    pub fn wake<I>(
        mut self,
        queue: &Queue,
        keys: impl Fn(&Change<'_, T>) -> I + Send + Sync + 'static,
    ) -> Self
    where
        I: IntoIterator<Item = ObjectKey>,
    {
        let queue = queue.clone();
        self.handlers.push(Box::new(move |change, origin| {
            for key in keys(change) {
                let own = origin.is_some_and(|by| by.queue.is(&queue) && *by.key == key);
                if !own {
                    queue.add(key);
                }
            }
        }));
        self
    }

    /// Builds the cache and the task that feeds it. `component` is the metric label.
    ///
    /// The task runs until `ctx.shutdown` is cancelled and must be joined by the caller.
    pub fn start(
        self,
        ctx: &Context,
        component: &'static str,
    ) -> (Cache<K, T>, impl Future<Output = Result<(), RunError>> + Send + use<K, T>) {
        let label = WatchLabel { controller: component, kind: K::kind(&()).into_owned() };
        let metrics = ctx.metrics();
        let cache = Cache::new(CacheParts {
            project: self.project,
            indexes: self.indexes,
            handlers: self.handlers,
            is_same: self.is_same,
            size: metrics.cached_objects.get_or_create_owned(&label),
        });
        let feed = Feed {
            api: (self.api)(ctx.client()),
            config: self.config,
            cache: cache.clone(),
            errors: metrics.watch_errors.get_or_create_owned(&label),
            malformed: metrics.malformed_objects.get_or_create_owned(&label),
        };
        (cache, feed.run(ctx.shutdown()))
    }
}

/// The running end of a watch.
struct Feed<K: Watched, T> {
    api: Api<Guarded<K>>,
    config: watcher::Config,
    cache: Cache<K, T>,
    errors: Counter,
    malformed: Counter,
}

impl<K: Watched, T: Send + Sync + 'static> Feed<K, T> {
    async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.follow() => {}
            }
            // Spread, because what expired for one watch expired for all.
            let rest = RELIST_AFTER.mul_f64(0.5 + fastrand::f64());
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Follows one watch until only a new one can go on.
    async fn follow(&self) {
        // Kube's backoff is jittered, grows to 30 s and is forgotten after two quiet minutes.
        let events = watcher::watcher(self.api.clone(), self.config.clone()).default_backoff();
        pin_mut!(events);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            let event = tokio::select! {
                _ = sweep.tick() => {
                    self.cache.sweep();
                    continue;
                }
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => take(&self.cache, event, &self.malformed),
                Some(Err(error)) => {
                    self.errors.inc();
                    let kind = K::kind(&());
                    tracing::warn!(%kind, error = %ErrorChain(&error), "Watch interrupted");
                    if is_expired(&error) {
                        return;
                    }
                }
                None => return,
            }
        }
    }
}

/// Whether the version to resume from is refused at once, and not by an event of the stream: kube
/// lists again after the latter, but would ask for the former for ever.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

fn take<K: Watched, T>(cache: &Cache<K, T>, event: Event<Guarded<K>>, malformed: &Counter) {
    match event {
        Event::Init => cache.begin_relist(),
        Event::InitDone => cache.end_relist(),
        Event::Delete(object) => cache.gone(&Sighting::of(object.meta())),
        Event::Apply(Guarded::Good(object)) | Event::InitApply(Guarded::Good(object)) => {
            cache.shown(*object);
        }
        Event::Apply(Guarded::Malformed { metadata, why })
        | Event::InitApply(Guarded::Malformed { metadata, why }) => {
            malformed.inc();
            let sighting = Sighting::of(&metadata);
            let (kind, key) = (K::kind(&()), &sighting.key);
            tracing::warn!(%kind, %key, why, "Malformed object skipped");
            cache.shown_malformed(sighting.key, why);
        }
    }
}
