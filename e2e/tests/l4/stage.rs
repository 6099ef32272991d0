//! Two namespaces, node ports that no other test uses, and a controller that can be stopped.

use std::future::Future;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI32, Ordering};

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use portolan_api::{
    AppService, Claim, ClaimKind, NodeReport, SandboxPool, conditions, crds, labels, names,
};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait::until_seen;
use portolan_controller_service::{PortPolicy, Settings};
use portolan_e2e::BARE_CLUSTER;
use portolan_reconcile::{Context, testing};
use serde_json::{Value, json};
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinHandle;

/// A port that the tests' installation reserves.
pub(crate) const RESERVED: i32 = 2222;

/// Tests that crash or count run alone: another controller would do the work.
static CONTROLLERS: LazyLock<RwLock<()>> = LazyLock::new(Default::default);
static STARTED: LazyLock<Mutex<()>> = LazyLock::new(Default::default);

/// What a test stands on.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) client: Client,
    /// Two namespaces.
    pub(crate) ours: String,
    pub(crate) theirs: String,
}

/// A running service controller.
pub(crate) struct Running {
    pub(crate) context: Context,
    task: JoinHandle<()>,
}

/// Runs a test beside a service controller of its own.
pub(crate) async fn with_controller<F>(test: impl FnOnce(Stage) -> F) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let _shared = CONTROLLERS.read().await;
    let stage = Stage::build().await?;
    let running = stage.start(stage.client.clone());
    let ended = tokio::spawn(test(stage.clone())).await;
    let cleared = stage.clear().await;
    running.stop().await;
    ended?;
    cleared
}

/// Runs a test that starts and stops controllers itself, while no other test runs one.
pub(crate) async fn alone<F>(test: impl FnOnce(Stage) -> F) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let _alone = CONTROLLERS.write().await;
    let stage = Stage::build().await?;
    let ended = tokio::spawn(test(stage.clone())).await;
    let running = stage.start(stage.client.clone());
    let cleared = stage.clear().await;
    running.stop().await;
    ended?;
    cleared
}

