//! What the controller sends: method, path, field manager, preconditions and body of each write.
//! The answers are made up here; what a real API server makes of the writes is tested on one.

use std::time::Duration;

use portolan_api::labels;
use portolan_controller_service::{PortPolicy, PortRanges, Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const SERVICES: &str = "/api/v1/namespaces/team-a/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/team-a/endpointslices";
const CLAIMS: &str = "/apis/portolan.dev/v1alpha1/claims";
const STATUS: &str = "/apis/portolan.dev/v1alpha1/namespaces/team-a/appservices/chat-irc/status";

/// How a creation is answered.
type OnCreate = fn(&Sent) -> Answer;

/// What the watches show, and how creations of Services and slices are answered.
struct Cluster {
    app_service: Value,
    services: Vec<Value>,
    slices: Vec<Value>,
    claims: Vec<Value>,
    /// A Claim that has the name which is wanted, and that the watch does not show.
    unseen: Option<Value>,
    reports: Vec<Value>,
    create: OnCreate,
    create_slice: OnCreate,
}

impl Cluster {
    /// An AppService that nobody has looked at yet.
    fn fresh() -> Self {
        let app_service = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "AppService",
            "metadata": {
                "name": "chat-irc", "namespace": "team-a", "uid": "uid-of-the-app-service",
                "resourceVersion": "10", "generation": 4,
            },
            "spec": { "app": "chat", "service": "irc", "pool": "irc-1", "ports": [{
                "name": "irc", "port": 6667, "type": "tcp", "targetPort": 6667, "nodePort": 6697,
            }] },
        });
        Self {
            app_service,
            services: vec![],
            slices: vec![],
            claims: vec![],
            unseen: None,
            reports: vec![],
            create: allocated,
            create_slice: stored,
        }
    }

    /// Runs the controller for a second and returns its writes, in order.
    async fn writes(self) -> Vec<Sent> {
        let (wire, client) = Wire::answering(move |sent| self.answer(sent));
        let context = context(client);
        let node_ports = PortPolicy { allowed: ports("1-65535"), reserved: ports("22") };
        let running = tokio::spawn(run(&context, Settings { node_ports }));
        sleep(Duration::from_secs(1)).await;
        context.shutdown().cancel();
        running.await.expect("it does not panic").expect("it ends as it was told");
        let sent = wire.sent().into_iter();
        let counted =
            |one: &Sent| one.method.as_str() != "GET" && !one.path.contains("events.k8s.io");
        sent.filter(counted).collect()
    }

    /// What is answered about the Claim that the watch does not show, if there is one.
    fn answer_unseen(&self, sent: &Sent) -> Option<Answer> {
        let claim = self.unseen.clone()?;
        match (sent.method.as_str(), sent.path.strip_prefix(CLAIMS)?) {
            ("POST", "") => Some(Answer::failure(409, "AlreadyExists", "it exists")),
            ("GET", name) if name.starts_with('/') => Some(Answer::Json(200, claim)),
            _ => None,
        }
    }

    fn answer(&self, sent: &Sent) -> Answer {
        if let Some(answer) = self.answer_unseen(sent) {
            return answer;
        }
        match (sent.method.as_str(), sent.path.as_str()) {
            ("GET", path) if path.ends_with("/appservices") => {
                listing("AppService", vec![self.app_service.clone()])
            }
            ("GET", path) if path.ends_with("/claims") => listing("Claim", self.claims.clone()),
            ("GET", "/api/v1/services") => listing("Service", self.services.clone()),
            ("GET", path) if path.ends_with("/endpointslices") => {
                listing("EndpointSlice", self.slices.clone())
            }
            ("GET", "/api/v1/pods") => listing("Pod", vec![pod()]),
            ("GET", path) if path.ends_with("/sandboxpools") => {
                listing("SandboxPool", vec![pool()])
            }
            ("GET", path) if path.ends_with("/nodereports") => {
                listing("NodeReport", self.reports.clone())
            }
            ("POST", SERVICES) => (self.create)(sent),
            ("POST", SLICES) => (self.create_slice)(sent),
            ("POST", _) => stored(sent),
            ("PUT", _) => {
                let mut object = sent.body.clone();
                object["metadata"]["resourceVersion"] = json!("22");
                Answer::Json(200, object)
            }
            ("PATCH", STATUS) => {
                let mut live = self.app_service.clone();
                live["metadata"]["resourceVersion"] = json!("30");
                live["status"] = sent.body["status"].clone();
                Answer::Json(200, live)
            }
            ("DELETE", _) => Answer::Json(200, json!({ "kind": "Status", "status": "Success" })),
            _ => Answer::failure(404, "NotFound", "not found"),
        }
    }
}

