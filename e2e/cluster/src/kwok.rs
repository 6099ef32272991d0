//! Fake nodes, for tests with more Pods than a machine can run.
//!
//! They carry a taint, so that only a Pod that tolerates it is put there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use futures::stream;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::control_plane;
use crate::network::CONTROL;
use crate::paths::Paths;
use crate::state::Spec;
use crate::wait;

/// The label, annotation and taint of a fake node.
pub const MARK: &str = "kwok.x-k8s.io/node";
/// The recorded name of kwok's process.
pub const PROCESS: &str = "control/kwok";
/// Who the nodes' fields belong to.
const MANAGER: &str = "portolan-cluster";
/// Requests under way at once: enough to keep the API server busy, not to queue in it.
const PARALLEL: usize = 16;
/// Fake nodes are ready within seconds; thousands take a minute.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// Gives the cluster this many fake nodes, more or fewer than it had; 0 ends kwok.
///
/// # Errors
/// When the API refuses, or the nodes do not become ready in time.
pub async fn scale(cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(cluster.client().await?);
    if count > 0 && !cluster.is_running(PROCESS) {
        let spec = process(cluster);
        cluster.run(PROCESS, spec)?;
    }
    let fake = ListParams::default().labels(&format!("{MARK}=fake"));
    let present = nodes.list(&fake).await.context("list the fake nodes")?.items;
    let surplus: Vec<String> =
        present.iter().map(ResourceExt::name_any).filter(|name| !wanted(name, count)).collect();
    let nodes = &nodes;
    let mut removed = stream::iter(surplus)
        .map(async |name| nodes.delete(&name, &DeleteParams::default()).await)
        .buffer_unordered(PARALLEL);
    while let Some(result) = removed.next().await {
        result.context("remove a fake node")?;
    }
    let mut added = stream::iter(1..=count).map(async |number| apply(nodes, number).await);
    let mut added = added.by_ref().buffer_unordered(PARALLEL);
    while let Some(result) = added.next().await {
        result?;
    }
    let awaited = format!("{count} fake nodes");
    wait::until(&awaited, READY_LIMIT, async || {
        let ready =
            nodes.list(&fake).await?.iter().filter(|node| crate::cluster::is_ready(node)).count();
        if ready == count { Ok(()) } else { bail!("{ready} are ready") }
    })
    .await?;
    if count == 0 && cluster.is_running(PROCESS) {
        cluster.forget(PROCESS)?;
    }
    Ok(())
}

fn process(cluster: &Cluster) -> Spec {
    let paths = Paths::discover();
    Spec {
        machine: Some(CONTROL.to_owned()),
        program: paths.programs().join("kwok"),
        args: vec![
            format!("--kubeconfig={}", control_plane::admin_kubeconfig(cluster.files()).display()),
            format!("--manage-nodes-with-annotation-selector={MARK}=fake"),
            format!("--config={}", paths.sources().join("manifests/kwok.yaml").display()),
            "--cidr=10.93.0.0/16".to_owned(),
            "--node-lease-duration-seconds=40".to_owned(),
        ],
        env: BTreeMap::new(),
    }
}

async fn apply(nodes: &Api<Node>, number: usize) -> anyhow::Result<()> {
    let name = name(number);
    let params = PatchParams::apply(MANAGER).force();
    nodes
        .patch(&name, &params, &Patch::Apply(object(&name)))
        .await
        .with_context(|| format!("make the fake node {name}"))?;
    Ok(())
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": { (MARK): "fake", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" },
            "annotations": { (MARK): "fake" },
        },
        "spec": { "taints": [{ "key": MARK, "value": "fake", "effect": "NoSchedule" }] },
    })
}

fn name(number: usize) -> String {
    format!("fake{number}")
}

/// Whether a fake node of this name is among the first `count`.
fn wanted(name: &str, count: usize) -> bool {
    let number = name.strip_prefix("fake").and_then(|number| number.parse().ok());
    number.is_some_and(|number: usize| (1..=count).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_nodes_stay_and_later_ones_go() {
        assert!(wanted(&name(3), 3));
        assert!(!wanted(&name(4), 3));
        assert!(!wanted("node1", 3));
    }
}
