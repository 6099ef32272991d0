//! What the controller sends: method, path, field manager, preconditions and body of each write.
//! The answers are made up here; what a real API server makes of the writes is tested on one.

use std::time::Duration;

use portolan_api::labels;
use portolan_controller_pool::{Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const POOL: &str = "shop-web-5f3k9q2m";
const PODS: &str = "/api/v1/namespaces/team-a/pods";
const GATEWAY: &str = "gw-a";
/// By then a pool that grew has said so, however long nobody had to read it.
const GROWN: Duration = Duration::from_secs(5);

/// How a new Pod is answered.
type Create = fn(&Sent) -> Answer;

/// What the watches show, and how a new Pod is answered.
struct Cluster {
    pool: Value,
    pods: Vec<Value>,
    /// Requests queued at a live gateway; `None`: no gateway lives.
    queued: Option<i64>,
    create: Create,
}

impl Cluster {
    /// An Active pool that sleeps, and a live gateway without requests.
    fn asleep() -> Self {
        let pool = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool",
            "metadata": {
                "name": POOL, "namespace": "team-a", "uid": "uid-of-the-pool",
                "resourceVersion": "10", "generation": 4,
            },
            "spec": {
                "app": "shop", "service": "web", "role": "Active", "replicas": 0,
                "scale": {
                    "min": 0, "max": 20, "requestsPerInstance": 10,
                    "scaleDownDelaySeconds": 900, "concurrency": "Soft",
                },
                "sandbox": {
                    "image": "registry.example/shop:1",
                    "ports": [{ "name": "http", "port": 3000, "type": "http" }],
                    "terminationGraceSeconds": 30, "listenTimeoutSeconds": 15,
                },
            },
            "status": {
                "observedGeneration": 4, "incarnation": 6, "replicas": 0, "readyReplicas": 0,
                "selector": format!("portolan.dev/pool={POOL}"),
                "lastActivity": "2026-01-01T00:00:00Z",
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Asleep",
                    "message": "no requests; the first one wakes it",
                    "observedGeneration": 4, "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        });
        Self { pool, pods: vec![], queued: Some(0), create: created }
    }

    /// Runs the controller for a second and returns the writes to pools and Pods, in order.
    async fn writes(self) -> Vec<Sent> {
        self.writes_within(Duration::from_secs(1)).await
    }

    async fn writes_within(self, time: Duration) -> Vec<Sent> {
        let (wire, client) = Wire::answering(move |sent| self.answer(sent));
        let context = context(client);
        let running = tokio::spawn(run(&context, Settings::standard("portolan-system")));
        sleep(time).await;
        context.shutdown().cancel();
        running.await.expect("it does not panic").expect("it ends as it was told");
        let sent = wire.sent().into_iter();
        let counted =
            |one: &Sent| one.method.as_str() != "GET" && !one.path.contains("events.k8s.io");
        sent.filter(counted).collect()
    }

    fn answer(&self, sent: &Sent) -> Answer {
        match (sent.method.as_str(), sent.path.as_str()) {
            ("GET", path) if path.ends_with("/sandboxpools") => {
                listing("SandboxPool", vec![self.pool.clone()])
            }
            ("GET", "/api/v1/pods") => listing("Pod", self.pods.clone()),
            ("GET", path) if path.ends_with("/leases") => {
                listing("Lease", self.queued.map(|_| lease()).into_iter().collect())
            }
            ("GET", path) if path.ends_with("/gatewayreports") => {
                listing("GatewayReport", self.queued.map(report).into_iter().collect())
            }
            ("POST", PODS) => (self.create)(sent),
            ("POST", _) => Answer::Json(201, sent.body.clone()),
            ("PATCH", path) if path.contains("/sandboxpools/") => {
                let mut pool = self.pool.clone();
                pool["metadata"]["resourceVersion"] = json!("20");
                if let Some(spec) = sent.body.get("spec") {
                    pool["metadata"]["generation"] = json!(5);
                    pool["spec"]["replicas"] = spec["replicas"].clone();
                }
                Answer::Json(200, pool)
            }
            ("PATCH" | "DELETE", path) => {
                let name = path.rsplit('/').next().unwrap_or_default();
                let pod = self.pods.iter().find(|pod| pod["metadata"]["name"] == name);
                match pod {
                    Some(pod) => Answer::Json(200, pod.clone()),
                    None => Answer::failure(404, "NotFound", "not found"),
                }
            }
            _ => Answer::failure(404, "NotFound", "not found"),
        }
    }
}

fn listing(kind: &str, objects: Vec<Value>) -> Answer {
    let added = |object| json!({ "type": "ADDED", "object": object });
    let end = initial_events_end(kind, 12);
    Answer::Watch(objects.into_iter().map(added).chain([end]).collect())
}

fn created(sent: &Sent) -> Answer {
    let mut pod = sent.body.clone();
    pod["metadata"]["uid"] = json!("uid-of-the-new-pod");
    pod["metadata"]["resourceVersion"] = json!("21");
    pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    Answer::Json(201, pod)
}

fn lease() -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": GATEWAY, "namespace": "portolan-system", "uid": "uid-of-the-lease",
            "resourceVersion": "3",
        },
        "spec": { "leaseDurationSeconds": 3600, "renewTime": jiff::Timestamp::now().to_string() },
    })
}

