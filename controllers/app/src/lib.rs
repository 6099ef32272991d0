//! The app controller: from an App to its versions, and the word which of them serves.
//!
//! It makes the version that the spec asks for, activates it once all its pools are verified,
//! tells when every gateway follows, keeps the App's NetworkPolicy and prunes its history. It
//! knows neither Pods nor how pools are filled, and never deletes a pool: pools go with the last
//! version that owns them.
//!
//! Entry point: [`run`]. Invariants: activation is one write of `status.activation`, with an epoch
//! that only grows; nothing of the version that serves is touched while another is on its way.

use std::future::Future;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use portolan_api::{App, AppVersion, Gateway, GatewayReport, Route, SandboxPool, labels};
use portolan_reconcile::{
    Cache, Context, Controller, Events, Next, ObjectKey, Pass, Reconciler, RunError, StatusWrite,
    Target, Watch, Writer,
};

mod apply;
mod error;
mod observe;
mod plan;
mod policy;
mod status;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use plan::Settings;

use observe::{BY_APP, BY_SETTLING, EpochFacts, RouteFacts, UNSETTLED};

/// Runs the app controller until the context shuts down.
///
/// # Errors
///
/// When a watch task or the lease ends unasked.
pub fn run(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "app");
    let apps: Cache<App> = controller.primary(
        Watch::new()
            .prune()
            .index(BY_SETTLING, |app: &App| is_unsettled(app).then(|| UNSETTLED.into())),
    );
    let versions = controller.watch(
        Watch::new().prune().index(BY_APP, |version: &AppVersion| index(app_of_version(version))),
        |change| change.each(app_of_version),
    );
    let pools = controller.watch(
        Watch::new().prune().index(BY_APP, |pool: &SandboxPool| index(app_of_pool(pool))),
        |change| change.each(app_of_pool),
    );
    let routes = controller.watch(
        Watch::new()
            .project(RouteFacts::of)
            .index(BY_APP, |route: &RouteFacts| index(Some(app_of_route(route)))),
        |change| change.each(|route| Some(app_of_route(route))),
    );
    let policies = controller.watch(
        Watch::<NetworkPolicy>::new()
            .labels(&format!("{}={}", labels::MANAGED_BY, labels::MANAGER))
            .prune(),
        |change| change.each(app_of_policy),
    );
    let reports = controller.watch(
        Watch::new().in_namespace(&settings.system_namespace).project(EpochFacts::of),
        |change| changed_epochs(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref)),
    );
    let unsettled = apps.clone();
    let leases = Watch::<Lease>::new()
        .in_namespace(&settings.system_namespace)
        .labels(Gateway::SELECTOR)
        .project(Gateway::of);
    let gateways = controller.watch(leases, move |change| {
        // A renewal moves the time of the lapse, which the next look reads.
        if Gateway::is_renewal(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref)) {
            return Vec::new();
        }
        let unsettled = unsettled.by_index(BY_SETTLING, UNSETTLED);
        unsettled.iter().map(|app| ObjectKey::of(app.as_ref())).collect()
    });
    let (writer, events) = (controller.writer(), controller.events());
    controller.run(AppReconciler {
        writer,
        events,
        apps,
        versions,
        pools,
        routes,
        policies,
        reports,
        gateways,
        settings,
    })
}

struct AppReconciler {
    writer: Writer,
    events: Events,
    apps: Cache<App>,
    versions: Cache<AppVersion>,
    pools: Cache<SandboxPool>,
    routes: Cache<Route, RouteFacts>,
    policies: Cache<NetworkPolicy>,
    reports: Cache<GatewayReport, EpochFacts>,
    gateways: Cache<Lease, Gateway>,
    settings: Settings,
}

impl Reconciler for AppReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let seen = self.observe(pass.key(), pass.now());
        let Some(plan) = plan::plan(&seen, &self.settings, pass.now()) else {
            return Ok(Next::Settled);
        };
        let outcome = self.apply(pass, &seen, &plan).await;
        self.report(pass, &seen, &plan).await?;
        outcome?;
        Ok(plan.look_again.map_or(Next::Settled, Next::At))
    }
}

impl AppReconciler {
    /// Writes the status where it differs; the activation is part of it.
    async fn report(
        &self,
        pass: &Pass,
        seen: &observe::Seen,
        plan: &plan::Plan,
    ) -> Result<(), Error> {
        let Some(app) = &seen.app else { return Ok(()) };
        let (desired, transitions) = status::status(app, seen, plan, pass.now());
        let target = Target::at(app.as_ref());
        let write = self
            .writer
            .apply_status::<App, _>(&target, &desired, app.status.as_ref())
            .await
            .map_err(Error::WriteStatus)?;
        if let StatusWrite::Written(live) = write {
            self.apps.observe(*live, pass);
            self.events.publish_transitions(app.as_ref(), "Reconcile", &transitions);
        }
        Ok(())
    }
}

fn is_unsettled(app: &App) -> bool {
    app.status.as_ref().is_some_and(|status| {
        status.activation.as_ref().map(|activation| activation.epoch) != status.settled_epoch
    })
}

/// The Apps whose epoch one gateway reports anew.
fn changed_epochs(old: Option<&EpochFacts>, new: Option<&EpochFacts>) -> Vec<ObjectKey> {
    let epoch = |facts: Option<&EpochFacts>, key| facts.and_then(|f| f.epochs.get(key)).copied();
    let keys = [old, new].into_iter().flatten().flat_map(|facts| facts.epochs.keys());
    let changed = keys.filter(|key| epoch(old, key) != epoch(new, key));
    std::collections::BTreeSet::from_iter(changed).into_iter().cloned().collect()
}

fn index(key: Option<ObjectKey>) -> Option<String> {
    key.map(|key| key.to_string())
}

fn app_of_version(version: &AppVersion) -> Option<ObjectKey> {
    Some(ObjectKey::new(version.metadata.namespace.clone()?, version.spec.app.clone()))
}

fn app_of_pool(pool: &SandboxPool) -> Option<ObjectKey> {
    Some(ObjectKey::new(pool.metadata.namespace.clone()?, pool.spec.app.clone()))
}

fn app_of_route(route: &RouteFacts) -> ObjectKey {
    ObjectKey::new(route.key.namespace.clone(), route.app.clone())
}

fn app_of_policy(policy: &NetworkPolicy) -> Option<ObjectKey> {
    let app = policy.metadata.labels.as_ref()?.get(labels::APP)?;
    Some(ObjectKey::new(policy.metadata.namespace.clone()?, app.clone()))
}