fn ports(text: &str) -> PortRanges {
    text.parse().expect("these are ports")
}

fn listing(kind: &str, objects: Vec<Value>) -> Answer {
    let added = |object| json!({ "type": "ADDED", "object": object });
    let end = initial_events_end(kind, 12);
    Answer::Watch(objects.into_iter().map(added).chain([end]).collect())
}

fn stored(sent: &Sent) -> Answer {
    let mut object = sent.body.clone();
    object["metadata"]["uid"] = json!("uid-of-the-new-one");
    object["metadata"]["resourceVersion"] = json!("21");
    Answer::Json(201, object)
}

fn allocated(sent: &Sent) -> Answer {
    let Answer::Json(code, mut service) = stored(sent) else { unreachable!("it is stored") };
    service["spec"]["clusterIPs"] = json!(["10.96.0.7"]);
    service["spec"]["clusterIP"] = json!("10.96.0.7");
    Answer::Json(code, service)
}

fn pool() -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool",
        "metadata": { "name": "irc-1", "namespace": "team-a", "uid": "uid-of-the-pool",
            "resourceVersion": "3" },
        "spec": {
            "app": "chat", "service": "irc", "role": "Active", "replicas": 1,
            "scale": { "min": 1, "max": 1, "concurrency": "Soft" },
            "sandbox": {
                "image": "registry.example/chat:1",
                "ports": [{ "name": "irc", "port": 6667, "type": "tcp" }],
                "terminationGraceSeconds": 30, "listenTimeoutSeconds": 15,
            },
        },
    })
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "irc-1-0-1", "namespace": "team-a", "uid": "uid-of-the-pod",
            "resourceVersion": "5", "labels": { labels::POOL: "irc-1" },
            "ownerReferences": [{ "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool",
                "name": "irc-1", "uid": "uid-of-the-pool", "controller": true }],
        },
        "spec": { "containers": [], "nodeName": "node-1" },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.7" }],
            "conditions": [{ "type": "Ready", "status": "True" }] },
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

#[tokio::test(start_paused = true)]
async fn a_new_app_service_is_four_writes() {
    let writes = Cluster::fresh().writes().await;
    assert_eq!(writes.len(), 4, "{writes:#?}");
    let service = only(&writes, "POST", SERVICES);
    assert_eq!(service.query, "&fieldManager=portolan-service");
    assert_eq!(service.body["metadata"]["ownerReferences"][0]["uid"], "uid-of-the-app-service");
    assert_eq!(service.body["spec"].get("selector"), None);
    let claim = only(&writes, "POST", CLAIMS);
    assert_eq!(claim.body["metadata"]["labels"][labels::CLAIM_KIND], "NodePort");
    let expected = json!({
        "kind": "NodePort", "value": "6697/tcp",
        "holder": { "kind": "AppService", "namespace": "team-a", "name": "chat-irc",
            "uid": "uid-of-the-app-service" },
    });
    assert_eq!(claim.body["spec"], expected);
    let slice = only(&writes, "POST", SLICES);
    let expected = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": "chat-irc-ipv4", "namespace": "team-a",
            "labels": {
                "app.kubernetes.io/managed-by": "portolan",
                "endpointslice.kubernetes.io/managed-by": "portolan.dev",
                "kubernetes.io/service-name": "chat-irc",
                "portolan.dev/app": "chat", "portolan.dev/service": "irc",
            },
            "annotations": { labels::APP_SERVICE_UID: "uid-of-the-app-service" },
        },
        "endpoints": [{
            "addresses": ["10.0.0.7"],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": "node-1",
            "targetRef": { "kind": "Pod", "namespace": "team-a", "name": "irc-1-0-1",
                "uid": "uid-of-the-pod" },
        }],
        "ports": [{ "name": "irc", "port": 6667, "protocol": "TCP" }],
    });
    assert_eq!(slice.body, expected);
    let status = only(&writes, "PATCH", STATUS);
    assert_eq!(status.query, "&force=true&fieldManager=portolan-service");
    assert_eq!(status.body["metadata"]["uid"], "uid-of-the-app-service");
    let status = &status.body["status"];
    assert_eq!(status["clusterIPs"], json!(["10.96.0.7"]));
    assert_eq!(status["nodePorts"], json!([{ "name": "irc", "port": 6697, "transport": "TCP" }]));
    assert_eq!((&status["readyEndpoints"], &status["observedGeneration"]), (&json!(1), &json!(4)));
    assert_eq!(status["conditions"][0]["reason"], "Available");
}

