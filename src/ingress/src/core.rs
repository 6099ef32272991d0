//! What every part of the data path shares.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::demand::Changes;
use crate::lending::link::Links;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// Settings, metrics, the list of changes, and the tasks on the side.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) changes: Changes,
    /// The gateways that are connected.
    pub(crate) links: ArcSwap<Links>,
    tickets: AtomicU64,
    tasks: TaskTracker,
    streams: TaskTracker,
    stop: CancellationToken,
    runtime: Handle,
}

impl Core {
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            settings,
            metrics,
            changes: Changes::default(),
            links: ArcSwap::default(),
            tickets: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            streams: TaskTracker::new(),
            stop: CancellationToken::new(),
            runtime: Handle::current(),
        }
    }

    /// The next place in the order of arrival.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a task that [`Core::stop`] ends and awaits.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(self.stoppable(task), &self.runtime);
    }

    /// As [`Core::spawn`], for a client's stream that outlives its connection's task: draining
    /// waits for it.
    pub(crate) fn spawn_stream(&self, stream: impl Future<Output = ()> + Send + 'static) {
        self.streams.spawn_on(self.stoppable(stream), &self.runtime);
    }

    /// Waits until all streams have ended.
    pub(crate) async fn streams_ended(&self) {
        self.streams.close();
        self.streams.wait().await;
    }

    /// Ends all tasks.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.streams_ended().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn stoppable(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        // A token of its own: polling a shared one takes a lock that all tasks would meet in.
        let stop = self.stop.child_token();
        async move {
            tokio::select! {
                biased;
                () = task => {}
                () = stop.cancelled() => {}
            }
        }
    }
}
