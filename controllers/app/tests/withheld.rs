//! What the controller does for an App whose switch waits for a node port: that it goes on when
//! another App gives the port up, of which nothing but the watch of AppServices tells.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portolan_api::{AppSpec, names, resolve};
use portolan_controller_app::{Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const STATUS: &str = "/apis/portolan.dev/v1alpha1/namespaces/team-a/apps/chat/status";

/// What an App says that asks for this node port.
fn spec(node_port: Option<i32>) -> Value {
    let port = json!({ "name": "irc", "port": 6667, "type": "tcp", "nodePort": node_port });
    json!({ "image": "example/chat:1", "services": [{ "name": "irc", "ports": [port] }] })
}

fn version(node_port: Option<i32>) -> Value {
    let spec: AppSpec = serde_json::from_value(spec(node_port)).expect("a spec");
    let resolved = resolve::resolve("chat", &spec);
    let name = names::version("chat", &resolved.digest);
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "AppVersion",
        "metadata": {
            "name": name, "namespace": "team-a", "uid": format!("uid-of-{name}"),
            "resourceVersion": "11", "generation": 1,
            "ownerReferences": [{
                "apiVersion": "portolan.dev/v1alpha1", "kind": "App", "name": "chat",
                "uid": "uid-of-the-app", "controller": true,
            }],
        },
        "spec": serde_json::to_value(resolved).expect("plain data"),
    })
}

/// An App whose version without a node port serves, sent back to the one that had it.
fn app() -> Value {
    let active = version(None)["metadata"]["name"].clone();
    let mut spec = spec(None);
    spec["version"] = version(Some(6697))["metadata"]["name"].clone();
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "App",
        "metadata": {
            "name": "chat", "namespace": "team-a", "uid": "uid-of-the-app",
            "resourceVersion": "10", "generation": 3,
        },
        "spec": spec,
        "status": {
            "activeVersion": active, "latestVersion": active,
            "activation": { "version": active, "epoch": 2 }, "settledEpoch": 2,
        },
    })
}

/// Another App's AppService, which holds the port.
fn holder(resource_version: &str) -> Value {
    let play = json!({
        "name": "play", "port": 1, "type": "tcp", "targetPort": 1, "nodePort": 6697,
    });
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "AppService",
        "metadata": {
            "name": "game-lobby", "namespace": "team-b", "uid": "uid-of-game-lobby",
            "resourceVersion": resource_version, "generation": 1,
        },
        "spec": { "app": "game", "service": "lobby", "ports": [play] },
        "status": { "nodePorts": [{ "name": "play", "port": 6697 }] },
    })
}

/// What the watch of AppServices shows, the first time that it is begun and later: the holder is
/// there, and after an interruption, during which the App is looked at, it is gone.
fn app_services(nth: usize) -> Answer {
    match nth {
        0 => {
            let added = json!({ "type": "ADDED", "object": holder("11") });
            Answer::WatchThenEnd(vec![added, initial_events_end("AppService", 12)])
        }
        // A watch that brings nothing is not begun again at once.
        1 => Answer::WatchThenEnd(Vec::new()),
        _ => Answer::Watch(vec![json!({ "type": "DELETED", "object": holder("13") })]),
    }
}

fn listing(kind: &str, objects: Vec<Value>) -> Answer {
    let added = objects.into_iter().map(|object| json!({ "type": "ADDED", "object": object }));
    Answer::Watch(added.chain([initial_events_end(kind, 12)]).collect())
}

fn answer(sent: &Sent, begun: &AtomicUsize) -> Answer {
    let last = sent.path.rsplit('/').next().unwrap_or_default();
    match (sent.method.as_str(), last) {
        ("GET", "apps") => listing("App", vec![app()]),
        ("GET", "appversions") => listing("AppVersion", vec![version(None), version(Some(6697))]),
        ("GET", "appservices") => app_services(begun.fetch_add(1, Ordering::SeqCst)),
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
        ("POST" | "PATCH", _) => {
            let mut made = sent.body.clone();
            made["metadata"]["uid"] = json!("uid-of-what-was-made");
            made["metadata"]["resourceVersion"] = json!("20");
            Answer::Json(201, made)
        }
        _ => Answer::failure(404, "NotFound", "not found"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_goes_on_when_another_gives_the_node_port_up() {
    let begun = AtomicUsize::new(0);
    let (wire, client) = Wire::answering(move |sent| answer(sent, &begun));
    let context = context(client);
    let settings = Settings { system_namespace: "portolan-system".into() };
    let running = tokio::spawn(run(&context, settings));
    sleep(Duration::from_secs(2)).await;
    context.shutdown().cancel();
    running.await.expect("it does not panic").expect("it ends as it was told");
    let sent = wire.sent();
    let said = sent.iter().filter(|one| one.method.as_str() == "PATCH" && one.path == STATUS);
    let reason = |one: &Sent| {
        let conditions = one.body["status"]["conditions"].as_array().expect("conditions");
        let ready = conditions.iter().find(|one| one["type"] == "Ready");
        ready.expect("it is on every status")["reason"].clone()
    };
    let said: Vec<_> = said.map(reason).collect();
    assert_eq!(said.first(), Some(&json!("NodePortConflict")), "{said:?}");
    assert_eq!(said.last(), Some(&json!("RollingOut")), "{said:?}");
}
