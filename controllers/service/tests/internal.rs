//! What the controller sends for internal names: method, path, field manager, preconditions and
//! body of each write. The answers are made up here; what a real API server makes of the writes is
//! tested on one.

use std::time::Duration;

use portolan_api::labels;
use portolan_controller_service::{PortPolicy, Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const SERVICES: &str = "/api/v1/namespaces/team-a/services";

/// How the creation of a Service is answered.
type OnCreate = fn(&Sent) -> Answer;

/// What the watches show.
struct Cluster {
    app: Value,
    /// The ports of the App's service `web`.
    ports: Value,
    services: Vec<Value>,
    on_create: OnCreate,
}

impl Cluster {
    /// An http-only service of which nobody has heard.
    fn fresh() -> Self {
        let ports = json!([{ "name": "http", "port": 3000, "type": "http" }]);
        Self { app: app(), ports, services: vec![], on_create: stored }
    }

    /// Runs the controller for some time and returns its writes, in order.
    async fn writes(self, time: Duration) -> Vec<Sent> {
        let (wire, client) = Wire::answering(move |sent| self.answer(sent));
        let context = context(client);
        let ranges = |text: &str| text.parse().expect("these are ports");
        let node_ports = PortPolicy { allowed: ranges("1-65535"), reserved: ranges("22") };
        let running = tokio::spawn(run(&context, Settings { node_ports }));
        sleep(time).await;
        context.shutdown().cancel();
        running.await.expect("it does not panic").expect("it ends as it was told");
        wire.sent().into_iter().filter(|one| one.method.as_str() != "GET").collect()
    }

    fn answer(&self, sent: &Sent) -> Answer {
        let last = sent.path.rsplit('/').next().unwrap_or_default();
        match (sent.method.as_str(), last) {
            ("GET", "apps") => listing("App", vec![self.app.clone()]),
            ("GET", "appversions") => listing("AppVersion", vec![version(&self.ports)]),
            ("GET", "services") => listing("Service", self.services.clone()),
            ("GET", "claims") => listing("Claim", vec![]),
            ("GET", "appservices") => listing("AppService", vec![]),
            ("GET", "endpointslices") => listing("EndpointSlice", vec![]),
            ("GET", "pods") => listing("Pod", vec![]),
            ("GET", "sandboxpools") => listing("SandboxPool", vec![]),
            ("GET", "nodereports") => listing("NodeReport", vec![]),
            ("POST", "services") => (self.on_create)(sent),
            ("PUT", _) => Answer::Json(200, sent.body.clone()),
            ("DELETE", _) => Answer::Json(200, json!({ "kind": "Status", "status": "Success" })),
            ("POST", "events") => Answer::Json(201, sent.body.clone()),
            _ => Answer::failure(404, "NotFound", "not found"),
        }
    }
}

fn listing(kind: &str, objects: Vec<Value>) -> Answer {
    let added = |object| json!({ "type": "ADDED", "object": object });
    let end = initial_events_end(kind, 12);
    Answer::Watch(objects.into_iter().map(added).chain([end]).collect())
}

fn stored(sent: &Sent) -> Answer {
    let mut service = sent.body.clone();
    service["metadata"]["uid"] = json!("uid-of-the-service");
    service["metadata"]["resourceVersion"] = json!("21");
    service["spec"]["clusterIPs"] = json!(["10.96.0.7"]);
    for port in service["spec"]["ports"].as_array_mut().expect("ports") {
        port["targetPort"] = port["port"].clone();
    }
    Answer::Json(201, service)
}

fn app() -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "App",
        "metadata": { "name": "shop", "namespace": "team-a", "uid": "uid-of-shop",
            "resourceVersion": "10", "generation": 1 },
        "spec": { "image": "registry.example/shop:1", "services": [{ "name": "web" }] },
        "status": { "activation": { "version": "shop-1", "epoch": 1 } },
    })
}

