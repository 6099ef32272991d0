//! What the controller sends: one apply of each pool, and what one refusal means for the rest.
//! The answers are made up here; what a real API server makes of the writes is tested on one.

use std::time::Duration;

use portolan_api::{AppSpec, names, resolve};
use portolan_controller_version::{Settings, run};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use serde_json::{Value, json};
use tokio::time::sleep;

const GROUP: &str = "/apis/portolan.dev/v1alpha1";

/// An App named `shop` with two services, and its first version, which has no pools yet but `pool`.
struct Cluster {
    version: String,
    app: Value,
    object: Value,
    pool: Option<Value>,
    web: String,
    worker: String,
}

impl Cluster {
    fn new() -> Self {
        let spec = json!({ "image": "example/shop:1", "services": [
            { "name": "web" }, { "name": "worker", "command": ["./work"] },
        ] });
        let spec: AppSpec = serde_json::from_value(spec).expect("an App's spec");
        let resolved = resolve::resolve("shop", &spec);
        let version = names::version("shop", &resolved.digest);
        let [web, worker] =
            [0, 1].map(|place: usize| resolve::pool_name("shop", &resolved.services[place]));
        let mut app = object("App", "shop", json!(spec));
        app["status"] = json!({ "latestVersion": version });
        let mut object = object("AppVersion", &version, json!(resolved));
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "portolan.dev/v1alpha1", "kind": "App", "name": "shop",
            "uid": "uid-of-shop", "controller": true,
        }]);
        Self { version, app, object, pool: None, web, worker }
    }

    /// Has the pool of service `web` be there, with another role than it shall have.
    fn with_web(mut self) -> Self {
        let service = &self.object["spec"]["services"][0];
        let spec = json!({
            "app": "shop", "service": "web", "role": "Retired",
            "sandbox": service["sandbox"], "scale": service["scale"],
        });
        self.pool = Some(object("SandboxPool", &self.web, spec));
        self
    }

    /// Runs the controller for a minute and returns the names of the pools that it applied, in
    /// order. The API server may refuse one of them, always, with this code and reason.
    async fn applied(&self, refused: Option<(&str, u16, &'static str)>) -> Vec<String> {
        let (app, version, pool) = (self.app.clone(), self.object.clone(), self.pool.clone());
        let refused = refused.map(|(pool, code, reason)| (format!("/{pool}"), code, reason));
        let (wire, client) = Wire::answering(move |sent| match &refused {
            Some((pool, code, reason)) if sent.path.ends_with(pool) => {
                Answer::failure(*code, reason, "because")
            }
            _ => answer(sent, &app, &version, pool.as_ref()),
        });
        let context = context(client);
        let running = tokio::spawn(run(&context, Settings { verifying_limit: 5 }));
        sleep(Duration::from_secs(60)).await;
        context.shutdown().cancel();
        running.await.expect("it does not panic").expect("it ends as it was told");
        let sent = wire.sent().into_iter().filter(|one| one.method.as_str() == "PATCH");
        let pools = format!("{GROUP}/namespaces/team-a/sandboxpools/");
        sent.filter_map(|one| Some(one.path.strip_prefix(&pools)?.to_owned())).collect()
    }
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": kind,
        "metadata": {
            "name": name, "namespace": "team-a", "uid": format!("uid-of-{name}"),
            "resourceVersion": "10", "generation": 1,
        },
        "spec": spec,
    })
}

fn answer(sent: &Sent, app: &Value, version: &Value, pool: Option<&Value>) -> Answer {
    let last = sent.path.rsplit('/').next().unwrap_or_default();
    match (sent.method.as_str(), last) {
        ("GET", "apps") => listing("App", Some(app)),
        ("GET", "appversions") => listing("AppVersion", Some(version)),
        ("GET", "sandboxpools") => listing("SandboxPool", pool),
        ("PATCH", "status") => Answer::Json(200, version.clone()),
        ("PATCH", name) => {
            let mut made = sent.body.clone();
            made["metadata"]["uid"] = json!(format!("uid-of-{name}"));
            made["metadata"]["resourceVersion"] = json!("20");
            made["metadata"]["generation"] = json!(1);
            Answer::Json(201, made)
        }
        ("POST", _) => Answer::Json(201, sent.body.clone()),
        _ => Answer::failure(404, "NotFound", "not found"),
    }
}

fn listing(kind: &str, object: Option<&Value>) -> Answer {
    let added = object.map(|object| json!({ "type": "ADDED", "object": object }));
    Answer::Watch(added.into_iter().chain([initial_events_end(kind, 12)]).collect())
}

fn count(names: &[String], name: &str) -> usize {
    names.iter().filter(|other| *other == name).count()
}

#[tokio::test(start_paused = true)]
async fn each_pool_is_applied_once() {
    let cluster = Cluster::new();
    let applied = cluster.applied(None).await;
    let mut expected = vec![cluster.web.clone(), cluster.worker.clone()];
    expected.sort();
    assert_eq!(applied, expected, "{}", cluster.version);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_refused_keeps_no_other_from_being_made_and_is_tried_again() {
    let cluster = Cluster::new();
    for (refused, other) in [(&cluster.web, &cluster.worker), (&cluster.worker, &cluster.web)] {
        let applied = cluster.applied(Some((refused, 403, "Forbidden"))).await;
        assert_eq!(count(&applied, other), 1, "{applied:?}");
        assert!(count(&applied, refused) > 1, "{applied:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_changed_meanwhile_is_applied_again_once_the_change_is_seen() {
    let cluster = Cluster::new().with_web();
    let applied = cluster.applied(Some((&cluster.web, 409, "Conflict"))).await;
    // What wakes the App is that the other pool is there; of this one nothing new is ever seen.
    let others = count(&applied, &cluster.worker);
    assert_eq!((count(&applied, &cluster.web), others), (2, 1), "{applied:?}");
}
