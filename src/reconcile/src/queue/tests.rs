use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const BACKOFF: Backoff = Backoff { min: SECOND, max: Duration::from_secs(60) };

fn key(name: impl ToString) -> ObjectKey {
    ObjectKey::new("team-a", name.to_string())
}

fn core() -> (Core, Instant) {
    (Core::new(BACKOFF, 100), Instant::now())
}

/// Takes a key that must be ready.
#[track_caller]
fn take(core: &mut Core, now: Instant) -> Taken {
    core.take(now).expect("a key is ready")
}

#[test]
fn a_key_added_many_times_is_taken_once() {
    let (mut core, now) = core();
    assert_eq!(core.add(key("a"), now), Added::Queued);
    assert_eq!(core.add(key("a"), now), Added::Merged);
    assert_eq!(take(&mut core, now).key, key("a"));
    assert_eq!(core.take(now), None);
}

#[test]
fn keys_are_taken_in_the_order_they_became_ready() {
    let (mut core, now) = core();
    for name in ["b", "a", "c"] {
        core.add(key(name), now);
    }
    let order: Vec<_> = std::iter::from_fn(|| core.take(now)).map(|taken| taken.key.name).collect();
    assert_eq!(order, ["b", "a", "c"]);
}

#[test]
fn a_key_added_while_in_work_runs_once_more_afterwards_and_not_at_once() {
    let (mut core, now) = core();
    core.add(key("a"), now);
    let taken = take(&mut core, now);
    for _ in 0..3 {
        assert_eq!(core.add(key("a"), now), Added::Merged);
    }
    assert_eq!(core.take(now), None, "one key is never in work twice");
    core.finish(&taken.key, Finish::Settled, now);
    let again = take(&mut core, now);
    core.finish(&again.key, Finish::Settled, now);
    assert_eq!(core.take(now), None, "three additions are one more pass");
}

