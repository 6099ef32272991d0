//! The status of Domains: whether a Domain is in force, or an older one has its suffix.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use portolan_api::conditions::{READY, reason};
use portolan_api::{Domain, DomainStatus};
use portolan_reconcile::{
    Cache, Conditions, Context, Controller, Events, Next, ObjectKey, Pass, Reconciler, RunError,
    StatusWrite, Target, Transition, Watch, Writer,
};

use crate::error::Error;
use crate::policy::DomainRule;

/// Domains by their suffix.
const BY_SUFFIX: &str = "suffix";

/// Writes the status of Domains.
struct DomainReconciler {
    writer: Writer,
    events: Events,
    domains: Cache<Domain>,
    rules: Cache<Domain, DomainRule>,
}

/// Runs the controller of Domains until `ctx.shutdown` is cancelled.
pub(crate) fn run(ctx: &Context) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "domain");
    let domains: Cache<Domain> = controller.primary(
        Watch::new().prune().index(BY_SUFFIX, |domain: &Domain| [domain.spec.suffix.clone()]),
    );
    let known = domains.clone();
    // The rule without the status: what concerns the other Domains of the suffix.
    let rules = controller.watch(Watch::new().project(DomainRule::of), move |change| {
        if change.old == change.new {
            return BTreeSet::new();
        }
        let suffixes = change.old.into_iter().chain(change.new).map(|rule| &rule.suffix);
        let concerned = suffixes.flat_map(|suffix| known.by_index(BY_SUFFIX, suffix));
        concerned.map(|domain| ObjectKey::of(domain.as_ref())).collect()
    });
    let reconciler = DomainReconciler {
        writer: controller.writer(),
        events: controller.events(),
        domains,
        rules,
    };
    controller.run(reconciler)
}

impl Reconciler for DomainReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let Some(domain) = self.domains.get(pass.key()) else { return Ok(Next::Settled) };
        pass.identify(domain.as_ref());
        let (status, transitions) = status(&domain, &self.rules.list(), pass.now());
        let target = Target::of(domain.as_ref());
        let written = self
            .writer
            .apply_status::<Domain, _>(&target, &status, domain.status.as_ref())
            .await
            .map_err(Error::Status)?;
        if let StatusWrite::Written(live) = written {
            self.domains.observe(*live, pass);
            self.events.publish_transitions(domain.as_ref(), "Reconcile", &transitions);
        }
        Ok(Next::Settled)
    }
}

/// What a Domain reports, among all that there are.
fn status(
    domain: &Domain,
    rules: &[Arc<DomainRule>],
    now: Timestamp,
) -> (DomainStatus, Vec<Transition>) {
    let generation = domain.metadata.generation.unwrap_or_default();
    let before = domain.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let mut conditions = Conditions::new(before, generation, now);
    match older(domain, rules) {
        Some(older) => conditions.set(
            READY,
            false,
            reason::DUPLICATE_SUFFIX,
            format!(
                "Domain {} has the same suffix and is older; delete one of the two",
                older.name
            ),
        ),
        None => conditions.set(READY, true, reason::ACCEPTED, in_force(domain)),
    };
    let (conditions, transitions) = conditions.finish();
    (DomainStatus { observed_generation: Some(generation), conditions }, transitions)
}

/// The Domain that is in force instead of this one.
fn older<'a>(domain: &Domain, rules: &'a [Arc<DomainRule>]) -> Option<&'a DomainRule> {
    let own = DomainRule::of(domain.clone())?;
    let same = rules.iter().filter(|rule| rule.suffix == own.suffix && rule.name != own.name);
    let oldest = same.min_by(|one, other| one.age().cmp(&other.age()))?;
    (oldest.age() < own.age()).then_some(oldest)
}

fn in_force(domain: &Domain) -> String {
    let suffix = &domain.spec.suffix;
    match domain.spec.namespaces.as_slice() {
        [] => format!("no namespace may claim hosts under {suffix}"),
        [one] if one != "*" => format!("namespace {one} may claim hosts under {suffix}"),
        many if many.iter().any(|namespace| namespace == "*") => {
            format!("every namespace may claim hosts under {suffix}")
        }
        many => format!("{} namespaces may claim hosts under {suffix}", many.len()),
    }
}

#[cfg(test)]
mod tests {
    use portolan_reconcile::Verdict;
    use serde_json::{from_value, json};

    use super::*;
    use crate::fixtures::{at, domain as rule, later};

    fn mk_domain(name: &str, suffix: &str, second: i64, namespaces: &[&str]) -> Domain {
        from_value(json!({
            "metadata": { "name": name, "generation": 3, "creationTimestamp": at(second).to_string() },
            "spec": { "suffix": suffix, "namespaces": namespaces },
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(
        domain: &Domain,
        others: &[DomainRule],
        verdict: Verdict,
        reason: &str,
        message: &str,
    ) {
        let mut rules: Vec<_> = others.iter().cloned().map(Arc::new).collect();
        rules.extend(DomainRule::of(domain.clone()).map(Arc::new));
        let (status, transitions) = status(domain, &rules, later());
        let ready = &status.conditions[0];
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(
            (ready.type_.as_str(), ready.status.as_str(), ready.reason.as_str()),
            (READY, verdict.as_str(), reason)
        );
        assert!(ready.message.contains(message), "{}", ready.message);
        assert_eq!(transitions.len(), 1);
        let mut settled = domain.clone();
        settled.status = Some(status.clone());
        assert_eq!(super::status(&settled, &rules, later()), (status, vec![]), "nothing new");
    }

    #[test]
    fn a_domain_alone_is_in_force() {
        let others = [rule("other", "example.org", &["team-a"], 0)];
        let check = |namespaces: &[&str], message| {
            let domain = mk_domain("d", "example.com", 5, namespaces);
            check(&domain, &others, Verdict::True, reason::ACCEPTED, message);
        };
        check(&[], "no namespace may");
        check(&["team-a"], "namespace team-a may");
        check(&["*"], "every namespace may");
        check(&["team-a", "team-b"], "2 namespaces may");
        check(&["team-a", "*"], "every namespace may");
    }

    #[test]
    fn the_younger_of_two_is_not() {
        let domain = mk_domain("a-younger", "example.com", 5, &["team-a"]);
        let older = rule("z-older", "example.com", &["team-b"], 4);
        let oldest = rule("y-oldest", "example.com", &["team-b"], 3);
        let expected = "Domain y-oldest has the same suffix and is older";
        check(&domain, &[older, oldest], Verdict::False, reason::DUPLICATE_SUFFIX, expected);
    }

    #[test]
    fn the_older_of_two_is() {
        let domain = mk_domain("z-older", "example.com", 5, &["team-a"]);
        let younger = rule("a-younger", "example.com", &["team-b"], 6);
        check(&domain, &[younger], Verdict::True, reason::ACCEPTED, "namespace team-a may");
    }
}
