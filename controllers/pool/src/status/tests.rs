use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use portolan_api::SandboxPool;

use super::*;
use crate::{
    fixture::{
        POOL, at, ended, gateway, pending, pool, sandbox, settings, situation, unready, with_state,
    },
    plan::plan,
    sandbox::State,
};

/// Plans, lets the writes succeed, and reports.
fn reported(situation: &Situation, now: Timestamp) -> Report {
    let plan = plan(situation, &settings(), now);
    let incarnations = plan.create.iter().map(|new| new.incarnation);
    let outcome = Outcome {
        created: plan.create.len(),
        incarnation: incarnations.max().unwrap_or(0),
        ..Outcome::default()
    };
    status(situation, &plan, &outcome, now)
}

#[track_caller]
fn check(situation: &Situation, verdict: &str, reason: &str, message: &str) {
    let report = reported(situation, at(0));
    let ready = &report.status.conditions[0];
    assert_eq!((ready.type_.as_str(), ready.observed_generation), ("Ready", Some(4)));
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), (verdict, reason), "{ready:?}");
    assert!(ready.message.contains(message), "no '{message}' in: {}", ready.message);
    assert!(reason::ALL.contains(&reason));
}

fn fixed(count: i32) -> SandboxPool {
    let mut pool = pool();
    pool.spec.scale.min = count;
    pool.spec.scale.max = count;
    pool.spec.scale.requests_per_instance = None;
    pool.spec.scale.scale_down_delay_seconds = None;
    pool.spec.replicas = Some(count);
    pool
}

fn with_role(mut pool: SandboxPool, role: PoolRole) -> SandboxPool {
    pool.spec.role = role;
    pool
}

fn failing(ordinal: i32, incarnation: i64, reason: &str) -> Sandbox {
    let state = State::Waiting { reason: reason.to_owned(), message: "the cause".to_owned() };
    with_state(sandbox(ordinal, incarnation), state)
}

fn live() -> Vec<crate::gateway::Gateway> {
    vec![gateway("gw-a", 0, 0)]
}

#[test]
fn enough_ready_sandboxes_are_available() {
    let pool = situation(fixed(2), vec![sandbox(0, 1), sandbox(1, 2)], live());
    check(&pool, "True", "Available", "2 of 2");
}

#[test]
fn no_demand_is_healthy() {
    let mut asleep = pool();
    let last = Some(Time(at(-5000)));
    asleep.status = Some(SandboxPoolStatus { last_activity: last, ..Default::default() });
    check(&situation(asleep, vec![], live()), "True", "Asleep", "first one wakes");
}

#[test]
fn a_retired_pool_says_what_is_left() {
    let retired = || with_role(fixed(2), PoolRole::Retired);
    let two = vec![sandbox(0, 1), Sandbox { drain: Some("7".into()), ..sandbox(1, 2) }];
    check(&situation(retired(), two, live()), "True", "Retired", "2 drain");
    check(&situation(retired(), vec![], live()), "True", "Retired", "uses this pool");
}

#[test]
fn what_starts_is_not_known_yet() {
    check(&situation(fixed(1), vec![], live()), "Unknown", "Starting", "0 of 1");
    check(&situation(fixed(1), vec![pending(0, 1)], live()), "Unknown", "Starting", "0 of 1");
    check(&situation(fixed(1), vec![unready(0, 1, -5)], live()), "Unknown", "Starting", "0 of 1");
}

#[test]
fn fewer_than_the_least_number_is_degraded() {
    let starting = vec![sandbox(0, 1), pending(1, 2)];
    check(&situation(fixed(2), starting, live()), "False", "Degraded", "1 of 2");
    let failing = vec![sandbox(0, 1), failing(1, 2, "ErrImagePull")];
    check(&situation(fixed(2), failing, live()), "False", "Degraded", "ImagePullFailed: ");
}

#[test]
fn growing_beyond_the_least_number_stays_available() {
    let busy = || vec![gateway("gw-a", 15, 0)];
    check(&situation(pool(), vec![sandbox(0, 1)], busy()), "True", "Available", "1 of 2");
    let failing = vec![sandbox(0, 1), failing(1, 2, "ErrImagePull")];
    check(&situation(pool(), failing, busy()), "True", "Degraded", "ImagePullFailed: ");
}

