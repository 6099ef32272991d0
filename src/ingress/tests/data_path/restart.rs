//! A gateway that restarts while the API server is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kube::Client;
use portolan_ingress::feed::{Feed, FeedSettings, SnapshotSettings};
use portolan_ingress::peers::Absent;
use portolan_ingress::report::{Identity, State};
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use portolan_reconcile::{Connections, Context};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{fetch, get};
use crate::gateway::{Gateway, soon, until};
use crate::program::Program;
use crate::tls;

const UID: &str = "pod-uid";

/// A directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("portolan-restart-{}-{number}", std::process::id())))
    }

    fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    fn certificates(&self) -> usize {
        std::fs::read_dir(self.0.join("certificates")).map_or(0, Iterator::count)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A gateway and its feed, as one process has them.
struct Process {
    gateway: Gateway,
    feed: Feed,
    context: Context,
    tasks: JoinSet<()>,
    absent: watch::Sender<Absent>,
}

impl Process {
    fn start(client: Client, directory: &Path) -> Self {
        let gateway = Gateway::unsynced();
        let context = context(client.clone());
        let absent = watch::Sender::default();
        let settings = FeedSettings {
            identity: Identity::new(
                "system".into(),
                "gateway".into(),
                Some(UID.to_owned()),
                context.now(),
            ),
            default_certificate: None,
            snapshot: Some(SnapshotSettings {
                directory: directory.to_owned(),
                pod_uid: Some(UID.to_owned()),
                size_max: 1 << 20,
            }),
            connections: Connections::new(move || client.clone()),
            absent: Some(absent.subscribe()),
        };
        let (feed, watches) = Feed::start(&context, &gateway.ingress, &State::default(), settings);
        let mut tasks = JoinSet::new();
        for (_, watch) in watches {
            tasks.spawn(async move { watch.await.expect("the watch runs") });
        }
        Self { gateway, feed, context, tasks, absent }
    }

    async fn sync(&self) {
        soon("everything is read", self.feed.synced()).await;
        self.gateway.ingress.mark_synced();
    }

    async fn status(&self, host: &str) -> u16 {
        let mut request = get("/");
        request.headers_mut().insert("host", host.parse().unwrap());
        fetch(self.gateway.http, request).await.status.as_u16()
    }

    async fn health(&self) -> u16 {
        let health = fetch(self.gateway.http, get("/.well-known/portolan/health")).await;
        health.status.as_u16()
    }

    async fn end(mut self) {
        self.context.shutdown().cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// What the API server has; each kind by its plural.
struct Objects(Vec<(&'static str, Value)>);

impl Objects {
    fn of(program: &Program, concurrency: &str, secret: &Value) -> Self {
        let metadata = |name: &str| {
            let (namespace, version) = ("team", "7");
            json!({"name": name, "namespace": namespace, "uid": name, "resourceVersion": version})
        };
        let mut pod = metadata("shop-web-1");
        pod["ownerReferences"] = json!([{"apiVersion": "portolan.dev/v1alpha1",
            "kind": "SandboxPool", "name": "shop-web", "uid": "shop-web", "controller": true}]);
        pod["annotations"] = json!({"portolan.dev/slots": "gateway=4,other=4"});
        Self(vec![
            (
                "routes",
                json!({"metadata": metadata("shop"), "spec":
                {"host": "shop.example", "app": "shop", "tls": {"secretName": "shop-tls"},
                 "redirect": "Disabled"}}),
            ),
            (
                "claims",
                json!({"metadata": {"name": "host-shop", "uid": "c", "resourceVersion": "7"},
                "spec": {"kind": "Host", "value": "shop.example", "holder":
                    {"kind": "Route", "namespace": "team", "name": "shop", "uid": "shop"}}}),
            ),
            (
                "routes",
                json!({"metadata": metadata("wild"),
                "spec": {"host": "*.wild.example", "app": "shop"}}),
            ),
            (
                "claims",
                json!({"metadata": {"name": "host-wild", "uid": "w", "resourceVersion": "7"},
                "spec": {"kind": "Host", "value": "*.wild.example", "holder":
                    {"kind": "Route", "namespace": "team", "name": "wild", "uid": "wild"}}}),
            ),
            (
                "apps",
                json!({"metadata": metadata("shop"), "spec": {"image": "i", "services": []},
                "status": {"activation": {"version": "shop-1", "epoch": 3},
                    "services": [{"name": "web", "pool": "shop-web"}]}}),
            ),
            (
                "sandboxpools",
                json!({"metadata": metadata("shop-web"), "spec": {
                "app": "shop", "service": "web", "role": "Active",
                "sandbox": {
                    "image": "i", "terminationGraceSeconds": 1, "listenTimeoutSeconds": 1,
                    "ports": [
                        {"name": "http", "port": program.address.port(), "type": "http"}]},
                "scale": {"min": 0, "max": 3, "requestsPerInstance": 8,
                    "concurrency": concurrency}}}),
            ),
            (
                "pods",
                json!({"metadata": pod, "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "podIP": "127.0.0.1",
                    "conditions": [{"type": "Ready", "status": "True"}]}}),
            ),
            ("secrets", json!({"metadata": metadata("shop-tls"), "data": secret})),
        ])
    }

    /// With all slots granted to one gateway.
    fn granted_to(mut self, instance: &str) -> Self {
        for (_, pod) in self.0.iter_mut().filter(|(plural, _)| *plural == "pods") {
            pod["metadata"]["annotations"] = json!({"portolan.dev/slots": format!("{instance}=8")});
        }
        self
    }

    fn without(mut self, kind: &str) -> Self {
        self.0.retain(|(plural, _)| *plural != kind);
        self
    }

    fn client(self) -> Client {
        Wire::answering(move |sent| self.answer(sent)).1
    }

    fn answer(&self, sent: &Sent) -> Answer {
        let kind = sent.path.rsplit('/').next().unwrap();
        let objects = self.0.iter().filter(|(plural, _)| *plural == kind);
        let objects = objects.map(|(_, object)| object.clone());
        if !sent.query.contains("watch=true") {
            let items: Vec<_> = objects.collect();
            return Answer::Json(
                200,
                json!({"metadata": {"resourceVersion": "9"}, "items": items}),
            );
        }
        if !sent.query.contains("sendInitialEvents") {
            return Answer::Watch(Vec::new());
        }
        let added = objects.map(|object| json!({"type": "ADDED", "object": object}));
        Answer::Watch(added.chain([initial_events_end("Any", 9)]).collect())
    }
}

fn silence() -> Client {
    Wire::answering(|_| Answer::Silence).1
}

fn secret() -> (Value, CertificateDer<'static>) {
    let issued = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let encode = |text: String| serde_json::to_value(k8s_openapi::ByteString(text.into_bytes()));
    let (chain, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
    let data = json!({"tls.crt": encode(chain).unwrap(), "tls.key": encode(key).unwrap()});
    (data, issued.cert.der().clone())
}

/// The first process: reads everything, keeps it, and ends.
async fn keep(place: &Place, objects: Objects) {
    let first = Process::start(objects.client(), &place.0);
    assert!(!first.feed.is_restored());
    first.sync().await;
    until("it is kept", || {
        let is_kept = place.state().exists() && place.certificates() == 1;
        is_kept.then_some(()).ok_or("not yet")
    })
    .await;
    assert_eq!(first.status("shop.example").await, 200);
    first.end().await;
}

#[tokio::test]
async fn it_serves_what_it_knew_and_denies_nothing() {
    let (place, program) = (Place::new(), Program::start().await);
    let (data, der) = secret();
    keep(&place, Objects::of(&program, "Soft", &data)).await;

    let second = Process::start(silence(), &place.0);
    assert!(second.feed.is_restored());
    assert_eq!(second.status("shop.example").await, 200);
    assert_eq!(second.status("any.wild.example").await, 200, "the snapshot had its wildcard");
    assert_eq!(second.health().await, 200, "as the readiness that Kubernetes sees");
    for host in ["other.example", "pr-1.shop.example"] {
        assert_eq!(second.status(host).await, 503, "{host} may be there by now");
    }
    until_trusted(&second, &der).await;
    second.end().await;
}

#[tokio::test]
async fn what_is_gone_is_withdrawn_once_everything_is_read() {
    let (place, program) = (Place::new(), Program::start().await);
    let (data, _) = secret();
    keep(&place, Objects::of(&program, "Soft", &data)).await;

    let second =
        Process::start(Objects::of(&program, "Soft", &data).without("routes").client(), &place.0);
    assert!(second.feed.is_restored());
    second.sync().await;
    assert_eq!(second.status("shop.example").await, 404);
    until("its certificate is gone", || match place.certificates() {
        0 => Ok(()),
        count => Err(count),
    })
    .await;
    second.end().await;
}

#[tokio::test]
async fn strict_slots_of_the_process_before_are_left_alone() {
    let (place, program) = (Place::new(), Program::start().await);
    let (data, _) = secret();
    keep(&place, Objects::of(&program, "Strict", &data)).await;
    let begun = program.state.begun.load(Ordering::SeqCst);

    let second = Process::start(silence(), &place.0);
    let waiting = tokio::time::timeout(Duration::from_millis(500), second.status("shop.example"));
    waiting.await.expect_err("nobody has granted it a slot");
    assert_eq!(program.state.begun.load(Ordering::SeqCst), begun);
    second.end().await;
}

/// The one that was granted all slots is gone, and nobody is there who would grant them anew.
#[tokio::test]
async fn soft_slots_of_a_gateway_that_went_are_used_and_strict_ones_are_not() {
    for concurrency in ["Soft", "Strict"] {
        let (place, program) = (Place::new(), Program::start().await);
        let (data, _) = secret();
        let objects = Objects::of(&program, concurrency, &data).granted_to("other.1");
        let process = Process::start(objects.client(), &place.0);
        process.sync().await;
        let mut asked = Box::pin(process.status("shop.example"));
        let wait = Duration::from_millis(300);
        tokio::time::timeout(wait, &mut asked).await.expect_err("no slot is its own");
        let instances = [Arc::from("other.1")].into();
        process.absent.send_replace(Absent { instances, others: 0 });
        match concurrency {
            "Soft" => assert_eq!(soon("an answer", asked).await, 200),
            _ => _ = tokio::time::timeout(wait, asked).await.expect_err("it may still run there"),
        }
        process.absent.send_replace(Absent::default());
        let again = process.status("shop.example");
        tokio::time::timeout(wait, again).await.expect_err("it is there again");
        process.end().await;
    }
}

/// The certificate comes by a task of its own.
async fn until_trusted(process: &Process, der: &CertificateDer<'static>) {
    let handshake = async {
        while tls::connect_to(process.gateway.https, "shop.example", der, b"http/1.1")
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    soon("its certificate is served", handshake).await;
}
