//! Watches against a scripted stream: malformed objects, gaps, selectors, what is kept.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{Client, ResourceExt, client::Body, core::PartialObjectMeta};
use portolan_process::{Metrics, Readiness};
use portolan_reconcile::{
    Cache, Context, ContextParts, ObjectKey, Observed, Settings, Watch, Watched,
    metrics::WatchLabel,
    testing::{Answer, Wire, context, initial_events_end},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::BoxError;

/// Longer than the first delays of a watch that broke.
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
    assert_eq!(context.metrics().watch_lists.get_or_create(&label).get(), 2);
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
    assert!((60..140).contains(&tries), "once per 5 to 10 seconds in the end, not {tries} times");
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

/// While it was away, rests have become long; what it says when it is back is that they may end.
#[tokio::test(start_paused = true)]
async fn everything_is_listed_as_soon_as_the_api_server_is_back() {
    let mut answers = vec![Answer::WatchThenEnd(vec![good("ADDED", "a", 1), end(4)])];
    answers.extend((0..12).map(|_| Answer::failure(503, "ServiceUnavailable", "it is away")));
    answers.push(Answer::failure(410, "Expired", "too old resource version"));
    answers.push(Answer::Watch(vec![good("ADDED", "b", 7), end(8)]));
    let (wire, client) = Wire::scripted(answers);
    let context = context(client);
    let (cache, task) = Watch::<ConfigMap>::new().start(&context, "demo");
    let task = tokio::spawn(task);
    while wire.sent().len() < 14 {
        sleep(Duration::from_millis(10)).await;
    }
    let refused = Instant::now();
    while names(&cache) != ["b"] {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(refused.elapsed() < Duration::from_secs(1), "{:?}", refused.elapsed());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn pruning_drops_managed_fields() {
    let events = || [Answer::Watch(vec![good("ADDED", "a", 1), end(2)])];
    let (whole, ..) = watched(Watch::<ConfigMap>::new(), events()).await;
    assert!(whole.list()[0].metadata.managed_fields.is_some());
    let (pruned, ..) = watched(Watch::<ConfigMap>::new().prune(), events()).await;
    assert!(pruned.list()[0].metadata.managed_fields.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_process_kept_is_there_until_it_is_known_better() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = told.clone();
    let kept = ["gone", "same"].map(|name| (key(name), name.len())).to_vec();
    let (wire, client) = Wire::scripted([Answer::Watch(vec![good("ADDED", "same", 3), end(9)])]);
    let context = context(client);
    let (cache, task) = Watch::<ConfigMap>::new()
        .project(|config| Some(config.name_any().len() + 10))
        .index("length", |length| [length.to_string()])
        .on_change(move |change| {
            let value = |side: Option<&Arc<usize>>| side.map(|value| **value);
            telling.lock().unwrap().push((value(change.old), value(change.new)));
        })
        .seed(kept)
        .start(&context, "demo");
    // Before the task has run, and so before the API server has said anything.
    assert_eq!(*told.lock().unwrap(), [(None, Some(4)), (None, Some(4))]);
    assert_eq!(cache.by_index("length", "4").len(), 2);
    assert!(!cache.is_synced());
    assert!(cache.observed(&key("other")).is_unknown(), "the earlier process may not know it");
    assert_eq!(cache.unbroken_since(), None);
    let task = tokio::spawn(task);
    cache.synced().await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(told.lock().unwrap()[2..], [(Some(4), Some(14)), (Some(4), None)]);
    assert_eq!(cache.entries(), [(key("same"), Arc::new(14))]);
    assert_eq!(wire.sent().len(), 1);
    task.abort();
}

/// A context whose time follows the runtime's, so that a test may hold it still.
fn timed(client: Client) -> Context {
    let begun = Instant::now();
    let parts = ContextParts {
        metrics: Metrics::new("test"),
        readiness: Readiness::new(),
        shutdown: CancellationToken::new(),
        settings: Settings::standard("test"),
        clock: Arc::new(move || Timestamp::UNIX_EPOCH + begun.elapsed()),
    };
    Context::new(client, parts)
}

fn seconds(since: Option<Timestamp>) -> Option<i64> {
    since.map(Timestamp::as_second)
}

/// What a watch that gets these answers says of itself within so many seconds: when it changed its
/// mind, and since when it then was unbroken.
async fn wholeness(
    within: i64,
    answers: impl IntoIterator<Item = Timed>,
) -> Vec<(i64, Option<i64>)> {
    let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
    let service = tower::service_fn(move |_: Request<Body>| {
        let answer = answers.lock().expect("no panics").pop_front();
        async move { answer.expect("enough answers").respond().await }
    });
    let context = timed(Client::new(service, "default"));
    let (cache, task) = Watch::<ConfigMap>::new().start(&context, "demo");
    let task = tokio::spawn(task);
    let mut seen = vec![(0, None)];
    while context.now().as_second() < within {
        let now = seconds(cache.unbroken_since());
        let is_stale = cache.interrupted_since().is_some();
        assert!(!(now.is_some() && is_stale), "whole and interrupted at once");
        if seen.last().is_none_or(|(_, last)| *last != now) {
            seen.push((context.now().as_second(), now));
        }
        sleep(Duration::from_millis(100)).await;
    }
    task.abort();
    seen.split_off(1)
}

/// How one request for a watch goes.
enum Timed {
    /// Events, then silence for so many seconds, then the end.
    Ends(u64, Vec<Value>),
    /// The head of the answer takes so many seconds; then silence for longer than any test.
    Follows(u64),
    /// A failure after so many seconds.
    Fails(u64),
}

impl Timed {
    async fn respond(self) -> Result<Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError> {
        let lines = |events: Vec<Value>| {
            let line = |event: Value| {
                let (type_, object) = (&event["type"], &event["object"]);
                let line = format!("{{\"type\":{type_},\"object\":{object}}}\n");
                Ok(Frame::data(Bytes::from(line)))
            };
            stream::iter(events.into_iter().map(line).collect::<Vec<_>>())
        };
        let (events, lasts) = match self {
            Self::Ends(lasts, events) => (events, lasts),
            Self::Follows(after) => {
                sleep(Duration::from_secs(after)).await;
                (Vec::new(), 3600)
            }
            Self::Fails(after) => {
                sleep(Duration::from_secs(after)).await;
                return Err("refused".into());
            }
        };
        let end = sleep(Duration::from_secs(lasts));
        let body = lines(events).chain(stream::pending()).take_until(end);
        Ok(Response::new(StreamBody::new(body).boxed_unsync()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_time_and_is_resumed_has_no_gap() {
    let seen = wholeness(
        400,
        [
            Timed::Ends(200, vec![good("ADDED", "a", 1), end(4)]),
            Timed::Ends(100, Vec::new()),
            Timed::Follows(1),
        ],
    )
    .await;
    assert_eq!(seen, [(0, Some(0))]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_again_and_again_has_no_gap_as_long_as_it_brings_something() {
    let cut = |version| Timed::Ends(1, vec![good("MODIFIED", "a", version)]);
    let first = Timed::Ends(1, vec![good("ADDED", "a", 1), end(4)]);
    let seen = wholeness(20, [first, cut(5), cut(6), cut(7), Timed::Follows(0)]).await;
    assert_eq!(seen, [(0, Some(0))]);

    let first = Timed::Ends(1, vec![good("ADDED", "a", 1), end(4)]);
    let seen = wholeness(20, [first, cut(5), Timed::Ends(1, Vec::new()), Timed::Follows(0)]).await;
    assert!(matches!(seen[..], [.., (_, None), (_, Some(_))]), "it brought nothing: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn after_an_interruption_a_watch_is_whole_from_its_return_even_if_nothing_changes() {
    let seen = wholeness(
        200,
        [
            Timed::Ends(100, vec![good("ADDED", "a", 1), end(4)]),
            Timed::Fails(0),
            Timed::Fails(20),
            Timed::Follows(0),
        ],
    )
    .await;
    let [(0, Some(0)), (100, None), (back, Some(since))] = seen[..] else { panic!("{seen:?}") };
    // Seconds may change between the return and the next look.
    assert!((since..=since + 1).contains(&back), "{since} noticed at {back}");
    assert!((120..=125).contains(&back), "resumed within the second rest, not at {back}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_takes_long_to_resume_is_interrupted() {
    let first = Timed::Ends(100, vec![end(4)]);
    let seen = wholeness(200, [first, Timed::Follows(10)]).await;
    assert_eq!(seen, [(0, Some(0)), (102, None), (110, Some(110))]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_went_dead_in_silence_is_noticed() {
    let first = Timed::Ends(3600, vec![end(4)]);
    let seen = wholeness(480, [first, Timed::Follows(0), Timed::Follows(0)]).await;
    let [(0, Some(0)), (broken, None), (..), ..] = seen[..] else { panic!("{seen:?}") };
    assert!((245..365).contains(&broken), "{broken}");
}

#[tokio::test(start_paused = true)]
async fn a_version_from_the_future_is_given_up() {
    let too_large = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 504,
        "reason": "Timeout", "message": "Too large resource version: 4, current: 2",
        "details": {"causes": [{
            "reason": "ResourceVersionTooLarge", "message": "Too large resource version",
        }]},
    });
    let (cache, _, wire) = watched(
        Watch::<ConfigMap>::new(),
        [
            Answer::WatchThenEnd(vec![good("ADDED", "a", 1), end(4)]),
            Answer::Json(504, too_large),
            Answer::Watch(vec![good("ADDED", "b", 2), end(2)]),
        ],
    )
    .await;
    assert_eq!(names(&cache), ["b"]);
    assert!(wire.sent()[2].query.contains("sendInitialEvents=true"), "{:?}", wire.sent()[2]);
}