/// The cluster after what was written, as its watches would show it.
fn settled(writes: &[Sent]) -> Cluster {
    let seen = |path: &str| -> Vec<Value> {
        let answer = match path {
            SERVICES => allocated(only(writes, "POST", path)),
            _ => stored(only(writes, "POST", path)),
        };
        let Answer::Json(_, object) = answer else { unreachable!("it is stored") };
        vec![object]
    };
    let mut cluster = Cluster {
        services: seen(SERVICES),
        slices: seen(SLICES),
        claims: seen(CLAIMS),
        ..Cluster::fresh()
    };
    cluster.app_service["status"] = only(writes, "PATCH", STATUS).body["status"].clone();
    cluster
}

#[tokio::test(start_paused = true)]
async fn what_is_as_it_should_be_is_not_written_to() {
    let cluster = settled(&Cluster::fresh().writes().await);
    assert_eq!(cluster.writes().await, vec![]);
}

/// What the node's agent leads comes before what kube-proxy does.
#[tokio::test(start_paused = true)]
async fn a_port_that_a_service_has_at_an_address_of_a_node_is_not_taken() {
    let outside = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "outside", "namespace": "team-b", "uid": "uid-of-outside",
            "resourceVersion": "6" },
        "spec": { "externalIPs": ["192.0.2.10"], "ports": [{ "port": 6697, "protocol": "TCP" }] },
    });
    for (address, expected) in [("192.0.2.10", "NodePortTaken"), ("192.0.2.20", "Available")] {
        let report = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "NodeReport",
            "metadata": { "name": "node-1", "uid": "uid-of-the-report", "resourceVersion": "7" },
            "spec": { "kernel": "6.1.0", "addresses": [address] },
        });
        let services = vec![outside.clone()];
        let writes = Cluster { services, reports: vec![report], ..Cluster::fresh() }.writes().await;
        let claims = writes.iter().filter(|one| one.path == CLAIMS).count();
        assert_eq!(claims, usize::from(expected == "Available"), "{address}: {writes:#?}");
        let status = writes.iter().rfind(|one| one.path == STATUS).expect("it is told");
        let ready = &status.body["status"]["conditions"][0];
        assert_eq!(ready["reason"], expected, "{ready}");
    }
}

/// As after a creation whose answer was lost; also when somebody has deleted the Claim meanwhile
/// and a finalizer keeps it.
#[tokio::test(start_paused = true)]
async fn a_claim_of_its_own_that_no_watch_has_shown_is_taken_once() {
    let made = Cluster::fresh().writes().await;
    for deleted in [Value::Null, json!("2026-01-01T00:00:00Z")] {
        let answer = stored(only(&made, "POST", CLAIMS));
        let Answer::Json(_, mut claim) = answer else { unreachable!("it is stored") };
        claim["metadata"]["deletionTimestamp"] = deleted;
        let writes = Cluster { unseen: Some(claim), ..Cluster::fresh() }.writes().await;
        only(&writes, "POST", CLAIMS);
        let status = &only(&writes, "PATCH", STATUS).body["status"];
        assert_eq!(
            status["nodePorts"],
            json!([{ "name": "irc", "port": 6697, "transport": "TCP" }])
        );
        assert_eq!(status["conditions"][0]["reason"], "Available");
    }
}

