//! What the controller sends when a gateway's process has ended, and when not.

use std::time::Duration;

use portolan_controller_gateway::{Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

/// A gateway's Lease; its process started at second 100.
fn lease() -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": "gw-1", "namespace": "system", "uid": "uid-of-lease", "resourceVersion": "10",
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "Pod", "name": "gw-1", "uid": "uid-of-pod" },
            ],
        },
        "spec": {
            "holderIdentity": "gw-1.186a0", "leaseDurationSeconds": 15,
            "renewTime": "1970-01-01T00:02:00.000000Z",
        },
    })
}

fn pod(statuses: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "gw-1", "namespace": "system", "uid": "uid-of-pod", "resourceVersion": "11",
        },
        "spec": { "containers": [{ "name": "gateway" }] },
        "status": { "containerStatuses": statuses },
    })
}

fn container(name: &str, state: &Value, last: &Value) -> Value {
    json!({
        "name": name, "image": "i", "imageID": "i", "ready": false, "restartCount": 1,
        "state": state, "lastState": last,
    })
}

fn ended(time: &str) -> Value {
    json!({ "terminated": { "exitCode": 137, "finishedAt": time } })
}

/// Runs the controller for a while and returns the deletions that it sent.
async fn deletions(statuses: Value) -> Vec<Sent> {
    let sent = run_with(vec![lease()], pod(&statuses), Value::Null).await;
    sent.into_iter().filter(|sent| sent.method.as_str() == "DELETE").collect()
}

/// Runs the controller for a while and returns what it sent.
async fn run_with(leases: Vec<Value>, pod: Value, report: Value) -> Vec<Sent> {
    let (wire, client) = Wire::answering(move |sent| match sent.path.rsplit('/').next() {
        Some("leases") => listing("Lease", &leases),
        Some("pods") => listing("Pod", std::slice::from_ref(&pod)),
        Some("gatewayreports") => listing("GatewayReport", std::slice::from_ref(&report)),
        Some("gw-1") if sent.method.as_str() == "PATCH" => Answer::Json(200, pod.clone()),
        _ => Answer::Json(200, json!({ "kind": "Status", "status": "Success" })),
    });
    let context = context(client);
    let settings = Settings { system_namespace: "system".into() };
    let running = tokio::spawn(run(&context, settings));
    sleep(Duration::from_secs(60)).await;
    context.shutdown().cancel();
    running.await.expect("it does not panic").expect("it ends as it was told");
    wire.sent()
}

fn listing(kind: &str, objects: &[Value]) -> Answer {
    let there = objects.iter().filter(|object| !object.is_null());
    let added = there.map(|object| json!({ "type": "ADDED", "object": object }));
    Answer::Watch(added.chain([initial_events_end(kind, 12)]).collect())
}

#[tokio::test(start_paused = true)]
async fn visitors_are_sent_elsewhere_when_another_gateway_hears_nobody() {
    let mut other = lease();
    other["metadata"]["name"] = json!("gw-2");
    other["metadata"]["uid"] = json!("uid-of-other-lease");
    other["spec"]["holderIdentity"] = json!("gw-2.1");
    let report = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "GatewayReport",
        "metadata": {
            "name": "gw-2-state", "namespace": "system", "uid": "uid-of-report",
            "resourceVersion": "9",
        },
        "spec": { "gateway": "gw-2", "shard": "State", "unheard": ["gw-1.186a0"] },
    });
    let mut pod = pod(&json!([]));
    pod["metadata"]["labels"] = json!({ "portolan.dev/visitors": "yes" });
    let sent = run_with(vec![lease(), other], pod, report).await;
    let written: Vec<_> = sent.iter().filter(|sent| sent.method.as_str() != "GET").collect();
    let [patch] = written[..] else { panic!("{written:?}") };
    assert_eq!(patch.path, "/api/v1/namespaces/system/pods/gw-1");
    assert_eq!(patch.body["metadata"]["uid"], "uid-of-pod");
    assert_eq!(patch.body["metadata"]["labels"], json!({ "portolan.dev/visitors": "no" }));
}

#[tokio::test(start_paused = true)]
async fn who_left_its_name_lived_however_short_and_another_runs_already() {
    let running = json!({ "running": { "startedAt": "1970-01-01T00:01:40Z" } });
    for (name, count) in [("gw-1.186a0", 1), ("gw-1.1869f", 0)] {
        let mut last = ended("1970-01-01T00:01:39Z");
        last["terminated"]["message"] = json!(name);
        let sent = deletions(json!([container("gateway", &running, &last)])).await;
        assert_eq!(sent.len(), count, "{name}: {sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_the_lease_that_was_seen_is_taken_away_once() {
    let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    for (state, last) in
        [(ended("1970-01-01T00:02:01Z"), json!({})), (waiting, ended("1970-01-01T00:02:01Z"))]
    {
        let sent = deletions(json!([container("gateway", &state, &last)])).await;
        assert_eq!(sent.len(), 1, "{sent:?}");
        let lease = "/apis/coordination.k8s.io/v1/namespaces/system/leases/gw-1";
        assert_eq!(sent[0].path, lease);
        let seen = json!({ "uid": "uid-of-lease", "resourceVersion": "10" });
        assert_eq!(sent[0].body["preconditions"], seen);
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_may_be_running_keeps_its_lease() {
    let (running, before) = (json!({ "running": {} }), ended("1970-01-01T00:01:39Z"));
    let other = ended("1970-01-01T00:02:01Z");
    for statuses in [
        json!([]),
        json!([container("gateway", &running, &before)]),
        // The next process, which takes the Lease over by itself; or the node's clock went back.
        json!([container("gateway", &running, &other)]),
        json!([container("gateway", &json!({ "waiting": {} }), &before)]),
        json!(
            [container("gateway", &running, &json!({})), container("proxy", &other, &json!({})),]
        ),
    ] {
        let sent = deletions(statuses.clone()).await;
        assert!(sent.is_empty(), "{statuses}: {sent:?}");
    }
}
