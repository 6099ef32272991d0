//! What a writer sends, and what it makes of the answers.

use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::ObjectMeta;
use portolan_process::ErrorChain;
use portolan_reconcile::{
    APPLIED_HASH, Applied, Controller, Created, Deleted, ObjectKey, Observed, Precondition, Retry,
    StatusWrite, Target, WriteError, Writer,
    testing::{Answer, Sent, Wire, context},
};
use serde_json::{Value, json};

/// A writer of a controller `demo` whose requests get these answers.
fn writer(answers: impl IntoIterator<Item = Answer>) -> (Wire, Writer) {
    let (wire, client) = Wire::scripted(answers);
    (wire, Controller::new(&context(client), "demo").writer())
}

fn config(data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let metadata = ObjectMeta {
        name: Some("chat".into()),
        namespace: Some("team-a".into()),
        ..ObjectMeta::default()
    };
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}

fn target() -> Target {
    Target { key: ObjectKey::new("team-a", "chat"), uid: "uid-1".into(), resource_version: None }
}

/// The object as the API server returns it.
fn live(fields: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "chat", "namespace": "team-a", "uid": "uid-1", "resourceVersion": "7",
        },
    });
    let map = object.as_object_mut().expect("an object");
    map.extend(fields.as_object().cloned().expect("fields"));
    object
}

fn ok() -> Answer {
    Answer::Json(200, live(json!({})))
}

/// The only request that was sent.
#[track_caller]
fn only(wire: &Wire) -> Sent {
    let sent = wire.sent();
    assert_eq!(sent.len(), 1, "expected one request: {sent:#?}");
    sent.into_iter().next().expect("counted")
}

#[tokio::test]
async fn apply_is_a_forced_server_side_apply_by_our_manager() {
    let (wire, writer) = writer([ok()]);
    let mut desired = config(&[("a", "b")]);
    desired.metadata.managed_fields = Some(vec![]);
    desired.metadata.generation = Some(3);
    writer.apply(&desired).await.unwrap();
    let sent = only(&wire);
    assert_eq!(sent.method, Method::PATCH);
    assert_eq!(sent.path, "/api/v1/namespaces/team-a/configmaps/chat");
    assert_eq!(sent.query, "&force=true&fieldManager=portolan-demo");
    assert_eq!(sent.content_type, "application/apply-patch+yaml");
    let expected = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "chat", "namespace": "team-a"},
        "data": {"a": "b"},
    });
    assert_eq!(sent.body, expected, "what only the API server writes is not sent");
}

#[tokio::test]
async fn what_is_as_desired_is_not_written() {
    let (wire, writer) = writer([ok()]);
    let desired = config(&[("a", "b")]);
    writer.apply_if_changed(&desired, None).await.unwrap();
    let hash = only(&wire).body["metadata"]["annotations"][APPLIED_HASH].clone();

    let mut there = config(&[("a", "b"), ("from-somebody-else", "x")]);
    there.metadata.annotations =
        Some([(APPLIED_HASH.to_owned(), hash.as_str().unwrap().to_owned())].into());
    there.metadata.uid = Some("uid-1".into());
    let mut again = desired.clone();
    again.metadata.uid = Some("uid-1".into());
    let applied = writer.apply_if_changed(&again, Some(&there)).await.unwrap();
    assert_eq!(applied, Applied::Unchanged, "a precondition is no part of what is desired");
    only(&wire);
}

#[tokio::test]
async fn an_apply_to_what_has_changed_meanwhile_is_an_outcome() {
    let conflict = Answer::failure(409, "Conflict", "the object has been modified");
    let forbidden = Answer::failure(403, "Forbidden", "no patch for you");
    let (_, writer) = writer([conflict, forbidden]);
    let mut desired = config(&[("a", "b")]);
    desired.metadata.resource_version = Some("7".into());
    let applied = writer.apply_if_changed(&desired, None).await;
    assert_eq!(applied.expect("an outcome"), Applied::Outdated);
    let refused = writer.apply_if_changed(&desired, None).await.expect_err("a refusal");
    assert!(refused.is_forbidden());
}

#[tokio::test]
async fn a_conflict_over_something_else_is_an_error_that_is_tried_again() {
    let modified = "Operation cannot be fulfilled on resourcequotas \"all\": the object has been \
                    modified; please apply your changes to the latest version and try again";
    let Answer::Json(code, mut quota) = Answer::failure(409, "Conflict", modified) else {
        panic!("failures are objects");
    };
    quota["details"] = json!({"name": "all", "kind": "resourcequotas"});
    let (_, writer) = writer([
        Answer::failure(409, "Conflict", modified),
        Answer::Json(code, quota.clone()),
        Answer::Json(code, quota.clone()),
        Answer::Json(code, quota),
    ]);
    let mut desired = config(&[("a", "b")]);
    let nothing_asked = writer.apply_if_changed(&desired, None).await.map(drop);
    desired.metadata.uid = Some("uid-1".into());
    let refused = [
        nothing_asked,
        writer.apply_if_changed(&desired, None).await.map(drop),
        writer.apply_fields::<ConfigMap, _>(&target(), &json!({})).await.map(drop),
        writer.replace(&desired).await.map(drop),
    ];
    let refused = refused.map(|result| result.expect_err("an error"));
    let categories = ["api_conflict", "api_error", "api_error", "api_error"];
    assert_eq!(refused.each_ref().map(WriteError::category), categories);
    assert_eq!(refused.each_ref().map(WriteError::retry), [Retry::Backoff; 4]);
}

