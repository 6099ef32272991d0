use portolan_api::{Concurrency, GatewayPhase, PoolRole, SandboxPoolStatus};

use super::*;
use crate::fixture::{
    POOL_UID, at, ended, gateway, pending, pool, reporting, sandbox, settings, situation, unready,
};

/// What a plan does, in words that fit a table: `replicas 2`, `create 0-7 gw-a=10`, `grant 0-1 …`,
/// `mark 0-1 Surplus`, `delete 0-1 Drained`.
fn steps(plan: &Plan) -> Vec<String> {
    let short = |target: &Target| {
        target.key.name.trim_start_matches(crate::fixture::POOL).trim_start_matches('-').to_owned()
    };
    let mut steps: Vec<String> =
        plan.replicas.iter().map(|count| format!("replicas {count}")).collect();
    steps.extend(plan.create.iter().map(|new| {
        let slots = new.slots.as_deref().unwrap_or("unlimited");
        format!("create {}-{} {slots}", new.ordinal, new.incarnation)
    }));
    steps
        .extend(plan.grant.iter().map(|one| format!("grant {} {}", short(&one.target), one.slots)));
    steps.extend(
        plan.mark.iter().map(|one| format!("mark {} {:?}", short(&one.target), one.reason)),
    );
    let delete = plan.delete.iter();
    steps.extend(delete.map(|one| format!("delete {} {:?}", short(&one.target), one.reason)));
    steps
}

fn planned(situation: &Situation) -> Plan {
    plan(situation, &settings(), at(0))
}

#[track_caller]
fn check(situation: &Situation, expected: &[&str]) {
    assert_eq!(steps(&planned(situation)), expected, "{situation:#?}");
}

fn pool_with(change: impl FnOnce(&mut SandboxPool)) -> SandboxPool {
    let mut pool = pool();
    change(&mut pool);
    pool
}

fn fixed(count: i32) -> SandboxPool {
    pool_with(|pool| {
        pool.spec.replicas = Some(count);
        pool.spec.scale.min = count;
        pool.spec.scale.max = count;
        pool.spec.scale.requests_per_instance = None;
        pool.spec.scale.scale_down_delay_seconds = None;
    })
}

fn asleep() -> SandboxPool {
    pool_with(|pool| {
        pool.spec.replicas = Some(0);
        pool.status = Some(SandboxPoolStatus {
            incarnation: 6,
            last_activity: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(-5000))),
            ..SandboxPoolStatus::default()
        });
    })
}

fn retired() -> SandboxPool {
    pool_with(|pool| pool.spec.role = PoolRole::Retired)
}

fn plain(ordinal: i32, incarnation: i64) -> Sandbox {
    Sandbox { slots: None, ..sandbox(ordinal, incarnation) }
}

fn marked(ordinal: i32, incarnation: i64, second: i64) -> Sandbox {
    let drain = Some(at(second).as_millisecond().to_string());
    Sandbox { drain, ..sandbox(ordinal, incarnation) }
}

fn epoch(second: i64) -> i64 {
    at(second).as_millisecond()
}

#[test]
fn a_pool_as_it_should_be_needs_nothing() {
    check(&situation(fixed(2), vec![plain(0, 1), plain(1, 2)], vec![gateway("gw-a", 0, 0)]), &[]);
    check(&situation(asleep(), vec![], vec![gateway("gw-a", 0, 0)]), &[]);
    check(&situation(pool(), vec![sandbox(0, 1)], vec![gateway("gw-a", 0, 3)]), &[]);
}

#[test]
fn the_first_request_wakes_a_pool() {
    let one = vec![gateway("gw-a", 1, 0)];
    check(&situation(asleep(), vec![], one), &["replicas 1", "create 0-7 gw-a=10"]);
    let two = vec![gateway("gw-b", 6, 0), gateway("gw-a", 5, 0)];
    check(
        &situation(asleep(), vec![], two),
        &["replicas 2", "create 0-7 gw-a=5,gw-b=5", "create 1-8 gw-a=5,gw-b=5"],
    );
}

#[test]
fn the_number_of_a_pool_that_grows_may_be_written_later() {
    let wakes = situation(asleep(), vec![], vec![gateway("gw-a", 1, 0)]);
    assert!(planned(&wakes).replicas_may_wait);
    let shrinks = pool_with(|pool| pool.spec.replicas = Some(2));
    assert!(!planned(&situation(shrinks, vec![], vec![])).replicas_may_wait);
    let stays = pool_with(|pool| {
        *pool = fixed(2);
        pool.spec.replicas = Some(1);
    });
    assert!(!planned(&situation(stays, vec![], vec![])).replicas_may_wait, "it never sleeps");
}