#[test]
fn a_failed_key_comes_back_after_a_growing_capped_delay() {
    let (mut core, mut now) = core();
    core.add(key("a"), now);
    let mut delays = Vec::new();
    for attempt in 0..8 {
        let taken = take(&mut core, now);
        assert_eq!(taken.failures, attempt);
        let delay = core.finish(&taken.key, Finish::Failed { jitter: 1.0 }, now).unwrap();
        assert_eq!(core.take(now + delay - Duration::from_nanos(1)), None);
        now += delay;
        delays.push(delay.as_secs());
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn success_forgets_failures() {
    let (mut core, mut now) = core();
    core.add(key("a"), now);
    for _ in 0..3 {
        let taken = take(&mut core, now);
        now += core.finish(&taken.key, Finish::Failed { jitter: 0.0 }, now).unwrap();
    }
    let taken = take(&mut core, now);
    assert_eq!(taken.failures, 3);
    core.finish(&taken.key, Finish::Settled, now);
    core.add(key("a"), now);
    assert_eq!(take(&mut core, now).failures, 0);
}

#[test]
fn jitter_spreads_over_the_upper_half_of_the_delay() {
    assert_eq!(BACKOFF.delay(1, 0.0), SECOND / 2);
    assert_eq!(BACKOFF.delay(1, 1.0), SECOND);
    assert_eq!(BACKOFF.delay(u32::MAX, 0.5), Duration::from_secs(45));
}

#[test]
fn a_change_does_not_wait_for_the_backoff() {
    let (mut core, now) = core();
    core.add(key("a"), now);
    let taken = take(&mut core, now);
    core.finish(&taken.key, Finish::Failed { jitter: 1.0 }, now);
    core.add(key("a"), now);
    let taken = take(&mut core, now);
    assert_eq!(taken.failures, 1, "the failure is still known");
    core.finish(&taken.key, Finish::Settled, now);
    assert_eq!(core.take(now + 10 * SECOND), None, "the retry's timer went with the pass");
}

#[test]
fn a_failure_with_a_change_meanwhile_is_tried_again_at_once() {
    let (mut core, now) = core();
    core.add(key("a"), now);
    let taken = take(&mut core, now);
    core.add(key("a"), now);
    core.finish(&taken.key, Finish::Failed { jitter: 1.0 }, now);
    assert_eq!(take(&mut core, now).failures, 1);
}

#[test]
fn the_earliest_of_several_timers_counts() {
    let (mut core, now) = core();
    core.add_at(key("a"), now + 10 * SECOND);
    core.add_at(key("a"), now + 2 * SECOND);
    core.add_at(key("a"), now + 5 * SECOND);
    assert_eq!(core.next_due(), Some(now + 2 * SECOND));
    assert_eq!(core.take(now + SECOND), None);
    assert_eq!(take(&mut core, now + 2 * SECOND).key, key("a"));
    assert_eq!(core.next_due(), None);
}

#[test]
fn a_pass_says_anew_when_to_look_again() {
    let (mut core, now) = core();
    core.add_at(key("a"), now + SECOND);
    core.add(key("a"), now);
    let taken = take(&mut core, now);
    core.finish(&taken.key, Finish::At(now + 5 * SECOND), now);
    assert_eq!(core.take(now + SECOND), None, "the timer from before the pass is gone");
    assert_eq!(take(&mut core, now + 5 * SECOND).key, key("a"));
}

#[test]
fn waiting_is_measured_from_when_the_key_was_ready() {
    let (mut core, now) = core();
    core.add_at(key("a"), now + SECOND);
    assert_eq!(take(&mut core, now + 3 * SECOND).waited, 2 * SECOND);
}

#[test]
fn a_full_queue_refuses_keys_and_asks_for_a_full_pass_when_there_is_room() {
    let now = Instant::now();
    let mut core = Core::new(BACKOFF, 4);
    for name in 0..4 {
        assert_eq!(core.add(key(name), now), Added::Queued);
    }
    assert_eq!(core.add(key("lost"), now), Added::Refused);
    assert_eq!(core.add_at(key("lost"), now), Added::Refused);
    assert_eq!(core.add(key(0), now), Added::Merged, "a known key always fits");
    assert!(!core.take_overflow());
    for _ in 0..2 {
        let taken = take(&mut core, now);
        core.finish(&taken.key, Finish::Settled, now);
    }
    assert!(core.take_overflow());
    assert!(!core.take_overflow(), "one full pass is enough");
}

#[test]
fn of_10_000_events_for_50_keys_none_is_lost() {
    let (mut core, mut now) = core();
    let mut latest: BTreeMap<ObjectKey, u32> = BTreeMap::new();
    let mut processed: BTreeMap<ObjectKey, u32> = BTreeMap::new();
    let mut in_work: Vec<(ObjectKey, u32)> = Vec::new();
    let mut passes = 0;
    for event in 0..10_000_u32 {
        let changed = key(event % 50);
        latest.insert(changed.clone(), event);
        core.add(changed, now);
        now += Duration::from_micros(10);
        // Workers are slow: one pass begins per seven events and ends a while later.
        if event % 7 == 0
            && let Some(taken) = core.take(now)
        {
            assert!(in_work.iter().all(|(key, _)| *key != taken.key), "worked on twice at once");
            in_work.push((taken.key.clone(), latest[&taken.key]));
        }
        if in_work.len() > 5 {
            let (key, state) = in_work.remove(0);
            core.finish(&key, Finish::Settled, now);
            processed.insert(key, state);
            passes += 1;
        }
    }
    for (key, state) in in_work {
        core.finish(&key, Finish::Settled, now);
        processed.insert(key, state);
    }
    while let Some(taken) = core.take(now) {
        processed.insert(taken.key.clone(), latest[&taken.key]);
        core.finish(&taken.key, Finish::Settled, now);
    }
    assert_eq!(processed, latest, "the last state of every key has been worked on");
    assert!(passes < 2_000, "events of one key are merged, not queued");
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    AddAt(u8, u8),
    Take,
    Finish(u8, u8),
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..8_u8).prop_map(Step::Add),
        (0..8_u8, 0..20_u8).prop_map(|(key, delay)| Step::AddAt(key, delay)),
        Just(Step::Take),
        (any::<u8>(), 0..3_u8).prop_map(|(which, how)| Step::Finish(which, how)),
        (0..5_u8).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever the order of steps: no key is in work twice, and once everything has been worked
    /// off, every key has had a pass that began after its last addition.
    #[test]
    fn no_addition_is_ever_lost(steps in prop::collection::vec(step(), 1..400)) {
        let (mut core, start) = core();
        let mut now = start;
        let mut clock = 0_u32;
        let mut added: BTreeMap<ObjectKey, u32> = BTreeMap::new();
        let mut begun: BTreeMap<ObjectKey, u32> = BTreeMap::new();
        let mut in_work: Vec<ObjectKey> = Vec::new();
        for step in steps {
            clock += 1;
            match step {
                Step::Add(name) => {
                    core.add(key(name), now);
                    added.insert(key(name), clock);
                }
                Step::AddAt(name, delay) => {
                    core.add_at(key(name), now + SECOND * delay.into());
                }
                Step::Take => if let Some(taken) = core.take(now) {
                    prop_assert!(!in_work.contains(&taken.key));
                    begun.insert(taken.key.clone(), clock);
                    in_work.push(taken.key);
                },
                Step::Finish(which, how) => if !in_work.is_empty() {
                    let key = in_work.remove(usize::from(which) % in_work.len());
                    let how = match how {
                        0 => Finish::Settled,
                        1 => Finish::At(now + SECOND),
                        _ => Finish::Failed { jitter: 0.5 },
                    };
                    core.finish(&key, how, now);
                },
                Step::Wait(seconds) => now += SECOND * seconds.into(),
            }
        }
        for key in in_work.drain(..) {
            core.finish(&key, Finish::Settled, now);
        }
        // Every timer is due within the longest backoff.
        now += BACKOFF.max;
        while let Some(taken) = core.take(now) {
            clock += 1;
            begun.insert(taken.key.clone(), clock);
            core.finish(&taken.key, Finish::Settled, now);
        }
        for (key, when) in added {
            prop_assert!(begun.get(&key).is_some_and(|begun| *begun > when), "{key} was lost");
        }
        prop_assert_eq!((core.depth(), core.scheduled(), core.held()), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_worker_is_woken_by_an_addition_and_by_a_timer() {
    let metrics = crate::metrics::ReconcileMetrics::register(&mut Default::default());
    let queue = Queue::new(BACKOFF, 100, metrics.queue("test"));
    let adding = queue.clone();
    let add = async move {
        tokio::time::sleep(SECOND).await;
        adding.add(key("a"));
    };
    let (taken, ()) = tokio::join!(queue.take(), add);
    assert_eq!(taken.key, key("a"));
    queue.finish(&taken.key, Finish::Settled);

    queue.add_after(key("b"), 10 * SECOND);
    let started = tokio::time::Instant::now();
    assert_eq!(queue.take().await.key, key("b"));
    assert_eq!(started.elapsed(), 10 * SECOND);
}
