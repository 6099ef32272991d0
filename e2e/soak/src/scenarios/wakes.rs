//! Many Apps that sleep, and are all asked at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::network::OUTSIDE;
use portolan_cluster::wait;

use crate::extent::Extent;
use crate::inside::Inside;
use crate::load::{Tally, ask_once};
use crate::report::{Outcome, Report};
use crate::scene::{Scene, TEAM};

/// How long all of them may take to have been started once and to sleep again: a kubelet starts a
/// few containers a second.
const SLEEP_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn wakes(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let count = extent.wakes;
    let manifests: String = (0..count).map(sleeper).collect();
    scene.apply(&manifests)?;
    let words = ["wait", "--for=condition=Ready", "apps", "-l", "soak=sleeper", "--timeout=600s"];
    scene.team(&words).await?;
    wait::until("all sleepers to sleep", SLEEP_LIMIT, async || {
        let sandboxes = scene.team(&["get", "pods", "-l", "soak=sleeper", "-o", "name"]).await?;
        ensure!(sandboxes.is_empty(), "{} are awake", sandboxes.lines().count());
        anyhow::Ok(())
    })
    .await?;
    let trial = scene.open(extent, extent.streams).await?;
    let woken = wake(scene, count).await;
    let outcome = trial.end().await?;
    let (took, tally) = woken?;
    let beside = Report::unnoticed(String::new(), &outcome);
    let (begun, cuts, astray) = (outcome.begun, outcome.cuts, outcome.astray);
    // How long a wake takes is the kubelet's affair.
    let (early, wait_max) = (Vec::new(), Duration::MAX);
    let woken = Outcome { begun, took, tally, cuts, early, never: 0, wait_max, astray };
    let mut report = Report::unnoticed(format!("{count} sleeping Apps woken at once"), &woken);
    report.faults.extend(beside.faults.into_iter().map(|fault| format!("beside it: {fault}")));
    scene.team(&["delete", "apps,routes", "-l", "soak=sleeper"]).await?;
    Ok(report)
}

/// Asks all of them at once.
async fn wake(scene: &Scene, count: u32) -> anyhow::Result<(Duration, Tally)> {
    let address: SocketAddr = scene.address();
    let begun = Instant::now();
    let asked = Inside::start(&scene.cluster, OUTSIDE, move |_| async move {
        let all = (0..count).map(|number| ask_once(address, host(number)));
        futures::future::join_all(all).await
    })?;
    let mut tally = Tally::default();
    for visit in asked.end().await.context("ask the sleepers")? {
        tally.add(visit);
    }
    tally.latencies.sort_unstable();
    Ok((begun.elapsed(), tally))
}

fn host(number: u32) -> String {
    format!("sleeper-{number}.portolan.test")
}

fn sleeper(number: u32) -> String {
    let host = host(number);
    format!(
        "
---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: {{ name: sleeper-{number}, namespace: {TEAM}, labels: {{ soak: sleeper }} }}
spec:
  image: docker.io/portolan/sample-echo:dev
  services:
  - name: web
    port: 8080
    scale: {{ mode: Auto, scaleDownDelaySeconds: 1, min: 0, max: 1 }}
    template: {{ labels: {{ soak: sleeper }} }}
---
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: {{ name: sleeper-{number}, namespace: {TEAM}, labels: {{ soak: sleeper }} }}
spec: {{ host: {host}, app: sleeper-{number} }}
"
    )
}
