//! What the controller sends about AppServices: in which order, under which preconditions, and
//! what it does not send when something failed.

use std::time::Duration;

use portolan_api::{AppSpec, names, resolve};
use portolan_controller_app::{Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const GROUP: &str = "/apis/portolan.dev/v1alpha1/namespaces/team-a";

/// What the API server answers to the creation of an AppService.
type OnCreate = fn(&Sent) -> Answer;

fn spec() -> Value {
    let port = json!({ "name": "irc", "port": 6667, "type": "tcp" });
    json!({ "image": "example/chat:1", "services": [{ "name": "irc", "ports": [port] }] })
}

fn object(kind: &str, name: &str, owner: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": kind,
        "metadata": {
            "name": name, "namespace": "team-a", "uid": format!("uid-of-{name}"),
            "resourceVersion": "11", "generation": 1,
            "ownerReferences": [{
                "apiVersion": "portolan.dev/v1alpha1", "kind": "App", "name": "chat",
                "uid": owner, "controller": true,
            }],
        },
        "spec": spec,
    })
}

fn version() -> Value {
    let spec: AppSpec = serde_json::from_value(spec()).expect("a spec");
    let resolved = resolve::resolve("chat", &spec);
    let name = names::version("chat", &resolved.digest);
    object(
        "AppVersion",
        &name,
        "uid-of-the-app",
        &serde_json::to_value(resolved).expect("plain data"),
    )
}

/// An App whose version serves.
fn app() -> Value {
    let active = version()["metadata"]["name"].clone();
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "App",
        "metadata": {
            "name": "chat", "namespace": "team-a", "uid": "uid-of-the-app",
            "resourceVersion": "10", "generation": 3,
        },
        "spec": spec(),
        "status": {
            "activeVersion": active, "latestVersion": active,
            "activation": { "version": active, "epoch": 1 }, "settledEpoch": 1,
        },
    })
}

/// An AppService of a service `name` that leads to no pool yet.
fn service(name: &str, owner: &str) -> Value {
    let port = json!({ "name": "irc", "port": 6667, "type": "tcp", "targetPort": 6667 });
    let spec = json!({ "app": "chat", "service": name, "ports": [port] });
    object("AppService", &format!("chat-{name}"), owner, &spec)
}

fn listing(kind: &str, objects: Vec<Value>) -> Answer {
    let added = objects.into_iter().map(|object| json!({ "type": "ADDED", "object": object }));
    Answer::Watch(added.chain([initial_events_end(kind, 12)]).collect())
}

fn answer(sent: &Sent, services: &[Value], on_create: OnCreate) -> Answer {
    let last = sent.path.rsplit('/').next().unwrap_or_default();
    match (sent.method.as_str(), last) {
        ("GET", "apps") => listing("App", vec![app()]),
        ("GET", "appversions") => listing("AppVersion", vec![version()]),
        ("GET", "appservices") => listing("AppService", services.to_vec()),
        ("GET", "sandboxpools") => listing("SandboxPool", Vec::new()),
        ("GET", "routes") => listing("Route", Vec::new()),
        ("GET", "gatewayreports") => listing("GatewayReport", Vec::new()),
        ("GET", "networkpolicies") => listing("NetworkPolicy", Vec::new()),
        ("GET", "leases") => listing("Lease", Vec::new()),
        ("PATCH", "status") => {
            let mut live = app();
            live["metadata"]["resourceVersion"] = json!("30");
            live["status"] = sent.body["status"].clone();
            Answer::Json(200, live)
        }
        ("POST", "appservices") => on_create(sent),
        ("POST" | "PATCH" | "PUT", _) => made(sent),
        ("DELETE", _) => Answer::Json(200, json!({ "kind": "Status", "status": "Success" })),
        _ => Answer::failure(404, "NotFound", "not found"),
    }
}

fn made(sent: &Sent) -> Answer {
    let mut made = sent.body.clone();
    made["metadata"]["uid"] = json!("uid-of-what-was-made");
    made["metadata"]["resourceVersion"] = json!("20");
    Answer::Json(201, made)
}

/// Runs the controller for a second and returns its writes to AppServices, in order.
async fn writes(services: Vec<Value>, on_create: OnCreate) -> Vec<Sent> {
    let (wire, client) = Wire::answering(move |sent| answer(sent, &services, on_create));
    let context = context(client);
    let settings = Settings { system_namespace: "portolan-system".into() };
    let running = tokio::spawn(run(&context, settings));
    sleep(Duration::from_secs(1)).await;
    context.shutdown().cancel();
    running.await.expect("it does not panic").expect("it ends as it was told");
    let sent = wire.sent().into_iter();
    let writes = sent.filter(|one| one.method.as_str() != "GET");
    writes.filter(|one| one.path.contains("/appservices")).collect()
}

fn lines(writes: &[Sent]) -> Vec<String> {
    writes.iter().map(|one| format!("{} {}", one.method, one.path)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_needed_is_made_before_what_is_not_goes() {
    let writes = writes(vec![service("old", "uid-of-the-app")], made).await;
    let expected =
        [format!("POST {GROUP}/appservices"), format!("DELETE {GROUP}/appservices/chat-old")];
    assert_eq!(lines(&writes), expected);
    let made = &writes[0].body;
    assert_eq!(made["metadata"]["name"], "chat-irc");
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "uid-of-the-app");
    assert!(made["spec"]["pool"].as_str().is_some_and(|pool| pool.starts_with("chat-irc-")));
    assert_eq!(writes[1].body["preconditions"]["uid"], "uid-of-chat-old");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_in_a_pass_in_which_something_failed() {
    let refused: OnCreate = |_| Answer::failure(500, "InternalError", "no quorum");
    let writes = writes(vec![service("old", "uid-of-the-app")], refused).await;
    assert!(!writes.is_empty());
    assert!(writes.iter().all(|one| one.method.as_str() == "POST"), "{:?}", lines(&writes));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_while_a_name_is_found_taken_unseen() {
    let taken: OnCreate = |_| Answer::failure(409, "AlreadyExists", "it exists");
    let writes = writes(vec![service("old", "uid-of-the-app")], taken).await;
    assert_eq!(lines(&writes), [format!("POST {GROUP}/appservices")], "the watch will show it");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_of_the_very_object_that_was_seen() {
    let writes = writes(vec![service("irc", "uid-of-the-app")], made).await;
    assert_eq!(lines(&writes), [format!("PUT {GROUP}/appservices/chat-irc")]);
    let metadata = &writes[0].body["metadata"];
    assert_eq!(
        (&metadata["uid"], &metadata["resourceVersion"]),
        (&json!("uid-of-chat-irc"), &json!("11"),)
    );
    assert!(writes[0].body["spec"]["pool"].is_string());
}

#[tokio::test(start_paused = true)]
async fn what_is_anothers_is_not_written() {
    let others = vec![service("irc", "uid-of-another"), service("old", "uid-of-another")];
    assert_eq!(lines(&writes(others, made).await), [""; 0]);
}
