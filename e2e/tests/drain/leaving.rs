//! A gateway is told to end while somebody waits there for a sandbox that has no address yet.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::wait;
use portolan_e2e::pods::Running;

use crate::crowd::Crowd;
use crate::scene::{SLEEPER, Scene, TEAM};

pub(crate) async fn its_visitors_get_sandboxes_that_come_later(
    scene: &mut Scene,
) -> anyhow::Result<()> {
    let [leaving, _] = scene.two_gateways().await?;
    scene.asleep().await?;
    let state = scene.cluster.state();
    let scheduler = state.processes.get("control/kube-scheduler");
    let scheduler = scheduler.context("the scheduler's process")?.id;
    // Sandboxes are made, and get neither a node nor a word of why not.
    scheduler.signal(Signal::SIGSTOP)?;
    let visitor = Crowd::gather(&scene.cluster, leaving.address, 1, SLEEPER, "/");
    let left = leave_after_a_sandbox_was_made(scene, &leaving).await;
    scheduler.signal(Signal::SIGCONT)?;
    left?;
    let left = visitor?.leave().await?;
    ensure!(left.failures.is_empty(), "{:?}", left.failures);
    ensure!(left.answers == 1, "{} answers", left.answers);
    scene.two_gateways().await.map(drop)
}

async fn leave_after_a_sandbox_was_made(scene: &Scene, gateway: &Running) -> anyhow::Result<()> {
    wait::until("a sandbox without a node", wait::PATIENCE, async || {
        let words = ["get", "pods", "-l", "portolan.dev/app=sleeper", "-o", "name"];
        let pods = scene.kubectl(TEAM, &words)?;
        ensure!(pods.lines().count() == 1, "{pods}");
        anyhow::Ok(())
    })
    .await?;
    gateway.terminate()?;
    wait::until("the gateway to leave", wait::PATIENCE, async || {
        let lease = scene.kubectl(NAMESPACE, &["get", "lease", &gateway.name, "-o", "yaml"])?;
        ensure!(lease.contains("Leaving"), "{lease}");
        anyhow::Ok(())
    })
    .await
}
