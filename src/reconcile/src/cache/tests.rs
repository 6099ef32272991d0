use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::*;
use crate::pass::mk_pass;

/// What the tests keep of an object: the pool it belongs to.
type Pods = Store<&'static str>;

const BY_POOL: &str = "pool";

/// The version of every list, later than those of the objects.
const LISTED_AT: u64 = 100;

fn pods() -> Pods {
    let by: IndexBy<&'static str> = Box::new(|pool| vec![(*pool).to_owned()]);
    Store::new(vec![(BY_POOL, by)])
}

fn seen(name: &str, uid: &str, version: u64) -> Sighting {
    Sighting { key: ObjectKey::new("team-a", name), uid: uid.into(), version }
}

fn malformed(name: &str, version: u64, why: &str) -> Malformed {
    Malformed { sighting: seen(name, name, version), why: why.to_owned() }
}

/// A store that has listed the given objects, all in pool `p`.
fn listed(objects: &[(&str, u64)]) -> Pods {
    let mut store = pods();
    store.begin_relist();
    for (name, version) in objects {
        store.shown(seen(name, name, *version), Some("p"));
    }
    store.end_relist(LISTED_AT, Instant::now());
    store
}

/// A change as (name, was, is).
type Told = (String, Option<&'static str>, Option<&'static str>);

fn told<'a>(deltas: impl IntoIterator<Item = &'a Delta<&'static str>>) -> Vec<Told> {
    let side = |value: &Option<Arc<&'static str>>| value.as_deref().copied();
    let told = |delta: &Delta<_>| (delta.key.name.clone(), side(&delta.old), side(&delta.new));
    deltas.into_iter().map(told).collect()
}

#[track_caller]
fn check(
    delta: Option<Delta<&'static str>>,
    expected: &[(&str, Option<&'static str>, Option<&'static str>)],
) {
    let expected: Vec<Told> =
        expected.iter().map(|(name, old, new)| ((*name).to_owned(), *old, *new)).collect();
    assert_eq!(told(&delta), expected);
}

#[test]
fn a_relist_after_a_gap_tells_what_was_created_changed_and_deleted() {
    let mut store = listed(&[("same", 1), ("changed", 2), ("deleted", 3)]);
    store.begin_relist();
    check(store.shown(seen("same", "same", 1), Some("p")), &[]);
    check(
        store.shown(seen("changed", "changed", 5), Some("q")),
        &[("changed", Some("p"), Some("q"))],
    );
    check(store.shown(seen("created", "created", 6), Some("p")), &[("created", None, Some("p"))]);
    let gone = store.end_relist(LISTED_AT, Instant::now());
    assert_eq!(told(&gone), [("deleted".to_owned(), Some("p"), None)]);
    assert_eq!(store.len(), 3);
}

#[test]
fn an_object_made_again_under_its_name_in_a_gap_is_a_change() {
    let mut store = listed(&[("a", 1)]);
    store.begin_relist();
    check(store.shown(seen("a", "other-uid", 9), Some("q")), &[("a", Some("p"), Some("q"))]);
    assert!(store.end_relist(LISTED_AT, Instant::now()).is_empty());
}

#[test]
fn indexes_follow_every_change() {
    let mut store = listed(&[("a", 1), ("b", 2)]);
    let names = |store: &Pods, pool: &str| store.by_index(BY_POOL, pool).count();
    assert_eq!((names(&store, "p"), names(&store, "q")), (2, 0));
    store.shown(seen("a", "a", 3), Some("q"));
    assert_eq!((names(&store, "p"), names(&store, "q")), (1, 1));
    store.gone(&seen("a", "a", 4), Instant::now());
    assert_eq!((names(&store, "p"), names(&store, "q")), (1, 0));
    // The projection no longer keeps it.
    store.shown(seen("b", "b", 5), None);
    assert_eq!((names(&store, "p"), store.len()), (0, 0));
}

#[test]
fn listing_by_namespace_stops_at_its_border() {
    let mut store = pods();
    for (namespace, name) in [("team-a", "x"), ("team-b", "y"), ("team", "z"), ("team-b", "a")] {
        let key = ObjectKey::new(namespace, name);
        store.shown(Sighting { key, uid: name.into(), version: 1 }, Some("p"));
    }
    assert_eq!(store.in_namespace("team-b").count(), 2);
    assert_eq!(store.in_namespace("team").count(), 1);
    assert_eq!(store.in_namespace("none").count(), 0);
}

// --- our own writes ---

