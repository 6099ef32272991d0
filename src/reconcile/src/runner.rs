//! What runs a controller: waits for its caches and its Lease, then works the queue.

use std::{
    any::Any,
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use portolan_process::{ErrorChain, Gate};
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

use crate::{
    Context, ObjectKey, Pass, Queue, ReconcileError, Reconciler, Retry,
    controller::{Keys, RunError, Synced, Task},
    events::Publisher,
    leader::Election,
    metrics::{ControllerLabel, PassLabel},
    queue::{Finish, Taken},
};

/// How long running passes may go on at shutdown: less than the 30 s that Kubernetes and the
/// process's own tasks give, so that the Lease can still be given back.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What feeds a controller.
pub(crate) struct Feeds {
    pub(crate) watches: Vec<Task>,
    pub(crate) publisher: Publisher,
    pub(crate) synced: Vec<Synced>,
    pub(crate) primaries: Vec<Keys>,
    pub(crate) gate: Gate,
}

/// How a pass ended.
struct Ended {
    result: &'static str,
    finish: Finish,
}

/// A controller at work.
pub(crate) struct Runner<R> {
    context: Context,
    name: &'static str,
    queue: Queue,
    reconciler: Arc<R>,
    passes: JoinSet<Ended>,
    keys: HashMap<Id, (ObjectKey, Span)>,
    /// What is left of a full pass because the queue had no room for it.
    backlog: VecDeque<ObjectKey>,
}

impl<R: Reconciler> Runner<R> {
    pub(crate) fn new(context: Context, name: &'static str, queue: Queue, reconciler: R) -> Self {
        let reconciler = Arc::new(reconciler);
        let (passes, keys, backlog) = (JoinSet::new(), HashMap::new(), VecDeque::new());
        Self { context, name, queue, reconciler, passes, keys, backlog }
    }

    /// Runs until shutdown; every task it starts is joined here.
    pub(crate) async fn run(mut self, feeds: Feeds) -> Result<(), RunError> {
        let Feeds { watches, publisher, synced, primaries, gate } = feeds;
        let (name, shutdown) = (self.name, self.context.shutdown());
        // Passes end first, then the Lease is given back and the last Events are published.
        let passes_ended = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for task in watches {
            tasks.spawn(task);
        }
        tasks.spawn(publisher.run(passes_ended.clone()));
        let caches_synced = CancellationToken::new();
        let leading = self.elect(&mut tasks, caches_synced.clone(), passes_ended.clone());

        let work = async {
            if self.sync(synced, gate, &caches_synced).await {
                self.work(primaries, leading).await;
            }
        };
        let worked = tokio::select! {
            () = work => Ok(()),
            // At shutdown the watches end first, and that is as it should be.
            error = unasked(&mut tasks, name, &shutdown) => Err(error),
        };
        self.abort_passes().await;
        passes_ended.cancel();
        if worked.is_err() {
            // The process will end; what feeds this controller must not outlive it.
            tasks.shutdown().await;
        }
        while let Some(joined) = tasks.join_next().await {
            joined.map_err(|source| RunError::TaskPanicked { controller: name, source })??;
        }
        worked
    }

    /// Starts to compete for the Lease, if there is one, once the caches are synced: a process that
    /// never gets them would take the Lease and do nothing. The receiver says whether we lead.
    fn elect(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        caches_synced: CancellationToken,
        stop: CancellationToken,
    ) -> watch::Receiver<bool> {
        let settings = self.context.settings();
        let leading = watch::Sender::new(settings.lease.is_none());
        let receiver = leading.subscribe();
        match &settings.lease {
            Some(lease) => {
                let election = Election {
                    client: self.context.client(),
                    lease: format!("portolan-{}", self.name),
                    // A process that restarts under the same name is another candidate.
                    identity: format!("{}-{:08x}", settings.instance, fastrand::u32(..)),
                    settings: lease.clone(),
                };
                tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => Ok(()),
                        () = caches_synced.cancelled() => election.run(leading, stop.clone()).await,
                    }
                });
            }
            None => {
                tasks.spawn(async move {
                    stop.cancelled().await;
                    drop(leading);
                    Ok(())
                });
            }
        }
        receiver
    }

    /// Waits until all caches are synced, and says so; `false` when the process shall stop before.
    async fn sync(
        &self,
        synced: Vec<Synced>,
        mut gate: Gate,
        caches_synced: &CancellationToken,
    ) -> bool {
        let shutdown = self.context.shutdown();
        tokio::select! {
            () = shutdown.cancelled() => return false,
            _ = join_all(synced) => {}
        }
        gate.open();
        caches_synced.cancel();
        tracing::info!(controller = self.name, "Caches synced");
        true
    }

    /// Works the queue whenever we lead; returns when the process shall stop and all passes have
    /// ended.
    async fn work(&mut self, primaries: Vec<Keys>, mut leading: watch::Receiver<bool>) {
        let shutdown = self.context.shutdown();
        let gauge = &self.context.metrics().leading;
        let gauge = gauge.get_or_create_owned(&ControllerLabel { controller: self.name });
        loop {
            let elected = tokio::select! {
                () = shutdown.cancelled() => return,
                elected = leading.wait_for(|leads| *leads) => elected.is_ok(),
            };
            if !elected {
                // The election ended; whoever joins it knows why.
                return;
            }
            gauge.set(1);
            tracing::info!(controller = self.name, "Leading");
            let stopped = self.lead(&primaries, &mut leading, &shutdown).await;
            gauge.set(0);
            if stopped {
                // What still runs after that, or when leadership ends, is dropped by the caller.
                tokio::select! {
                    _ = leading.wait_for(|leads| !*leads) => {}
                    () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
                    () = self.drain() => {}
                }
                return;
            }
            self.abort_passes().await;
            tracing::warn!(controller = self.name, "No longer leading");
        }
    }

    /// Works the queue until leadership is lost (`false`) or the process shall stop (`true`).
    async fn lead(
        &mut self,
        primaries: &[Keys],
        leading: &mut watch::Receiver<bool>,
        shutdown: &CancellationToken,
    ) -> bool {
        // Whatever the last leader did or left undone, every object is looked at once.
        self.enqueue_all(primaries);
        let mut resync = self.next_resync();
        let concurrency = self.context.settings().concurrency.max(1);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return true,
                _ = leading.wait_for(|leads| !*leads) => return false,
                Some(ended) = self.passes.join_next_with_id() => {
                    self.ended(ended);
                    if self.queue.take_overflow() {
                        self.enqueue_all(primaries);
                    }
                    self.feed();
                }
                () = sleep_until(resync) => {
                    self.enqueue_all(primaries);
                    resync = self.next_resync();
                }
                taken = self.queue.take(), if self.passes.len() < concurrency => self.start(taken),
            }
        }
    }

    /// Has every object looked at once. What is left of an earlier full pass comes first, so that
    /// no key starves while the queue keeps overflowing.
    fn enqueue_all(&mut self, primaries: &[Keys]) {
        let waiting: HashSet<ObjectKey> = self.backlog.iter().cloned().collect();
        let all = primaries.iter().flat_map(|keys| keys());
        self.backlog.extend(all.filter(|key| !waiting.contains(key)));
        self.feed();
    }

    /// Moves as much of the backlog into the queue as there is room for.
    fn feed(&mut self) {
        while !self.backlog.is_empty() && self.queue.has_room() {
            self.backlog.drain(..1).for_each(|key| self.queue.add(key));
        }
    }

    /// Spread by a tenth either way, so that controllers do not go over everything together.
    fn next_resync(&self) -> Instant {
        let spread = 0.9 + fastrand::f64() / 5.0;
        Instant::now() + self.context.settings().resync_every.mul_f64(spread)
    }

    fn start(&mut self, taken: Taken) {
        let Taken { key, failures, waited } = taken;
        let span = tracing::info_span!(
            "pass",
            controller = self.name,
            namespace = key.namespace,
            name = key.name,
            uid = Empty,
            generation = Empty,
        );
        let pass = Pass::new(self.queue.clone(), key.clone(), failures, self.context.now());
        let pass = pass.within(span.clone());
        let limit = self.context.settings().pass_timeout;
        let seconds = &self.context.metrics().pass_seconds;
        let seconds = seconds.get_or_create_owned(&ControllerLabel { controller: self.name });
        let reconciler = self.reconciler.clone();
        let work = async move {
            tracing::debug!(?waited, failures, "Pass begins");
            let started = Instant::now();
            let ended = run_pass(reconciler.as_ref(), &pass, limit).await;
            seconds.observe(started.elapsed().as_secs_f64());
            ended
        };
        let handle = self.passes.spawn(work.instrument(span.clone()));
        self.keys.insert(handle.id(), (key, span));
    }

    /// Gives a key back after its pass ended, was aborted, or panicked.
    fn ended(&mut self, joined: Result<(Id, Ended), JoinError>) {
        let id = match &joined {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let (key, span) = self.keys.remove(&id).expect("every pass is noted when it starts");
        let _within = span.entered();
        let ended = joined.map_or_else(broken, |(_, ended)| ended);
        let label = PassLabel { controller: self.name, result: ended.result };
        self.context.metrics().passes.get_or_create(&label).inc();
        let delay = self.queue.finish(&key, ended.finish);
        tracing::debug!(result = ended.result, ?delay, "Pass ended");
    }

    /// Lets running passes end; each is bounded by its timeout.
    async fn drain(&mut self) {
        while let Some(ended) = self.passes.join_next_with_id().await {
            self.ended(ended);
        }
    }

    /// Drops running passes where they are; their keys go back into the queue.
    async fn abort_passes(&mut self) {
        self.passes.abort_all();
        self.drain().await;
    }
}

