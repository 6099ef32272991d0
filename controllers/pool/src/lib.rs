//! The pool controller: keeps as many sandboxes as a `SandboxPool` needs.
//!
//! It sums what live gateways report, decides the number, makes and drains Pods, divides their
//! concurrency slots among the gateways, and says in the pool's status what the sandboxes do. It
//! alone writes `spec.replicas`; the rest of a pool's spec belongs to the version controller.
//!
//! It deliberately does not know versions, routes or activation: a pool's role and floor tell it
//! all of that. It does not restart what crashes, the kubelet does; and it does not choose nodes.
//!
//! Entry point: [`run`]. Within, a pass is observe → plan → apply → status, each in its module;
//! `plan` and `status`, and what they are made of (`scale`, `slots`, `diagnosis`), are pure.
//!
//! Invariants: a Pod is a pool's when its controller reference names the pool's UID, never by
//! label alone. A name is used for one Pod only. A sandbox that gateways may use is deleted only
//! after each live one has let go of it, or after the drain limit. A pass over a pool that is as
//! it should be writes nothing.

mod apply;
mod diagnosis;
mod error;
mod gateway;
mod observe;
mod plan;
mod pod;
mod sandbox;
mod scale;
mod setback;
mod settings;
mod slots;
mod status;

#[cfg(test)]
mod convergence;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod instructions;

use std::future::Future;

use jiff::SignedDuration;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use portolan_api::{Gateway, GatewayReport, SandboxPool, labels};
use portolan_reconcile::{
    Context, Controller, Events, Next, Observed, Pass, Progress, Reconciler, RunError, StatusWrite,
    Target, Watch, Writer,
};

use self::{
    apply::{Applier, Outcome},
    gateway::ReportView,
    observe::{BY_GATEWAY, BY_POOL, Caches, Memory, Remembered, Situation},
    plan::Plan,
    sandbox::Sandbox,
};
pub use self::{error::Error, settings::Settings};

/// How long a pool may grow before its spec and status say so. Most sandboxes are ready sooner, and
/// while visitors wait for them the API server has better to do.
const PROGRESS_LIMIT: SignedDuration = SignedDuration::from_secs(3);

/// Runs the pool controller until `ctx.shutdown` is cancelled. Must be joined by the caller.
pub fn run(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "pool");
    let caches = watch(&mut controller, &settings);
    let reconciler = PoolReconciler {
        writer: controller.writer(),
        events: controller.events(),
        caches,
        memory: Memory::default(),
        progress: Progress::new(PROGRESS_LIMIT),
        settings,
    };
    controller.run(reconciler)
}

fn watch(controller: &mut Controller, settings: &Settings) -> Caches {
    let pools = controller.primary(Watch::<SandboxPool>::new().pack());
    let sandboxes = controller.watch(
        Watch::<Pod>::new()
            .labels(labels::POOL)
            .project(Sandbox::of)
            .index(BY_POOL, |sandbox| [sandbox.pool.to_string()]),
        |change| change.each(|sandbox| [sandbox.pool.clone()]),
    );
    let reports = controller.watch(
        Watch::<GatewayReport>::new()
            .in_namespace(&settings.system_namespace)
            .project(ReportView::of)
            .index(BY_GATEWAY, |report| [report.gateway.clone()]),
        |change| ReportView::changed(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref)),
    );
    let concerned = (sandboxes.clone(), reports.clone());
    let leases = controller.watch(
        Watch::<Lease>::new()
            .in_namespace(&settings.system_namespace)
            .labels(Gateway::SELECTOR)
            .project(Gateway::of),
        move |change| {
            let sides = (change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref));
            if Gateway::is_renewal(sides.0, sides.1) {
                Vec::new()
            } else {
                Caches::concerned(&concerned.0, &concerned.1, &change.key.name)
            }
        },
    );
    Caches { pools, sandboxes, leases, reports }
}

struct PoolReconciler {
    writer: Writer,
    events: Events,
    caches: Caches,
    memory: Memory,
    progress: Progress,
    settings: Settings,
}

impl Reconciler for PoolReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let situation = match self.caches.observe(pass.key(), &self.memory, pass.now()) {
            Observed::Present(situation) => situation,
            Observed::Absent => {
                self.memory.forget(pass.key());
                self.progress.done(pass.key());
                return Ok(Next::Settled);
            }
            Observed::Unknown(why) => return Err(Error::Unknown(why)),
        };
        pass.identify(situation.pool.as_ref());
        let mut plan = plan::plan(&situation, &self.settings, pass.now());
        let later = plan.replicas_may_wait.then(|| self.progress.wait(pass.key(), pass.now()));
        let later = later.flatten();
        plan.replicas = plan.replicas.filter(|_| later.is_none());
        plan.next = [plan.next, later].into_iter().flatten().min();
        let outcome = self.applier(pass).apply(&situation, &plan).await;
        let used = situation.incarnation.max(outcome.incarnation);
        let unwritten = if later.is_some() { plan.decision.wanted } else { 0 };
        let remembered = Remembered {
            history: plan.decision.history.clone(),
            incarnation: used,
            unwritten,
            setback: outcome.setback(&situation, &plan, pass.now()),
            ..Remembered::default()
        };
        self.memory.keep(&situation.pool, remembered.clone());
        let next = self.report(pass, &situation, &plan, &outcome, remembered).await;
        match outcome.error {
            Some(error) => Err(error),
            None => next,
        }
    }
}

impl PoolReconciler {
    fn applier<'a>(&'a self, pass: &'a Pass) -> Applier<'a> {
        Applier { writer: &self.writer, caches: &self.caches, settings: &self.settings, pass }
    }

    /// Writes the status and its Events, unless they may wait; says when to look again.
    async fn report(
        &self,
        pass: &Pass,
        situation: &Situation,
        plan: &Plan,
        outcome: &Outcome,
        remembered: Remembered,
    ) -> Result<Next, Error> {
        let pool = situation.pool.as_ref();
        let report = status::status(situation, plan, outcome, pass.now());
        let next = [plan.next, report.next].into_iter().flatten().min();
        let observed = pool.status.as_ref();
        if report.may_wait
            && let Some(due) = self.progress.wait(pass.key(), pass.now())
        {
            return Ok(Next::At(next.map_or(due, |next| next.min(due))));
        }
        let written = self.writer.apply_status(&Target::of(pool), &report.status, observed).await;
        let written = written.map_err(Error::Status)?;
        if !plan.replicas_may_wait || plan.replicas.is_some() {
            self.progress.done(pass.key());
        }
        match written {
            StatusWrite::Written(live) => {
                self.memory.keep(pool, Remembered { incarnation: 0, ..remembered });
                self.caches.pools.observe(*live, pass);
                self.events.publish_transitions(pool, "Reconcile", &report.transitions);
            }
            StatusWrite::Unchanged | StatusWrite::Gone | StatusWrite::Conflict => {}
        }
        Ok(next.map_or(Next::Settled, Next::At))
    }
}
