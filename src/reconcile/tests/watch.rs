//! Watches against a scripted stream: malformed objects, gaps, selectors, what is kept.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{ResourceExt, core::PartialObjectMeta};
use portolan_reconcile::{
    Cache, Context, ObjectKey, Observed, Watch, Watched,
    metrics::WatchLabel,
    testing::{Answer, Wire, context, initial_events_end},
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// Longer than the longest first delay of a watch that broke.
const A_WHILE: Duration = Duration::from_secs(120);

fn event(type_: &str, name: &str, version: u64, data: Value) -> Value {
    json!({"type": type_, "object": {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": "team-a", "uid": name,
            "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubectl"}],
        },
        "data": data,
    }})
}

fn good(type_: &str, name: &str, version: u64) -> Value {
    event(type_, name, version, json!({"a": "b"}))
}

fn malformed(type_: &str, name: &str, version: u64) -> Value {
    event(type_, name, version, json!("not a map"))
}

fn end(version: u64) -> Value {
    initial_events_end("ConfigMap", version)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("team-a", name)
}

/// A watch that got these answers, after a while.
async fn watched<K: Watched, T: Send + Sync + 'static>(
    watch: Watch<K, T>,
    answers: impl IntoIterator<Item = Answer>,
) -> (Cache<K, T>, Context, Wire) {
    let (wire, client) = Wire::scripted(answers);
    let context = context(client);
    let (cache, task) = watch.start(&context, "demo");
    let task = tokio::spawn(task);
    sleep(A_WHILE).await;
    context.shutdown().cancel();
    task.await.expect("no panic").expect("a clean end");
    (cache, context, wire)
}

fn names(cache: &Cache<ConfigMap>) -> Vec<String> {
    cache.keys().into_iter().map(|key| key.name).collect()
}

fn malformed_count(context: &Context) -> u64 {
    let label = WatchLabel { controller: "demo", kind: "ConfigMap".into() };
    context.metrics().malformed_objects.get_or_create(&label).get()
}

#[tokio::test(start_paused = true)]
async fn a_malformed_object_is_counted_and_the_rest_goes_on() {
    let events = vec![
        good("ADDED", "a", 1),
        malformed("ADDED", "odd", 2),
        good("ADDED", "b", 3),
        end(4),
        malformed("MODIFIED", "odd", 5),
        malformed("MODIFIED", "a", 6),
        good("ADDED", "c", 7),
        good("DELETED", "b", 8),
    ];
    let (cache, context, _) = watched(Watch::<ConfigMap>::new(), [Answer::Watch(events)]).await;
    assert_eq!(names(&cache), ["a", "c"]);
    assert_eq!(malformed_count(&context), 3);
    assert!(cache.is_synced());
    assert!(cache.observed(&key("odd")).is_unknown(), "malformed is not absent");
    assert!(cache.observed(&key("a")).is_unknown(), "what it became is not known");
    assert!(cache.get(&key("a")).is_some(), "what it was is");
    assert_eq!(cache.observed(&key("b")), Observed::Absent);
}