#[test]
fn a_restart_before_the_number_is_written_ends_no_sandbox() {
    let mut after = gateway("gw-a", 0, 0);
    after.demand.last_activity = Some(at(-5));
    check(&situation(asleep(), vec![sandbox(0, 7)], vec![after]), &["replicas 1"]);
}

#[test]
fn what_is_missing_takes_the_lowest_free_ordinals_and_new_incarnations() {
    check(
        &situation(fixed(3), vec![], vec![]),
        &["create 0-1 unlimited", "create 1-2 unlimited", "create 2-3 unlimited"],
    );
    check(
        &situation(fixed(5), vec![plain(1, 9), plain(3, 4)], vec![]),
        &["create 0-10 unlimited", "create 2-11 unlimited", "create 4-12 unlimited"],
    );
    let used = pool_with(|pool| {
        *pool = fixed(1);
        pool.status = Some(SandboxPoolStatus { incarnation: 41, ..SandboxPoolStatus::default() });
    });
    check(&situation(used, vec![], vec![]), &["create 0-42 unlimited"]);
}

#[test]
fn sandboxes_that_are_starting_count() {
    let starting = vec![pending(0, 1), pending(1, 2)];
    let wanted_five = situation(fixed(5), starting, vec![]);
    assert_eq!(planned(&wanted_five).create.len(), 3);
}

#[test]
fn an_edit_of_replicas_is_put_right() {
    let edited = pool_with(|pool| {
        *pool = fixed(2);
        pool.spec.replicas = Some(7);
    });
    check(&situation(edited, vec![plain(0, 1), plain(1, 2)], vec![]), &["replicas 2"]);
    let edited = pool_with(|pool| {
        *pool = asleep();
        pool.spec.replicas = Some(3);
    });
    check(&situation(edited, vec![], vec![]), &["replicas 0"]);
}

#[test]
fn a_candidate_gets_its_floor_and_no_more() {
    let candidate = pool_with(|pool| {
        pool.spec.role = PoolRole::Candidate;
        pool.spec.floor = Some(2);
        pool.spec.scale.requests_per_instance = None;
    });
    check(
        &situation(candidate, vec![], vec![gateway("gw-a", 0, 99)]),
        &["replicas 2", "create 0-1 unlimited", "create 1-2 unlimited"],
    );
}

#[test]
fn a_retired_pool_drains() {
    let sandboxes = || vec![sandbox(0, 1), sandbox(1, 2)];
    check(
        &situation(retired(), sandboxes(), vec![gateway("gw-a", 0, 5)]),
        &["replicas 0", "mark 0-1 Surplus", "mark 1-2 Surplus"],
    );
    check(
        &situation(retired(), sandboxes(), vec![]),
        &["replicas 0", "delete 0-1 Unused", "delete 1-2 Unused"],
    );
}

#[test]
fn surplus_goes_unscheduled_first_then_unready_then_youngest() {
    let plain = |sandbox: Sandbox| Sandbox { slots: None, ..sandbox };
    let sandboxes = vec![
        plain(sandbox(0, 1)),
        plain(unready(1, 2, 0)),
        plain(sandbox(2, 3)),
        plain(pending(3, 4)),
        plain(sandbox(4, 5)),
    ];
    let live = || vec![gateway("gw-a", 0, 0)];
    for (count, expected) in [
        (4, &["delete 3-4 Unused"][..]),
        (3, &["mark 1-2 Surplus", "delete 3-4 Unused"]),
        (2, &["mark 1-2 Surplus", "mark 4-5 Surplus", "delete 3-4 Unused"]),
        (1, &["mark 1-2 Surplus", "mark 2-3 Surplus", "mark 4-5 Surplus", "delete 3-4 Unused"]),
    ] {
        check(&situation(fixed(count), sandboxes.clone(), live()), expected);
    }
}

#[test]
fn a_mark_keeps_the_slots_it_finds() {
    let plan = planned(&situation(retired(), vec![sandbox(0, 1)], vec![gateway("gw-a", 0, 1)]));
    assert_eq!(plan.mark[0].epoch, epoch(0));
    assert_eq!(plan.mark[0].slots.as_deref(), Some("gw-a=10"));
}

