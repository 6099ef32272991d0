//! A controller put together: its watches, its queue, its writer, and what runs them.

use std::{future::Future, pin::Pin};

use crate::{
    Cache, Change, Context, Events, ObjectKey, Queue, Reconciler, Watch, Watched, Writer,
    events::Publisher,
    runner::{Feeds, Runner},
};

/// Why a controller ended although nobody asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// One of the controller's own tasks returned.
    #[error("task of controller {controller} ended")]
    TaskEnded {
        /// The controller.
        controller: &'static str,
    },
    /// One of the controller's own tasks panicked. Passes that panic do not end the controller.
    #[error("task of controller {controller} panicked")]
    TaskPanicked {
        /// The controller.
        controller: &'static str,
        /// What the runtime reports.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// A task of a controller, to be joined with the others.
pub(crate) type Task = Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>;

/// What [`Controller`] needs to know of a cache, whatever its types.
pub(crate) type Synced = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Lists the keys of a cache.
pub(crate) type Keys = Box<dyn Fn() -> Vec<ObjectKey> + Send + Sync>;

/// A controller that is being put together.
///
/// First the watches, then [`Controller::run`]. While the process does not lead, the caches are
/// kept warm and nothing is written.
#[must_use = "a controller does nothing until it is run"]
pub struct Controller {
    context: Context,
    name: &'static str,
    queue: Queue,
    events: Events,
    publisher: Publisher,
    tasks: Vec<Task>,
    synced: Vec<Synced>,
    primaries: Vec<Keys>,
}

impl Controller {
    /// A controller without watches. `name` is a kind in lower case: its field manager and its
    /// Lease are `portolan-<name>`.
    pub fn new(context: &Context, name: &'static str) -> Self {
        let settings = context.settings();
        let metrics = context.metrics();
        let queue = Queue::new(settings.backoff, settings.queue_capacity, metrics.queue(name));
        let (events, publisher) = Events::new(context.client(), name, &settings.instance, metrics);
        Self {
            context: context.clone(),
            name,
            queue,
            events,
            publisher,
            tasks: Vec::new(),
            synced: Vec::new(),
            primaries: Vec::new(),
        }
    }

    /// Watches the kind that is reconciled: every change of an object wakes its own key, and full
    /// passes go over all of them.
    pub fn primary<K: Watched, T: Send + Sync + 'static>(
        &mut self,
        watch: Watch<K, T>,
    ) -> Cache<K, T> {
        let cache = self.watch(watch, |change| [change.key.clone()]);
        let listed = cache.clone();
        self.primaries.push(Box::new(move || listed.keys()));
        cache
    }

    /// Watches something that a pass reads; a change wakes the keys that `keys` names.
    pub fn watch<K: Watched, T: Send + Sync + 'static, I>(
        &mut self,
        watch: Watch<K, T>,
        keys: impl Fn(&Change<'_, T>) -> I + Send + Sync + 'static,
    ) -> Cache<K, T>
    where
        I: IntoIterator<Item = ObjectKey>,
    {
        let watch = watch.wake(&self.queue, keys);
        self.read(watch)
    }

    /// Watches something that a pass reads; a change wakes nobody but the watch's own handlers.
    pub fn read<K: Watched, T: Send + Sync + 'static>(
        &mut self,
        watch: Watch<K, T>,
    ) -> Cache<K, T> {
        let (cache, task) = watch.start(&self.context, self.name);
        self.tasks.push(Box::pin(task));
        let waiting = cache.clone();
        self.synced.push(Box::pin(async move { waiting.synced().await }));
        cache
    }

    /// The queue, for what wakes a key and is no watch.
    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// The controller's writer.
    pub fn writer(&self) -> Writer {
        Writer::new(self.context.client(), self.name, self.context.metrics().clone())
    }

    /// The controller's Events.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// Runs until the context's shutdown token is cancelled; then running passes end, and the
    /// Lease is given back.
    ///
    /// # Errors
    ///
    /// [`RunError`] when one of the controller's own tasks ended unasked. A failed pass never
    /// ends a controller.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops passes where they are; the Lease lapses by itself.
    pub fn run<R: Reconciler>(
        self,
        reconciler: R,
    ) -> impl Future<Output = Result<(), RunError>> + Send + use<R> {
        let gate = self.context.readiness().gate(format!("{}.caches", self.name));
        let feeds = Feeds {
            watches: self.tasks,
            publisher: self.publisher,
            synced: self.synced,
            primaries: self.primaries,
            gate,
        };
        Runner::new(self.context, self.name, self.queue, reconciler).run(feeds)
    }
}
