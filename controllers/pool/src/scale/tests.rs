use portolan_api::Concurrency;

use super::*;
use crate::fixture::{at, pool, seconds};

const IDLE: &[i64] = &[0];

/// A pool that became Active long ago and has not been used since.
fn input() -> Input<'static> {
    static SCALE: std::sync::LazyLock<PoolScale> = std::sync::LazyLock::new(|| pool().spec.scale);
    Input {
        role: PoolRole::Active,
        scale: &SCALE,
        floor: 0,
        replicas: 0,
        woken: 0,
        demand: IDLE,
        waits: true,
        is_stale: false,
        reported: None,
        stored: Some(at(-10_000)),
        history: None,
    }
}

#[track_caller]
fn check(input: &Input<'_>, wanted: i32) {
    assert_eq!(decide(input, at(0)).wanted, wanted, "{input:#?}");
}

/// Plays demand over time, remembering as the controller does; each line is (second, requests of
/// one gateway, wanted).
#[track_caller]
fn play(scale: &PoolScale, lines: &[(i64, i64, i32)]) {
    let (mut history, mut stored, mut replicas) = (None, Some(at(-10_000)), 0);
    for (second, requests, expected) in lines {
        let demand = [*requests];
        let input = Input {
            scale,
            demand: &demand,
            stored,
            replicas,
            history: history.as_ref(),
            ..input()
        };
        let decision = decide(&input, at(*second));
        assert_eq!(decision.wanted, *expected, "at {second} s, with {requests} requests");
        (stored, replicas) = (decision.last_activity, decision.wanted);
        history = decision.history;
    }
}

#[test]
fn demand_is_summed_over_gateways_and_then_divided() {
    for (demand, wanted) in [
        (&[][..], 0),
        (&[0, 0], 0),
        (&[1], 1),
        (&[10], 1),
        (&[11], 2),
        (&[5, 5], 1),
        (&[5, 6], 2),
        (&[1, 1, 1], 1),
        (&[100, 100], 20),
        (&[10_000], 20),
        (&[i64::MAX, i64::MAX], 20),
    ] {
        check(&Input { demand, ..input() }, wanted);
    }
}

#[test]
fn without_a_limit_any_demand_is_one_sandbox() {
    let scale = PoolScale { requests_per_instance: None, ..pool().spec.scale };
    check(&Input { scale: &scale, demand: &[10_000], ..input() }, 1);
    check(&Input { scale: &scale, ..input() }, 0);
}

#[test]
fn gateways_need_together_what_their_requests_fill() {
    for concurrency in [Concurrency::Soft, Concurrency::Strict] {
        let scale = PoolScale { concurrency, ..pool().spec.scale };
        for (demand, wanted) in [(&[10][..], 1), (&[5, 5], 1), (&[5, 6], 2), (&[10, 0], 1)] {
            check(&Input { scale: &scale, demand, ..input() }, wanted);
        }
        let single = PoolScale { requests_per_instance: Some(1), ..scale };
        check(&Input { scale: &single, demand: &[0, 1], ..input() }, 1);
    }
}

#[test]
fn visitors_who_go_to_another_gateway_are_not_twice_as_many() {
    let settled = Input { waits: false, ..input() };
    for (demand, replicas, wanted) in
        [(&[9, 4][..], 1, 1), (&[9, 4], 2, 2), (&[9, 4], 0, 1), (&[30, 4], 3, 3), (&[3, 4], 3, 3)]
    {
        check(&Input { demand, replicas, stored: Some(at(0)), ..settled.clone() }, wanted);
        let waiting = Input { demand, replicas, waits: true, stored: Some(at(0)), ..input() };
        let filled = i32::try_from((demand.iter().sum::<i64>() + 9) / 10).unwrap();
        check(&waiting, filled.max(replicas));
    }
}

#[test]
fn min_max_and_floor_bound_what_an_active_pool_wants() {
    let scale = PoolScale { min: 2, max: 3, ..pool().spec.scale };
    check(&Input { scale: &scale, ..input() }, 2);
    check(&Input { scale: &scale, demand: &[25], ..input() }, 3);
    check(&Input { scale: &scale, demand: &[99], ..input() }, 3);
    check(&Input { scale: &scale, floor: 3, ..input() }, 3);
    check(&Input { scale: &scale, floor: 9, ..input() }, 3);
    let vast = PoolScale { max: i32::MAX, ..scale };
    check(&Input { scale: &vast, demand: &[i64::MAX], ..input() }, 1000);
}

