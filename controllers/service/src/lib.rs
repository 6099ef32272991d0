//! The service controller: the address, the node ports and the endpoints of `AppService`s.
//!
//! For each `AppService` it keeps a Service of that name, through which Kubernetes allocates the
//! address; the Claims of its node ports; and the EndpointSlices with the sandboxes of its pool.
//! Node agents read the status and the slices, and forward.
//!
//! It deliberately does not know versions or activation: which pool serves, and which ports there
//! are, the `AppService` says. It does not forward anything and knows no kernel.
//!
//! Entry point: [`run`], which runs three small controllers with a Lease each:
//!
//! | name | key | does |
//! |---|---|---|
//! | `service` | AppService | keeps address, Claims and slices; writes the status |
//! | `nodeport` | Claim | deletes Claims on node ports whose AppService is gone |
//! | `internal` | App | keeps the Services of http-only services' internal names |
//!
//! A pass of `service` is observe → plan → apply, repeated while applying changed something, and
//! then status.
//!
//! Invariants:
//!
//! - An address never changes while the AppService lives: its Service is created once and then
//!   changed in place.
//! - A Service, Claim or slice of somebody else is never written to, whatever its name.
//! - A node port is reported as held only while its Claim names this AppService.
//! - Endpoints are Pods that the pool controls by UID, of the service's own pool, never of a
//!   preview. What cannot be seen at the moment leaves the slices as they are.
//! - `observedGeneration` advances only when the slices say what it asks for, whatever else is wrong:
//!   sandboxes of the former pool are deleted then.
//! - A Pod that was an endpoint is listed until it is gone, and takes nothing new if it is not of
//!   the pool any more.

mod address;
mod apply;
mod error;
mod internal;
mod observe;
mod plan;
mod ports;
mod slices;
mod status;
mod view;
mod wake;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use futures::try_join;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_api::{AppService, ClaimKind, NodeReport, SandboxPool, labels};
use portolan_claims::{Claims, Realm, sweep};
use portolan_reconcile::{
    Cache, Context, Controller, EventType, Events, Next, Observed, Pass, Reconciler, RunError,
    StatusWrite, Target, Transition, Watch,
};

pub use crate::error::Error;
use crate::observe::{BY_ADDRESS, BY_NODE_PORT, BY_POD, BY_POOL, Sources};
pub use crate::ports::{NodePort, ParsePortsError, PortPolicy, PortRanges};
use crate::view::{Listeners, PoolView, Sandbox, ServiceView};

/// What AppServices claim.
const REALM: Realm = Realm { kind: ClaimKind::NodePort, holder: "AppService" };

/// How often a pass looks again because its own writes changed something. Two are usual: one
/// makes the Service, the next the slices for its address.
const ROUNDS: usize = 4;

/// How soon sandboxes of an AppService that is gone are looked for again, should nobody say that
/// they are gone too.
const FAREWELL_INTERVAL: Duration = Duration::from_secs(10);

/// What the controller must know of the installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which node ports Apps may have.
    pub node_ports: PortPolicy,
}

/// Runs the controllers of AppServices, of Claims on node ports and of internal names until `ctx.shutdown` is
/// cancelled.
///
/// # Errors
///
/// [`RunError`] when one of their own tasks ended unasked. A failed pass never ends a controller.
pub fn run(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let (services, claims) =
        (run_services(ctx, settings), sweep::<AppService>(Controller::new(ctx, "nodeport"), REALM));
    let names = internal::run(ctx);
    async move { try_join!(services, claims, names).map(|((), (), ())| ()) }
}

fn run_services(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "service");
    let sources = watch(&mut controller);
    let events = controller.events();
    controller.run(ServiceReconciler { sources, events, settings })
}