#[test]
fn our_own_write_is_read_at_once_and_its_echo_tells_nobody() {
    let mut store = listed(&[("a", 1)]);
    check(
        store.wrote(seen("a", "a", 5), Some("q"), Instant::now()),
        &[("a", Some("p"), Some("q"))],
    );
    assert_eq!(store.find(&ObjectKey::new("team-a", "a")).map(|value| **value), Some("q"));
    check(store.shown(seen("a", "a", 5), Some("q")), &[]);
}

#[test]
fn a_foreign_write_before_ours_is_told_although_its_value_is_known() {
    let mut store = listed(&[("a", 1)]);
    store.wrote(seen("a", "a", 5), Some("q"), Instant::now());
    check(store.shown(seen("a", "a", 4), Some("foreign")), &[("a", Some("q"), Some("q"))]);
    check(store.shown(seen("a", "a", 5), Some("q")), &[]);
    check(store.shown(seen("a", "a", 6), Some("r")), &[("a", Some("q"), Some("r"))]);
}

#[test]
fn two_writes_of_one_pass_have_two_echoes() {
    let mut store = listed(&[("a", 1)]);
    store.wrote(seen("a", "a", 5), Some("q"), Instant::now());
    store.wrote(seen("a", "a", 7), Some("r"), Instant::now());
    check(store.shown(seen("a", "a", 5), Some("q")), &[]);
    check(store.shown(seen("a", "a", 6), Some("foreign")), &[("a", Some("r"), Some("r"))]);
    check(store.shown(seen("a", "a", 7), Some("r")), &[]);
}

#[test]
fn an_answer_older_than_the_watch_changes_nothing() {
    let mut store = listed(&[("a", 9)]);
    check(store.wrote(seen("a", "a", 5), Some("old"), Instant::now()), &[]);
    check(store.shown(seen("a", "a", 10), Some("q")), &[("a", Some("p"), Some("q"))]);
}

#[test]
fn what_we_deleted_is_not_brought_back_by_events_on_their_way() {
    let mut store = listed(&[("a", 1)]);
    let key = ObjectKey::new("team-a", "a");
    check(store.deleted(&key, "a", Instant::now()), &[("a", Some("p"), None)]);
    check(store.shown(seen("a", "a", 4), Some("late")), &[]);
    check(store.gone(&seen("a", "a", 5), Instant::now()), &[]);
    // The name is free for another object.
    check(store.shown(seen("a", "next", 6), Some("q")), &[("a", None, Some("q"))]);
}

#[test]
fn a_delete_of_an_object_that_was_made_again_touches_only_the_old_one() {
    let mut store = listed(&[("a", 1)]);
    store.wrote(seen("a", "next", 7), Some("q"), Instant::now());
    check(store.gone(&seen("a", "a", 6), Instant::now()), &[]);
    check(store.deleted(&ObjectKey::new("team-a", "a"), "a", Instant::now()), &[]);
    assert_eq!(store.len(), 1);
}

#[test]
fn what_was_created_during_a_relist_survives_it_until_it_is_confirmed() {
    let mut store = listed(&[]);
    let start = Instant::now();
    store.begin_relist();
    store.wrote(seen("new", "new", 9), Some("p"), Instant::now());
    assert!(store.end_relist(LISTED_AT, start).is_empty(), "the list may be older than our write");
    assert!(store.sweep(Some(start), start + Duration::from_secs(59)).is_empty());
    check(store.shown(seen("new", "new", 9), Some("p")), &[]);
    assert!(
        store.sweep(Some(start), start + Duration::from_secs(61)).is_empty(),
        "the watch confirmed it"
    );
    assert_eq!(store.len(), 1);
}

#[test]
fn what_was_created_and_deleted_during_a_relist_does_not_stay_for_ever() {
    let mut store = listed(&[]);
    let start = Instant::now();
    store.begin_relist();
    store.wrote(seen("new", "new", 9), Some("p"), Instant::now());
    store.end_relist(LISTED_AT, start);
    let gone = store.sweep(Some(start), start + Duration::from_secs(61));
    assert_eq!(told(&gone), [("new".to_owned(), Some("p"), None)]);
}

#[test]
fn what_was_created_before_a_relist_that_does_not_show_it_is_gone() {
    let mut store = listed(&[]);
    store.wrote(seen("new", "new", 9), Some("p"), Instant::now());
    store.begin_relist();
    assert_eq!(store.end_relist(LISTED_AT, Instant::now()).len(), 1);
}

