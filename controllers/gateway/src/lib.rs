//! The controller of gateways that end without a word: sends visitors elsewhere, and takes away the
//! Lease.
//!
//! Visitors first, on the word of another gateway, whose link broke and to whom nobody listens any
//! more: that is known at once, and new connections would be refused meanwhile. It may be wrong, so
//! it costs that gateway its visitors only, and those only while the one who says so is believed.
//!
//! A gateway that ends in order says so itself. Of one that is killed, everybody would believe that
//! it lives until its Lease lapses: its share of the slots would be nobody's, and switches would
//! wait for it. The kubelet knows within a second, and writes into the status of the Pod when the
//! container ended. That is proof, where a connection that breaks is none.
//!
//! It deliberately does not know what follows: whoever counts gateways reads their Leases, and one
//! that has no Lease is lost. It proves nothing of a node that is silent; there the Lease lapses.
//!
//! Entry point: [`run`]. Invariants: the Lease of a process that may be running is never taken
//! away, and neither is one by which a gateway says that it left in order. Visitors are sent to at
//! least one gateway.

use std::future::Future;

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use portolan_api::{Gateway, GatewayReport, labels};
use portolan_reconcile::{
    Cache, Context, Controller, Deleted, Next, ObjectKey, Pass, Precondition, ReconcileError,
    Reconciler, Retry, RunError, Watch, WriteError, Writer,
};
use serde_json::json;

mod observe;
mod plan;

use observe::{HeldLease, Process, Witness};

/// Where it looks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the gateways.
    pub system_namespace: String,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A Lease could not be taken away.
    #[error("take away the Lease of a gateway that has ended")]
    Lease(#[source] WriteError),
    /// A Pod could not be labelled.
    #[error("say whether visitors are sent to a gateway")]
    Visitors(#[source] WriteError),
}

/// Runs the controller until `ctx.shutdown` is cancelled. Must be joined by the caller.
///
/// # Errors
///
/// When a watch task or the lease ends unasked.
pub fn run(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let namespace = &settings.system_namespace;
    let mut controller = Controller::new(ctx, "gatewaygc");
    let leases = controller.primary(
        Watch::<Lease>::new()
            .in_namespace(namespace)
            .labels(Gateway::SELECTOR)
            .project(HeldLease::of),
    );
    let processes = controller.watch(
        Watch::<Pod>::new()
            .in_namespace(namespace)
            .labels(observe::PODS)
            .project(Process::of)
            .distinct(),
        // A gateway's Lease has the name of its Pod.
        |change| [change.key.clone()],
    );
    let system = settings.system_namespace.clone();
    let witnesses = controller.watch(
        Watch::<GatewayReport>::new().in_namespace(namespace).project(Witness::of).distinct(),
        move |change| {
            let key = |pod: &str| ObjectKey::new(system.clone(), pod);
            change.each(|witness| witness.concerns().map(key).collect::<Vec<_>>())
        },
    );
    let writer = controller.writer();
    controller.run(GatewayReconciler { writer, leases, processes, witnesses })
}

struct GatewayReconciler {
    writer: Writer,
    leases: Cache<Lease, HeldLease>,
    processes: Cache<Pod, Process>,
    witnesses: Cache<GatewayReport, Witness>,
}

impl GatewayReconciler {
    async fn direct_visitors(&self, pass: &Pass, process: &Process) -> Result<(), Error> {
        let leases = self.leases.in_namespace(&pass.key().namespace);
        let wanted =
            plan::takes_visitors(&pass.key().name, process, &leases, &self.witnesses.list());
        if wanted == process.takes_visitors {
            return Ok(());
        }
        let value = if wanted { labels::VISITORS_YES } else { labels::VISITORS_NO };
        let fields = json!({ "metadata": { "labels": { labels::VISITORS: value } } });
        let labelled = self.writer.apply_fields::<Pod, _>(&process.target, &fields).await;
        match labelled.map_err(Error::Visitors)? {
            Precondition::Met(pod) => {
                let gateway = &pass.key().name;
                match wanted {
                    true => tracing::info!(%gateway, "Visitors are sent to a gateway again"),
                    false => tracing::warn!(%gateway, "Visitors are sent to other gateways"),
                }
                self.processes.observe(*pod, pass);
            }
            Precondition::Gone => self.processes.observe_gone(&process.target, pass),
            // Another Pod has the name; the watch brings it.
            Precondition::Conflict => {}
        }
        Ok(())
    }
}

impl Reconciler for GatewayReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let (lease, process) = (self.leases.get(pass.key()), self.processes.get(pass.key()));
        if let Some(process) = &process {
            self.direct_visitors(pass, process).await?;
        }
        if let Some(target) = plan::plan(lease.as_deref(), process.as_deref()) {
            let deleted = self.writer.delete::<Lease>(&target).await.map_err(Error::Lease)?;
            // A conflict is its renewal, by the process that came after: what is seen next decides.
            if deleted == Deleted::Deleted {
                tracing::warn!(gateway = %pass.key().name, "A gateway ended without a word");
            }
        }
        Ok(Next::Settled)
    }
}

impl Error {
    const fn source(&self) -> &WriteError {
        match self {
            Self::Lease(source) | Self::Visitors(source) => source,
        }
    }
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        self.source().category()
    }

    fn retry(&self) -> Retry {
        self.source().retry()
    }
}
