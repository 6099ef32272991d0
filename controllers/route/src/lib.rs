//! The route controller: who holds which host, and what a Route reports.
//!
//! A Route asks for a host; a `Claim`, named after the host, says which Route holds it. Gateways
//! serve a Route only while it holds its host. Whether a namespace may have a host is decided by
//! `Domain`s where they cover it, and by who comes first elsewhere.
//!
//! It deliberately does not know Secrets: what is wrong with a certificate the gateways report.
//! It does not know versions, pools or Pods either: that a Route is ready says that requests for
//! its host reach its App, not that the App answers.
//!
//! Entry point: [`run`], which runs three small controllers with a Lease each:
//!
//! | name | key | does |
//! |---|---|---|
//! | `route` | Route | claims the host, releases what is no longer asked for, writes the status |
//! | `claim` | Claim | deletes Claims whose Route is gone |
//! | `domain` | Domain | writes the status |
//!
//! What they need of the API server: list and watch routes, claims, domains, apps; in the system
//! namespace gatewayreports and the Leases of gateways; get routes and claims; create and delete
//! claims; patch routes/status and domains/status; create and patch events; their own Leases.
//!
//! Invariants:
//!
//! - A Claim is created, never changed; who is answered 409 has lost. So a host has one holder at
//!   any time, whatever two leaders or two passes believe.
//! - A Claim is deleted only as exactly the object that was seen (UID and resource version), and
//!   one of another Route only after the API server, or a cached Route that outranks it in the
//!   same namespace, said that it may go.
//! - A Route whose host changes claims the new one before it releases the old one. Who asks for
//!   the old one meanwhile may take it: a Claim protects a host that its holder asks for.
//! - A tenant learns the namespace that holds a host, never the names of what is in it.

mod apply;
mod domain;
mod error;
#[cfg(test)]
mod fixtures;
mod host;
mod observe;
mod plan;
#[cfg(test)]
mod plan_tests;
mod policy;
#[cfg(test)]
mod simulation;
mod status;
#[cfg(test)]
mod status_tests;
mod view;
mod wake;

use std::future::Future;

use futures::try_join;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Resource;
use portolan_api::{App, ClaimKind, Domain, Gateway, GatewayReport, Route};
use portolan_claims::{Claims, Realm, sweep};
use portolan_reconcile::{
    Cache, Context, Controller, Events, Next, ObjectKey, Packed, Pass, Queue, Reconciler, RunError,
    StatusWrite, Target, Watch, Writer,
};

pub use error::Error;

use crate::policy::DomainRule;
use crate::view::{AppServices, CertificateProblems};

/// Routes by the host they ask for.
const BY_HOST: &str = "host";
/// Routes by each host whose Claim concerns them: their own and those above it.
const BY_INTEREST: &str = "interest";
/// Routes by `namespace/name` of their App.
const BY_APP: &str = "app";
/// Routes by `namespace/name` of the Secret with their certificate.
const BY_SECRET: &str = "secret";
/// Routes with a certificate, under this very word.
const WITH_TLS: &str = "tls";

/// The Routes that there are.
type Routes = Cache<Route, Packed<Route>>;

/// What Routes claim.
const REALM: Realm = Realm { kind: ClaimKind::Host, holder: "Route" };

/// What the controller must know of the installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of the gateways, their Leases and reports.
    pub system_namespace: String,
    /// The ServiceAccount of the gateways there: named to users who must let it read a Secret.
    pub gateway_service_account: String,
}

/// Runs the controllers of Routes, their Claims and Domains until `ctx.shutdown` is cancelled.
///
/// # Errors
///
/// [`RunError`] when one of their own tasks ended unasked. A failed pass never ends a controller.
pub fn run(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let (routes, claims, domains) = (
        run_routes(ctx, settings),
        sweep::<Route>(Controller::new(ctx, "claim"), REALM),
        domain::run(ctx),
    );
    async move { try_join!(routes, claims, domains).map(|((), (), ())| ()) }
}