#[test]
fn a_fixed_pool_wants_its_number_whatever_happens() {
    let fixed = PoolScale {
        min: 3,
        max: 3,
        requests_per_instance: None,
        scale_down_delay_seconds: None,
        concurrency: Concurrency::Soft,
    };
    for (replicas, demand) in [(0, 0), (3, 0), (9, 0), (3, 500)] {
        check(&Input { scale: &fixed, replicas, demand: &[demand], ..input() }, 3);
    }
}

#[test]
fn without_a_delay_sandboxes_are_never_stopped() {
    let scale = PoolScale { scale_down_delay_seconds: None, ..pool().spec.scale };
    check(&Input { scale: &scale, replicas: 4, ..input() }, 4);
    check(&Input { scale: &scale, replicas: 4, demand: &[55], ..input() }, 6);
}

#[test]
fn a_candidate_keeps_its_floor_and_a_retired_pool_nothing() {
    for (role, floor, demand, wanted) in [
        (PoolRole::Candidate, 0, 0, 1),
        (PoolRole::Candidate, 1, 500, 1),
        (PoolRole::Candidate, 4, 0, 4),
        (PoolRole::Candidate, 99, 0, 20),
        (PoolRole::Retired, 4, 500, 0),
    ] {
        let demand = [demand];
        let input = Input { role, floor, demand: &demand, replicas: 7, ..input() };
        let decision = decide(&input, at(0));
        let expected = Decision { wanted, ..Decision::default() };
        assert_eq!(decision, expected, "{role:?} with floor {floor}");
    }
}

#[test]
fn a_pool_sleeps_strictly_after_the_delay() {
    for (last, wanted) in [(0, 1), (-899, 1), (-900, 1), (-901, 0)] {
        check(&Input { replicas: 1, stored: Some(at(last)), ..input() }, wanted);
        check(&Input { replicas: 1, reported: Some(at(last)), ..input() }, wanted);
        check(&Input { replicas: 5, stored: Some(at(last)), ..input() }, wanted * 5);
    }
}

#[test]
fn a_pool_that_was_just_told_to_serve_stays_awake_for_the_delay() {
    let told = Input { stored: None, replicas: 3, ..input() };
    let decision = decide(&told, at(0));
    assert_eq!(decision.wanted, 3, "what was verified gets the traffic of the old pool");
    assert_eq!(decision.last_activity, Some(at(0)));
    assert_eq!(decision.next, Some(at(900) + TICK));
    let reported = Input { reported: Some(at(-800)), ..told };
    assert_eq!(decide(&reported, at(0)), decision, "an earlier report does not shorten that");
}

#[test]
fn an_activity_that_was_rounded_into_the_future_is_believed_but_not_stored() {
    let ahead = Input { reported: Some(at(200)), replicas: 1, ..input() };
    let decision = decide(&ahead, at(0));
    assert_eq!((decision.wanted, decision.last_activity), (1, Some(at(0))));
    assert_eq!(decision.next, Some(at(1100) + TICK));
}

#[test]
fn an_activity_keeps_a_pool_awake_and_does_not_wake_one() {
    check(&Input { reported: Some(at(-1)), ..input() }, 0);
    check(&Input { reported: Some(at(-1)), replicas: 1, ..input() }, 1);
    // Woken at -2000 s and idle since, but for requests too short to be counted.
    let busy = decide(&Input { demand: &[1], ..input() }, at(-2000)).history;
    let idle = Input { replicas: 1, history: busy.as_ref(), ..input() };
    let idle = decide(&idle, at(-1990)).history;
    for (last, wanted) in [(-900, 1), (-901, 0)] {
        let input = Input { reported: Some(at(last)), replicas: 1, ..input() };
        check(&Input { history: idle.as_ref(), ..input }, wanted);
    }
}

#[test]
fn scaling_down_waits_until_the_greater_number_was_not_needed_for_the_delay() {
    let scale = pool().spec.scale;
    play(
        &scale,
        &[
            (0, 45, 5),
            (100, 15, 5),
            (200, 25, 5),
            (300, 5, 5),
            (1000, 5, 5),
            (1001, 5, 3),
            (1200, 5, 3),
            (1201, 5, 1),
            (1300, 0, 1),
            (2200, 0, 1),
            (2201, 0, 0),
        ],
    );
}

