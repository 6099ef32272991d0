//! What is planned in each situation.

use std::sync::Arc;

use portolan_api::{Claim, Holder, Route};
use portolan_claims::HolderState;
use portolan_reconcile::{Observed, Target};

use crate::fixtures::{claim, domain, route};
use crate::observe::{CertificateSightings, Situation};
use crate::plan::{Hold, Plan, Reason, Rival, Step, plan};
use crate::policy::{Denial, DomainRule};

const HOST: &str = "shop.example.com";
const OLD_HOST: &str = "old.example.com";
const TEAM_A: &str = "team-a";
const TEAM_B: &str = "team-b";

/// Route `shop` in `team-a`, ten seconds old, asks for `HOST` and has nothing.
fn situation() -> Situation {
    Situation {
        route: Arc::new(route(TEAM_A, "shop", HOST, 10)),
        namesakes: vec![],
        domains: vec![],
        claim: None,
        above: vec![],
        own: vec![],
        app: Observed::Absent,
        certificate: CertificateSightings::default(),
    }
}

fn with_claim(holder: (&str, &str), state: HolderState) -> Situation {
    let (namespace, name) = holder;
    let held = Arc::new(claim(HOST, namespace, name, &format!("uid-{name}")));
    let own = if state == HolderState::Own { vec![held.clone()] } else { vec![] };
    Situation { claim: Some((held, state)), own, ..situation() }
}

fn own(host: &str) -> Arc<Claim> {
    Arc::new(claim(host, TEAM_A, "shop", "uid-shop"))
}

fn namesake(name: &str, second: i64) -> Arc<Route> {
    Arc::new(route(TEAM_A, name, HOST, second))
}

fn rule(suffix: &str, namespaces: &[&str]) -> Arc<DomainRule> {
    Arc::new(domain("rule", suffix, namespaces, 1))
}

fn create() -> Step {
    let holder = Holder {
        kind: "Route".into(),
        namespace: TEAM_A.into(),
        name: "shop".into(),
        uid: "uid-shop".into(),
    };
    Step::Create { host: HOST.into(), holder }
}

fn delete(claim: &Claim, why: Reason) -> Step {
    Step::Delete { claim: Target::at(claim), host: claim.spec.value.clone(), why }
}

/// Deletes the Claim on the host that is asked for.
fn evict(situation: &Situation, why: Reason) -> Step {
    delete(&situation.claim.as_ref().unwrap().0, why)
}

#[track_caller]
fn check(situation: &Situation, steps: &[Step], hold: Hold) -> Plan {
    let plan = plan(situation);
    assert_eq!((&*plan.steps, &plan.hold), (steps, &hold));
    plan
}

fn lost_to_sibling(name: &str) -> Hold {
    Hold::Lost(Rival::Sibling(name.into()))
}

#[test]
fn a_free_host_is_claimed() {
    check(&situation(), &[create()], Hold::Ours);
}

#[test]
fn a_held_host_needs_nothing() {
    let plan = check(&with_claim((TEAM_A, "shop"), HolderState::Own), &[], Hold::Ours);
    assert_eq!(plan.look_again, None);
}

#[test]
fn a_host_of_another_namespace_is_lost_whoever_is_older() {
    let plan = check(
        &with_claim((TEAM_B, "other"), HolderState::Asks),
        &[],
        Hold::Lost(Rival::Namespace(TEAM_B.into())),
    );
    assert_eq!(plan.look_again, None, "the Claim's end wakes us");
}

#[test]
fn of_two_default_routes_one_answers() {
    let held = Arc::new(claim("*", TEAM_B, "other", "uid-other"));
    let second = Situation {
        route: Arc::new(route(TEAM_A, "shop", "*", 10)),
        claim: Some((held, HolderState::Asks)),
        ..situation()
    };
    check(&second, &[], Hold::Lost(Rival::Namespace(TEAM_B.into())));
}

#[test]
fn a_claim_that_lost_its_holder_is_taken_over() {
    for (state, why) in
        [(HolderState::Gone, Reason::HolderGone), (HolderState::Left, Reason::HolderLeft)]
    {
        let situation = with_claim((TEAM_B, "other"), state);
        check(&situation, &[evict(&situation, why), create()], Hold::Ours);
    }
}

#[test]
fn a_claim_of_the_route_of_that_name_before_is_taken_over() {
    let mut situation = with_claim((TEAM_A, "shop"), HolderState::Gone);
    situation.claim.as_mut().unwrap().0 = Arc::new(claim(HOST, TEAM_A, "shop", "uid-before"));
    check(&situation, &[evict(&situation, Reason::HolderGone), create()], Hold::Ours);
}

#[test]
fn a_holder_that_cannot_be_read_keeps_its_claim() {
    let why = "connection refused".to_owned();
    let situation = with_claim((TEAM_B, "other"), HolderState::Unknown(why.clone()));
    check(&situation, &[], Hold::Undecided(why));
}

#[test]
fn a_claim_made_by_hand_reserves_the_host() {
    let mut situation = with_claim((TEAM_B, "other"), HolderState::Reserved);
    let mut reserved = (*situation.claim.as_ref().unwrap().0).clone();
    reserved.spec.holder.kind = "Gateway".into();
    situation.claim.as_mut().unwrap().0 = Arc::new(reserved);
    check(&situation, &[], Hold::Lost(Rival::Reserved("Gateway".into())));
}