#[test]
fn a_candidate_needs_its_whole_floor() {
    let mut candidate = with_role(pool(), PoolRole::Candidate);
    candidate.spec.floor = Some(2);
    let starting = vec![sandbox(0, 1), pending(1, 2)];
    check(&situation(candidate.clone(), starting, live()), "Unknown", "Starting", "1 of 2");
    let failing = vec![sandbox(0, 1), failing(1, 2, "ErrImagePull")];
    check(&situation(candidate, failing, live()), "False", "Degraded", "ImagePullFailed: ");
}

#[test]
fn with_none_ready_the_cause_is_the_reason() {
    for (sandbox, reason) in [
        (failing(0, 1, "CrashLoopBackOff"), "CrashLooping"),
        (failing(0, 1, "ImagePullBackOff"), "ImagePullFailed"),
        (failing(0, 1, "CreateContainerConfigError"), "ConfigMissing"),
        (failing(0, 1, "RunContainerError"), "StartFailed"),
        (unready(0, 1, -16), "NotListening"),
    ] {
        check(&situation(fixed(1), vec![sandbox], live()), "False", reason, POOL);
    }
    let mut probed = fixed(1);
    probed.spec.sandbox.readiness = Some(crate::fixture::yaml("{ exec: { command: [ check ] } }"));
    let running = vec![unready(0, 1, -16)];
    check(&situation(probed, running, live()), "False", "ProbeFailing", POOL);
    let hurdle = Some(Box::new(crate::sandbox::Hurdle::Unschedulable("0/3 nodes".into())));
    let nowhere = vec![Sandbox { hurdle, created: at(-60), ..pending(0, 1) }];
    check(&situation(fixed(1), nowhere, live()), "False", "Unschedulable", "0/3 nodes");
}

#[test]
fn of_several_causes_the_one_that_tells_most_is_reported() {
    let sandboxes = vec![
        unready(0, 1, -600),
        failing(1, 2, "CrashLoopBackOff"),
        failing(2, 3, "CreateContainerConfigError"),
        failing(3, 4, "ImagePullBackOff"),
    ];
    check(&situation(fixed(4), sandboxes, live()), "False", "ConfigMissing", "the cause");
}

#[test]
fn what_is_on_its_way_out_says_nothing_of_the_program() {
    let leaving = || {
        vec![
            Sandbox { deleting: true, ..failing(1, 2, "CrashLoopBackOff") },
            Sandbox { drain: Some("7".into()), ..failing(2, 3, "CrashLoopBackOff") },
            ended(failing(3, 4, "CrashLoopBackOff"), true),
        ]
    };
    let beside = |standing| [vec![standing], leaving()].concat();
    check(&situation(fixed(1), beside(sandbox(0, 1)), live()), "True", "Available", "1 of 1");
    check(&situation(fixed(1), beside(pending(0, 1)), live()), "Unknown", "Starting", "0 of 1");
    check(&situation(fixed(1), leaving(), live()), "Unknown", "Starting", "0 of 1");
}

/// The report when the API server refuses new sandboxes.
fn refused(situation: &Situation, now: Timestamp) -> Report {
    status(situation, &plan(situation, &settings(), now), &refusal(), now)
}

fn refusal() -> Outcome {
    let refused = Some("violates PodSecurity \"restricted\"".to_owned());
    Outcome { refused, ..Outcome::default() }
}

#[test]
fn a_refused_sandbox_is_reported_in_the_servers_words() {
    for (sandboxes, count, reason) in
        [(vec![], 1, "PodRefused"), (vec![sandbox(0, 1)], 2, "Degraded")]
    {
        let report = refused(&situation(fixed(count), sandboxes, live()), at(0));
        let ready = &report.status.conditions[0];
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", reason));
        assert!(ready.message.contains("violates PodSecurity"), "{}", ready.message);
        assert_eq!(report.status.incarnation, 0, "its name was not used");
    }
}

#[test]
fn what_was_refused_is_tried_again_ever_more_rarely() {
    let mut situation = situation(fixed(1), vec![], live());
    for (now, wait) in [(0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 16)] {
        let report = refused(&situation, at(now));
        assert_eq!(report.next, Some(at(now + wait)), "after {now} s");
        let (plan, outcome) = (plan(&situation, &settings(), at(now)), refusal());
        situation.setback = outcome.setback(&situation, &plan, at(now));
    }
}

