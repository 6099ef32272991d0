//! A place where all controllers together work on one App, on a cluster without Portolan.

use std::collections::BTreeMap;

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use portolan_api::{App, AppVersion, Claim, PoolRole, Route, SandboxPool};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::platform;
use portolan_e2e::BARE_CLUSTER;
use portolan_reconcile::Context;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

/// A namespace of one story.
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    /// On the cluster without Portolan, which no other place shares meanwhile: controllers work in
    /// all namespaces.
    pub(crate) async fn make() -> anyhow::Result<Self> {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let cluster = Cluster::ensure(BARE_CLUSTER, 1).await?;
        platform::prepare(&cluster)?;
        let client = cluster.client().await?;
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "generateName": "crashes-" } }))?;
        let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let namespace = made.metadata.name.unwrap_or_default();
        Ok(Self { client, namespace, _alone: alone })
    }

    /// Has the App answer on a host of its own.
    pub(crate) async fn route(&self) -> anyhow::Result<()> {
        let route = json!({
            "apiVersion": "portolan.dev/v1alpha1",
            "kind": "Route",
            "metadata": { "name": "shop" },
            "spec": { "host": format!("{}.example.com", self.namespace), "app": "shop" },
        });
        let params = PatchParams::apply("user");
        self.api::<Route>().patch("shop", &params, &Patch::Apply(&route)).await?;
        Ok(())
    }

    /// The namespace's objects of one kind.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies the App with these services.
    pub(crate) async fn apply(&self, services: &Value) -> anyhow::Result<()> {
        let app = json!({
            "apiVersion": "portolan.dev/v1alpha1",
            "kind": "App",
            "metadata": { "name": "shop" },
            "spec": { "image": "docker.io/portolan/sample-echo:dev", "services": services },
        });
        let params = PatchParams::apply("user");
        self.api::<App>().patch("shop", &params, &Patch::Apply(&app)).await?;
        Ok(())
    }

    /// Whether the App is ready for its generation and nothing remains to be done.
    pub(crate) async fn is_settled(&self, generation: i64) -> anyhow::Result<()> {
        let app = self.api::<App>().get("shop").await?;
        let status = app.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let ready = ready.filter(|ready| ready.observed_generation == Some(generation));
        ensure!(ready.is_some_and(|ready| ready.status == "True"), "{ready:?}");
        let active = status.active_version.unwrap_or_default();
        for pool in self.list::<SandboxPool>().await? {
            let status = pool.status.unwrap_or_default();
            let (name, wanted) = (pool.metadata.name.unwrap_or_default(), pool.spec.replicas);
            let has = (status.observed_generation, Some(status.ready_replicas));
            ensure!(has == (pool.metadata.generation, wanted), "{name}: {status:?}");
            let owners = pool.metadata.owner_references.unwrap_or_default();
            let serves = owners.iter().any(|owner| owner.name == active);
            ensure!(serves == (pool.spec.role == PoolRole::Active), "{name}: {:?}", pool.spec.role);
        }
        for version in self.list::<AppVersion>().await? {
            let name = version.metadata.name.unwrap_or_default();
            let conditions = version.status.unwrap_or_default().conditions;
            let reason = conditions.first().map(|ready| ready.reason.as_str());
            let expected = if name == active { "Active" } else { "Replaced" };
            ensure!(reason == Some(expected), "{name}: {conditions:?}");
        }
        let wanted: i32 =
            self.list::<SandboxPool>().await?.iter().map(|pool| pool.spec.wanted()).sum();
        let pods = self.list::<Pod>().await?.len();
        ensure!(i32::try_from(pods)? == wanted, "{pods} sandboxes, {wanted} wanted");
        let route = self.api::<Route>().get("shop").await?.status.unwrap_or_default();
        let held = route.conditions.iter().any(|c| c.type_ == "HostClaimed" && c.status == "True");
        ensure!(held, "{:?}", route.conditions);
        Ok(())
    }

    /// All objects of one kind in the namespace.
    pub(crate) async fn list<K>(&self) -> anyhow::Result<Vec<K>>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        Ok(self.api::<K>().list(&ListParams::default()).await?.items)
    }

    /// What stands: names, roles, owners, counts and the words of conditions.
    pub(crate) async fn state(&self) -> anyhow::Result<Value> {
        let words = |conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]| {
            let words = conditions.iter().map(|c| format!("{} {} {}", c.type_, c.status, c.reason));
            words.collect::<Vec<_>>()
        };
        let versions = self.list::<AppVersion>().await?.into_iter().map(|version| {
            let conditions = version.status.unwrap_or_default().conditions;
            (version.metadata.name.unwrap_or_default(), words(&conditions))
        });
        let versions: BTreeMap<_, _> = versions.collect();
        let pools = self.list::<SandboxPool>().await?.into_iter().map(|pool| {
            let owners = pool.metadata.owner_references.clone().unwrap_or_default();
            let owners: Vec<_> = owners.into_iter().map(|owner| owner.name).collect();
            let conditions = pool.status.clone().unwrap_or_default().conditions;
            let state = json!([pool.spec.role, pool.spec.replicas, owners, words(&conditions)]);
            (pool.metadata.name.unwrap_or_default(), state)
        });
        let pools: BTreeMap<_, _> = pools.collect();
        let policies = self.list::<NetworkPolicy>().await?;
        let policies: Vec<_> = policies.into_iter().map(|p| (p.metadata.name, p.spec)).collect();
        let claims = Api::<Claim>::all(self.client.clone()).list(&ListParams::default()).await?;
        let ours = |claim: &&Claim| claim.spec.holder.namespace == self.namespace;
        let app = self.api::<App>().get("shop").await?.status.unwrap_or_default();
        Ok(json!({
            "versions": versions,
            "pools": pools,
            "policies": policies,
            "claims": claims.iter().filter(ours).count(),
            "app": [app.active_version, words(&app.conditions)],
            "activation": app.activation,
        }))
    }

    /// Removes the namespace and what is the cluster's; waits for neither.
    pub(crate) async fn remove(&self) -> anyhow::Result<()> {
        let claims = Api::<Claim>::all(self.client.clone());
        for claim in claims.list(&ListParams::default()).await? {
            if claim.spec.holder.namespace == self.namespace {
                claims
                    .delete(
                        claim.metadata.name.as_deref().unwrap_or_default(),
                        &DeleteParams::default(),
                    )
                    .await?;
            }
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await?;
        Ok(())
    }
}