fn watch(controller: &mut Controller) -> Sources {
    let app_services: Cache<AppService> = controller
        .primary(Watch::new().prune().index(BY_POOL, pool_of).index(BY_NODE_PORT, ports_of));
    let known = app_services.clone();
    let claims = controller.watch(REALM.watch(), move |change| wake::by_claim(change, &known));
    let known = app_services.clone();
    let services = controller.watch(
        Watch::<Service>::new()
            .project(ServiceView::of)
            .distinct()
            .index(BY_NODE_PORT, |view| view.ports().map(NodePort::value).collect::<Vec<_>>())
            .index(BY_ADDRESS, |view| {
                view.outside.iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>()
            }),
        move |change| wake::by_service(change, &known),
    );
    let ours = format!("{}={}", labels::SLICE_MANAGED_BY, labels::SLICE_MANAGER);
    let slices = controller.watch(
        Watch::<EndpointSlice>::new().prune().labels(&ours).index(BY_POD, |slice| {
            slices::listed(slice).into_iter().map(|sandbox| sandbox.key.to_string())
        }),
        wake::by_slice,
    );
    let (known, listing) = (app_services.clone(), slices.clone());
    let pods = controller.watch(
        Watch::<Pod>::new()
            .labels(labels::POOL)
            .project(Sandbox::of)
            .distinct()
            .index(BY_POOL, |sandbox| [sandbox.pool.to_string()]),
        move |change| {
            let mut woken = wake::by_pools(change.each(|sandbox| [sandbox.pool.clone()]), &known);
            woken.extend(wake::by_pod(change.key, &listing));
            woken
        },
    );
    let known = app_services.clone();
    let pools = controller
        .watch(Watch::<SandboxPool>::new().project(PoolView::of).distinct(), move |change| {
            wake::by_pools([change.key.clone()], &known)
        });
    let (known, others) = (app_services.clone(), services.clone());
    let reports = controller.watch(
        Watch::<NodeReport>::new()
            .project(Listeners::of)
            .distinct()
            .index(BY_NODE_PORT, |view| {
                view.ports.iter().map(|port| port.value()).collect::<Vec<_>>()
            })
            .index(BY_ADDRESS, |view| {
                view.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>()
            }),
        move |change| wake::by_report(change, &known, &others),
    );
    let writer = controller.writer();
    let claims = Claims::new(REALM, writer.clone(), claims);
    Sources { writer, claims, app_services, services, slices, pods, pools, reports }
}

/// `namespace/name` of the pool that an AppService leads to.
fn pool_of(service: &AppService) -> Option<String> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    service.spec.pool.as_ref().map(|pool| format!("{namespace}/{pool}"))
}

/// The node ports that an AppService asks for.
fn ports_of(service: &AppService) -> Vec<String> {
    service.spec.ports.iter().filter_map(NodePort::asked).map(NodePort::value).collect()
}

/// Keeps what belongs to AppServices and writes their status.
struct ServiceReconciler {
    sources: Sources,
    events: Events,
    settings: Settings,
}

impl Reconciler for ServiceReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let service = match self.sources.app_services.observed(pass.key()) {
            Observed::Present(service) => service,
            Observed::Absent => return self.clear_up(pass).await,
            Observed::Unknown(_) => return Ok(Next::Settled),
        };
        pass.identify(service.as_ref());
        if service.metadata.deletion_timestamp.is_some() {
            return self.clear_up(pass).await;
        }
        let mut rounds = 1;
        let (situation, plan, outcome) = loop {
            let situation = self.sources.observe(service.clone()).await;
            let plan = plan::plan(&situation, &self.settings.node_ports);
            let outcome = self.sources.apply(&plan, &service, pass).await;
            if !outcome.changed || outcome.failure.is_some() {
                break (situation, plan, outcome);
            }
            if rounds == ROUNDS {
                break (
                    situation,
                    plan,
                    apply::Outcome { failure: Some(Error::Restless), ..outcome },
                );
            }
            rounds += 1;
        };
        let report = status::report(&situation, &plan, &outcome, pass.now());
        let target = Target::of(service.as_ref());
        let written = self
            .sources
            .writer
            .apply_status::<AppService, _>(&target, &report.status, service.status.as_ref())
            .await
            .map_err(Error::Status)?;
        if let StatusWrite::Written(live) = written {
            self.sources.app_services.observe(*live, pass);
            self.events.publish_transitions(service.as_ref(), "Reconcile", &report.transitions);
            if let Some(Transition { reason, message, .. }) = report.intrusion() {
                let of = service.as_ref();
                self.events.publish(of, EventType::Warning, "Reconcile", reason, message);
            }
        }
        match outcome.failure.or_else(|| situation.unknown()) {
            Some(failure) => Err(failure),
            None => Ok(Next::Settled),
        }
    }
}

impl ServiceReconciler {
    /// The Service of an AppService that is gone, or going, the garbage collector removes; its
    /// Claims are the sweep's. Its slices stay until their sandboxes are gone.
    async fn clear_up(&self, pass: &Pass) -> Result<Next, Error> {
        let left = self.sources.left_by(pass.key()).await;
        self.sources.clear_up(&plan::farewell(&left), pass).await?;
        // A full pass knows nothing of an AppService that is gone.
        let is_done = left.iter().all(|left| left.there.is_empty());
        Ok(if is_done { Next::Settled } else { Next::After(FAREWELL_INTERVAL) })
    }
}