#[test]
fn what_a_node_refuses_is_reported_in_its_words_until_it_is_overcome() {
    let mut refused = situation(fixed(1), vec![ended(sandbox(0, 1), false)], live());
    check(&refused, "False", "StartFailed", "the node was low on resource: memory");
    refused.setback = plan(&refused, &settings(), at(0)).setback;
    refused.sandboxes = vec![pending(0, 2).into()];
    check(&refused, "False", "StartFailed", "the node was low on resource: memory");
    let overcome = refused.setback.as_ref().expect("it is remembered").overcome();
    assert_eq!(reported(&refused, at(1)).next, Some(overcome));
    assert_eq!(reported(&refused, overcome).status.conditions[0].reason, "Starting");
    refused.sandboxes = vec![sandbox(0, 2).into()];
    check(&refused, "True", "Available", "1 of 1");
}

#[test]
fn what_is_made_is_refused_no_more() {
    let mut situation = situation(fixed(1), vec![], live());
    let plan_before = plan(&situation, &settings(), at(0));
    situation.setback = refusal().setback(&situation, &plan_before, at(0));
    let report = reported(&situation, at(1));
    assert_eq!(report.status.conditions[0].reason, "Starting");
}

#[test]
fn a_name_that_a_stranger_has_is_given_up_soon() {
    let situation = situation(fixed(1), vec![], live());
    let plan = plan(&situation, &settings(), at(0));
    let outcome = Outcome { name_taken: true, incarnation: 1, ..Outcome::default() };
    let report = status(&situation, &plan, &outcome, at(0));
    assert_eq!((report.next, report.status.incarnation), (Some(at(1)), 1));
}

#[test]
fn the_counts_are_of_sandboxes_that_stay() {
    let leaving = Sandbox { drain: Some("7".into()), ..sandbox(4, 5) };
    let sandboxes = vec![
        sandbox(0, 1),
        unready(1, 2, 0),
        Sandbox { deleting: true, ..sandbox(2, 3) },
        ended(sandbox(3, 4), true),
        leaving,
        Sandbox { owner: None, ..sandbox(5, 6) },
    ];
    let report = reported(&situation(fixed(3), sandboxes.clone(), live()), at(0));
    assert_eq!((report.status.replicas, report.status.ready_replicas), (3, 1));
    assert_eq!(report.status.incarnation, 7, "one was created");
    let report = reported(&situation(fixed(1), sandboxes, live()), at(0));
    assert_eq!((report.status.replicas, report.status.ready_replicas), (1, 1));
}

#[test]
fn a_sandbox_drains_from_its_mark_to_its_deletion() {
    let retired = || with_role(fixed(2), PoolRole::Retired);
    let counts = |sandboxes| {
        let status = reported(&situation(retired(), sandboxes, live()), at(0)).status;
        (status.replicas, status.draining_replicas)
    };
    let marked = |seconds: i64| {
        let drain = Some(at(seconds).as_millisecond().to_string());
        Sandbox { drain, ..sandbox(1, 2) }
    };
    assert_eq!(counts(vec![sandbox(0, 1), marked(-1)]), (0, 2), "one is marked in this pass");
    assert_eq!(counts(vec![marked(-30)]), (0, 0), "its limit is over");
    assert_eq!(counts(vec![Sandbox { deleting: true, ..marked(-1) }]), (0, 0));
}

#[test]
fn the_whole_status_is_as_documented() {
    let mut active = pool();
    active.metadata.generation = Some(9);
    let situation = situation(active, vec![sandbox(0, 41)], vec![gateway("gw-a", 0, 1)]);
    let report = reported(&situation, at(0));
    let expected = SandboxPoolStatus {
        observed_generation: Some(9),
        replicas: 1,
        ready_replicas: 1,
        draining_replicas: 0,
        selector: Some(format!("portolan.dev/pool={POOL}")),
        incarnation: 0,
        last_activity: Some(Time(at(0))),
        conditions: vec![Condition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            reason: "Available".to_owned(),
            message: "1 of 1 sandboxes ready".to_owned(),
            observed_generation: Some(9),
            last_transition_time: Time(at(0)),
        }],
    };
    assert_eq!(report.status, expected);
    assert_eq!(report.transitions.len(), 1);
}