#[test]
fn a_draining_sandbox_waits_for_every_live_gateway() {
    let leaving = marked(0, 1, -5);
    let (a, b) = (|| gateway("gw-a", 0, 0), || gateway("gw-b", 0, 0));
    let mut lapsed = gateway("gw-b", 0, 9);
    lapsed.expires = at(0);
    for (gateways, expected) in [
        (vec![a()], &[][..]),
        (vec![reporting(a(), &leaving, epoch(-5), 1)], &[]),
        (vec![reporting(a(), &leaving, epoch(-6), 0)], &[]),
        (vec![reporting(a(), &leaving, epoch(-5), 0), b()], &[]),
        (vec![reporting(a(), &leaving, epoch(-5), 0)], &["delete 0-1 Drained"]),
        (
            vec![reporting(a(), &leaving, epoch(-5), 0), reporting(b(), &leaving, epoch(-5), 0)],
            &["delete 0-1 Drained"],
        ),
        (vec![reporting(a(), &leaving, epoch(-5), 0), lapsed], &["delete 0-1 Drained"]),
        (vec![], &["delete 0-1 Drained"]),
    ] {
        let pool = pool_with(|pool| {
            *pool = retired();
            pool.spec.replicas = Some(0);
        });
        check(&situation(pool, vec![leaving.clone()], gateways), expected);
    }
}

#[test]
fn the_drain_limit_ends_a_sandbox_regardless() {
    let busy = |sandbox: &Sandbox, epoch| vec![reporting(gateway("gw-a", 0, 5), sandbox, epoch, 5)];
    let pool = || {
        pool_with(|pool| {
            *pool = retired();
            pool.spec.replicas = Some(0);
        })
    };
    let late = marked(0, 1, -29);
    let waiting = situation(pool(), vec![late.clone()], busy(&late, epoch(-29)));
    check(&waiting, &[]);
    assert_eq!(planned(&waiting).next, Some(at(1)), "it looks again at the limit");
    let over = marked(0, 1, -30);
    let gateways = busy(&over, epoch(-30));
    check(&situation(pool(), vec![over], gateways), &["delete 0-1 DrainLimit"]);
}

#[test]
fn a_mark_that_is_none_of_ours_ends_at_once() {
    for drain in ["", "soon", "-1", "99999999999999999", &epoch(3600).to_string()] {
        let strange = Sandbox { drain: Some(drain.to_owned()), ..plain(0, 1) };
        check(
            &situation(fixed(0), vec![strange], vec![gateway("gw-a", 0, 0)]),
            &["delete 0-1 DrainLimit"],
        );
    }
}

#[test]
fn a_mark_is_final_and_new_demand_gets_a_new_sandbox() {
    let busy = vec![gateway("gw-a", 3, 1)];
    check(&situation(pool(), vec![marked(0, 1, -1)], busy), &["create 0-2 gw-a=10"]);
}

#[test]
fn what_has_ended_is_deleted_and_replaced_at_once() {
    check(
        &situation(fixed(1), vec![ended(plain(0, 1), true)], vec![gateway("gw-a", 0, 0)]),
        &["create 0-2 unlimited", "delete 0-1 Ended"],
    );
}

#[test]
fn what_a_node_refuses_is_deleted_and_tried_again_later() {
    let refused = situation(fixed(1), vec![ended(plain(0, 1), false)], vec![]);
    let first = planned(&refused);
    assert_eq!(steps(&first), ["delete 0-1 Ended"]);
    let setback = first.setback.expect("it is remembered");
    assert_eq!((setback.reason, setback.until), ("StartFailed", at(1)));
    assert!(setback.message.contains("Evicted: the node was low"), "{}", setback.message);
    let empty = Situation { setback: Some(setback), ..situation(fixed(1), vec![], vec![]) };
    check(&empty, &[]);
    assert_eq!(steps(&plan(&empty, &settings(), at(1))), ["create 0-1 unlimited"]);
}

#[test]
fn whatever_wakes_a_pool_that_was_refused_asks_no_earlier() {
    let mut refused = situation(pool(), vec![plain(0, 1)], vec![gateway("gw-a", 30, 10)]);
    let quota = Setback::new(None, "PodRefused", "exceeded quota".to_owned(), at(0)).of_crowd(1);
    refused.setback = Some(quota);
    assert_eq!(planned(&refused).create, []);
    refused.sandboxes.clear();
    assert_eq!(planned(&refused).create.len(), 4, "there may be room again");
}