#[test]
fn a_new_peak_within_the_delay_prolongs_it() {
    let scale = pool().spec.scale;
    play(&scale, &[(0, 30, 3), (10, 1, 3), (890, 30, 3), (891, 1, 3), (1791, 1, 3), (1792, 1, 1)]);
}

#[test]
fn a_request_while_the_pool_is_about_to_sleep_is_not_lost() {
    let scale = pool().spec.scale;
    play(&scale, &[(0, 1, 1), (1, 0, 1), (901, 1, 1), (902, 0, 1), (1802, 0, 1), (1803, 0, 0)]);
}

#[test]
fn a_lower_maximum_counts_at_once() {
    let scale = pool().spec.scale;
    let before = decide(&Input { scale: &scale, demand: &[100], ..input() }, at(0));
    let lower = PoolScale { max: 4, ..scale };
    let history = before.history.as_ref();
    check(&Input { scale: &lower, demand: &[100], replicas: 10, history, ..input() }, 4);
}

#[test]
fn a_restart_keeps_sandboxes_as_long_as_they_would_have_been_kept() {
    // Busy with five until 100 s; the process is lost at 200 s.
    for (second, wanted) in [(200, 5), (1000, 5), (1001, 0)] {
        let input = Input { replicas: 5, reported: Some(at(100)), ..input() };
        assert_eq!(decide(&input, at(second)).wanted, wanted, "at {second} s");
    }
}

#[test]
fn it_looks_again_exactly_when_something_may_have_to_stop() {
    let busy = decide(&Input { demand: &[25], ..input() }, at(0));
    assert_eq!((busy.wanted, busy.next), (3, None), "while busy, only a report changes anything");
    let history = busy.history.as_ref();
    let less = decide(&Input { demand: &[5], replicas: 3, history, ..input() }, at(60));
    assert_eq!((less.wanted, less.next), (3, Some(at(960) + TICK)));
    let history = less.history.as_ref();
    let input = Input { demand: &[5], replicas: 3, history, ..input() };
    assert_eq!(decide(&input, at(960) + TICK).wanted, 1);
}

#[test]
fn a_pool_at_its_least_number_is_not_looked_at_again() {
    let scale = PoolScale { min: 1, ..pool().spec.scale };
    let input = Input { scale: &scale, replicas: 1, stored: Some(at(-10)), ..input() };
    let decision = decide(&input, at(0));
    assert_eq!((decision.wanted, decision.next), (1, None));
}

#[test]
fn a_sleeping_pool_leaves_nothing_in_memory() {
    let decision = decide(&input(), at(0));
    assert_eq!((decision.wanted, decision.history, decision.next), (0, None, None));
}

#[test]
fn the_stored_activity_moves_in_halves_of_the_delay() {
    let stored = |seconds_ago: i64, demand| {
        let stored = Some(at(-seconds_ago));
        decide(&Input { demand, stored, reported: Some(at(0)), ..input() }, at(0)).last_activity
    };
    assert_eq!(stored(450, IDLE), Some(at(-450)));
    assert_eq!(stored(451, IDLE), Some(at(0)));
    assert_eq!(stored(451, &[1]), Some(at(-451)), "requests themselves say that it is awake");
}

#[test]
fn stored_times_are_whole_seconds_and_never_early() {
    let input = Input { stored: None, ..input() };
    let decision = decide(&input, at(0) + SignedDuration::from_millis(1));
    assert_eq!(decision.last_activity, Some(at(1)));
    assert_eq!(decide(&input, at(0)).last_activity, Some(at(0)));
}

#[test]
fn counts_of_a_peak_are_remembered_once() {
    let (mut history, mut now) = (None, at(0));
    for requests in [900, 100, 900, 100, 50, 40, 30, 100, 20, 10] {
        let demand = [requests];
        let input = Input { demand: &demand, history: history.as_ref(), ..input() };
        history = decide(&input, now).history;
        now += seconds(1);
    }
    let counts: Vec<i32> =
        history.expect("the pool is awake").peaks.iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [20, 10, 2]);
}

#[test]
fn nothing_is_given_up_on_the_word_of_old_reports() {
    let idle = Input { replicas: 3, ..input() };
    check(&idle, 0);
    check(&Input { is_stale: true, ..idle.clone() }, 3);
    check(&Input { is_stale: true, replicas: 0, ..idle.clone() }, 0);
    check(&Input { is_stale: true, demand: &[50], ..idle }, 5);
}
