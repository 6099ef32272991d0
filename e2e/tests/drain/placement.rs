//! What the chart promises for its gateways: where they are, and how many stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use portolan_cluster::command;
use portolan_cluster::platform::NAMESPACE;
use portolan_e2e::pods::Running;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::scene::Scene;

const GATEWAY: &str = "portolan-gateway";
/// As many as the chart asks for by default.
const REPLICAS: i32 = 2;
/// Between two looks at a rollout.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A rollout of the gateways, with `variable` set for them: never fewer than before are ready,
/// nobody who visits notices, and afterwards there is one on each node.
pub(crate) async fn a_rollout_takes_none_away(
    scene: &mut Scene,
    variable: &str,
) -> anyhow::Result<()> {
    let fewest = Fewest::watch(scene).await?;
    scene
        .visited(async |scene| {
            let deployment = format!("deployment/{GATEWAY}");
            scene.kubectl(NAMESPACE, &["set", "env", &deployment, variable])?;
            scene.two_gateways().await.map(drop)
        })
        .await?;
    let fewest = fewest.end();
    ensure!(fewest == REPLICAS, "at one time {fewest} gateways were ready");
    Ok(())
}

/// Both gateways are to be evicted at once: one is, and the other stays until there are two again.
pub(crate) async fn one_eviction_at_a_time(scene: &mut Scene) -> anyhow::Result<()> {
    let [first, second] = scene.two_gateways().await?;
    scene
        .visited(async |scene| {
            evict(scene, &first)?;
            let refusal = evict(scene, &second).err().context("both gateways were evicted")?;
            let refusal = format!("{refusal:#}");
            ensure!(refusal.contains("disruption budget"), "{refusal}");
            let now = scene.two_gateways().await?;
            let is_there = |gateway: &Running| now.iter().any(|pod| pod.uid() == gateway.uid());
            ensure!(!is_there(&first) && is_there(&second), "{now:?}");
            Ok(())
        })
        .await
        .map(drop)
}

/// Asks once to evict a gateway, as `kubectl drain` does again and again.
fn evict(scene: &Scene, gateway: &Running) -> anyhow::Result<()> {
    let name = &gateway.name;
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": { "name": name, "namespace": NAMESPACE },
    });
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction");
    let mut kubectl = scene.cluster.program("kubectl");
    kubectl.args(["create", "--raw", &path, "-f", "-"]);
    tokio::task::block_in_place(|| command::feed(&mut kubectl, &eviction.to_string()))
}

/// The fewest gateways that were ready.
struct Fewest {
    looking: JoinHandle<()>,
    fewest: Arc<AtomicI32>,
}

impl Fewest {
    async fn watch(scene: &Scene) -> anyhow::Result<Self> {
        let deployments: Api<Deployment> =
            Api::namespaced(scene.cluster.client().await?, NAMESPACE);
        let fewest = Arc::new(AtomicI32::new(i32::MAX));
        let noted = Arc::clone(&fewest);
        let looking = tokio::spawn(async move {
            loop {
                if let Ok(deployment) = deployments.get(GATEWAY).await {
                    let ready = deployment.status.and_then(|status| status.ready_replicas);
                    noted.fetch_min(ready.unwrap_or_default(), Ordering::Relaxed);
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        });
        Ok(Self { looking, fewest })
    }

    fn end(self) -> i32 {
        self.looking.abort();
        self.fewest.load(Ordering::Relaxed)
    }
}
