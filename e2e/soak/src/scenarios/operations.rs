//! What operators do.

use std::time::Duration;

use crate::extent::Extent;
use crate::report::Report;
use crate::scene::Scene;

/// Moves every Deployment of the chart, and nothing else.
const OTHER_VALUE: &str = "logs.filter=debug";

pub(super) async fn gateway_restarts(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let outcome = scene
        .visited(extent, async |scene| {
            for _ in 0..extent.restarts {
                scene.system(&["rollout", "restart", GATEWAY]).await?;
                scene.system(&["rollout", "status", GATEWAY, "--timeout=180s"]).await?;
            }
            scene.two_gateways().await
        })
        .await?;
    Ok(Report::unnoticed(format!("{} restarts of the gateways", extent.restarts), &outcome))
}

const GATEWAY: &str = "deployment/portolan-gateway";
/// How long visitors may wait for a sandbox on a node on which everything starts at once.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(30);

pub(super) async fn drain(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let mut outcome = scene
        .visited(extent, async |scene| {
            for node in scene.cluster.nodes() {
                let words = ["drain", node.name(), "--ignore-daemonsets", "--timeout=180s"];
                let words = [&words[..], &["--delete-emptydir-data", "--force"]].concat();
                scene.system(&words).await?;
                scene.system(&["rollout", "status", GATEWAY, "--timeout=180s"]).await?;
                scene.ready("shop").await?;
                scene.system(&["uncordon", node.name()]).await?;
            }
            scene.two_gateways().await
        })
        .await?;
    // Whatever ran on a node ends at once, and how long others take to start is the kubelet's affair.
    outcome.wait_max = DRAIN_WAIT_MAX;
    Ok(Report::unnoticed("both nodes drained, one after the other".into(), &outcome))
}

pub(super) async fn upgrade(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let outcome = scene
        .visited(extent, async |scene| {
            scene.install(&[OTHER_VALUE])?;
            for release in ["portolan", "portolan-crds"] {
                scene.helm(&["rollback", release, "--wait", "--timeout=180s"]).await?;
            }
            // What the harness notes as installed is what is installed.
            scene.install(&[])?;
            scene.two_gateways().await
        })
        .await?;
    Ok(Report::unnoticed("helm upgrade and helm rollback".into(), &outcome))
}