/// Applies `desired` over what an earlier apply of `before` left, edited by somebody else.
async fn reapplied(before: &ConfigMap, desired: &ConfigMap, edit: impl Fn(&mut ConfigMap)) -> bool {
    let (wire, writer) = writer([ok(), ok()]);
    writer.apply_if_changed(before, None).await.expect("answered");
    let body = wire.sent().remove(0).body;
    let mut there: ConfigMap = serde_json::from_value(body).expect("what was sent");
    edit(&mut there);
    let applied = writer.apply_if_changed(desired, Some(&there)).await.expect("answered");
    assert_eq!(applied != Applied::Unchanged, wire.sent().len() == 2);
    applied != Applied::Unchanged
}

#[tokio::test]
async fn a_foreign_edit_and_a_changed_wish_are_written() {
    let (small, large) = (config(&[("a", "b")]), config(&[("a", "b"), ("c", "d")]));
    assert!(!reapplied(&large, &large, |_| {}).await, "unchanged");
    assert!(reapplied(&small, &large, |_| {}).await, "a field more");
    assert!(reapplied(&large, &small, |_| {}).await, "a field less, which must be removed");
    let edited = |live: &mut ConfigMap| {
        live.data.get_or_insert_default().insert("a".into(), "foreign".into());
    };
    assert!(reapplied(&large, &large, edited).await, "a foreign edit");
    let removed = |live: &mut ConfigMap| live.data = None;
    assert!(reapplied(&large, &large, removed).await, "a foreign removal");
    let stripped = |live: &mut ConfigMap| live.metadata.annotations = None;
    assert!(reapplied(&large, &large, stripped).await, "a removed hash");
}

#[tokio::test]
async fn a_status_goes_to_its_subresource_with_the_uid_as_precondition() {
    let (wire, writer) = writer([ok()]);
    let target = Target { resource_version: Some("7".into()), ..target() };
    let status = json!({"ready": true});
    let written = writer.apply_status::<ConfigMap, _>(&target, &status, None).await.unwrap();
    assert!(matches!(written, StatusWrite::Written(_)), "{written:?}");
    let sent = only(&wire);
    assert_eq!(sent.path, "/api/v1/namespaces/team-a/configmaps/chat/status");
    let expected = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "chat", "namespace": "team-a", "uid": "uid-1", "resourceVersion": "7",
        },
        "status": {"ready": true},
    });
    assert_eq!(sent.body, expected);
}

#[tokio::test]
async fn a_status_that_says_the_same_is_not_written() {
    let (wire, writer) = writer([]);
    let (desired, observed) = (json!({"ready": true, "url": null}), json!({"ready": true}));
    let written = writer.apply_status::<ConfigMap, _>(&target(), &desired, Some(&observed)).await;
    assert_eq!(written.unwrap(), StatusWrite::Unchanged);
    assert_eq!(wire.sent(), []);
}

#[tokio::test]
async fn a_status_for_an_object_that_is_gone_or_stale_is_an_outcome() {
    let (_, writer) = writer([
        Answer::failure(404, "NotFound", "configmaps \"chat\" not found"),
        Answer::failure(409, "Conflict", "the object has been modified"),
    ]);
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        outcomes
            .push(writer.apply_status::<ConfigMap, _>(&target(), &json!({}), None).await.unwrap());
    }
    assert_eq!(outcomes, [StatusWrite::Gone, StatusWrite::Conflict]);
}

#[tokio::test]
async fn some_fields_are_applied_to_the_target_only() {
    let (wire, writer) = writer([ok()]);
    let fields = json!({"metadata": {"annotations": {"portolan.dev/drain": "3"}}});
    let met = writer.apply_fields::<ConfigMap, _>(&target(), &fields).await.unwrap();
    assert!(matches!(met, Precondition::Met(_)), "{met:?}");
    let metadata = json!({
        "name": "chat", "namespace": "team-a", "uid": "uid-1",
        "annotations": {"portolan.dev/drain": "3"},
    });
    assert_eq!(only(&wire).body["metadata"], metadata);
}

#[tokio::test]
async fn create_is_a_post_and_a_taken_name_an_outcome() {
    let taken = Answer::failure(409, "AlreadyExists", "configmaps \"chat\" already exists");
    let (wire, writer) = writer([Answer::Json(201, live(json!({}))), taken]);
    let object = config(&[]);
    assert!(matches!(writer.create(&object).await.unwrap(), Created::Created(_)));
    assert_eq!(writer.create(&object).await.unwrap(), Created::AlreadyExists);
    let sent = wire.sent().remove(0);
    assert_eq!(sent.method, Method::POST);
    assert_eq!(sent.path, "/api/v1/namespaces/team-a/configmaps");
    assert_eq!(sent.query, "&fieldManager=portolan-demo");
}