/// A node port that no other test asks for.
pub(crate) fn free_port() -> i32 {
    static NEXT: AtomicI32 = AtomicI32::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Running {
    /// Stops as a process does at SIGTERM.
    pub(crate) async fn stop(self) {
        self.context.shutdown().cancel();
        self.task.await.expect("the controller ends without panic");
    }

    /// Stops as a process does at SIGKILL.
    pub(crate) fn kill(self) {
        self.task.abort();
    }

    /// Writes of the service controller and its sweep.
    pub(crate) fn writes(&self) -> u64 {
        let metrics = self.context.metrics();
        ["service", "nodeport"].into_iter().map(|name| metrics.writes_of(name)).sum()
    }
}

impl Stage {
    async fn build() -> anyhow::Result<Self> {
        let client = {
            let _one_at_a_time = STARTED.lock().await;
            let client = Cluster::ensure(BARE_CLUSTER, 1).await?.client().await?;
            install(&client).await?;
            client
        };
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let mut made = Vec::new();
        for _ in 0..2 {
            let namespace: Namespace =
                serde_json::from_value(json!({ "metadata": { "generateName": "l4-" } }))?;
            let namespace = namespaces.create(&PostParams::default(), &namespace).await?;
            made.extend(namespace.metadata.name);
        }
        let [ours, theirs] = made.try_into().expect("two namespaces were made");
        Ok(Self { client, ours, theirs })
    }

    /// Starts a service controller that leads at once.
    pub(crate) fn start(&self, client: Client) -> Running {
        let context = testing::context(client);
        let node_ports = PortPolicy {
            allowed: "1-65535".parse().expect("these are ports"),
            reserved: RESERVED.to_string().parse().expect("this is a port"),
        };
        let run = portolan_controller_service::run(&context, Settings { node_ports });
        let task = tokio::spawn(async move { run.await.expect("the controller runs") });
        Running { context, task }
    }

    /// Removes everything and checks that no Claim stays behind.
    async fn clear(&self) -> anyhow::Result<()> {
        for namespace in [&self.ours, &self.theirs] {
            let services = self.app_services(namespace);
            services.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        }
        until_seen("no Claim is left", || self.held(), Vec::is_empty).await;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for namespace in [&self.ours, &self.theirs] {
            namespaces.delete(namespace, &DeleteParams::background()).await?;
        }
        Ok(())
    }

    pub(crate) fn app_services(&self, namespace: &str) -> Api<AppService> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), &self.ours)
    }

    pub(crate) fn slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &self.ours)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.ours)
    }

    pub(crate) fn claims(&self) -> Api<Claim> {
        Api::all(self.client.clone())
    }

    pub(crate) fn reports(&self) -> Api<NodeReport> {
        Api::all(self.client.clone())
    }

    /// Applies an AppService of App `chat`, whose service is the name, as the app controller does:
    /// ports are names, numbers, types and node ports.
    pub(crate) async fn apply(
        &self,
        namespace: &str,
        name: &str,
        pool: Option<&str>,
        ports: &[(&str, i32, &str, Option<i32>)],
    ) -> AppService {
        self.apply_as(namespace, (name, name), pool, ports).await
    }

    /// The same, with another name than that of the service.
    pub(crate) async fn apply_as(
        &self,
        namespace: &str,
        (name, service): (&str, &str),
        pool: Option<&str>,
        ports: &[(&str, i32, &str, Option<i32>)],
    ) -> AppService {
        let port = |&(name, port, kind, node_port): &(&str, i32, &str, Option<i32>)| {
            let mut port = json!({ "name": name, "port": port, "type": kind, "targetPort": port });
            if let Some(node_port) = node_port {
                port["nodePort"] = node_port.into();
            }
            port
        };
        let ports: Vec<_> = ports.iter().map(port).collect();
        let mut spec = json!({ "app": "chat", "service": service, "ports": ports });
        if let Some(pool) = pool {
            spec["pool"] = pool.into();
        }
        let service = manifest("AppService", name, &spec);
        let (params, patch) = (PatchParams::apply("portolan-app").force(), Patch::Apply(&service));
        let applied = self.app_services(namespace).patch(name, &params, &patch).await;
        applied.expect("the AppService is accepted")
    }

    /// Applies an AppService with one tcp port that asks for a node port.
    pub(crate) async fn apply_port(&self, namespace: &str, name: &str, node_port: i32) {
        self.apply(namespace, name, None, &[("irc", 6667, "tcp", Some(node_port))]).await;
    }

    pub(crate) async fn delete(&self, namespace: &str, name: &str) {
        let deleted = self.app_services(namespace).delete(name, &DeleteParams::default()).await;
        deleted.expect("the AppService is there to be deleted");
    }

    /// Makes a pool of a service of App `chat`.
    pub(crate) async fn pool(&self, name: &str, service: &str, preview: bool) -> SandboxPool {
        let spec = json!({
            "app": "chat", "service": service, "role": "Active", "replicas": 1,
            "scale": { "min": 1, "max": 20, "concurrency": "Soft" },
            "sandbox": {
                "image": "example/chat:1", "ports": [{ "name": "irc", "port": 6667, "type": "tcp" }],
                "terminationGraceSeconds": 30, "listenTimeoutSeconds": 15,
            },
        });
        let mut pool = manifest("SandboxPool", name, &spec);
        if preview {
            pool["metadata"]["labels"] = json!({ labels::EPHEMERAL: "pr-7" });
        }
        let pool: SandboxPool = serde_json::from_value(pool).expect("a pool");
        let pools: Api<SandboxPool> = Api::namespaced(self.client.clone(), &self.ours);
        pools.create(&PostParams::default(), &pool).await.expect("the pool is accepted")
    }

    /// Makes a ready sandbox of a pool that says it belongs to the pool `label`.
    pub(crate) async fn sandbox(
        &self,
        owner: &SandboxPool,
        label: &str,
        name: &str,
        address: &str,
    ) {
        let owner = owner.controller_owner_ref(&()).expect("the pool was read");
        let pod = json!({
            "metadata": {
                "name": name, "labels": { labels::POOL: label }, "ownerReferences": [owner],
            },
            "spec": {
                // No scheduler takes it, so no kubelet contradicts what the test says of it.
                "schedulingGates": [{ "name": "example.com/never" }],
                "containers": [{ "name": "app", "image": "example/chat:1" }],
            },
        });
        let pod: Pod = serde_json::from_value(pod).expect("a Pod");
        self.pods().create(&PostParams::default(), &pod).await.expect("the Pod is accepted");
        self.say(name, address, true).await;
    }

    /// Writes the status of a sandbox, as a kubelet does.
    pub(crate) async fn say(&self, name: &str, address: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let status = json!({ "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": ready }],
        } });
        let params = PatchParams::default();
        let said = self.pods().patch_status(name, &params, &Patch::Merge(&status)).await;
        said.expect("the Pod is there");
    }

    /// Deletes a sandbox at once.
    pub(crate) async fn remove(&self, name: &str) {
        let at_once = DeleteParams::default().grace_period(0);
        self.pods().delete(name, &at_once).await.expect("the Pod is there");
    }

    /// Marks a sandbox, as the pool controller does when it drains.
    pub(crate) async fn drain(&self, name: &str) {
        let mark = json!({ "metadata": { "annotations": { labels::DRAIN: "1" } } });
        let marked = self.pods().patch(name, &PatchParams::default(), &Patch::Merge(&mark)).await;
        marked.expect("the Pod is there");
    }

    /// `address ready/serving/terminating` of each endpoint of a service's IPv4 slice.
    pub(crate) async fn endpoints(&self, service: &str) -> Vec<String> {
        let slice = self.slices().get_opt(&format!("{service}-ipv4")).await.expect("read");
        let endpoints = slice.and_then(|slice| slice.endpoints).unwrap_or_default().into_iter();
        let shown = endpoints.map(|endpoint| {
            let said = endpoint.conditions.unwrap_or_default();
            let said = [said.ready, said.serving, said.terminating];
            let said = said.map(|one| if one == Some(true) { "y" } else { "n" }).concat();
            format!("{} {said}", endpoint.addresses.concat())
        });
        shown.collect()
    }

    /// Waits until the IPv4 slice of a service has exactly these endpoints.
    pub(crate) async fn until_endpoints(&self, service: &str, expected: &[&str]) {
        let what = format!("{service} has {expected:?}");
        until_seen(&what, || self.endpoints(service), |seen| *seen == expected).await;
    }

    /// The node ports that this stage's AppServices hold, with `namespace/name` of the holder.
    pub(crate) async fn held(&self) -> Vec<(String, String)> {
        let claims = self.claims().list(&ListParams::default()).await.expect("listed");
        let ours = claims.items.into_iter().map(|claim| claim.spec).filter(|spec| {
            let namespace = &spec.holder.namespace;
            spec.kind == ClaimKind::NodePort && [&self.ours, &self.theirs].contains(&namespace)
        });
        let held = ours
            .map(|spec| (spec.value, format!("{}/{}", spec.holder.namespace, spec.holder.name)));
        held.collect()
    }

    /// `namespace/name` of who holds a node port over TCP.
    pub(crate) async fn holder(&self, port: i32) -> Option<String> {
        let name = names::claim(ClaimKind::NodePort, &names::node_port(port, "TCP"));
        let claim = self.claims().get_opt(&name).await.expect("read")?;
        Some(format!("{}/{}", claim.spec.holder.namespace, claim.spec.holder.name))
    }

    /// What Events tell of an object.
    pub(crate) async fn told(&self, uid: &str) -> Vec<String> {
        let events = self.events(&self.ours).await.into_iter();
        events.filter(|(about, _)| about == uid).map(|(_, note)| note).collect()
    }

    /// UIDs of objects of a namespace, with what Events tell of them.
    pub(crate) async fn events(&self, namespace: &str) -> Vec<(String, String)> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let events = events.list(&ListParams::default()).await.expect("listed").items.into_iter();
        let told = events.filter_map(|event| Some((event.regarding?.uid?, event.note?)));
        told.collect()
    }

    /// Waits until an AppService says so about its present generation; returns the message.
    pub(crate) async fn until_says(&self, namespace: &str, name: &str, reason: &str) -> String {
        let what = format!("{namespace}/{name} says {reason}");
        let look = || self.ready(namespace, name);
        let says =
            |seen: &Option<Condition>| seen.as_ref().is_some_and(|seen| seen.reason == reason);
        let seen = until_seen(&what, look, says).await;
        seen.map(|condition| condition.message).unwrap_or_default()
    }

    /// Waits until an AppService has nothing to complain about but that it has no pool.
    pub(crate) async fn until_idle(&self, namespace: &str, name: &str) {
        self.until_says(namespace, name, conditions::reason::NO_ACTIVE_VERSION).await;
    }

    async fn ready(&self, namespace: &str, name: &str) -> Option<Condition> {
        let service = self.app_services(namespace).get_opt(name).await.expect("read")?;
        let generation = service.metadata.generation;
        let mut conditions = service.status?.conditions.into_iter();
        conditions.find(|found| {
            found.type_ == conditions::READY && found.observed_generation == generation
        })
    }

    /// The addresses that an AppService reports.
    pub(crate) async fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.app_services(&self.ours).get(name).await.expect("it is there");
        service.status.map(|status| status.cluster_ips).unwrap_or_default()
    }
}

fn manifest(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    })
}

/// Applies the CRDs: those that an earlier run left there may be of an earlier time.
async fn install(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds::manifests() {
        let name = crd["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let params = PatchParams::apply("l4-tests").force();
        api.patch(&name, &params, &Patch::Apply(&crd)).await?;
        let established = || async {
            let status = api.get(&name).await.ok().and_then(|crd| crd.status);
            let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
            conditions.iter().any(|found| found.type_ == "Established" && found.status == "True")
        };
        until_seen(&format!("{name} is established"), established, |established| *established)
            .await;
    }
    Ok(())
}