fn version(ports: &Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "AppVersion",
        "metadata": { "name": "shop-1", "namespace": "team-a", "uid": "uid-of-the-version",
            "resourceVersion": "11", "ownerReferences": owner("App", "shop", "uid-of-shop") },
        "spec": { "app": "shop", "hashVersion": 1, "digest": "0".repeat(64), "services": [{
            "name": "web", "ports": ports,
            "scale": { "min": 0, "max": 1, "concurrency": "Soft" },
            "sandbox": { "image": "registry.example/shop:1", "ports": ports,
                "terminationGraceSeconds": 30, "listenTimeoutSeconds": 15 },
        }] },
    })
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!([{ "apiVersion": "portolan.dev/v1alpha1", "kind": kind, "name": name, "uid": uid,
        "controller": true }])
}

/// The Service as it was made, and as the API server shows it then.
async fn made() -> Value {
    let writes = Cluster::fresh().writes(SECOND).await;
    let [service] = &writes[..] else { panic!("one write: {writes:#?}") };
    let Answer::Json(_, service) = stored(service) else { unreachable!("it is stored") };
    service
}

/// Long enough for whatever needs no second try.
const SECOND: Duration = Duration::from_secs(1);

fn lines(writes: &[Sent]) -> Vec<String> {
    writes.iter().map(|one| format!("{} {}", one.method, one.path)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_name_is_one_write() {
    let writes = Cluster::fresh().writes(SECOND).await;
    assert_eq!(lines(&writes), [format!("POST {SERVICES}")]);
    assert_eq!(writes[0].query, "&fieldManager=portolan-internal");
    let expected = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "shop-web", "namespace": "team-a",
            "labels": {
                "app.kubernetes.io/managed-by": "portolan",
                "portolan.dev/app": "shop", "portolan.dev/service": "web",
                labels::INTERNAL: "http", labels::SERVICE_PROXY: "portolan",
            },
            "ownerReferences": owner("App", "shop", "uid-of-shop"),
        },
        "spec": {
            "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                { "name": "http", "port": 80, "protocol": "TCP" },
                { "name": "http-3000", "port": 3000, "protocol": "TCP" },
            ],
        },
    });
    assert_eq!(writes[0].body, expected);
}

/// Its address would keep the API server from what the App waits for.
#[tokio::test(start_paused = true)]
async fn a_name_comes_when_a_version_serves() {
    let mut coming = app();
    coming["status"] = json!({ "latestVersion": "shop-1" });
    let writes = Cluster { app: coming, ..Cluster::fresh() }.writes(SECOND).await;
    assert_eq!(writes, vec![]);
}

