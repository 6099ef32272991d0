//! What the controller sends for a new App: in which order, and under which preconditions.
//! The answers are made up here; what a real API server makes of the writes is tested on one.

use std::time::Duration;

use portolan_controller_app::{Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const GROUP: &str = "/apis/portolan.dev/v1alpha1/namespaces/team-a";

/// An App that nobody has looked at yet.
fn app() -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "App",
        "metadata": {
            "name": "shop", "namespace": "team-a", "uid": "uid-of-the-app",
            "resourceVersion": "10", "generation": 3,
        },
        "spec": { "image": "example/shop:1", "services": [{ "name": "web" }] },
    })
}

/// What some requests are answered in place of what a willing API server answers.
type Own = fn(&Sent) -> Option<Answer>;

/// As a willing API server answers, but for what `own` answers.
fn answer(sent: &Sent, own: Own) -> Answer {
    if let Some(answer) = own(sent) {
        return answer;
    }
    let last = sent.path.rsplit('/').next().unwrap_or_default();
    match (sent.method.as_str(), last) {
        ("GET", "apps") => listing("App", Some(app())),
        ("GET", "appversions") => listing("AppVersion", None),
        ("GET", "sandboxpools") => listing("SandboxPool", None),
        ("GET", "routes") => listing("Route", None),
        ("GET", "gatewayreports") => listing("GatewayReport", None),
        ("GET", "appservices") => listing("AppService", None),
        ("GET", "networkpolicies") => listing("NetworkPolicy", None),
        ("GET", "leases") => listing("Lease", None),
        ("PATCH", "status") => written(sent),
        ("POST" | "PATCH", name) => {
            let mut made = sent.body.clone();
            made["metadata"]["uid"] = json!(format!("uid-of-{name}"));
            made["metadata"]["resourceVersion"] = json!("20");
            Answer::Json(201, made)
        }
        _ => Answer::failure(404, "NotFound", "not found"),
    }
}

fn listing(kind: &str, object: Option<Value>) -> Answer {
    let added = object.map(|object| json!({ "type": "ADDED", "object": object }));
    Answer::Watch(added.into_iter().chain([initial_events_end(kind, 12)]).collect())
}

/// The App as it is after a write of its status.
fn written(sent: &Sent) -> Answer {
    let mut live = app();
    live["metadata"]["resourceVersion"] = json!("30");
    live["status"] = sent.body["status"].clone();
    Answer::Json(200, live)
}

/// Runs the controller for a minute and returns its writes, in order.
async fn writes(own: Own) -> Vec<Sent> {
    let (wire, client) = Wire::answering(move |sent| answer(sent, own));
    let context = context(client);
    let settings = Settings { system_namespace: "portolan-system".into() };
    let running = tokio::spawn(run(&context, settings));
    sleep(Duration::from_secs(60)).await;
    context.shutdown().cancel();
    running.await.expect("it does not panic").expect("it ends as it was told");
    let sent = wire.sent().into_iter();
    sent.filter(|one| one.method.as_str() != "GET" && !one.path.contains("events.k8s.io")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_app_gets_a_version_a_policy_and_then_its_status() {
    let writes = writes(|_| None).await;
    let sent: Vec<_> = writes.iter().map(|one| format!("{} {}", one.method, one.path)).collect();
    let policies = "/apis/networking.k8s.io/v1/namespaces/team-a/networkpolicies";
    let expected = [
        format!("POST {GROUP}/appversions"),
        format!("PATCH {policies}/portolan-shop"),
        format!("PATCH {GROUP}/apps/shop/status"),
    ];
    assert_eq!(sent, expected);
    let version = &writes[0].body;
    assert_eq!(version["metadata"]["ownerReferences"][0]["uid"], "uid-of-the-app");
    let status = &writes[2].body["status"];
    assert_eq!(status["latestVersion"], version["metadata"]["name"]);
    assert_eq!(status["observedGeneration"], 3);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_for_the_very_app_that_was_seen() {
    let writes = writes(|_| None).await;
    let metadata = &writes.last().expect("a status is written").body["metadata"];
    // The activation is part of it: decided from an older App, it would go back.
    assert_eq!(metadata["uid"], "uid-of-the-app");
    assert_eq!(metadata["resourceVersion"], "10");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_comes_too_late_is_left_to_the_pass_for_what_came_before_it() {
    let late: Own = |sent| {
        let is_late = sent.path.ends_with("/status");
        is_late.then(|| Answer::failure(409, "Conflict", "the object has been modified"))
    };
    let writes = writes(late).await;
    let tried = writes.iter().filter(|one| one.path.ends_with("/status")).count();
    assert_eq!(tried, 1, "what made it stale is on its way, and wakes the App");
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_refuses_is_told_in_its_words() {
    let quota: Own = |sent| {
        let answer = || Answer::failure(403, "Forbidden", "exceeded quota: appversions");
        is_write(sent, "/appversions").then(answer)
    };
    let large: Own = |sent| {
        let answer = || Answer::failure(500, "InternalError", "etcdserver: request is too large");
        is_write(sent, "/appversions").then(answer)
    };
    let policy: Own = |sent| {
        let answer = || Answer::failure(400, "BadRequest", "no policies here");
        is_write(sent, "/portolan-shop").then(answer)
    };
    let cases =
        [(quota, "exceeded quota"), (large, "request is too large"), (policy, "no policies here")];
    for (own, words) in cases {
        let writes = writes(own).await;
        let status = writes.iter().find(|one| one.path.ends_with("/status")).expect("it is told");
        for condition in status.body["status"]["conditions"].as_array().expect("conditions") {
            if !["Ready", "Progressing"].contains(&condition["type"].as_str().expect("a type")) {
                continue;
            }
            assert_eq!(condition["status"], "False", "{condition}");
            assert_eq!(condition["reason"], "ObjectRefused");
            assert!(condition["message"].as_str().is_some_and(|text| text.contains(words)));
        }
    }
}

fn is_write(sent: &Sent, to: &str) -> bool {
    sent.method.as_str() != "GET" && sent.path.ends_with(to)
}
