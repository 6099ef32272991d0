//! What fails.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::{control_plane, wait};

use crate::extent::Extent;
use crate::load::Failure;
use crate::report::{Report, killed_at};
use crate::scene::{CONTROLLERS, Scene, TEAM, shop};

/// Selects the sandboxes that are visited.
const SHOP: &str = "portolan.dev/app=shop";
/// Between two kills of the controllers: long enough that they get to lead, and so to be in the
/// midst of something.
const KILL_INTERVAL: Duration = Duration::from_secs(4);

pub(super) async fn killed_sandboxes(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let outcome = scene
        .visited(extent, async |scene| {
            for _ in 0..extent.sandboxes {
                let sandboxes = scene.running(TEAM, SHOP).await?;
                let victim = sandboxes.first().context("a sandbox")?.pod.clone();
                scene.team(&["delete", "pod", &victim, "--wait=false"]).await?;
                wait::until("another sandbox", wait::PATIENCE, async || {
                    let sandboxes = scene.running(TEAM, SHOP).await?;
                    let others = sandboxes.iter().filter(|sandbox| sandbox.pod != victim);
                    ensure!(others.count() > 0, "{sandboxes:?}");
                    anyhow::Ok(())
                })
                .await?;
                scene.ready("shop").await?;
            }
            Ok(())
        })
        .await?;
    Ok(Report::unnoticed(format!("{} sandboxes deleted", extent.sandboxes), &outcome))
}

pub(super) async fn gateway_killed(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let mut killed = Vec::new();
    let outcome = scene
        .visited(extent, async |scene| {
            for _ in 0..extent.kills {
                let victim = scene.frequent_victim().await?;
                let process = scene.holder(&victim).await?;
                scene.pods.note_killed(&victim);
                killed.push(Instant::now());
                scene.kill(&victim)?;
                // Long before its Lease would lapse: its slots are somebody's again.
                wait::until("the killed gateway to be given up", extent.given_up, async || {
                    let holder = scene.holder(&victim).await?;
                    ensure!(holder != process, "{holder} holds its Lease");
                    anyhow::Ok(())
                })
                .await?;
                // Those who come after it, for as long again as it may take.
                tokio::time::sleep(extent.hand_over * 2).await;
                scene.two_gateways().await?;
            }
            anyhow::Ok(())
        })
        .await?;
    let is_excused = |failure: &Failure| {
        killed.iter().any(|moment| killed_at(*moment, extent.hand_over)(failure))
    };
    let what = format!("a gateway ended by kill -9, {} times", extent.kills);
    let mut report = Report::judged(what, &outcome, is_excused);
    if !report.is_good() {
        let moments: Vec<_> = killed.iter().map(|moment| outcome.when(*moment)).collect();
        report.faults.push(format!("the kills were {}", moments.join(", ")));
    }
    Ok(report)
}

pub(super) async fn controllers_killed(
    scene: &mut Scene,
    extent: &Extent,
) -> anyhow::Result<Report> {
    let outcome = scene
        .visited(extent, async |scene| {
            let begun = Instant::now();
            // Something to be done meanwhile, and half done each time.
            scene.apply(&shop("meanwhile", ""))?;
            while begun.elapsed() < extent.controllers {
                for victim in scene.running(NAMESPACE, CONTROLLERS).await? {
                    // It may have ended since.
                    let _ = scene.kill(&victim);
                    // Its Pod goes too: the kubelet would wait longer before each restart.
                    let words = ["delete", "pod", &victim.pod, "--force", "--grace-period=0"];
                    scene.system(&words).await?;
                }
                tokio::time::sleep(KILL_INTERVAL).await;
            }
            scene.apply(&shop("one", ""))?;
            let words = ["rollout", "status", "deployment/portolan-controller", "--timeout=120s"];
            scene.system(&words).await?;
            scene.ready("shop").await
        })
        .await?;
    let what = format!("controllers killed for {} s", extent.controllers.as_secs());
    Ok(Report::unnoticed(what, &outcome))
}

pub(super) async fn api_server_away(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let mut killed = Instant::now();
    let outcome = scene
        .visited(extent, async |scene| {
            let victim = scene.victim().await?;
            // Ended in order it would first withdraw its address from the Service that Pods
            // reach it by, and the scenario would be about how soon kube-proxy looks again.
            tokio::task::block_in_place(|| scene.cluster.kill(control_plane::API_SERVER))?;
            tokio::time::sleep(extent.outage / 2).await;
            scene.pods.note_killed(&victim);
            killed = Instant::now();
            scene.kill(&victim)?;
            tokio::time::sleep(extent.outage / 2).await;
            scene.cluster.start_api_server().await?;
            scene.two_gateways().await?;
            scene.apply(&shop("after", ""))?;
            scene.ready("shop").await?;
            scene.apply(&shop("one", ""))?;
            scene.ready("shop").await
        })
        .await?;
    let what = format!("API server away for {} s", extent.outage.as_secs());
    Ok(Report::judged(what, &outcome, killed_at(killed, extent.restart)))
}