/// Resolves when a task ends although nobody asked.
async fn unasked(
    tasks: &mut JoinSet<Result<(), RunError>>,
    controller: &'static str,
    shutdown: &CancellationToken,
) -> RunError {
    let joined = tasks.join_next().await;
    if shutdown.is_cancelled() && matches!(joined, Some(Ok(Ok(())))) {
        return std::future::pending().await;
    }
    match joined {
        Some(Ok(Err(error))) => error,
        Some(Err(source)) => RunError::TaskPanicked { controller, source },
        Some(Ok(Ok(()))) | None => RunError::TaskEnded { controller },
    }
}

async fn run_pass<R: Reconciler>(reconciler: &R, pass: &Pass, limit: Duration) -> Ended {
    let failed = || Finish::Failed { jitter: fastrand::f64() };
    match timeout(limit, reconciler.reconcile(pass)).await {
        Ok(Ok(next)) => match next.delay(pass.now()) {
            None => Ended { result: "settled", finish: Finish::Settled },
            Some(delay) => {
                let due = (Instant::now() + delay).into_std();
                Ended { result: "requeued", finish: Finish::At(due) }
            }
        },
        Ok(Err(error)) => {
            let category = error.category();
            let chain = ErrorChain(&error);
            let finish = match error.retry() {
                Retry::Backoff => {
                    tracing::warn!(category, error = %chain, "Pass failed");
                    failed()
                }
                Retry::WaitForChange => {
                    tracing::warn!(category, error = %chain, "Pass failed until something changes");
                    Finish::Settled
                }
                Retry::Never => {
                    tracing::error!(category, error = %chain, "Pass failed for good");
                    Finish::Settled
                }
            };
            Ended { result: category, finish }
        }
        Err(_elapsed) => {
            tracing::warn!(?limit, "Pass took too long");
            Ended { result: "timeout", finish: failed() }
        }
    }
}

fn broken(error: JoinError) -> Ended {
    let failed = Finish::Failed { jitter: fastrand::f64() };
    if error.is_cancelled() {
        return Ended { result: "aborted", finish: failed };
    }
    let panic = error.into_panic();
    tracing::error!(panic = panic_text(panic.as_ref()), "Pass panicked");
    Ended { result: "panic", finish: failed }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