#[test]
fn the_older_route_of_a_namespace_takes_the_host_from_the_younger() {
    let mut situation = with_claim((TEAM_A, "younger"), HolderState::Asks);
    situation.namesakes = vec![namesake("younger", 11)];
    check(&situation, &[evict(&situation, Reason::Outranked), create()], Hold::Ours);
}

#[test]
fn the_younger_route_of_a_namespace_waits() {
    let mut situation = with_claim((TEAM_A, "older"), HolderState::Asks);
    situation.namesakes = vec![namesake("older", 9)];
    let plan = check(&situation, &[], lost_to_sibling("older"));
    assert_eq!(plan.look_again, None, "the Claim's end wakes us");
}

#[test]
fn among_routes_of_one_second_the_name_decides() {
    let mut first = with_claim((TEAM_A, "zebra"), HolderState::Asks);
    first.namesakes = vec![namesake("zebra", 10)];
    check(&first, &[evict(&first, Reason::Outranked), create()], Hold::Ours);
    let mut second = with_claim((TEAM_A, "alpha"), HolderState::Asks);
    second.namesakes = vec![namesake("alpha", 10)];
    check(&second, &[], lost_to_sibling("alpha"));
}

#[test]
fn a_free_host_is_left_to_an_older_route_for_a_while() {
    let mut situation = situation();
    situation.namesakes = vec![namesake("older", 9), namesake("oldest", 8), namesake("young", 11)];
    let plan = check(&situation, &[], lost_to_sibling("oldest"));
    assert!(plan.look_again.is_some(), "no Claim tells us if the older one goes");
}

#[test]
fn a_younger_holder_is_left_to_the_oldest_to_evict() {
    let mut situation = with_claim((TEAM_A, "young"), HolderState::Asks);
    situation.namesakes = vec![namesake("oldest", 8), namesake("young", 11)];
    let plan = check(&situation, &[], lost_to_sibling("oldest"));
    assert!(plan.look_again.is_some());
}

#[test]
fn a_holder_stays_until_the_older_route_takes_over() {
    let mut situation = with_claim((TEAM_A, "shop"), HolderState::Own);
    situation.namesakes = vec![namesake("older", 9)];
    check(&situation, &[], Hold::Ours);
}

#[test]
fn the_new_host_is_claimed_before_the_old_one_is_released() {
    let mut situation = situation();
    situation.own = vec![own(OLD_HOST)];
    let release = delete(&own(OLD_HOST), Reason::HostChanged);
    check(&situation, &[create(), release], Hold::Ours);
}

#[test]
fn what_a_crash_left_behind_is_released() {
    let mut situation = with_claim((TEAM_A, "shop"), HolderState::Own);
    situation.own.push(own(OLD_HOST));
    check(&situation, &[delete(&own(OLD_HOST), Reason::HostChanged)], Hold::Ours);
}

#[test]
fn the_old_host_is_kept_while_the_new_one_is_lost() {
    let mut situation = with_claim((TEAM_B, "other"), HolderState::Asks);
    situation.own = vec![own(OLD_HOST)];
    check(&situation, &[], Hold::Lost(Rival::Namespace(TEAM_B.into())));
}

#[test]
fn a_domain_for_others_denies_the_host() {
    let mut situation = situation();
    situation.domains = vec![rule("example.com", &[TEAM_B])];
    let denial = Denial::Domain { name: "rule".into(), suffix: "example.com".into() };
    check(&situation, &[], Hold::Denied(denial));
}

#[test]
fn a_domain_for_others_takes_a_held_host_away() {
    let mut situation = with_claim((TEAM_A, "shop"), HolderState::Own);
    situation.domains = vec![rule("example.com", &[TEAM_B])];
    let denial = Denial::Domain { name: "rule".into(), suffix: "example.com".into() };
    check(&situation, &[evict(&situation, Reason::Denied)], Hold::Denied(denial));
}

#[test]
fn a_domain_takes_the_old_host_away_whatever_becomes_of_the_new_one() {
    let mut lost = with_claim((TEAM_B, "other"), HolderState::Asks);
    lost.own = vec![own(OLD_HOST)];
    lost.domains = vec![rule(OLD_HOST, &[TEAM_B])];
    let denied = delete(&own(OLD_HOST), Reason::Denied);
    check(&lost, std::slice::from_ref(&denied), Hold::Lost(Rival::Namespace(TEAM_B.into())));

    let mut won = situation();
    won.own = vec![own(OLD_HOST)];
    won.domains = vec![rule(OLD_HOST, &[TEAM_B])];
    check(&won, &[denied, create()], Hold::Ours);
}

#[test]
fn a_wildcard_of_another_namespace_denies_what_is_claimed_after_it() {
    let above = vec![Arc::new(claim("*.example.com", TEAM_B, "wild", "uid-wild"))];
    let denial = Denial::Under { host: "*.example.com".into(), namespace: TEAM_B.into() };
    check(&Situation { above: above.clone(), ..situation() }, &[], Hold::Denied(denial.clone()));

    let held = with_claim((TEAM_A, "shop"), HolderState::Own);
    check(&Situation { above: above.clone(), ..held }, &[], Hold::Ours);

    let mut sibling = with_claim((TEAM_A, "younger"), HolderState::Asks);
    sibling.namesakes = vec![namesake("younger", 11)];
    let steps = [evict(&sibling, Reason::Outranked), create()];
    check(&Situation { above: above.clone(), ..sibling }, &steps, Hold::Ours);

    let gone = with_claim((TEAM_A, "before"), HolderState::Gone);
    check(&Situation { above, ..gone }, &[], Hold::Denied(denial));
}
