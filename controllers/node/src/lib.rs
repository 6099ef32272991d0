//! The node agent: what the cluster says about L4 services, in the kernel of one node.
//!
//! Watches AppServices, the EndpointSlices of ours and of the gateways, the Services that are
//! internal names, and its own Node. From these, [`start`] keeps one nftables table through
//! `portolan-nft`, ends connections that lead nowhere, and writes the NodeReport of the node.
//!
//! It deliberately decides nothing about services: who has an address, who holds a node port and
//! which sandboxes are ready is the service controller's word. It knows no App and no Pod, needs
//! no leader, and writes nothing that a tenant owns.
//!
//! ```text
//! watches -> facts -> index -> inbox -> writer (a thread) -> kernel
//!                                ^         |
//!                    machine ----+         +--> report
//! ```
//!
//! Invariants:
//!
//! - Nothing is programmed before everything has been listed once; then only differences are.
//! - A change of one service touches the elements of that service only.
//! - What is forwarded depends on what the objects say, and not on the order in which they came.
//! - A malformed object stops nothing but itself.
//! - The table stays when the process ends.

mod facts;
mod inbox;
mod index;
mod listening;
mod machine;
mod metrics;
mod report;
mod watches;
mod writer;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use portolan_nft::{ForwardError, Forwarder, Kernel, Monitor};
use portolan_process::{ErrorChain, Gate};
use portolan_reconcile::{Context, RunError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::metrics::Metrics;

use crate::inbox::Inbox;
use crate::machine::Surveyor;
use crate::report::Reporter;
use crate::watches::Watches;
use crate::writer::{Opened, State, Writer};

/// The component in labels of metrics and in the field manager.
const COMPONENT: &str = "node";

/// What the agent is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this node's Node.
    pub node_name: String,
    /// Namespace of the gateways.
    pub system_namespace: String,
    /// Name of the Service whose endpoints are the gateways' listeners for calls from inside.
    pub gateway_service: String,
}

/// A task of the agent, to be joined with the others of the process.
pub type AgentTask = Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send>>;

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A watch ended.
    #[error(transparent)]
    Watch(#[from] RunError),
    /// The thread that talks to the kernel panicked.
    #[error("writer panicked")]
    Writer(#[source] tokio::task::JoinError),
}

/// Starts the agent. The tasks run until the context shuts down and must be joined by the caller.
/// The gate `node.programmed` opens when the kernel has what it should for the first time.
pub fn start(
    ctx: &Context,
    settings: Settings,
    metrics: Metrics,
) -> Vec<(&'static str, AgentTask)> {
    let inbox = Arc::<Inbox>::default();
    let gate = ctx.readiness().gate("node.programmed");
    let (machine, seen) = watch::channel(None);
    let (state, states) = watch::channel(State::default());
    let (opened, opens) = watch::channel(None);
    let (watches, mut tasks) = Watches::start(ctx, &settings, &inbox);
    let surveyor =
        Surveyor { inbox: inbox.clone(), node: watches.node(), machine, shutdown: ctx.shutdown() };
    let reporter = Reporter {
        ctx: ctx.clone(),
        inbox: inbox.clone(),
        node_name: settings.node_name,
        proc: "/proc".into(),
        node: watches.node(),
        machine: seen.clone(),
        opened: opens.clone(),
        state: states.clone(),
    };
    let writer =
        Writer { inbox: inbox.clone(), open: Box::new(Kernel::open), metrics, state, opened };
    let shutdown = ctx.shutdown();
    tasks.push(("machine", Box::pin(async { Ok(surveyor.run().await?) })));
    tasks.push(("report", Box::pin(async { Ok(reporter.run().await?) })));
    tasks.push(("gate", Box::pin(keep_gate(gate, states, shutdown.clone()))));
    tasks.push(("monitor", Box::pin(listen(inbox.clone(), opens, shutdown.clone()))));
    tasks.push(("writer", Box::pin(write(writer, watches, seen, shutdown))));
    tasks
}

/// Removes the table of this node, and with it all that Portolan forwards here.
///
/// # Errors
/// If the kernel refuses, or if the table is not ours.
pub fn clean_up() -> Result<(), ForwardError> {
    Forwarder::remove(Kernel::open()?)
}

/// Runs the writer's thread, once everything has been read that it must not delete.
async fn write(
    writer: Writer,
    watches: Watches,
    mut machine: watch::Receiver<Option<machine::Machine>>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let ready = async {
        watches.synced().await;
        // Its sender outlives this: a surveyor that ended ends the process.
        let _ = machine.wait_for(Option::is_some).await;
    };
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = ready => {}
    }
    let inbox = writer.inbox.clone();
    let mut thread = tokio::task::spawn_blocking(|| writer.run());
    let ended = tokio::select! {
        () = shutdown.cancelled() => {
            inbox.stop();
            thread.await
        }
        ended = &mut thread => ended,
    };
    ended.map_err(AgentError::Writer)
}

/// Opens the gate with the first programming. What fails later does not close it: the kernel goes
/// on with what it has, and the report says so.
async fn keep_gate(
    mut gate: Gate,
    mut states: watch::Receiver<State>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let is_programmed = |state: &State| matches!(state, State::Programmed | State::Refused { .. });
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        Ok(_) = states.wait_for(is_programmed) => gate.open(),
    }
    shutdown.cancelled().await;
    Ok(())
}

/// Asks for a look at the table when another changes it, where the kernel lets others do that.
async fn listen(
    inbox: Arc<Inbox>,
    mut opened: watch::Receiver<Option<Opened>>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let listening = async {
        let Ok(found) = opened.wait_for(Option::is_some).await.map(|found| *found) else { return };
        let Some(port) = found.filter(|found| !found.features.owned_tables).map(|it| it.port)
        else {
            return;
        };
        if let Err(error) = listen_on(&inbox, port).await {
            // The table is still read from time to time.
            tracing::error!(error = %ErrorChain(&error), "Changes by others go unnoticed");
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = listening => {}
    }
    shutdown.cancelled().await;
    Ok(())
}

async fn listen_on(inbox: &Inbox, port: u32) -> std::io::Result<()> {
    let mut monitor = Monitor::open(port)?;
    // What happened between the first programming and now was not heard.
    inbox.verify();
    loop {
        monitor.foreign_change().await?;
        inbox.verify();
    }
}

#[cfg(test)]
mod tests;
