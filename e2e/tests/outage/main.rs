//! The API server is flooded, and goes away and comes back: wakes are not delayed, what flows goes
//! on, a gateway that is killed meanwhile serves again from its snapshot, and nobody storms the API
//! server that returns.
//!
//! On a cluster of its own, because all other tests need the API server.

mod flood;
mod scene;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait;
use portolan_e2e::on_own_cluster;
use portolan_e2e::visitor::Visitor;

use crate::scene::{Gateway, HOST, Scene};

const CLUSTER: &str = "outage";

/// How long the API server stays away: longer than any delay of a watch, a Lease or a client.
const AWAY: Duration = Duration::from_secs(40);

/// How long a killed gateway may take to serve again: the kubelet has to notice, and to start it.
const RESTART_LIMIT: Duration = Duration::from_secs(10);

/// How long everything may take to know again how things are: the longest rest of a watch, twice,
/// because an API server that has just started may refuse once more; the rest for a busy machine.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(40);

/// What controllers may write after an outage in which nothing changed. The Leases of leaders and
/// Events are not among it.
const WRITES_MAX: u64 = 8;

/// What they may write beside it if Kubernetes took a node for lost, as it had not heard of it for
/// so long: each of its sandboxes is not ready, and ready again.
const WRITES_OF_READINESS_MAX: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_api_server_interrupts_nobody() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let mut scene = Scene::set(Cluster::ensure(CLUSTER, 1).await?).await?;
    flood::wakes_are_not_delayed(&scene).await?;
    let gateways = scene.gateways()?;
    ensure!(gateways.len() == 2, "{gateways:?}");
    for gateway in &gateways {
        fresh(&scene, gateway).await?;
    }
    let sandboxes = scene.sandboxes()?;
    let before = scene.settled_writes().await?;
    let ready = scene.ready_since()?;
    let (lists_before, watches) = scene.lists()?;

    let visitor = Visitor::start(scene.port(), HOST);
    scene.kill_api_server()?;
    let stopped = Instant::now();
    wait::until("the gateways to say that they are stale", AWAY, async || {
        let stale = scene.stale(&gateways[0])?;
        ensure!(stale > 5.0, "stale for {stale} s");
        anyhow::Ok(())
    })
    .await?;
    visitor.leave().await.context("with the API server away")?;

    restart_one(&scene, &gateways[0]).await?;

    let visitor = Visitor::start(scene.port(), HOST);
    tokio::time::sleep(AWAY.saturating_sub(stopped.elapsed())).await;
    scene.start_api_server().await?;
    let back = Instant::now();
    for gateway in &gateways {
        fresh(&scene, gateway).await?;
    }
    eprintln!("    caught up {:?} after the API server answered", back.elapsed());
    ensure!(scene.sandboxes()? == sandboxes, "sandboxes were replaced although nothing changed");
    scene.changes_arrive(&gateways, CATCH_UP_LIMIT).await?;
    let mut writes = scene.writes()?;
    for (labels, count) in &mut writes {
        *count = count.saturating_sub(before.get(labels).copied().unwrap_or(0));
    }
    writes.retain(|_, count| *count > 0);
    let written: u64 = writes.values().sum();
    let lost = if scene.ready_since()? == ready { 0 } else { WRITES_OF_READINESS_MAX };
    ensure!(written <= WRITES_MAX + lost, "{written} writes although nothing changed: {writes:?}");
    let lists = scene.lists()?.0 - lists_before;
    // Now and then one lists twice: an API server that has just started replaces what serves custom
    // resources once more.
    ensure!(
        lists <= watches + watches / 4,
        "{watches} watches have listed everything {lists} times"
    );
    eprintln!("    {written} writes {writes:?} and {lists} lists of {watches} watches to catch up");
    visitor.leave().await.context("while the API server came back")
}

/// Kills one gateway's container: it serves again, is ready, says that it is stale, and denies
/// nothing that it never knew.
async fn restart_one(scene: &Scene, gateway: &Gateway) -> anyhow::Result<()> {
    let killed = Instant::now();
    scene.kill(gateway)?;
    wait::until("the killed gateway to serve", RESTART_LIMIT, async || {
        let status = scene.status(gateway, scene::HOST)?;
        ensure!(status == 200, "{status}");
        anyhow::Ok(())
    })
    .await?;
    eprintln!("    served again {:?} after it was killed", killed.elapsed());
    let status = scene.status(gateway, "unknown.portolan.test")?;
    ensure!(status == 503, "a host that was never read was answered {status}");
    let status = scene.readiness(gateway)?;
    ensure!(status == 200, "the restarted gateway answers {status} to its readiness probe");
    ensure!(scene.stale(gateway)? > 5.0, "it does not say that it is stale");
    Ok(())
}

async fn fresh(scene: &Scene, gateway: &Gateway) -> anyhow::Result<()> {
    wait::until("a gateway that is not stale and has a snapshot", CATCH_UP_LIMIT, async || {
        let stale = scene.stale(gateway)?;
        ensure!(stale == 0.0, "stale for {stale} s");
        let written = scene.metric(gateway, "portolan_snapshot_writes_total")?;
        ensure!(written > 0.0, "no snapshot written");
        anyhow::Ok(())
    })
    .await
}