#[test]
fn what_somebody_deletes_is_replaced_at_once_and_left_to_end() {
    let deleted = Sandbox { deleting: true, ..plain(0, 1) };
    let also_marked = Sandbox { deleting: true, ..marked(1, 2, -600) };
    let also_ended = Sandbox { deleting: true, ..ended(plain(2, 3), true) };
    check(
        &situation(fixed(1), vec![deleted, also_marked, also_ended], vec![]),
        &["create 0-4 unlimited"],
    );
}

#[test]
fn foreign_pods_are_neither_counted_nor_touched() {
    let orphan = Sandbox { owner: Some("uid-of-an-older-pool".to_owned()), ..plain(0, 1) };
    let ownerless = Sandbox { owner: None, ..ended(plain(1, 2), false) };
    let marked = Sandbox { owner: None, ..marked(2, 3, -600) };
    let foreign = || vec![orphan.clone(), ownerless.clone(), marked.clone()];
    check(&situation(fixed(1), foreign(), vec![]), &["create 0-4 unlimited"]);
    check(&situation(fixed(0), foreign(), vec![]), &[]);
    let mut uidless = fixed(0);
    uidless.metadata.uid = None;
    check(&situation(uidless, foreign(), vec![]), &[]);
}

#[test]
fn a_pod_of_ours_with_a_strange_name_counts_and_can_go() {
    let mut strange = plain(0, 1);
    strange.key.name = "adopted".to_owned();
    assert_eq!(strange.owner.as_deref(), Some(POOL_UID));
    check(&situation(fixed(1), vec![strange.clone()], vec![]), &[]);
    check(&situation(fixed(0), vec![strange], vec![]), &["delete adopted Unused"]);
}

#[test]
fn slots_follow_gateways_that_come_and_go() {
    let both = || vec![gateway("gw-a", 0, 1), gateway("gw-b", 0, 0)];
    check(&situation(pool(), vec![sandbox(0, 1)], both()), &[]);
    let mut left = both();
    left[1].phase = GatewayPhase::Left;
    let shared = Sandbox { slots: Some("gw-a=5,gw-b=5".to_owned()), ..sandbox(0, 1) };
    check(&situation(pool(), vec![shared], left), &["grant 0-1 gw-a=10"]);
    let lost = Sandbox { slots: Some("gw-a=5,gw-z=5".to_owned()), ..sandbox(0, 1) };
    let one = || vec![gateway("gw-a", 0, 1)];
    check(&situation(pool(), vec![lost.clone()], one()), &["grant 0-1 gw-a=10"]);
    check(&situation(pool(), vec![lost], vec![]), &[]);
}

#[test]
fn a_strict_sandbox_with_slots_of_a_lost_gateway_is_replaced() {
    let strict = pool_with(|pool| pool.spec.scale.concurrency = Concurrency::Strict);
    let lost = Sandbox { slots: Some("gw-a=5,gw-z=5".to_owned()), ..sandbox(0, 1) };
    check(
        &situation(strict, vec![lost], vec![gateway("gw-a", 0, 1)]),
        &["create 0-2 gw-a=10", "mark 0-1 SlotsLost"],
    );
}

#[test]
fn after_an_outage_a_gateway_without_a_lease_is_lost_only_in_time() {
    let strict = pool_with(|pool| pool.spec.scale.concurrency = Concurrency::Strict);
    let lost = Sandbox { slots: Some("gw-a=5,gw-z=5".to_owned()), ..sandbox(0, 1) };
    let mut seen = situation(strict, vec![lost], vec![gateway("gw-a", 0, 1)]);
    seen.all_seen = at(9);
    check(&seen, &[]);
    assert_eq!(planned(&seen).next, Some(at(9)));
}

#[test]
fn a_sandbox_that_a_gateway_retired_is_replaced_once() {
    let mut reporting = gateway("gw-a", 0, 1);
    reporting.demand.retired.push(sandbox(0, 1).key.name);
    let live = || vec![reporting.clone()];
    let steps = ["create 0-2 gw-a=10", "mark 0-1 Retired"];
    check(&situation(pool(), vec![sandbox(0, 1)], live()), &steps);
    check(&situation(pool(), vec![sandbox(0, 1), sandbox(1, 2)], live()), &["mark 0-1 Retired"]);
    let epoch = Some(at(0).as_millisecond().to_string());
    let marked = Sandbox { drain: epoch, ..sandbox(0, 1) };
    check(&situation(pool(), vec![marked, sandbox(0, 2)], live()), &[]);
}

