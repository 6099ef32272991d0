//! The link of a node is cut: nothing that is sent there is acknowledged, and nobody says so before
//! Kubernetes gives the node up. Then it is joined again.

use std::time::{Duration, Instant};

use anyhow::ensure;
use portolan_cluster::{network, wait};
use portolan_e2e::pods;

use crate::crowd::Crowd;
use crate::scene::{Scene, TEAM};
use crate::silent_node::linked;

const WIDE: &str = "wide.portolan.test";
/// Visitors, more than one sandbox takes at once.
const PEOPLE: usize = 4;
/// How long visitors may wait for a sandbox that is out of reach: it is after 3 s, and the rest is
/// for a busy machine. Kubernetes itself notices after 50 s.
const NOTICED_MAX: Duration = Duration::from_secs(30);

pub(crate) async fn its_sandboxes_are_left_alone(scene: &mut Scene) -> anyhow::Result<()> {
    let [other, cut] = scene.two_gateways().await?;
    // The first sandbox starts beside the other gateway, the second one on the node to be cut.
    scene.kubectl(TEAM, &["cordon", &cut.node])?;
    scene.deploy("wide", "requestsPerInstance: 2, min: 1, max: 2").await?;
    scene.kubectl(TEAM, &["uncordon", &cut.node])?;
    scene.kubectl(TEAM, &["cordon", &other.node])?;
    let crowd = Crowd::gather(&scene.cluster, other.address, PEOPLE, WIDE, "/work?ms=100")?;
    wait::until("a sandbox on each node", wait::PATIENCE, async || {
        let ready = ["wait", "--for=condition=Ready", "pods", "-l", "portolan.dev/app=wide"];
        scene.kubectl(TEAM, &ready)?;
        let sandboxes = pods::running(&scene.cluster, TEAM, "portolan.dev/app=wide")?;
        ensure!(sandboxes.iter().any(|sandbox| sandbox.node == cut.node), "{sandboxes:?}");
        anyhow::Ok(())
    })
    .await?;
    crowd.until_more_than(crowd.answers() + 40).await?;

    let link = Cut::begin(scene, &cut.node)?;
    let begun = Instant::now();
    let before = crowd.answers();
    // Everybody who was unlucky has noticed, and is answered elsewhere.
    crowd.until_more_than(before + 15 * PEOPLE).await?;
    let noticed = begun.elapsed();
    link.end()?;
    eprintln!("    {PEOPLE} visitors had 15 answers each {noticed:?} after the cut");

    scene.kubectl(TEAM, &["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=90s"])?;
    for gateway in [&cut, &other] {
        linked(gateway).await?;
    }
    scene.kubectl(TEAM, &["uncordon", &other.node])?;
    crowd.until_more_than(crowd.answers() + 40).await?;
    let failures = crowd.leave().await?.failures;
    let is_reset = |failure: &String| failure.contains("upstream_reset");
    ensure!(failures.len() <= PEOPLE, "more than were on their way: {failures:?}");
    ensure!(failures.iter().all(is_reset), "visitors of the other gateway: {failures:?}");
    ensure!(noticed < NOTICED_MAX, "noticed after {noticed:?}");
    scene.kubectl(TEAM, &["delete", "apps,routes", "wide"]).map(drop)
}

/// A node without a link. It is joined again when this is dropped.
struct Cut<'a> {
    scene: &'a Scene,
    node: &'a str,
}

impl<'a> Cut<'a> {
    fn begin(scene: &'a Scene, node: &'a str) -> anyhow::Result<Self> {
        let cut = Self { scene, node };
        network::set_link(scene.cluster.files(), node, false)?;
        Ok(cut)
    }

    fn end(&self) -> anyhow::Result<()> {
        network::set_link(self.scene.cluster.files(), self.node, true)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("    a node is still cut off: {error:#}");
        }
    }
}