/// Whose a Service is, the UID of its controller says; what serves it, the label.
#[tokio::test(start_paused = true)]
async fn a_label_that_somebody_took_away_is_put_back() {
    let mut cluster = settled(&Cluster::fresh().writes().await);
    let ours = cluster.services[0]["metadata"]["labels"].as_object_mut().expect("it has labels");
    ours.remove(labels::SERVICE_PROXY).expect("it had the label");
    let writes = cluster.writes().await;
    assert_eq!(writes.len(), 1, "{writes:#?}");
    let service = only(&writes, "PUT", &format!("{SERVICES}/chat-irc"));
    let metadata = &service.body["metadata"];
    assert_eq!(metadata["labels"][labels::SERVICE_PROXY], "portolan");
    assert_eq!(metadata["uid"], "uid-of-the-new-one");
    assert_eq!(service.body["spec"]["clusterIPs"], json!(["10.96.0.7"]), "the address stays");
}

#[tokio::test(start_paused = true)]
async fn a_change_replaces_exactly_what_was_seen() {
    let mut cluster = settled(&Cluster::fresh().writes().await);
    cluster.app_service["spec"]["ports"][0]["port"] = json!(7000);
    cluster.app_service["spec"]["ports"][0]["nodePort"] = Value::Null;
    let writes = cluster.writes().await;
    let service = only(&writes, "PUT", &format!("{SERVICES}/chat-irc"));
    assert_eq!(service.query, "&fieldManager=portolan-service");
    let metadata = &service.body["metadata"];
    assert_eq!(metadata["uid"], "uid-of-the-new-one");
    assert_eq!(metadata["resourceVersion"], "21");
    assert_eq!(service.body["spec"]["clusterIPs"], json!(["10.96.0.7"]), "the address stays");
    assert_eq!(service.body["spec"]["ports"][0]["port"], 7000);
    let claim = writes.iter().find(|one| one.method.as_str() == "DELETE").expect("it is released");
    let preconditions = json!({ "uid": "uid-of-the-new-one", "resourceVersion": "21" });
    assert_eq!(claim.body["preconditions"], preconditions);
}

#[tokio::test(start_paused = true)]
async fn without_an_address_left_the_rest_is_done_and_the_reason_told() {
    let full = |_: &Sent| {
        let message = "Internal error occurred: failed to allocate a serviceIP for Service \
                       \"chat-irc\": range is full";
        Answer::failure(500, "InternalError", message)
    };
    let writes = Cluster { create: full, ..Cluster::fresh() }.writes().await;
    only(&writes, "POST", CLAIMS);
    let status = writes.iter().rfind(|one| one.path == STATUS).expect("it is told");
    let ready = &status.body["status"]["conditions"][0];
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("AddressesExhausted"))
    );
}

/// The App would delete the sandboxes of its former pool.
#[tokio::test(start_paused = true)]
async fn a_generation_whose_slices_are_refused_is_not_acted_on() {
    let busy = |_: &Sent| Answer::failure(500, "InternalError", "etcdserver: request timed out");
    let mut cluster = Cluster { create_slice: busy, ..Cluster::fresh() };
    cluster.app_service["status"] = json!({ "observedGeneration": 3 });
    let writes = cluster.writes().await;
    let status = writes.iter().rfind(|one| one.path == STATUS).expect("it is told");
    let status = &status.body["status"];
    assert_eq!(status["conditions"][0]["reason"], "ServiceRefused");
    assert_eq!(status["observedGeneration"], 3);
}