#[test]
fn a_gateway_that_leaves_is_waited_for_and_one_that_left_is_not() {
    let epoch = at(0).as_millisecond();
    let marked = || Sandbox { drain: Some(epoch.to_string()), ..sandbox(0, 1) };
    let in_phase = |phase| {
        let done = reporting(gateway("gw-a", 0, 0), &marked(), epoch, 0);
        let other = Gateway { phase, ..gateway("gw-b", 0, 0) };
        situation(asleep(), vec![marked()], vec![done, other])
    };
    check(&in_phase(GatewayPhase::Leaving), &[]);
    check(&in_phase(GatewayPhase::Left), &["delete 0-1 Drained"]);
}

#[test]
fn a_pool_that_begins_to_count_slots_gives_them_out() {
    let live = vec![gateway("gw-a", 0, 1)];
    check(&situation(pool(), vec![plain(0, 1)], live), &["grant 0-1 gw-a=10"]);
}

#[test]
fn slots_of_a_pool_that_counts_none_any_more_limit_nothing() {
    let live = || vec![gateway("gw-a", 0, 1)];
    check(&situation(fixed(1), vec![sandbox(0, 1)], live()), &["grant 0-1 gw-a=2147483647"]);
    let lifted = Sandbox { slots: Some("gw-a=2147483647".to_owned()), ..sandbox(0, 1) };
    check(&situation(fixed(1), vec![lifted], live()), &[]);
}

#[test]
fn demand_of_a_lapsed_gateway_does_not_count() {
    let mut lapsed = gateway("gw-a", 50, 50);
    lapsed.expires = at(0);
    check(&situation(asleep(), vec![], vec![lapsed.clone()]), &[]);
    lapsed.expires = at(0) + jiff::SignedDuration::from_millis(1);
    assert_eq!(planned(&situation(asleep(), vec![], vec![lapsed])).create.len(), 10);
}

#[test]
fn it_looks_again_when_a_gateway_that_counts_would_lapse() {
    let mut other = gateway("gw-b", 0, 0);
    other.expires = at(5);
    let busy = situation(fixed(1), vec![plain(0, 1)], vec![gateway("gw-a", 0, 1), other.clone()]);
    assert_eq!(planned(&busy).next, Some(at(15)), "only the requests of gw-a count");
    let granted =
        situation(pool(), vec![sandbox(0, 1)], vec![gateway("gw-a", 0, 1), other.clone()]);
    assert_eq!(planned(&granted).next, Some(at(5)), "both hold slots");
    let idle = situation(fixed(1), vec![plain(0, 1)], vec![other.clone()]);
    assert_eq!(planned(&idle).next, None);
    assert_eq!(planned(&situation(asleep(), vec![], vec![other])).next, None);
}

#[test]
fn a_new_mark_is_looked_at_again_at_its_limit() {
    let live = vec![Gateway { expires: at(3600), ..gateway("gw-a", 0, 1) }];
    let plan = planned(&situation(retired(), vec![sandbox(0, 1)], live));
    assert_eq!(plan.next, Some(at(0) + settings().drain_limit));
}

#[test]
fn a_thousand_sandboxes_are_planned_at_once() {
    let plan = planned(&situation(fixed(1000), vec![], vec![]));
    assert_eq!(plan.create.len(), 1000);
    assert_eq!((plan.create[999].ordinal, plan.create[999].incarnation), (999, 1000));
    let incarnations: BTreeSet<i64> = plan.create.iter().map(|new| new.incarnation).collect();
    assert_eq!(incarnations.len(), 1000, "no name is used twice");
}

#[test]
fn an_idle_pool_is_judged_once_reports_are_fresh() {
    let idle = |pool: &mut SandboxPool| {
        let last_activity = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(-5000));
        let last_activity = Some(last_activity);
        pool.status = Some(SandboxPoolStatus { last_activity, ..SandboxPoolStatus::default() });
    };
    let live = Gateway { expires: at(60), ..gateway("gw-a", 0, 0) };
    let mut back = situation(pool_with(idle), vec![sandbox(0, 1)], vec![live]);
    back.reports_fresh = at(15);
    let held = planned(&back);
    assert_eq!((held.decision.wanted, held.next), (1, Some(at(15))), "{held:#?}");
    assert_eq!(plan(&back, &settings(), at(15)).decision.wanted, 0);
}
