//! The app controller: from an App to its versions, and the word which of them serves.
//!
//! It makes the version that the spec asks for, activates it once all its pools are verified,
//! tells when every gateway follows, keeps the App's NetworkPolicy and prunes its history. It
//! knows neither Pods nor how pools are filled, and never deletes a pool: pools go with the last
//! version that owns them. Who holds a node port it knows from the AppServices, not from Claims.
//!
//! Entry point: [`run`]. Invariants: activation is one write of `status.activation`, with an epoch
//! that only grows; nothing of the version that serves is touched while another is on its way.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use portolan_api::{
    App, AppService, AppVersion, Gateway, GatewayReport, Route, SandboxPool, labels,
};
use portolan_reconcile::{
    Cache, Change, Context, Controller, Events, Next, ObjectKey, Packed, Pass, Progress,
    Reconciler, RunError, StatusWrite, Target, Watch, Writer,
};

mod apply;
mod error;
mod l4;
mod observe;
mod plan;
mod policy;
mod status;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use plan::Settings;

use observe::{BY_APP, BY_NODE_PORT, BY_SETTLING, EpochFacts, RouteFacts, UNSETTLED};

/// How long word of a rollout may wait that changes nothing yet.
const PROGRESS_LIMIT: SignedDuration = SignedDuration::from_secs(3);

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
    let apps = controller.primary(
        Watch::<App>::new()
            .pack()
            .index(BY_SETTLING, |app| is_unsettled(&app.unpack()).then(|| UNSETTLED.into())),
    );
    let of = |version: &Packed<AppVersion>| app_of_version(&version.unpack());
    let versions = controller.watch(
        Watch::<AppVersion>::new()
            .pack()
            .index(BY_APP, move |version| index(of(version)))
            .index(BY_NODE_PORT, |version| l4::asked(&version.unpack())),
        move |change| change.each(of),
    );
    let of = |pool: &Packed<SandboxPool>| app_of_pool(&pool.unpack());
    let pools = controller.watch(
        Watch::<SandboxPool>::new().pack().index(BY_APP, move |pool| index(of(pool))),
        move |change| change.each(of),
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
            .pack(),
        |change| change.each(|policy| app_of_policy(&policy.unpack())),
    );
    let (named, known) = (apps.clone(), versions.clone());
    let services = controller.watch(
        Watch::<AppService>::new()
            .prune()
            .index(BY_APP, |service| index(app_of_service(service)))
            .index(BY_NODE_PORT, l4::held),
        move |change| apps_of_service(change, &named, &known),
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
        unsettled.keys_by_index(BY_SETTLING, UNSETTLED)
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
        services,
        reports,
        gateways,
        progress: Progress::new(PROGRESS_LIMIT),
        settings,
    })
}

struct AppReconciler {
    writer: Writer,
    events: Events,
    apps: Cache<App, Packed<App>>,
    versions: Cache<AppVersion, Packed<AppVersion>>,
    pools: Cache<SandboxPool, Packed<SandboxPool>>,
    routes: Cache<Route, RouteFacts>,
    policies: Cache<NetworkPolicy, Packed<NetworkPolicy>>,
    services: Cache<AppService>,
    reports: Cache<GatewayReport, EpochFacts>,
    gateways: Cache<Lease, Gateway>,
    progress: Progress,
    settings: Settings,
}

impl Reconciler for AppReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let seen = self.observe(pass.key(), pass.now());
        let Some(mut plan) = plan::plan(&seen, &self.settings, pass.now()) else {
            self.progress.done(pass.key());
            return Ok(Next::Settled);
        };
        let outcome = self.apply(pass, &seen, &plan).await;
        if let Err(Error::ApplyPolicy(_)) = &outcome {
            plan.stay(&seen);
        }
        let refusal = outcome.as_ref().err().and_then(Error::refusal);
        let reported = self.report(pass, &seen, &plan, refusal.as_deref()).await?;
        outcome?;
        Ok(plan.look_again.map_or(Next::Settled, Next::At).earliest(reported, pass.now()))
    }
}

impl AppReconciler {
    /// Writes the status where it differs, unless that may wait; the activation is part of it.
    /// Says when that asks for another look.
    async fn report(
        &self,
        pass: &Pass,
        seen: &observe::Seen,
        plan: &plan::Plan,
        refusal: Option<&str>,
    ) -> Result<Next, Error> {
        let Some(app) = &seen.app else { return Ok(Next::Settled) };
        let (desired, transitions) = status::status(app, seen, plan, refusal, pass.now());
        if status::is_progress(app.status.as_ref(), &desired)
            && let Some(due) = self.progress.wait(pass.key(), pass.now())
        {
            return Ok(Next::At(due));
        }
        let target = Target::at(app.as_ref());
        let write = self
            .writer
            .apply_status::<App, _>(&target, &desired, app.status.as_ref())
            .await
            .map_err(Error::WriteStatus)?;
        self.progress.done(pass.key());
        let StatusWrite::Written(live) = write else { return Ok(Next::Settled) };
        self.apps.observe(*live, pass);
        self.events.publish_transitions(app.as_ref(), "Reconcile", &transitions);
        let before = app.status.as_ref().and_then(|status| status.activation.as_ref());
        // What follows from the switch is decided when it is written.
        let is_activated = desired.activation.as_ref() != before;
        Ok(if is_activated { Next::After(Duration::ZERO) } else { Next::Settled })
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

/// The App that an AppService names, and the Apps that could ask for a node port which it came to
/// hold or gave up; and, when the object of that name is another one or none, also every App that
/// could want the name.
fn apps_of_service(
    change: &Change<'_, AppService>,
    apps: &Cache<App, Packed<App>>,
    versions: &Cache<AppVersion, Packed<AppVersion>>,
) -> Vec<ObjectKey> {
    let mut keys = apps_asking(change, versions);
    if change.old.zip(change.new).is_some_and(|(old, new)| is_count(old, new)) {
        return keys;
    }
    let uid = |service: Option<&Arc<AppService>>| service.and_then(|s| s.metadata.uid.clone());
    keys.extend(change.each(app_of_service));
    if uid(change.old) != uid(change.new) {
        let possible = l4::possible_apps(&change.key.name);
        let possible = possible.map(|app| ObjectKey::new(change.key.namespace.clone(), app));
        keys.extend(possible.filter(|key| apps.get(key).is_some()));
    }
    keys
}

/// The Apps of which some version asks for a node port that an AppService came to hold or gave up.
/// Those whose switch waits for one are among them, whether or not they have said so yet.
fn apps_asking(
    change: &Change<'_, AppService>,
    versions: &Cache<AppVersion, Packed<AppVersion>>,
) -> Vec<ObjectKey> {
    let moved = l4::moved(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref));
    let asking = moved.iter().flat_map(|port| versions.unpack_by_index(BY_NODE_PORT, port));
    asking.filter_map(|version| app_of_version(&version)).collect()
}

/// Whether nothing changed but numbers that an App does not report, such as that of its endpoints.
fn is_count(old: &AppService, new: &AppService) -> bool {
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && old.metadata.owner_references == new.metadata.owner_references
        && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
        && old.spec == new.spec
        && old.is_current() == new.is_current()
        && old.ready() == new.ready()
}

fn app_of_service(service: &AppService) -> Option<ObjectKey> {
    Some(ObjectKey::new(service.metadata.namespace.clone()?, service.spec.app.clone()))
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