#[test]
fn the_generation_of_our_own_write_counts_as_seen() {
    let situation = situation(fixed(1), vec![sandbox(0, 1)], live());
    let plan = plan(&situation, &settings(), at(0));
    let outcome = Outcome { generation: Some(5), ..Outcome::default() };
    let report = status(&situation, &plan, &outcome, at(0));
    assert_eq!(report.status.observed_generation, Some(5));
    assert_eq!(report.status.conditions[0].observed_generation, Some(5));
}

#[test]
fn the_incarnation_never_goes_back() {
    let mut used = fixed(1);
    used.status = Some(SandboxPoolStatus { incarnation: 40, ..Default::default() });
    let report = reported(&situation(used, vec![sandbox(0, 3)], live()), at(0));
    assert_eq!(report.status.incarnation, 40);
}

#[test]
fn saying_the_same_again_changes_nothing() {
    let mut first = situation(fixed(1), vec![sandbox(0, 1)], live());
    let before = reported(&first, at(0));
    let mut pool = first.pool.as_ref().clone();
    pool.status = Some(before.status.clone());
    first.pool = pool.into();
    let again = reported(&first, at(500));
    assert_eq!((again.status, again.transitions), (before.status, vec![]));
}

#[test]
fn it_looks_again_when_a_program_should_have_listened() {
    let report = reported(&situation(fixed(1), vec![unready(0, 1, -5)], live()), at(0));
    assert_eq!(report.next, Some(at(10) + jiff::SignedDuration::from_millis(1)));
}

#[test]
fn only_word_of_a_start_may_wait() {
    let word = |situation: &Situation| reported(situation, at(0)).status;
    let starting = word(&situation(fixed(1), vec![pending(0, 1)], live()));
    let available = word(&situation(fixed(1), vec![sandbox(0, 1)], live()));
    let failing =
        word(&situation(fixed(1), vec![failing(0, 1, "CreateContainerConfigError")], live()));
    let asleep = word(&situation(with_role(fixed(0), PoolRole::Active), vec![], live()));
    assert!(is_progress(None, &starting), "of a new pool");
    assert!(is_progress(Some(&asleep), &starting), "of one that wakes");
    assert!(!is_progress(Some(&starting), &starting), "there is nothing to say");
    assert!(!is_progress(Some(&failing), &starting), "it does not fail any more");
    assert!(!is_progress(Some(&available), &starting), "it is not ready any more");
    for said in [None, Some(&starting), Some(&available), Some(&asleep)] {
        assert!(!is_progress(said, &failing));
    }
    assert!(!is_progress(Some(&starting), &available));
    assert!(!is_progress(None, &asleep));
}

#[test]
fn word_of_growth_may_wait_where_all_was_well() {
    let word =
        |count, sandboxes| reported(&situation(fixed(count), sandboxes, live()), at(0)).status;
    let asleep = word(0, vec![]);
    let one = word(1, vec![sandbox(0, 1)]);
    let two = word(2, vec![sandbox(0, 1), sandbox(1, 2)]);
    let degraded = word(2, vec![sandbox(0, 1), failing(1, 2, "CrashLoopBackOff")]);
    assert!(is_progress(Some(&asleep), &one), "it woke");
    assert!(is_progress(Some(&one), &two));
    assert!(!is_progress(Some(&two), &one), "it shrank");
    assert!(!is_progress(Some(&one), &degraded));
    assert!(!is_progress(Some(&degraded), &two), "it does not fail any more");
    let retold = SandboxPoolStatus { observed_generation: Some(90), ..two };
    assert!(!is_progress(Some(&one), &retold), "a version may wait for it");
}

#[test]
fn an_incarnation_that_is_used_up_is_told_later() {
    let mut late = situation(fixed(1), vec![], live());
    late.incarnation = 9;
    let plan = plan(&late, &settings(), at(0));
    assert_eq!(plan.create[0].incarnation, 10, "its sandbox has gone before the status told");
    assert_eq!(status(&late, &plan, &Outcome::default(), at(0)).status.incarnation, 9);
}