#[tokio::test(start_paused = true)]
async fn what_is_as_it_should_be_is_not_written_to() {
    let writes = Cluster { services: vec![made().await], ..Cluster::fresh() }.writes(SECOND).await;
    assert_eq!(writes, vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_change_replaces_exactly_what_was_seen() {
    let mut service = made().await;
    service["spec"]["selector"] = json!({ "app": "theirs" });
    let writes = Cluster { services: vec![service], ..Cluster::fresh() }.writes(SECOND).await;
    assert_eq!(lines(&writes), [format!("PUT {SERVICES}/shop-web")]);
    assert_eq!(writes[0].query, "&fieldManager=portolan-internal");
    let body = &writes[0].body;
    assert_eq!(body["metadata"]["uid"], "uid-of-the-service");
    assert_eq!(body["metadata"]["resourceVersion"], "21");
    assert_eq!(body["spec"]["clusterIPs"], json!(["10.96.0.7"]), "the address stays");
    assert_eq!(body["spec"].get("selector"), None);
}

/// Whose a Service is, the UID of its controller says; what it is, the labels.
#[tokio::test(start_paused = true)]
async fn a_label_that_somebody_took_away_is_put_back() {
    for label in [labels::SERVICE_PROXY, labels::INTERNAL] {
        let mut service = made().await;
        let complete = service["metadata"]["labels"].clone();
        let ours = service["metadata"]["labels"].as_object_mut().expect("it has labels");
        ours.remove(label).expect("it had the label");
        let writes = Cluster { services: vec![service], ..Cluster::fresh() }.writes(SECOND).await;
        assert_eq!(lines(&writes), [format!("PUT {SERVICES}/shop-web")], "without {label}");
        assert_eq!(writes[0].body["metadata"]["labels"], complete);
    }
}

/// The service has a port now that is not http: the name becomes its AppService's.
#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_needed_any_more_is_deleted_as_it_was_seen() {
    let ports = json!([{ "name": "irc", "port": 6667, "type": "tcp" }]);
    let services = vec![made().await];
    let writes = Cluster { ports, services, ..Cluster::fresh() }.writes(SECOND).await;
    assert_eq!(lines(&writes), [format!("DELETE {SERVICES}/shop-web")]);
    assert_eq!(writes[0].body["preconditions"]["uid"], "uid-of-the-service");
}

/// The other way: the address of the AppService that goes is in the way for a moment.
#[tokio::test(start_paused = true)]
async fn the_address_of_the_same_service_is_left_to_go_by_itself() {
    let mut address = made().await;
    address["metadata"]["labels"][labels::INTERNAL] = Value::Null;
    address["metadata"]["ownerReferences"] = owner("AppService", "shop-web", "uid-of-another");
    let writes = Cluster { services: vec![address], ..Cluster::fresh() }.writes(SECOND).await;
    assert_eq!(writes, vec![], "neither touched nor complained of");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_somebody_else_has_is_told_once_and_left_alone() {
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "shop-web", "namespace": "team-a", "uid": "uid-of-theirs",
            "resourceVersion": "5" },
        "spec": { "ports": [{ "port": 80 }] },
    });
    let cluster = Cluster { services: vec![theirs], ..Cluster::fresh() };
    let writes = cluster.writes(Duration::from_secs(60)).await;
    let [event] = &writes[..] else { panic!("one event: {:#?}", lines(&writes)) };
    assert!(event.path.contains("events.k8s.io"), "{}", event.path);
    assert_eq!(
        (&event.body["type"], &event.body["reason"]),
        (&json!("Warning"), &json!("NameConflict"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_the_api_server_refuses_is_told_once() {
    let refuse: OnCreate = |_| Answer::failure(403, "Forbidden", "exceeded quota: services");
    let cluster = Cluster { on_create: refuse, ..Cluster::fresh() };
    let writes = cluster.writes(Duration::from_secs(60)).await;
    let events = writes.iter().filter(|one| one.path.contains("events.k8s.io"));
    let events: Vec<_> = events.map(|one| &one.body).collect();
    let [event] = events[..] else { panic!("one event: {events:#?}") };
    assert_eq!(event["reason"], "ServiceRefused");
    assert!(event["note"].as_str().is_some_and(|note| note.contains("exceeded quota")), "{event}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_in_a_pass_in_which_something_failed_and_it_is_tried_again() {
    let mut unneeded = made().await;
    unneeded["metadata"]["name"] = json!("shop-old");
    let full: OnCreate = |_| {
        let message = "Internal error occurred: failed to allocate a serviceIP for Service \
                       \"shop-web\": range is full";
        Answer::failure(500, "InternalError", message)
    };
    let cluster = Cluster { services: vec![unneeded.clone()], on_create: full, ..Cluster::fresh() };
    let writes = lines(&cluster.writes(Duration::from_secs(60)).await);
    assert!(writes.len() > 1, "{writes:?}");
    assert!(writes.iter().all(|write| write.starts_with("POST")), "{writes:?}");
    // Once it succeeds, the other goes.
    let cluster = Cluster { services: vec![unneeded], ..Cluster::fresh() };
    let writes = lines(&cluster.writes(SECOND).await);
    assert_eq!(writes, [format!("POST {SERVICES}"), format!("DELETE {SERVICES}/shop-old")]);
}
