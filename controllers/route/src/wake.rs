//! Which Routes a change concerns. Pure look-ups in the cache of Routes; a change that says
//! nothing new wakes nobody.

use std::collections::BTreeSet;
use std::sync::Arc;

use portolan_api::{CertificateReport, Claim, ClaimKind, Gateway, Route};
use portolan_claims::holder_key;
use portolan_reconcile::{Change, ObjectKey, Packed};

use crate::policy::DomainRule;
use crate::view::{AppServices, CertificateProblems};
use crate::{BY_APP, BY_INTEREST, BY_SECRET, REALM, Routes, WITH_TLS, host};

/// A Claim concerns its holder, whoever asks for that host, and whoever asks for one below it.
pub(crate) fn by_claim(change: &Change<'_, Packed<Claim>>, routes: &Routes) -> BTreeSet<ObjectKey> {
    let mut woken = BTreeSet::new();
    for claim in change.sides().filter(|claim| claim.spec.kind == ClaimKind::Host) {
        if REALM.has(&claim) {
            woken.insert(holder_key(&claim));
        }
        woken.extend(found(routes, BY_INTEREST, &claim.spec.value));
    }
    woken
}

/// A Domain concerns the Routes it covers or covered.
pub(crate) fn by_domain(change: &Change<'_, DomainRule>, routes: &Routes) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    let rules: Vec<_> = change.old.into_iter().chain(change.new).collect();
    let concerned = |route: Route| rules.iter().any(|rule| concerns(rule, &route.spec.host));
    let mut all = routes.entries();
    all.retain(|(_, route)| concerned(route.unpack()));
    all.into_iter().map(|(key, _)| key).collect()
}

/// The default route needs a Domain for it as soon as there is any.
fn concerns(rule: &DomainRule, asked: &str) -> bool {
    asked == host::DEFAULT || host::covers(&rule.suffix, asked)
}

/// An App concerns the Routes that name it, when its services change.
pub(crate) fn by_app(change: &Change<'_, AppServices>, routes: &Routes) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    found(routes, BY_APP, &change.key.to_string())
}

/// A gateway's report concerns the Routes of the Secrets it says something new about.
pub(crate) fn by_report(
    change: &Change<'_, CertificateProblems>,
    routes: &Routes,
) -> BTreeSet<ObjectKey> {
    let secrets = news(change.old.map(Arc::as_ref), change.new.map(Arc::as_ref));
    secrets.iter().flat_map(|secret| found(routes, BY_SECRET, &secret.to_string())).collect()
}

/// The Secrets of which the two reports say different things.
fn news(
    old: Option<&CertificateProblems>,
    new: Option<&CertificateProblems>,
) -> BTreeSet<ObjectKey> {
    let entries = |side: Option<&CertificateProblems>| -> Vec<CertificateReport> {
        side.map(|report| report.certificates.clone()).unwrap_or_default()
    };
    let (old, new) = (entries(old), entries(new));
    let gone = old.iter().filter(|entry| !new.contains(entry));
    let came = new.iter().filter(|entry| !old.contains(entry));
    gone.chain(came).map(|entry| ObjectKey::new(&*entry.namespace, &*entry.name)).collect()
}

/// A gateway that comes, comes back or goes concerns all Routes with a certificate.
pub(crate) fn by_lease(change: &Change<'_, Gateway>, routes: &Routes) -> BTreeSet<ObjectKey> {
    if Gateway::is_renewal(change.old.map(Arc::as_ref), change.new.map(Arc::as_ref)) {
        return BTreeSet::new();
    }
    found(routes, WITH_TLS, WITH_TLS)
}

fn found(routes: &Routes, index: &'static str, value: &str) -> BTreeSet<ObjectKey> {
    routes.keys_by_index(index, value).into_iter().collect()
}
