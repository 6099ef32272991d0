//! Which Routes a change concerns. Pure look-ups in the cache of Routes; a change that says
//! nothing new wakes nobody.

use std::collections::BTreeSet;

use portolan_api::{CertificateReport, Claim, ClaimKind, Route};
use portolan_reconcile::{Cache, Change, ObjectKey};

use crate::observe::{holder_key, is_route};
use crate::policy::DomainRule;
use crate::view::{AppServices, CertificateProblems, GatewayLease};
use crate::{BY_APP, BY_INTEREST, BY_SECRET, host};

/// A Claim concerns its holder, whoever asks for that host, and whoever asks for one below it.
pub(crate) fn by_claim(change: &Change<'_, Claim>, routes: &Cache<Route>) -> BTreeSet<ObjectKey> {
    let claims = change.old.into_iter().chain(change.new);
    let mut woken = BTreeSet::new();
    for claim in claims.filter(|claim| claim.spec.kind == ClaimKind::Host) {
        if is_route(&claim.spec.holder.kind) {
            woken.insert(holder_key(claim));
        }
        woken.extend(found(routes, BY_INTEREST, &claim.spec.value));
    }
    woken
}

/// A Domain concerns the Routes it covers, and the default route even if it does not cover it.
pub(crate) fn by_domain(
    change: &Change<'_, DomainRule>,
    routes: &Cache<Route>,
) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    let rules: Vec<_> = change.old.into_iter().chain(change.new).collect();
    let concerned = |route: &Route| {
        let asked = &route.spec.host;
        asked == host::DEFAULT || rules.iter().any(|rule| host::covers(&rule.suffix, asked))
    };
    keys(routes.list().iter().filter(|route| concerned(route)).map(|route| -> &Route { route }))
}

/// An App concerns the Routes that name it, when its services change.
pub(crate) fn by_app(
    change: &Change<'_, AppServices>,
    routes: &Cache<Route>,
) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    found(routes, BY_APP, &change.key.to_string())
}

/// A gateway's report concerns the Routes of the Secrets it says something new about.
pub(crate) fn by_report(
    change: &Change<'_, CertificateProblems>,
    routes: &Cache<Route>,
) -> BTreeSet<ObjectKey> {
    let entries = |side: Option<&std::sync::Arc<CertificateProblems>>| -> Vec<CertificateReport> {
        side.map(|report| report.certificates.clone()).unwrap_or_default()
    };
    let (old, new) = (entries(change.old), entries(change.new));
    let gone = old.iter().filter(|entry| !new.contains(entry));
    let came = new.iter().filter(|entry| !old.contains(entry));
    let secret = |entry: &CertificateReport| format!("{}/{}", entry.namespace, entry.name);
    gone.chain(came).flat_map(|entry| found(routes, BY_SECRET, &secret(entry))).collect()
}

/// A gateway that comes, comes back or goes concerns all Routes with a certificate; a renewal in
/// time nobody.
pub(crate) fn by_lease(
    change: &Change<'_, GatewayLease>,
    routes: &Cache<Route>,
) -> BTreeSet<ObjectKey> {
    if let (Some(old), Some(new)) = (change.old, change.new)
        && new.renewed < old.lapses
    {
        return BTreeSet::new();
    }
    let routes = routes.list();
    keys(routes.iter().filter(|route| route.spec.tls.is_some()).map(|route| -> &Route { route }))
}

fn found(routes: &Cache<Route>, index: &'static str, value: &str) -> BTreeSet<ObjectKey> {
    keys(routes.by_index(index, value).iter().map(|route| -> &Route { route }))
}

fn keys<'a>(routes: impl Iterator<Item = &'a Route>) -> BTreeSet<ObjectKey> {
    routes.map(ObjectKey::of).collect()
}
