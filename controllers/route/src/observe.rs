//! All reads of a Route's pass. Reads caches; asks the API server only about a holder that the
//! caches do not confirm.

use std::sync::Arc;

use jiff::Timestamp;
use portolan_api::{CertificateReport, Claim, GatewayPhase, Route};
use portolan_claims::{HolderState, holder_key};
use portolan_reconcile::{ObjectKey, Observed, Pass};

use crate::policy::{self, DomainRule};
use crate::view::AppServices;
use crate::{BY_HOST, REALM, RouteReconciler, host};

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
        let claim = match self.claims.named(wanted) {
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
            own: self.claims.held_by(route.as_ref()),
            app: self.apps.observed(&app),
            certificate: self.certificate(&route, key, pass.now()),
            route,
        }
    }

    /// A holder that the cache confirms needs no request; one that it does not confirm is read
    /// from the API server, because a Claim must not be lost to a cache that lags.
    async fn holder(&self, claim: &Claim, route: &Route) -> HolderState {
        let key = holder_key(claim);
        match confirmed(claim, route, self.routes.unpack(&key).as_deref()) {
            Some(state) => state,
            None => judged(claim, self.writer.get::<Route>(&key).await.as_ref()),
        }
    }

    fn namesakes(&self, route: &Route, key: &ObjectKey) -> Vec<Arc<Route>> {
        let mut same = self.routes.unpack_by_index(BY_HOST, &route.spec.host);
        same.retain(|other| {
            let other = ObjectKey::of(other.as_ref());
            other.namespace == key.namespace && other.name != key.name
        });
        same
    }

    fn claim_on(&self, host: &str) -> Option<Arc<Claim>> {
        self.claims.named(host).filter(|claim| policy::is_claim_on(claim, host))
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
    let host = route.spec.host.as_str();
    portolan_claims::confirmed(REALM, (claim, host), route, cached, |cached| asks(cached, claim))
}

/// What the API server said about the holder of a Claim; `live` is the Route under its name.
pub(crate) fn judged(claim: &Claim, live: Observed<&Route>) -> HolderState {
    portolan_claims::judged(claim, live, |live| asks(live, claim))
}

fn asks(route: &Route, claim: &Claim) -> bool {
    route.spec.host == claim.spec.value
}