fn run_routes(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "route");
    let routes: Routes = controller.primary(
        Watch::new()
            .pack()
            .index(BY_HOST, |route: &Packed<Route>| [route.unpack().spec.host])
            .index(BY_INTEREST, |route| interests(&route.unpack()))
            .index(BY_APP, |route| {
                let route = route.unpack();
                [sibling(&route, &route.spec.app)]
            })
            .index(BY_SECRET, |route| {
                let route = route.unpack();
                route.spec.tls.as_ref().map(|tls| sibling(&route, &tls.secret_name))
            })
            .index(WITH_TLS, |route| route.unpack().spec.tls.map(|_| WITH_TLS.to_owned())),
    );
    let known = routes.clone();
    let claims = controller.watch(REALM.watch(), move |change| wake::by_claim(change, &known));
    let known = routes.clone();
    let domains = controller.watch(Watch::<Domain>::new().project(DomainRule::of), move |change| {
        wake::by_domain(change, &known)
    });
    let known = routes.clone();
    let apps = controller.watch(Watch::<App>::new().project(AppServices::of), move |change| {
        wake::by_app(change, &known)
    });
    let known = routes.clone();
    let system = &settings.system_namespace;
    let reports = controller.watch(
        Watch::<GatewayReport>::new().in_namespace(system).project(CertificateProblems::of),
        move |change| wake::by_report(change, &known),
    );
    let known = routes.clone();
    let leases = controller.watch(
        Watch::<Lease>::new().in_namespace(system).labels(Gateway::SELECTOR).project(Gateway::of),
        move |change| wake::by_lease(change, &known),
    );
    let (writer, events, queue) = (controller.writer(), controller.events(), controller.queue());
    let claims = Claims::new(REALM, writer.clone(), claims);
    controller.run(RouteReconciler {
        writer,
        events,
        queue,
        routes,
        claims,
        domains,
        apps,
        reports,
        leases,
        settings,
    })
}

/// Claims hosts for Routes and writes their status.
struct RouteReconciler {
    writer: Writer,
    events: Events,
    queue: Queue,
    routes: Routes,
    claims: Claims,
    domains: Cache<Domain, DomainRule>,
    apps: Cache<App, AppServices>,
    reports: Cache<GatewayReport, CertificateProblems>,
    leases: Cache<Lease, Gateway>,
    settings: Settings,
}

impl Reconciler for RouteReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        // The Claims of a Route that is gone are the sweep's.
        let Some(route) = self.routes.unpack(pass.key()) else { return Ok(Next::Settled) };
        pass.identify(route.as_ref());
        let situation = self.observe(route.clone(), pass).await;
        let plan = plan::plan(&situation);
        let outcome = self.apply(&plan, pass).await;
        for host in plan::offered(&situation, &plan) {
            let asking = self.routes.keys_by_index(BY_HOST, host);
            asking.into_iter().filter(|key| key != pass.key()).for_each(|key| self.queue.add(key));
        }
        let report = status::report(&situation, &plan, &outcome, &self.settings, pass.now());
        let target = Target::of(route.as_ref());
        let written = self
            .writer
            .apply_status::<Route, _>(&target, &report.status, route.status.as_ref())
            .await
            .map_err(Error::Status)?;
        if let StatusWrite::Written(live) = written {
            self.routes.observe(*live, pass);
            self.events.publish_transitions(route.as_ref(), "Reconcile", &report.transitions);
        }
        outcome.failure.map_or(Ok(report.next), Err)
    }
}

/// The hosts whose Claims concern a Route.
fn interests(route: &Route) -> Vec<String> {
    let host = &route.spec.host;
    let mut hosts = host::above(host);
    hosts.push(host.clone());
    hosts
}

/// `namespace/name` of something that a Route names in its own namespace.
fn sibling(route: &Route, name: &str) -> String {
    ObjectKey::new(route.metadata.namespace.clone().unwrap_or_default(), name).to_string()
}

/// When an object was made. The API server always says so; an object without counts as youngest.
fn created(object: &impl Resource) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}
