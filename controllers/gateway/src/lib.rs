//! The controller of gateways' Leases: takes away the Lease of a gateway whose process has ended.
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
//! away, and neither is one by which a gateway says that it left in order.

use std::future::Future;

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use portolan_api::Gateway;
use portolan_reconcile::{
    Cache, Context, Controller, Deleted, Next, Pass, ReconcileError, Reconciler, Retry, RunError,
    Watch, WriteError, Writer,
};

mod observe;
mod plan;

use observe::{HeldLease, Process};

/// Where it looks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the gateways.
    pub system_namespace: String,
}

/// A Lease could not be taken away.
#[derive(Debug, thiserror::Error)]
#[error("take away the Lease of a gateway that has ended")]
pub struct Error(#[source] WriteError);

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
    let writer = controller.writer();
    controller.run(LeaseReconciler { writer, leases, processes })
}

struct LeaseReconciler {
    writer: Writer,
    leases: Cache<Lease, HeldLease>,
    processes: Cache<Pod, Process>,
}

impl Reconciler for LeaseReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let (lease, process) = (self.leases.get(pass.key()), self.processes.get(pass.key()));
        if let Some(target) = plan::plan(lease.as_deref(), process.as_deref()) {
            let deleted = self.writer.delete::<Lease>(&target).await.map_err(Error)?;
            // A conflict is its renewal, by the process that came after: what is seen next decides.
            if deleted == Deleted::Deleted {
                tracing::warn!(gateway = %pass.key().name, "A gateway ended without a word");
            }
        }
        Ok(Next::Settled)
    }
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        self.0.category()
    }

    fn retry(&self) -> Retry {
        self.0.retry()
    }
}
