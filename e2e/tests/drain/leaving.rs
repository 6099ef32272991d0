//! A gateway is told to end while somebody waits there for a sandbox that has no address yet.

use anyhow::ensure;
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::wait;

use crate::crowd::Crowd;
use crate::scene::{PATIENCE, SLEEPER, Scene, TEAM};

pub(crate) async fn its_visitors_get_sandboxes_that_come_later(
    scene: &mut Scene,
) -> anyhow::Result<()> {
    let [leaving, other] = scene.two_gateways().await?;
    scene.asleep().await?;
    let nodes = [&leaving.node, &other.node];
    // Sandboxes are made and placed nowhere.
    nodes.iter().try_for_each(|node| scene.kubectl(TEAM, &["cordon", node]).map(drop))?;
    let visitor = Crowd::gather(&scene.cluster, leaving.address, 1, SLEEPER, "/")?;
    wait::until("a sandbox that is placed nowhere", PATIENCE, async || {
        let pending = ["--field-selector=status.phase=Pending", "-o", "name"];
        let words = [&["get", "pods", "-l", "portolan.dev/app=sleeper"], &pending[..]].concat();
        let pods = scene.kubectl(TEAM, &words)?;
        ensure!(pods.lines().count() == 1, "{pods}");
        anyhow::Ok(())
    })
    .await?;
    leaving.terminate()?;
    wait::until("the gateway to leave", PATIENCE, async || {
        let lease = scene.kubectl(NAMESPACE, &["get", "lease", &leaving.name, "-o", "yaml"])?;
        ensure!(lease.contains("Leaving"), "{lease}");
        anyhow::Ok(())
    })
    .await?;
    nodes.iter().try_for_each(|node| scene.kubectl(TEAM, &["uncordon", node]).map(drop))?;
    let left = visitor.leave().await?;
    ensure!(left.failures.is_empty(), "{:?}", left.failures);
    ensure!(left.answers == 1, "{} answers", left.answers);
    scene.two_gateways().await.map(drop)
}
