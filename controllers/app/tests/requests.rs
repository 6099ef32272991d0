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

fn answer(sent: &Sent, status: fn(&Sent) -> Answer) -> Answer {
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
        ("PATCH", "status") => status(sent),
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
async fn writes(status: fn(&Sent) -> Answer) -> Vec<Sent> {
    let (wire, client) = Wire::answering(move |sent| answer(sent, status));
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
    let writes = writes(written).await;
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
    let writes = writes(written).await;
    let metadata = &writes.last().expect("a status is written").body["metadata"];
    // The activation is part of it: decided from an older App, it would go back.
    assert_eq!(metadata["uid"], "uid-of-the-app");
    assert_eq!(metadata["resourceVersion"], "10");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_comes_too_late_is_left_to_the_pass_for_what_came_before_it() {
    let late = |_: &Sent| Answer::failure(409, "Conflict", "the object has been modified");
    let writes = writes(late).await;
    let tried = writes.iter().filter(|one| one.path.ends_with("/status")).count();
    assert_eq!(tried, 1, "what made it stale is on its way, and wakes the App");
}