fn report(queued: i64) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "GatewayReport",
        "metadata": {
            "name": GATEWAY, "namespace": "portolan-system", "uid": "uid-of-the-report",
            "resourceVersion": "4",
        },
        "spec": {
            "gateway": GATEWAY, "shard": "Demand",
            "pools": [{ "namespace": "team-a", "name": POOL, "queued": queued }],
        },
    })
}

/// A ready Pod of the pool.
fn pod(ordinal: i32, incarnation: i64) -> Value {
    let name = format!("{POOL}-{ordinal}-{incarnation}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "team-a", "uid": format!("uid-of-{name}"),
            "resourceVersion": "5", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { labels::POOL: POOL }, "annotations": { labels::SLOTS: "gw-a=10" },
            "ownerReferences": [{
                "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool", "name": POOL,
                "uid": "uid-of-the-pool", "controller": true,
            }],
        },
        "spec": { "containers": [], "nodeName": "node-1" },
        "status": {
            "phase": "Running", "podIP": "10.0.0.7",
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// The only write to that path.
#[track_caller]
fn only<'a>(writes: &'a [Sent], method: &str, path: &str) -> &'a Sent {
    let matching: Vec<_> =
        writes.iter().filter(|one| one.method == *method && one.path == path).collect();
    assert_eq!(matching.len(), 1, "{method} {path} among {writes:#?}");
    matching[0]
}

