//! New versions, rollbacks, and versions that fail.

use anyhow::ensure;

use crate::extent::Extent;
use crate::report::Report;
use crate::scene::{Scene, shop};

/// It listens where nobody asks.
const DEAF: &str = "    args: [--port, \"9999\"]\n";

pub(super) async fn rollouts(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let outcome = scene
        .visited(extent, async |scene| {
            for number in 1..=extent.rollouts {
                // Every other one goes back to the version before.
                let version = if number % 2 == 0 { "one".into() } else { format!("v{number}") };
                scene.apply(&shop(&version, ""))?;
                scene.ready("shop").await?;
            }
            scene.apply(&shop("one", ""))?;
            scene.ready("shop").await
        })
        .await?;
    Ok(Report::unnoticed(format!("{} rollouts and rollbacks", extent.rollouts), &outcome))
}

pub(super) async fn never_ready(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let outcome = scene
        .visited(extent, async |scene| {
            scene.apply(&shop("deaf", DEAF))?;
            let serving = scene.team(&["get", "app/shop", "-o", ACTIVE]).await?;
            tokio::time::sleep(extent.never_ready).await;
            let still = scene.team(&["get", "app/shop", "-o", ACTIVE]).await?;
            ensure!(serving == still, "{still} serves, which never was ready");
            scene.apply(&shop("one", ""))?;
            scene.ready("shop").await
        })
        .await?;
    Ok(Report::unnoticed("a version that never becomes ready".into(), &outcome))
}

const ACTIVE: &str = "jsonpath={.status.activeVersion}";
