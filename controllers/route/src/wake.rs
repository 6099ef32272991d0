//! Which Routes a change concerns. Pure look-ups in the cache of Routes; a change that says
//! nothing new wakes nobody.

use std::collections::BTreeSet;
use std::sync::Arc;

use portolan_api::{CertificateReport, Claim, ClaimKind, Gateway, Route};
use portolan_claims::holder_key;
use portolan_reconcile::{Cache, Change, ObjectKey};

use crate::policy::DomainRule;
use crate::view::{AppServices, CertificateProblems};
use crate::{BY_APP, BY_INTEREST, BY_SECRET, REALM, host};

/// A Claim concerns its holder, whoever asks for that host, and whoever asks for one below it.
pub(crate) fn by_claim(change: &Change<'_, Claim>, routes: &Cache<Route>) -> BTreeSet<ObjectKey> {
    let claims = change.old.into_iter().chain(change.new);
    let mut woken = BTreeSet::new();
    for claim in claims.filter(|claim| claim.spec.kind == ClaimKind::Host) {
        if REALM.has(claim) {
            woken.insert(holder_key(claim));
        }
        woken.extend(found(routes, BY_INTEREST, &claim.spec.value));
    }
    woken
}

/// A Domain concerns the Routes it covers or covered.
pub(crate) fn by_domain(
    change: &Change<'_, DomainRule>,
    routes: &Cache<Route>,
) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    let rules: Vec<_> = change.old.into_iter().chain(change.new).collect();
    let concerned = |route: &Route| rules.iter().any(|rule| concerns(rule, &route.spec.host));
    keys(routes.list().iter().filter(|route| concerned(route)).map(|route| -> &Route { route }))
}

/// The default route needs a Domain for it as soon as there is any.
fn concerns(rule: &DomainRule, asked: &str) -> bool {
    asked == host::DEFAULT || host::covers(&rule.suffix, asked)
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
pub(crate) fn by_lease(change: &Change<'_, Gateway>, routes: &Cache<Route>) -> BTreeSet<ObjectKey> {
    if Gateway::is_renewal(change.old.map(Arc::as_ref), change.new.map(Arc::as_ref)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::domain;

    #[test]
    fn a_domain_concerns_what_it_covers_and_the_default_route() {
        let rule = domain("d", "example.com", &[], 1);
        for asked in ["example.com", "shop.example.com", "*.example.com", "*"] {
            assert!(concerns(&rule, asked), "{asked}");
        }
        assert!(!concerns(&rule, "example.org"));
    }

    fn problems(entries: &[(&str, &str)]) -> CertificateProblems {
        let entry = |&(name, reason): &(&str, &str)| CertificateReport {
            namespace: "team-a".into(),
            name: name.into(),
            reason: reason.into(),
            message: String::new(),
        };
        let certificates = entries.iter().map(entry).collect();
        CertificateProblems { gateway: "gw-1".into(), certificates }
    }

    #[track_caller]
    fn check_news(old: Option<&[(&str, &str)]>, new: Option<&[(&str, &str)]>, expected: &[&str]) {
        let (old, new) = (old.map(problems), new.map(problems));
        let expected = expected.iter().map(|name| ObjectKey::new("team-a", *name)).collect();
        assert_eq!(news(old.as_ref(), new.as_ref()), expected);
    }

    #[test]
    fn only_what_is_new_in_a_report_counts() {
        let (one, other) = (("one", "SecretNotFound"), ("other", "SecretNotFound"));
        check_news(None, Some(&[one]), &["one"]);
        check_news(Some(&[one]), None, &["one"]);
        check_news(Some(&[one, other]), Some(&[other, one]), &[]);
        check_news(Some(&[one, other]), Some(&[other]), &["one"]);
        check_news(Some(&[one]), Some(&[("one", "CertificateInvalid")]), &["one"]);
    }
}