fn pool_path() -> String {
    format!("/apis/portolan.dev/v1alpha1/namespaces/team-a/sandboxpools/{POOL}")
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_sleeps_is_not_written_to() {
    assert_eq!(Cluster::asleep().writes().await, vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_wake_is_a_pod_and_later_a_number() {
    let woken = || Cluster { queued: Some(3), ..Cluster::asleep() };
    let at_once = woken().writes().await;
    assert_eq!(at_once.len(), 1, "{at_once:#?}");
    let create = only(&at_once, "POST", PODS);
    assert_eq!(create.query, "&fieldManager=portolan-pool");
    let metadata = &create.body["metadata"];
    assert_eq!(metadata["name"], format!("{POOL}-0-7"));
    assert_eq!(metadata["annotations"][labels::SLOTS], "gw-a=10");
    assert_eq!(metadata["ownerReferences"][0]["uid"], "uid-of-the-pool");

    let writes = woken().writes_within(GROWN).await;
    only(&writes, "POST", PODS);
    let replicas = only(&writes, "PATCH", &pool_path());
    assert_eq!(replicas.query, "&force=true&fieldManager=portolan-pool");
    assert_eq!(replicas.content_type, "application/apply-patch+yaml");
    let expected = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool",
        "metadata": { "name": POOL, "namespace": "team-a", "uid": "uid-of-the-pool" },
        "spec": { "replicas": 1 },
    });
    assert_eq!(replicas.body, expected);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_has_woken_says_so_once() {
    let mut cluster = Cluster { queued: Some(3), pods: vec![pod(0, 7)], ..Cluster::asleep() };
    cluster.pool["spec"]["replicas"] = json!(1);
    let writes = cluster.writes_within(GROWN).await;
    assert_eq!(writes.len(), 1, "{writes:#?}");
    let status = only(&writes, "PATCH", &format!("{}/status", pool_path()));
    let status = &status.body["status"];
    assert_eq!((&status["replicas"], &status["readyReplicas"]), (&json!(1), &json!(1)));
    assert_eq!(status["conditions"][0]["reason"], "Available");
}

#[tokio::test(start_paused = true)]
async fn a_mark_says_what_and_why_and_nothing_else() {
    let mut cluster = Cluster { pods: vec![pod(0, 3)], ..Cluster::asleep() };
    cluster.pool["spec"]["role"] = json!("Retired");
    let writes = cluster.writes().await;
    let mark = only(&writes, "PATCH", &format!("{PODS}/{POOL}-0-3"));
    assert_eq!(mark.query, "&force=true&fieldManager=portolan-pool");
    let mut body = mark.body.clone();
    let epoch = body["metadata"]["annotations"][labels::DRAIN].take();
    let epoch: i64 = epoch.as_str().and_then(|epoch| epoch.parse().ok()).expect("a number");
    assert!((jiff::Timestamp::now().as_millisecond() - epoch).abs() < 60_000, "{epoch}");
    let expected = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{POOL}-0-3"), "namespace": "team-a",
            "uid": format!("uid-of-{POOL}-0-3"),
            "annotations": {
                labels::DRAIN: null, labels::DRAIN_REASON: "Surplus", labels::SLOTS: "gw-a=10",
            },
        },
    });
    assert_eq!(body, expected);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_reaches_no_later_pod_of_the_name() {
    let mut cluster = Cluster { pods: vec![pod(0, 3)], queued: None, ..Cluster::asleep() };
    cluster.pool["spec"]["role"] = json!("Retired");
    let writes = cluster.writes().await;
    let delete = only(&writes, "DELETE", &format!("{PODS}/{POOL}-0-3"));
    assert_eq!(delete.body["preconditions"]["uid"], format!("uid-of-{POOL}-0-3"));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_reported_and_asked_for_a_few_times_only() {
    let quota = |_: &Sent| Answer::failure(403, "Forbidden", "exceeded quota: pods");
    let webhook = |_: &Sent| {
        let words = "Internal error occurred: failed calling webhook \"pods.example\": refused";
        Answer::failure(500, "InternalError", words)
    };
    let refusals: [(Create, _); 2] =
        [(quota, "exceeded quota"), (webhook, "failed calling webhook")];
    for (create, words) in refusals {
        let writes = Cluster { queued: Some(200), create, ..Cluster::asleep() }.writes().await;
        let asked = writes.iter().filter(|one| one.method.as_str() == "POST").count();
        assert_eq!(asked, 8, "20 are wanted; so many are asked for in one attempt");
        let status = writes.iter().find(|one| one.path.ends_with("/status"));
        let ready = &status.expect("it is reported").body["status"]["conditions"][0];
        assert_eq!(ready["reason"], "PodRefused");
        assert!(ready["message"].as_str().is_some_and(|text| text.contains(words)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_a_stranger_has_is_left_to_it() {
    let taken = |sent: &Sent| {
        if sent.body["metadata"]["name"] == format!("{POOL}-0-7") {
            Answer::failure(409, "AlreadyExists", "pods already exists")
        } else {
            created(sent)
        }
    };
    let cluster = Cluster { queued: Some(1), create: taken, ..Cluster::asleep() };
    let writes = cluster.writes().await;
    let status = writes.iter().find(|one| one.path.ends_with("/status")).expect("it is reported");
    assert_eq!(status.body["status"]["incarnation"], 7, "the name is not tried again");
    assert_eq!(status.body["status"]["replicas"], 0);
}
