//! Gateways change the certificates that they know each other by, and go on lending slots.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::wait;
use portolan_e2e::pods::Running;
use serde_json::Value;

use crate::counts::Counts;
use crate::crowd::{Crowd, Left};
use crate::scene::{Scene, TEAM};

/// A certificate is used for as long, and the next one is known for half of it before.
pub(crate) const OFTEN: &str = "PORTOLAN_PEER_CERTIFICATE_SECONDS=10";

const SINGLE: &str = "single.portolan.test";
/// One slot in the whole cluster: who is answered through the gateway that does not own it was
/// answered over a loan.
const SCALE: &str = "requestsPerInstance: 1, concurrency: Strict, min: 1, max: 1";

/// How often each certificate changes while people ask: the second time the first one is no longer
/// known to anybody.
const CHANGES: usize = 2;

/// Gateways were told to change [`OFTEN`]: nobody is refused, and the sandbox never has two
/// requests at once.
pub(crate) async fn lending_goes_on(scene: &mut Scene) -> anyhow::Result<()> {
    let gateways = scene.two_gateways().await?;
    scene.deploy("single", SCALE).await?;
    let counts = Counts::start(&scene.cluster, "single").await?;
    let mut crowds = Vec::new();
    for gateway in &gateways {
        let path = "/work?ms=20";
        crowds.push(Crowd::gather(&scene.cluster, gateway.address, 2, SINGLE, path)?);
    }
    let mut known = shown(scene, &gateways)?;
    for _ in 0..CHANGES {
        let before: Vec<_> = crowds.iter().map(Crowd::answers).collect();
        known = wait::until("new certificates of both", wait::PATIENCE, async || {
            let now = shown(scene, &gateways)?;
            let is_new = |name: &String| now[name].last() != known[name].last();
            ensure!(known.keys().all(is_new), "{now:?}");
            anyhow::Ok(now)
        })
        .await?;
        // Through either gateway, so over a loan through one of them.
        for (crowd, before) in crowds.iter().zip(before) {
            crowd.until_more_than(before + 20).await?;
        }
    }
    for crowd in crowds {
        let Left { answers, failures } = crowd.leave().await?;
        ensure!(failures.is_empty(), "{} of {answers} failed: {failures:?}", failures.len());
    }
    counts.never_more_than(1).await?;
    for gateway in &gateways {
        let links = gateway.metric("portolan_peer_links")?;
        let violations = gateway.metric("portolan_peer_violations_total")?;
        ensure!(links >= 1.0 && violations == 0.0, "{links} links, {violations} violations");
    }
    scene.kubectl(TEAM, &["delete", "app,route", "single"]).map(drop)
}

/// The digests of the certificates that each gateway shows, the newest last.
fn shown(scene: &Scene, gateways: &[Running]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let shown = gateways.iter().map(|gateway| {
        let lease = scene.kubectl(NAMESPACE, &["get", "lease", &gateway.name, "-o", "json"])?;
        let lease: Value = serde_json::from_str(&lease).context("a Lease")?;
        let digests = &lease["metadata"]["annotations"][portolan_api::gateway::PEER_CERTIFICATES];
        let digests = digests.as_str().context("digests of certificates")?;
        Ok((gateway.name.clone(), digests.split(',').map(ToOwned::to_owned).collect()))
    });
    shown.collect()
}
