//! Every long-lived future of a process, joined in one place.

use std::{error::Error, future::Future, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

type BoxError = Box<dyn Error + Send + Sync>;

/// How the life of the tasks went wrong.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned although nobody asked the process to stop.
    #[error("task {name} ended without being asked")]
    EndedEarly {
        /// The task.
        name: &'static str,
    },
    /// A task failed.
    #[error("task {name} failed")]
    Failed {
        /// The task.
        name: &'static str,
        /// What it returned.
        #[source]
        source: BoxError,
    },
    /// A task panicked.
    #[error("task {name} panicked")]
    Panicked {
        /// The task.
        name: &'static str,
        /// What the runtime reports.
        #[source]
        source: JoinError,
    },
    /// Tasks were still running when the time to shut down was over; they were aborted.
    #[error("tasks still running {grace:?} after shutdown: {}", names.join(", "))]
    Overdue {
        /// The tasks, in order of their start.
        names: Vec<&'static str>,
        /// How long was waited.
        grace: Duration,
    },
}

/// A set of tasks with one life: if one ends unasked, all are asked to end.
///
/// Dropping it aborts what still runs.
#[derive(Debug, Default)]
pub struct Tasks {
    ordinary: Group,
    last: Group,
    shutdown: CancellationToken,
    stop_last: CancellationToken,
}

impl Tasks {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process shall stop; every task gets a clone.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Cancelled when the ordinary tasks have ended.
    pub fn drained(&self) -> CancellationToken {
        self.stop_last.clone()
    }

    /// Starts a task that runs until [`Tasks::shutdown`] is cancelled.
    pub fn spawn<E>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<BoxError>,
    {
        self.ordinary.spawn(name, task);
    }

    /// Starts a task that outlives the ordinary ones: its token is cancelled when they have ended.
    ///
    /// For what must still answer while the process drains, such as the admin server.
    pub fn spawn_last<E, F>(
        &mut self,
        name: &'static str,
        task: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.last.spawn(name, task(self.drained()));
    }

    /// Runs until `stop` resolves or a task ends, then ends all of them within `grace`.
    ///
    /// # Errors
    ///
    /// The first thing that went wrong: a task that ended or failed before `stop`, a panic at any
    /// time, a failure while stopping, or tasks that outlasted `grace`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts all tasks.
    pub async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), TaskError> {
        let mut outcome = tokio::select! {
            () = stop => Ok(()),
            () = self.shutdown.cancelled() => Ok(()),
            Some((name, ended)) = self.ordinary.next() => Err(ended_early(name, ended)),
            Some((name, ended)) = self.last.next() => Err(ended_early(name, ended)),
        };
        self.shutdown.cancel();
        let deadline = Instant::now() + grace;
        let ordinary = self.ordinary.end(deadline, grace).await;
        self.stop_last.cancel();
        // Tasks that outlasted the deadline are aborted by now; the last ones get their turn.
        let last = self.last.end(deadline.max(Instant::now() + LAST_GRACE), LAST_GRACE).await;
        for ended in [ordinary, last] {
            outcome = outcome.and(ended);
        }
        outcome
    }
}

/// What the last tasks get in any case: they only close sockets.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// Tasks with their names.
#[derive(Debug, Default)]
struct Group {
    set: JoinSet<Result<(), BoxError>>,
    names: Vec<(Id, &'static str)>,
}

type Ended = Result<Result<(), BoxError>, JoinError>;

impl Group {
    fn spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.set.spawn(async move { task.await.map_err(Into::into) });
        self.names.push((handle.id(), name));
    }

    /// The next task that ended; `None` when there is none left.
    async fn next(&mut self) -> Option<(&'static str, Ended)> {
        let (id, ended) = match self.set.join_next_with_id().await? {
            Ok((id, result)) => (id, Ok(result)),
            Err(error) => (error.id(), Err(error)),
        };
        let index = self
            .names
            .iter()
            .position(|(known, _)| *known == id)
            .expect("every task is named when it is spawned");
        Some((self.names.remove(index).1, ended))
    }

    /// Waits for all tasks; aborts those that run beyond `deadline`.
    async fn end(&mut self, deadline: Instant, grace: Duration) -> Result<(), TaskError> {
        let mut outcome = Ok(());
        loop {
            match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(None) => return outcome,
                Ok(Some((name, ended))) => outcome = outcome.and(ended_asked(name, ended)),
                Err(_elapsed) => {
                    let names = self.names.iter().map(|(_, name)| *name).collect();
                    self.set.shutdown().await;
                    return outcome.and(Err(TaskError::Overdue { names, grace }));
                }
            }
        }
    }
}

fn ended_early(name: &'static str, ended: Ended) -> TaskError {
    ended_asked(name, ended).err().unwrap_or(TaskError::EndedEarly { name })
}

fn ended_asked(name: &'static str, ended: Ended) -> Result<(), TaskError> {
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(TaskError::Failed { name, source }),
        Err(source) => Err(TaskError::Panicked { name, source }),
    }
}

/// The signals that end a process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to listen for SIGTERM and SIGINT; from now on they no longer kill the process.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves when one of the signals has arrived.
    pub async fn received(mut self) {
        let signal = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "Shutting down");
    }
}
