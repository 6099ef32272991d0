//! Two namespaces, a name that no other test uses, and a controller that can be stopped.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use portolan_api::{Claim, Domain, Holder, Route, conditions, crds, names};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait::until_seen;
use portolan_controller_route::Settings;
use portolan_e2e::BARE_CLUSTER;
use portolan_reconcile::metrics::PassLabel;
use portolan_reconcile::{Context, testing};
use serde_json::{Value, json};
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinHandle;

/// Tests that crash a controller run alone: another one would do its work.
static CONTROLLERS: LazyLock<RwLock<()>> = LazyLock::new(Default::default);
static STARTED: LazyLock<Mutex<()>> = LazyLock::new(Default::default);

/// What a test stands on.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) client: Client,
    /// Two namespaces.
    pub(crate) ours: String,
    pub(crate) theirs: String,
    /// The name under which all hosts of this test lie.
    base: String,
}

/// A running route controller.
pub(crate) struct Running {
    pub(crate) context: Context,
    task: JoinHandle<()>,
}

/// Runs a test beside a route controller of its own.
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

    /// Writes of the route controller and its companions.
    pub(crate) fn writes(&self) -> u64 {
        let metrics = self.context.metrics();
        ["route", "claim", "domain"].into_iter().map(|name| metrics.writes_of(name)).sum()
    }

    /// Passes over Routes that ended well.
    pub(crate) fn settled_passes(&self) -> u64 {
        let label = PassLabel { controller: "route", result: "settled" };
        self.context.metrics().passes.get_or_create(&label).get()
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
                serde_json::from_value(json!({ "metadata": { "generateName": "routes-" } }))?;
            let namespace = namespaces.create(&PostParams::default(), &namespace).await?;
            made.extend(namespace.metadata.name);
        }
        let [ours, theirs] = made.try_into().expect("two namespaces were made");
        let base = format!("{ours}.example.com");
        Ok(Self { client, ours, theirs, base })
    }

    /// Starts a route controller that leads at once.
    pub(crate) fn start(&self, client: Client) -> Running {
        let context = testing::context(client);
        let settings = Settings {
            system_namespace: self.ours.clone(),
            gateway_service_account: "portolan-gateway".into(),
        };
        let run = portolan_controller_route::run(&context, settings);
        let task = tokio::spawn(async move { run.await.expect("the controller runs") });
        Running { context, task }
    }

    /// Removes everything and checks that no Claim stays behind.
    async fn clear(&self) -> anyhow::Result<()> {
        for domain in self.domains().list(&ListParams::default()).await? {
            let suffix = &domain.spec.suffix;
            if let Some(name) = domain.metadata.name.filter(|_| suffix.ends_with(&self.base)) {
                self.domains().delete(&name, &DeleteParams::default()).await?;
            }
        }
        for namespace in [&self.ours, &self.theirs] {
            let routes = self.routes(namespace);
            routes.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        }
        until_seen("no Claim is left", || self.held(), BTreeMap::is_empty).await;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for namespace in [&self.ours, &self.theirs] {
            namespaces.delete(namespace, &DeleteParams::background()).await?;
        }
        Ok(())
    }

    /// A host of this test.
    pub(crate) fn host(&self, prefix: &str) -> String {
        format!("{prefix}.{}", self.base)
    }

    pub(crate) fn routes(&self, namespace: &str) -> Api<Route> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn domains(&self) -> Api<Domain> {
        Api::all(self.client.clone())
    }

    pub(crate) fn claims(&self) -> Api<Claim> {
        Api::all(self.client.clone())
    }

    /// Applies a Route to App `shop`, as a user does. Returns its UID.
    pub(crate) async fn apply(&self, namespace: &str, name: &str, host: &str) -> String {
        let spec = json!({ "host": host, "app": "shop" });
        let route = manifest("Route", name, &spec);
        let params = PatchParams::apply("user");
        let applied = self.routes(namespace).patch(name, &params, &Patch::Apply(&route)).await;
        applied.expect("the Route is accepted").metadata.uid.expect("it has a UID")
    }

    pub(crate) async fn delete(&self, namespace: &str, name: &str) {
        let deleted = self.routes(namespace).delete(name, &DeleteParams::default()).await;
        deleted.expect("the Route is there to be deleted");
    }

    /// Applies a Domain for a suffix of this test, named after it.
    pub(crate) async fn domain(&self, suffix: &str, namespaces: &[&str]) -> String {
        self.named_domain(&suffix.replace('.', "-"), suffix, namespaces).await
    }

    pub(crate) async fn named_domain(
        &self,
        name: &str,
        suffix: &str,
        namespaces: &[&str],
    ) -> String {
        let spec = json!({ "suffix": suffix, "namespaces": namespaces });
        let domain = manifest("Domain", name, &spec);
        let params = PatchParams::apply("admin").force();
        let applied = self.domains().patch(name, &params, &Patch::Apply(&domain)).await;
        applied.expect("the Domain is accepted");
        name.into()
    }

    /// Makes a Claim by hand.
    pub(crate) async fn claim(&self, host: &str, holder: Holder) {
        let kind = portolan_api::ClaimKind::Host;
        let mut claim = Claim::new(
            &names::claim(kind, host),
            portolan_api::ClaimSpec { kind, value: host.into(), holder },
        );
        claim.metadata.labels = None;
        self.claims().create(&PostParams::default(), &claim).await.expect("the name is free");
    }

    /// Who holds which host of this test: `namespace/name` and UID, by host.
    pub(crate) async fn held(&self) -> BTreeMap<String, (String, String)> {
        let claims = self.claims().list(&ListParams::default()).await.expect("listed");
        let ours = claims.items.into_iter().filter(|claim| claim.spec.value.ends_with(&self.base));
        ours.map(|claim| {
            let Holder { namespace, name, uid, .. } = claim.spec.holder;
            (claim.spec.value, (format!("{namespace}/{name}"), uid))
        })
        .collect()
    }

    /// Waits until exactly these hosts are held, by these Routes.
    pub(crate) async fn until_held(&self, expected: &[(&str, &str, &str)]) {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|&(host, namespace, name)| (host.to_owned(), format!("{namespace}/{name}")))
            .collect();
        let holders = || async {
            let held = self.held().await;
            held.into_iter().map(|(host, (holder, _))| (host, holder)).collect::<BTreeMap<_, _>>()
        };
        until_seen(&format!("{expected:?} are held"), holders, |held| *held == expected).await;
    }

    /// Waits until a condition of a Route says so about its present generation; returns its
    /// message.
    pub(crate) async fn until_says(
        &self,
        (namespace, name): (&str, &str),
        type_: &str,
        (status, reason): (&str, &str),
    ) -> String {
        let what = format!("{namespace}/{name} says {type_}={status}/{reason}");
        let look = || self.condition(namespace, name, type_);
        let says = |seen: &Option<Condition>| {
            seen.as_ref().is_some_and(|seen| seen.status == status && seen.reason == reason)
        };
        let seen = until_seen(&what, look, says).await;
        seen.map(|condition| condition.message).unwrap_or_default()
    }

    /// Waits until a Route holds its host.
    pub(crate) async fn until_claimed(&self, namespace: &str, name: &str) {
        let expected = ("True", conditions::reason::CLAIMED);
        self.until_says((namespace, name), conditions::HOST_CLAIMED, expected).await;
    }

    /// Waits until a Route does not hold its host, for this reason; returns the message.
    pub(crate) async fn until_refused(&self, namespace: &str, name: &str, reason: &str) -> String {
        self.until_says((namespace, name), conditions::HOST_CLAIMED, ("False", reason)).await
    }

    async fn condition(&self, namespace: &str, name: &str, type_: &str) -> Option<Condition> {
        let route = self.routes(namespace).get_opt(name).await.expect("read")?;
        let generation = route.metadata.generation;
        let mut conditions = route.status?.conditions.into_iter();
        conditions.find(|found| found.type_ == type_ && found.observed_generation == generation)
    }
}

pub(crate) fn manifest(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    })
}

/// Makes the CRDs that are missing; those of a chart stay as they are.
async fn install(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds::manifests() {
        let crd: CustomResourceDefinition = serde_json::from_value(crd)?;
        let name = crd.metadata.name.clone().unwrap_or_default();
        if api.get_opt(&name).await?.is_none() {
            api.create(&PostParams::default(), &crd).await?;
        }
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