#[test]
fn the_answer_to_a_write_that_comes_after_the_deletion_brings_nothing_back() {
    let mut store = listed(&[("a", 1)]);
    store.gone(&seen("a", "a", 6), Instant::now());
    check(store.wrote(seen("a", "a", 5), Some("ghost"), Instant::now()), &[]);

    // The same when the deletion was noticed by a relist only.
    let mut store = listed(&[("a", 1)]);
    store.begin_relist();
    store.end_relist(LISTED_AT, Instant::now());
    check(store.wrote(seen("a", "a", 5), Some("ghost"), Instant::now()), &[]);

    // Created and deleted before the answer came.
    store.shown(seen("b", "b", 7), Some("p"));
    store.gone(&seen("b", "b", 8), Instant::now());
    check(store.wrote(seen("b", "b", 7), Some("ghost"), Instant::now()), &[]);
    assert_eq!(store.len(), 0);
}

#[test]
fn what_only_an_answer_has_shown_does_not_stay_for_ever() {
    let start = Instant::now();
    let mut store = listed(&[]);
    store.wrote(seen("ghost", "ghost", 5), Some("p"), start);
    store.wrote(seen("alive", "alive", 6), Some("p"), start);
    store.shown(seen("alive", "alive", 6), Some("p"));
    // A later write of ours that the watch has not shown yet does not make it a ghost.
    store.wrote(seen("alive", "alive", 9), Some("q"), start + Duration::from_secs(60));
    let gone = store.sweep(Some(start), start + Duration::from_secs(61));
    assert_eq!(told(&gone), [("ghost".to_owned(), Some("p"), None)]);
    // If it was there after all, the watch shows it.
    check(store.shown(seen("ghost", "ghost", 5), Some("p")), &[("ghost", None, Some("p"))]);
}

#[test]
fn what_an_interrupted_watch_could_not_confirm_stays_until_it_could() {
    let (start, minute) = (Instant::now(), Duration::from_secs(60));
    let mut store = listed(&[]);
    store.wrote(seen("new", "new", 5), Some("p"), start);
    assert!(store.sweep(None, start + 10 * minute).is_empty(), "nobody could have shown it");
    let back = Some(start + 10 * minute);
    assert!(store.sweep(back, start + 11 * minute - Duration::from_secs(1)).is_empty());
    let gone = store.sweep(back, start + 11 * minute);
    assert_eq!(told(&gone), [("new".to_owned(), Some("p"), None)]);
}

#[test]
fn an_object_made_again_is_no_older_a_suspect_than_its_creation() {
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let (mut store, key) = (listed(&[]), ObjectKey::new("team-a", "a"));
    store.wrote(seen("a", "first", 5), Some("p"), start);
    store.deleted(&key, "first", start + 50 * second);
    store.wrote(seen("a", "second", 7), Some("p"), start + 55 * second);
    assert!(store.sweep(Some(start), start + 61 * second).is_empty());
    assert_eq!(store.sweep(Some(start), start + 115 * second).len(), 1);
}

#[test]
fn what_had_only_left_the_selector_is_seen_as_soon_as_it_is_back() {
    let mut store = listed(&[("a", 1)]);
    store.gone(&seen("a", "a", 6), Instant::now());
    check(store.shown(seen("a", "a", 5), Some("late")), &[]);
    check(store.shown(seen("a", "a", 6), Some("late")), &[]);
    check(store.shown(seen("a", "a", 9), Some("q")), &[("a", None, Some("q"))]);
    // And leaves once more.
    check(store.gone(&seen("a", "a", 12), Instant::now()), &[("a", Some("q"), None)]);
    check(store.shown(seen("a", "a", 10), Some("late")), &[]);

    // The same when a relist did not show it.
    let mut store = listed(&[("a", 1)]);
    store.begin_relist();
    store.end_relist(LISTED_AT, Instant::now());
    check(store.shown(seen("a", "a", LISTED_AT), Some("late")), &[]);
    check(store.shown(seen("a", "a", LISTED_AT + 1), Some("q")), &[("a", None, Some("q"))]);
}

#[test]
fn an_object_that_left_twice_is_remembered_from_the_second_time_on() {
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let mut store = listed(&[]);
    store.gone(&seen("a", "a", 6), start);
    store.gone(&seen("a", "a", 9), start + 200 * second);
    store.sweep(None, start + 301 * second);
    check(store.wrote(seen("a", "a", 8), Some("p"), start), &[]);
}

#[test]
fn deleted_uids_are_forgotten_in_time() {
    let start = Instant::now();
    let mut store = listed(&[]);
    store.gone(&seen("a", "a", 6), start);
    assert!(store.sweep(Some(start), start + Duration::from_secs(299)).is_empty());
    check(store.wrote(seen("a", "a", 5), Some("p"), start), &[]);
    store.sweep(Some(start), start + Duration::from_secs(301));
    check(store.wrote(seen("a", "a", 5), Some("p"), start), &[("a", None, Some("p"))]);
}