/// One life of all controllers; ends at once when dropped, as a process does at SIGKILL.
pub(crate) struct Life(Vec<JoinHandle<()>>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Starts the life of all controllers.
pub(crate) fn start(ctx: &Context) -> Life {
    let system_namespace = "portolan-system".to_owned();
    let app = portolan_controller_app::run(
        ctx,
        portolan_controller_app::Settings { system_namespace: system_namespace.clone() },
    );
    let version = portolan_controller_version::run(
        ctx,
        portolan_controller_version::Settings { verifying_limit: 64 },
    );
    let pool = portolan_controller_pool::run(
        ctx,
        portolan_controller_pool::Settings {
            pre_stop_seconds: 0,
            ..portolan_controller_pool::Settings::standard(&system_namespace)
        },
    );
    let route = portolan_controller_route::run(
        ctx,
        portolan_controller_route::Settings {
            system_namespace,
            gateway_service_account: "portolan-gateway".into(),
        },
    );
    Life(vec![
        tokio::spawn(async move { app.await.expect("the app controller runs") }),
        tokio::spawn(async move { version.await.expect("the version controller runs") }),
        tokio::spawn(async move { pool.await.expect("the pool controller runs") }),
        tokio::spawn(async move { route.await.expect("the route controller runs") }),
    ])
}
