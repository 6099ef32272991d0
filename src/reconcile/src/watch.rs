//! Watches: from the API server into a cache, and from there to whoever must know.

use std::{fmt::Debug, future::Future};

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Cache, Change, Context, ObjectKey, Packed, Queue,
    cache::{CacheParts, Handler, IndexBy, IsSame, Project, Wholeness},
    controller::RunError,
    feed::{Feed, Selectors},
    guard::Guarded,
    metrics::WatchLabel,
};

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
/// jittered, growing delay, and what changed meanwhile, deletions included, arrives as changes;
/// [`Cache::unbroken_since`] says whether, and since when, nothing can have been missed.
#[must_use = "a watch does nothing until it is started"]
pub struct Watch<K: Watched, T = K> {
    api: Box<dyn FnOnce(Client) -> Api<Guarded<K>> + Send>,
    selectors: Selectors,
    project: Project<K, T>,
    indexes: Vec<(&'static str, IndexBy<T>)>,
    handlers: Vec<Handler<T>>,
    is_same: Option<IsSame<T>>,
    seeds: Vec<(ObjectKey, T)>,
}

impl<K: Watched> Watch<K> {
    /// All objects of the kind, kept whole.
    pub fn new() -> Self {
        Self {
            api: Box::new(Api::all),
            selectors: Selectors::default(),
            project: Box::new(|object| Ok(Some(object))),
            indexes: Vec::new(),
            handlers: Vec::new(),
            is_same: None,
            seeds: Vec::new(),
        }
    }

    /// Drops `managedFields`, which are often half of an object and nothing we read.
    pub fn prune(mut self) -> Self {
        self.project = Box::new(|mut object: K| {
            object.meta_mut().managed_fields = None;
            Ok(Some(object))
        });
        self
    }

    /// Keeps objects as text, without `managedFields`: see [`Packed`]. An object that cannot be read
    /// from its own text is malformed.
    ///
    /// # Panics
    ///
    /// As [`Watch::project`].
    pub fn pack(self) -> Watch<K, Packed<K>>
    where
        K: Serialize,
    {
        self.keep(Box::new(|object| Packed::checked(object).map(Some)))
    }

    /// Keeps only what `project` makes of an object; nothing of those it answers `None` for.
    ///
    /// # Panics
    ///
    /// When an index, a handler or a seed was added before: these see what is kept.
    pub fn project<T>(
        self,
        project: impl Fn(K) -> Option<T> + Send + Sync + 'static,
    ) -> Watch<K, T> {
        self.keep(Box::new(move |object| Ok(project(object))))
    }

    fn keep<T>(self, project: Project<K, T>) -> Watch<K, T> {
        assert!(
            self.indexes.is_empty()
                && self.handlers.is_empty()
                && self.is_same.is_none()
                && self.seeds.is_empty(),
            "the projection comes before indexes, handlers and seeds"
        );
        Watch {
            api: self.api,
            selectors: self.selectors,
            project,
            indexes: Vec::new(),
            handlers: Vec::new(),
            is_same: None,
            seeds: Vec::new(),
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
        self.selectors.labels = Some(selector.to_owned());
        self
    }

    /// Only objects that match a field selector, such as `type=kubernetes.io/tls`.
    pub fn fields(mut self, selector: &str) -> Self {
        self.selectors.fields = Some(selector.to_owned());
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

    /// Begins with what an earlier process kept, until the API server says what there is now: what
    /// it does not show then is gone, and until then the cache is not synced. Handlers are told.
    pub fn seed(mut self, kept: Vec<(ObjectKey, T)>) -> Self {
        self.seeds = kept;
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
            wholeness: Wholeness::new(metrics.watch_interrupted.get_or_create_owned(&label)),
        });
        for (key, value) in self.seeds {
            cache.seed(key, value);
        }
        let feed = Feed {
            api: (self.api)(ctx.client()),
            selectors: self.selectors,
            cache: cache.clone(),
            clock: ctx.clock(),
            errors: metrics.watch_errors.get_or_create_owned(&label),
            lists: metrics.watch_lists.get_or_create_owned(&label),
            malformed: metrics.malformed_objects.get_or_create_owned(&label),
        };
        (cache, feed.run(ctx.shutdown()))
    }
}
