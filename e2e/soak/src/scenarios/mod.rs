//! What is done.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use portolan_cluster::logs;

use crate::extent::Extent;
use crate::report::Report;
use crate::scene::Scene;

mod failures;
mod hostile;
mod limits;
mod operations;
mod rollouts;
mod wakes;

/// One thing that is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// New versions and rollbacks.
    Rollouts,
    /// A new version that never becomes ready.
    NeverReady,
    /// Sandboxes that somebody deletes.
    KilledSandboxes,
    /// Restarts of the gateways' Deployment.
    GatewayRestarts,
    /// A gateway that ends as by `kill -9`.
    GatewayKilled,
    /// Controllers that end as by `kill -9`, again and again.
    ControllersKilled,
    /// The API server is away, and a gateway restarts meanwhile.
    ApiServerAway,
    /// Many Apps that are woken at once.
    Wakes,
    /// Nodes that are drained, one after the other.
    Drain,
    /// `helm upgrade` and `helm rollback`, of the definitions too.
    Upgrade,
    /// One request at a time in a sandbox, whatever happens.
    Strict,
    /// Not more requests than a sandbox has slots, and no second one before.
    Soft,
    /// Floods, slow clients and whatever else harms gateways, at the cost of another App.
    Hostile,
}

impl Scenario {
    /// Everything there is.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    async fn play(self, scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
        match self {
            Self::Rollouts => rollouts::rollouts(scene, extent).await,
            Self::NeverReady => rollouts::never_ready(scene, extent).await,
            Self::KilledSandboxes => failures::killed_sandboxes(scene, extent).await,
            Self::GatewayRestarts => operations::gateway_restarts(scene, extent).await,
            Self::GatewayKilled => failures::gateway_killed(scene, extent).await,
            Self::ControllersKilled => failures::controllers_killed(scene, extent).await,
            Self::ApiServerAway => failures::api_server_away(scene, extent).await,
            Self::Wakes => wakes::wakes(scene, extent).await,
            Self::Drain => operations::drain(scene, extent).await,
            Self::Upgrade => operations::upgrade(scene, extent).await,
            Self::Strict => limits::strict(scene, extent).await,
            Self::Soft => limits::soft(scene, extent).await,
            Self::Hostile => hostile::hostile(scene, extent).await,
        }
    }
}

/// Does one after the other, with progress on the standard error, and tells what was noticed.
pub async fn play(scene: &mut Scene, scenarios: &[Scenario], extent: &Extent) -> Vec<Report> {
    let mut reports = Vec::new();
    for scenario in scenarios {
        let value = scenario.to_possible_value();
        let name = value.map(|value| value.get_name().to_owned()).unwrap_or_default();
        eprintln!("==> {name}");
        let report = match scenario.play(scene, extent).await {
            Ok(report) => report,
            Err(error) => Report::broken(name.clone(), &error),
        };
        eprintln!("    {}", if report.is_good() { "good" } else { "BAD" });
        if !report.is_good() {
            match keep_logs(scene, &name) {
                Ok(folder) => eprintln!("    logs: {}", folder.display()),
                Err(error) => eprintln!("    no logs: {error:#}"),
            }
        }
        reports.push(report);
    }
    reports
}

/// Copies the logs at once: what comes next replaces the Pods that could tell.
fn keep_logs(scene: &Scene, scenario: &str) -> anyhow::Result<PathBuf> {
    let logs = tokio::task::block_in_place(|| logs::collect(&scene.cluster.files().name))?;
    let kept = logs.with_file_name(format!("logs-of-{scenario}"));
    if kept.exists() {
        fs::remove_dir_all(&kept).with_context(|| format!("empty {}", kept.display()))?;
    }
    fs::rename(&logs, &kept).with_context(|| format!("keep {}", logs.display()))?;
    Ok(kept)
}
