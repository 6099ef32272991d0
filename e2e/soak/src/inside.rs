//! Threads whose sockets belong to a machine of the cluster.

use std::fs::File;
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::namespace_file;
use tokio_util::sync::CancellationToken;

/// Work on a thread of its own, until it is told to stop.
#[derive(Debug)]
pub struct Inside<T> {
    stop: CancellationToken,
    thread: JoinHandle<anyhow::Result<T>>,
}

impl<T: Send + 'static> Inside<T> {
    /// Begins work in the network of a machine, on a runtime of one thread.
    ///
    /// # Errors
    /// When the cluster has no such machine.
    pub fn start<W, F>(cluster: &Cluster, machine: &str, work: W) -> anyhow::Result<Self>
    where
        W: FnOnce(CancellationToken) -> F + Send + 'static,
        F: Future<Output = T>,
    {
        let namespace = cluster.files().namespace(machine);
        let network = File::open(namespace_file(&namespace))
            .with_context(|| format!("open the network namespace {namespace}"))?;
        let stop = CancellationToken::new();
        let told = stop.clone();
        let thread = thread::Builder::new().name(format!("in-{machine}")).spawn(move || {
            // Before the runtime exists: each socket it makes belongs to this namespace.
            setns(network, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(work(told)))
        });
        Ok(Self { stop, thread: thread.context("start a thread")? })
    }

    /// Tells it to stop, and waits for what came of it.
    ///
    /// # Errors
    /// When the thread failed.
    pub async fn end(self) -> anyhow::Result<T> {
        self.stop.cancel();
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        ended.map_err(|_| anyhow!("the thread of the visitors panicked"))?
    }
}