// --- malformed objects ---

#[test]
fn a_malformed_object_is_known_as_such_and_its_last_good_value_stays() {
    let mut store = listed(&[("a", 1)]);
    let key = ObjectKey::new("team-a", "a");
    store.begin_relist();
    store.shown_malformed(malformed("a", 5, "spec: expected a map"));
    assert!(store.end_relist(LISTED_AT, Instant::now()).is_empty(), "malformed is not gone");
    assert_eq!(store.malformed(&key), Some("spec: expected a map"));
    assert!(store.find(&key).is_some());
    store.shown(seen("a", "a", 5), Some("p"));
    assert_eq!(store.malformed(&key), None);
}

#[test]
fn a_malformed_object_that_is_gone_is_forgotten() {
    let mut store = listed(&[]);
    let odd = |name: &str| ObjectKey::new("team-a", name);
    store.shown_malformed(malformed("a", 4, "why"));
    store.shown_malformed(malformed("b", 4, "why"));
    store.gone(&seen("a", "a", 5), Instant::now());
    assert_eq!(store.malformed(&odd("a")), None);
    // The answer to a write of ours that comes later.
    store.shown_malformed(malformed("a", 4, "why"));
    assert_eq!(store.malformed(&odd("a")), None);
    store.begin_relist();
    store.end_relist(LISTED_AT, Instant::now());
    assert_eq!(store.malformed(&odd("b")), None);
}

#[tokio::test(start_paused = true)]
async fn a_cache_waits_for_its_watch_and_takes_no_answer_that_it_cannot_keep() {
    let cache = Cache::<ConfigMap, &'static str>::new(CacheParts {
        project: Box::new(|object| object.data.map(|_| Some("p")).ok_or("no data".to_owned())),
        indexes: Vec::new(),
        handlers: Vec::new(),
        is_same: None,
        size: Gauge::default(),
        wholeness: Wholeness::new(Gauge::default()),
    });
    let written = |name: &str, data: Option<BTreeMap<String, String>>| {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            resource_version: Some("101".to_owned()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, data, ..ConfigMap::default() }
    };
    let (key, at) = (ObjectKey::cluster("new"), Timestamp::UNIX_EPOCH);
    cache.end_relist(LISTED_AT, at);
    cache.interrupted(at);
    cache.observe(written("new", Some(BTreeMap::new())), &mk_pass());
    tokio::time::advance(Duration::from_secs(600)).await;
    cache.sweep();
    assert!(cache.get(&key).is_some(), "the watch could not confirm it");
    cache.followed(at);
    tokio::time::advance(Duration::from_secs(59)).await;
    cache.sweep();
    assert!(cache.get(&key).is_some(), "it has just come back");
    tokio::time::advance(Duration::from_secs(1)).await;
    cache.sweep();
    assert_eq!(cache.observed(&key), Observed::Absent);

    cache.observe(written("odd", None), &mk_pass());
    assert!(cache.observed(&ObjectKey::cluster("odd")).is_unknown());
}

// --- what a change names ---

#[test]
fn an_object_that_moves_concerns_its_old_and_its_new_owner() {
    let key = ObjectKey::new("team-a", "pod");
    let (old, new) = (Arc::new("p"), Arc::new("q"));
    let owner = |pool: &&'static str| [ObjectKey::new("team-a", *pool)];
    let moved = Change { key: &key, old: Some(&old), new: Some(&new) };
    let expected = [ObjectKey::new("team-a", "p"), ObjectKey::new("team-a", "q")];
    assert_eq!(moved.each(owner), expected);
    let same = Change { key: &key, old: Some(&old), new: Some(&old) };
    assert_eq!(same.each(owner).len(), 1);
}

#[test]
fn trees_that_are_built_anew_hold_what_they_held() {
    let names: Vec<_> = (0..1000).map(|number| format!("pod-{number:04}")).collect();
    let objects: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let mut store = listed(&objects[..500]);
    for name in &names[500..] {
        store.shown(seen(name, name, 1), Some("q"));
    }
    store.sweep(None, Instant::now());
    let kept: Vec<_> = store.iter().map(|(key, _)| key.name.clone()).collect();
    assert_eq!(kept, names);
    assert_eq!(store.by_index(BY_POOL, "p").count(), 500);
    assert_eq!(store.by_index(BY_POOL, "q").count(), 500);
    check(
        store.gone(&seen("pod-0600", "pod-0600", 2), Instant::now()),
        &[("pod-0600", Some("q"), None)],
    );
    assert_eq!(store.by_index(BY_POOL, "q").count(), 499);
}