#[tokio::test]
async fn delete_has_preconditions_and_knows_what_came_of_it() {
    let waiting = live(json!({"metadata": {
        "name": "chat", "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30,
    }}));
    let success = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
    let (wire, writer) = writer([
        Answer::Json(200, waiting),
        Answer::Json(200, success),
        Answer::Json(200, live(json!({}))),
        Answer::failure(404, "NotFound", "gone"),
        Answer::failure(409, "Conflict", "the UID in the precondition does not match"),
    ]);
    let target = Target { resource_version: Some("7".into()), ..target() };
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        outcomes.push(writer.delete::<ConfigMap>(&target).await.unwrap());
    }
    assert!(matches!(outcomes.remove(0), Deleted::Terminating(_)));
    assert_eq!(outcomes, [Deleted::Deleted, Deleted::Deleted, Deleted::Gone, Deleted::Conflict]);
    let sent = wire.sent().remove(0);
    assert_eq!(sent.method, Method::DELETE);
    assert_eq!(sent.body["preconditions"], json!({"uid": "uid-1", "resourceVersion": "7"}));
    assert_eq!(sent.body["propagationPolicy"], "Background");
}

#[tokio::test]
async fn scale_applies_to_the_scale_subresource() {
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "chat"},
        "spec": {"replicas": 3},
    });
    let (wire, writer) = writer([Answer::Json(200, scale)]);
    let met = writer.scale::<ConfigMap>(&target(), 3).await.unwrap();
    assert_eq!(met, Precondition::Met(Box::new(())));
    let sent = only(&wire);
    assert_eq!(sent.path, "/api/v1/namespaces/team-a/configmaps/chat/scale");
    assert_eq!(
        (&sent.body["kind"], &sent.body["spec"]),
        (&json!("Scale"), &json!({"replicas": 3}))
    );
}

#[tokio::test]
async fn a_live_read_tells_absence_from_failure() {
    let (_, writer) = writer([
        ok(),
        Answer::failure(404, "NotFound", "gone"),
        Answer::failure(403, "Forbidden", "no list for you"),
    ]);
    let key = target().key;
    assert!(writer.get::<ConfigMap>(&key).await.present().is_some());
    assert_eq!(writer.get::<ConfigMap>(&key).await, Observed::Absent);
    assert!(writer.get::<ConfigMap>(&key).await.is_unknown());
}

/// Provokes one answer to an apply and checks what the error says of it.
async fn check_error(code: u16, reason: &str, category: &str, retry: Retry) {
    let (_, writer) = writer([Answer::failure(code, reason, "because")]);
    let error = writer.apply(&config(&[])).await.expect_err("a failure");
    assert_eq!((error.category(), error.retry()), (category, retry), "{code}");
    assert_eq!(error.to_string(), "apply ConfigMap team-a/chat");
    assert_eq!(error.answer(), Some("because"));
    let chain = ErrorChain(&error).to_string();
    assert_eq!(chain, "apply ConfigMap team-a/chat: because", "said once, without internals");
}

#[tokio::test]
async fn applying_over_another_uid_is_a_conflict_however_the_server_words_it() {
    let Answer::Json(code, mut body) = Answer::failure(422, "Invalid", "field is immutable") else {
        panic!("failures are objects");
    };
    let cause = json!({"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "no"});
    body["details"] = json!({"causes": [cause]});
    let (_, writer) = writer([Answer::Json(code, body.clone()), Answer::Json(code, body)]);
    let outcome = writer.apply_fields::<ConfigMap, _>(&target(), &json!({})).await.unwrap();
    assert_eq!(outcome, Precondition::Conflict);
    let error = writer.apply(&config(&[])).await.unwrap_err();
    assert_eq!((error.category(), error.retry()), ("api_conflict", Retry::Backoff));
}

#[tokio::test]
async fn errors_have_a_category_and_say_how_to_go_on() {
    check_error(409, "Conflict", "api_conflict", Retry::Backoff).await;
    check_error(403, "Forbidden", "api_forbidden", Retry::Backoff).await;
    check_error(422, "Invalid", "api_invalid", Retry::WaitForChange).await;
    check_error(404, "NotFound", "api_not_found", Retry::Backoff).await;
    check_error(429, "TooManyRequests", "api_throttled", Retry::Backoff).await;
    check_error(500, "InternalError", "api_error", Retry::Backoff).await;
}

#[tokio::test]
async fn every_write_is_counted_by_verb() {
    let (_, client) = Wire::answering(|_| ok());
    let context = context(client);
    let writer = Controller::new(&context, "demo").writer();
    writer.apply(&config(&[])).await.unwrap();
    writer.delete::<ConfigMap>(&target()).await.unwrap();
    writer.get::<ConfigMap>(&target().key).await;
    assert_eq!(context.metrics().writes_of("demo"), 2);
    assert_eq!(context.metrics().writes_of("other"), 0);
}