#[tokio::test(start_paused = true)]
async fn before_the_first_list_is_complete_nothing_is_absent() {
    let events = vec![good("ADDED", "a", 1)];
    let (cache, ..) = watched(Watch::<ConfigMap>::new(), [Answer::Watch(events)]).await;
    assert!(!cache.is_synced());
    assert!(cache.observed(&key("a")).present().is_some());
    assert!(cache.observed(&key("b")).is_unknown());
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_a_watch_was_broken_is_told() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = told.clone();
    let watch = Watch::<ConfigMap>::new().on_change(move |change| {
        let mut told = telling.lock().unwrap();
        told.push((change.key.name.clone(), change.old.is_some(), change.new.is_some()));
    });
    let gone = json!({"type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": 410, "reason": "Expired", "message": "too old resource version",
    }});
    let before =
        vec![good("ADDED", "same", 1), good("ADDED", "changed", 2), good("ADDED", "deleted", 3)];
    let after =
        vec![good("ADDED", "same", 1), good("ADDED", "changed", 6), good("ADDED", "created", 7)];
    let (cache, context, _) = watched(
        watch,
        [
            Answer::Watch(before.into_iter().chain([end(4), gone]).collect()),
            Answer::failure(500, "InternalError", "etcd is away"),
            Answer::Watch(after.into_iter().chain([end(8)]).collect()),
        ],
    )
    .await;
    assert_eq!(names(&cache), ["changed", "created", "same"]);
    let told = told.lock().unwrap().split_off(3);
    let expected = [("changed", true, true), ("created", false, true), ("deleted", true, false)];
    let expected: Vec<_> =
        expected.into_iter().map(|(name, old, new)| (name.to_owned(), old, new)).collect();
    assert_eq!(told, expected);
    let label = WatchLabel { controller: "demo", kind: "ConfigMap".into() };
    assert_eq!(context.metrics().watch_errors.get_or_create(&label).get(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_is_resumed_where_it_was() {
    let first = vec![good("ADDED", "a", 1), end(4), good("MODIFIED", "a", 6)];
    let second = vec![good("ADDED", "b", 7)];
    let (cache, _, wire) =
        watched(Watch::<ConfigMap>::new(), [Answer::WatchThenEnd(first), Answer::Watch(second)])
            .await;
    assert_eq!(names(&cache), ["a", "b"]);
    let resumed = &wire.sent()[1].query;
    assert!(resumed.contains("resourceVersion=6"), "{resumed}");
    assert!(!resumed.contains("sendInitialEvents"), "{resumed}");
}

#[tokio::test(start_paused = true)]
async fn selectors_and_namespace_are_sent() {
    let watch = Watch::<ConfigMap>::new()
        .labels("portolan.dev/app")
        .fields("metadata.name=a")
        .in_namespace("team-a");
    let (_, _, wire) = watched(watch, [Answer::Watch(vec![end(1)])]).await;
    let sent = &wire.sent()[0];
    assert_eq!(sent.path, "/api/v1/namespaces/team-a/configmaps");
    for part in [
        "labelSelector=portolan.dev%2Fapp",
        "fieldSelector=metadata.name%3Da",
        "sendInitialEvents=true",
        "allowWatchBookmarks=true",
    ] {
        assert!(sent.query.contains(part), "{part} in {}", sent.query);
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_only_watches_ask_for_metadata_only() {
    let pod = json!({"type": "ADDED", "object": {
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "a", "namespace": "team-a", "resourceVersion": "1"},
    }});
    let watch = Watch::<PartialObjectMeta<Pod>>::new();
    let (cache, _, wire) = watched(watch, [Answer::Watch(vec![pod, end(2)])]).await;
    assert!(wire.sent()[0].accept.contains("as=PartialObjectMetadata"), "{:?}", wire.sent()[0]);
    assert_eq!(cache.list()[0].name_any(), "a");
}

#[tokio::test(start_paused = true)]
async fn only_what_the_projection_makes_is_kept() {
    let watch = Watch::<ConfigMap>::new()
        .project(|config| (config.name_any() != "b").then(|| config.name_any().len()))
        .index("length", |length| [length.to_string()]);
    let events =
        vec![good("ADDED", "a", 1), good("ADDED", "b", 2), good("ADDED", "ccc", 3), end(4)];
    let (cache, ..) = watched(watch, [Answer::Watch(events)]).await;
    assert_eq!(cache.list(), [Arc::new(1), Arc::new(3)]);
    assert_eq!(cache.by_index("length", "3"), [Arc::new(3)]);
    assert_eq!(cache.by_index("length", "2"), []);
}

#[tokio::test(start_paused = true)]
async fn a_distinct_watch_tells_only_of_what_is_kept() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = told.clone();
    let watch = Watch::<ConfigMap>::new()
        .project(|config| config.data)
        .distinct()
        .on_change(move |change| telling.lock().unwrap().push(change.key.name.clone()));
    let events = vec![
        good("ADDED", "a", 1),
        end(2),
        good("MODIFIED", "a", 3),
        event("MODIFIED", "a", 4, json!({"a": "changed"})),
        good("DELETED", "a", 5),
    ];
    watched(watch, [Answer::Watch(events)]).await;
    assert_eq!(*told.lock().unwrap(), ["a", "a", "a"], "added, changed, deleted");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_be_begun_backs_off() {
    let (wire, client) = Wire::answering(|_| Answer::failure(500, "InternalError", "etcd is away"));
    let context = context(client);
    let (cache, task) = Watch::<ConfigMap>::new().start(&context, "demo");
    let task = tokio::spawn(task);
    sleep(Duration::from_secs(600)).await;
    let tries = wire.sent().len();
    assert!((15..40).contains(&tries), "once per 15 to 60 seconds in the end, not {tries} times");
    assert!(!cache.is_synced());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_version_refused_as_too_old_is_not_asked_for_again() {
    let (cache, _, wire) = watched(
        Watch::<ConfigMap>::new(),
        [
            Answer::WatchThenEnd(vec![good("ADDED", "a", 1), end(4)]),
            Answer::failure(410, "Expired", "too old resource version"),
            Answer::Watch(vec![good("ADDED", "b", 7), end(8)]),
        ],
    )
    .await;
    assert_eq!(names(&cache), ["b"]);
    assert!(wire.sent()[2].query.contains("sendInitialEvents=true"), "{:?}", wire.sent()[2]);
}

#[tokio::test(start_paused = true)]
async fn pruning_drops_managed_fields() {
    let events = || [Answer::Watch(vec![good("ADDED", "a", 1), end(2)])];
    let (whole, ..) = watched(Watch::<ConfigMap>::new(), events()).await;
    assert!(whole.list()[0].metadata.managed_fields.is_some());
    let (pruned, ..) = watched(Watch::<ConfigMap>::new().prune(), events()).await;
    assert!(pruned.list()[0].metadata.managed_fields.is_none());
}
