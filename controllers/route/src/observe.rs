//! All reads of a Route's pass. Reads caches; asks the API server only about a holder that the
//! caches do not confirm.

use std::sync::Arc;

use jiff::Timestamp;
use portolan_api::{CertificateReport, Claim, ClaimKind, GatewayPhase, Route, names};
use portolan_reconcile::{ObjectKey, Observed, Pass};
use serde::Serialize;

use crate::policy::{self, DomainRule};
use crate::view::AppServices;
use crate::{BY_HOLDER, BY_HOST, RouteReconciler, host};

/// Everything that a pass over one Route may know.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    /// The Route.
    pub(crate) route: Arc<Route>,
    /// The other Routes of its namespace that ask for the same host.
    pub(crate) namesakes: Vec<Arc<Route>>,
    /// All Domains.
    pub(crate) domains: Vec<Arc<DomainRule>>,
    /// The Claim that has the name for the Route's host; `None`: the host is free.
    pub(crate) claim: Option<(Arc<Claim>, HolderState)>,
    /// The Claims on the hosts that `host::above` names.
    pub(crate) above: Vec<Arc<Claim>>,
    /// The Claims that this very Route holds, on its host and on others.
    pub(crate) own: Vec<Arc<Claim>>,
    /// The App that the Route names.
    pub(crate) app: Observed<Arc<AppServices>>,
    /// What the gateways say about the Route's certificate.
    pub(crate) certificate: CertificateSightings,
}

/// What is known about the holder of the Claim on a Route's host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum HolderState {
    /// It is the Route itself.
    Own,
    /// It is another Route, and it asks for this host.
    Asks,
    /// It is another Route, and it asks for another host now.
    Left,
    /// It is a Route that does not exist any more.
    Gone,
    /// The Claim is not one of a Route on this host: somebody reserved the name by hand.
    Reserved,
    /// It could not be found out; the text says why.
    Unknown(String),
}

/// What the live gateways say about one certificate. They report only what they cannot use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateSightings {
    /// How many gateways are live.
    pub(crate) gateways: usize,
    /// What they report about this certificate, at most one entry for each.
    pub(crate) problems: Vec<CertificateReport>,
    /// When the first of those that reported something stops counting, unless its Lease is
    /// renewed.
    pub(crate) until: Option<Timestamp>,
}

impl RouteReconciler {
    /// Reads all that a pass over this Route may know.
    pub(crate) async fn observe(&self, route: Arc<Route>, pass: &Pass) -> Situation {
        let key = pass.key();
        let wanted = route.spec.host.as_str();
        let claim = match self.claims.get(&claim_key(wanted)) {
            Some(claim) => {
                let holder = self.holder(&claim, &route).await;
                Some((claim, holder))
            }
            None => None,
        };
        let app = ObjectKey::new(&*key.namespace, &*route.spec.app);
        Situation {
            namesakes: self.namesakes(&route, key),
            domains: self.domains.list(),
            claim,
            above: host::above(wanted).iter().filter_map(|host| self.claim_on(host)).collect(),
            own: self.own_claims(&route, key),
            app: self.apps.observed(&app),
            certificate: self.certificate(&route, key, pass.now()),
            route,
        }
    }

    /// A holder that the cache confirms needs no request; one that it does not confirm is read
    /// from the API server, because a Claim must not be lost to a cache that lags.
    async fn holder(&self, claim: &Claim, route: &Route) -> HolderState {
        let key = holder_key(claim);
        match confirmed(claim, route, self.routes.get(&key).as_deref()) {
            Some(state) => state,
            None => judged(claim, self.writer.get::<Route>(&key).await.as_ref()),
        }
    }

    fn namesakes(&self, route: &Route, key: &ObjectKey) -> Vec<Arc<Route>> {
        let mut same = self.routes.by_index(BY_HOST, &route.spec.host);
        same.retain(|other| {
            let other = ObjectKey::of(other.as_ref());
            other.namespace == key.namespace && other.name != key.name
        });
        same
    }

    fn own_claims(&self, route: &Route, key: &ObjectKey) -> Vec<Arc<Claim>> {
        let mut own = self.claims.by_index(BY_HOLDER, &key.to_string());
        own.retain(|claim| is_holder(route, claim));
        own
    }

    fn claim_on(&self, host: &str) -> Option<Arc<Claim>> {
        self.claims.get(&claim_key(host)).filter(|claim| policy::is_claim_on(claim, host))
    }

    fn certificate(&self, route: &Route, key: &ObjectKey, now: Timestamp) -> CertificateSightings {
        let Some(tls) = &route.spec.tls else { return CertificateSightings::default() };
        let unbroken = self.leases.unbroken_since();
        let mut live = self.leases.list();
        live.retain(|gateway| {
            gateway.phase != GatewayPhase::Left && gateway.lapses_for(unbroken, now) > now
        });
        let mut sightings =
            CertificateSightings { gateways: live.len(), ..CertificateSightings::default() };
        for report in self.reports.list() {
            let Some(gateway) = live.iter().find(|gateway| gateway.name == report.gateway) else {
                continue;
            };
            let problem = report.certificates.iter().find(|problem| {
                problem.namespace == key.namespace && problem.name == tls.secret_name
            });
            if let Some(problem) = problem {
                sightings.problems.push(problem.clone());
                let lapses = gateway.lapses_for(unbroken, now);
                sightings.until = sightings.until.into_iter().chain([lapses]).min();
            }
        }
        sightings
    }
}

/// What the cache alone can say about the holder of the Claim on the host of `route`; `cached` is
/// the Route under the holder's name.
pub(crate) fn confirmed(
    claim: &Claim,
    route: &Route,
    cached: Option<&Route>,
) -> Option<HolderState> {
    let holder = &claim.spec.holder;
    if !policy::is_claim_on(claim, &route.spec.host) || !is_route(&holder.kind) {
        return Some(HolderState::Reserved);
    }
    if route.metadata.uid.as_ref() == Some(&holder.uid) {
        return Some(HolderState::Own);
    }
    cached.is_some_and(|cached| asks(cached, claim)).then_some(HolderState::Asks)
}

/// What the API server said about the holder of a Claim; `live` is the Route under its name.
pub(crate) fn judged(claim: &Claim, live: Observed<&Route>) -> HolderState {
    match live {
        Observed::Absent => HolderState::Gone,
        Observed::Present(live) if asks(live, claim) => HolderState::Asks,
        Observed::Present(live) if is_holder(live, claim) => HolderState::Left,
        Observed::Present(_) => HolderState::Gone,
        Observed::Unknown(why) => HolderState::Unknown(why),
    }
}

fn asks(route: &Route, claim: &Claim) -> bool {
    is_holder(route, claim) && route.spec.host == claim.spec.value
}

/// An object of the same name with another UID does not hold the Claim.
fn is_holder(route: &Route, claim: &Claim) -> bool {
    route.metadata.uid.as_ref() == Some(&claim.spec.holder.uid)
}

/// The key of the object that holds a Claim.
pub(crate) fn holder_key(claim: &Claim) -> ObjectKey {
    ObjectKey::new(&*claim.spec.holder.namespace, &*claim.spec.holder.name)
}

/// The key of the Claim on a host.
pub(crate) fn claim_key(host: &str) -> ObjectKey {
    ObjectKey::cluster(names::claim(ClaimKind::Host, host))
}

/// Whether this kind of holder is ours to judge.
pub(crate) fn is_route(kind: &str) -> bool {
    kind == ROUTE
}

/// The kind of the holders that this controller writes.
pub(crate) const ROUTE: &str = "Route";
