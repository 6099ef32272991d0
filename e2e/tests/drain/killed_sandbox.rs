//! A sandbox's program is killed, as for want of memory; its Pod stays, and the kubelet starts the
//! container again.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::wait;
use portolan_e2e::pods;
use portolan_soak::load::{Load, Visitors};

use crate::scene::{SHOP, Scene, TEAM, door};

const PAIR: &str = "pair.portolan.test";
/// Two sandboxes: who comes after one was killed goes to the other.
const SCALE: &str = "requestsPerInstance: 50, min: 2, max: 2";

/// How many visit per second, and how many of them can be in one sandbox: every tenth takes 400 ms,
/// and the others next to nothing.
const RATE: u32 = 100;
const IN_FLIGHT_MAX: usize = 30;
/// How much later than the kill somebody may have begun who is excused: `ctr` returns when the
/// signal is sent, and the kernel then takes a moment to end the process.
const KILL_TAKES: Duration = Duration::from_millis(300);
/// How long a visitor may wait where the only sandbox's container is started again.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// After the kill: the kubelet starts the container again within it.
const AFTERMATH: Duration = Duration::from_secs(4);

/// Only requests that are in the killed sandbox fail. With another one, nobody notices more than
/// that; without, who comes meanwhile waits.
pub(crate) async fn only_its_own_requests_fail(scene: &mut Scene) -> anyhow::Result<()> {
    scene.deploy("pair", SCALE).await?;
    for (app, host, count) in [("pair", PAIR, 2), ("shop", SHOP, 1)] {
        kill_one(scene, app, host, count).await.with_context(|| format!("a sandbox of {app}"))?;
    }
    scene.kubectl(TEAM, &["delete", "app,route", "pair"]).map(drop)
}

async fn kill_one(scene: &Scene, app: &str, host: &str, count: usize) -> anyhow::Result<()> {
    let selector = format!("portolan.dev/app={app}");
    // The App is ready with the first of them.
    let before = wait::until("all its sandboxes", wait::PATIENCE, async || {
        let sandboxes = pods::running(&scene.cluster, TEAM, &selector)?;
        ensure!(sandboxes.len() == count, "{sandboxes:?}");
        anyhow::Ok(sandboxes)
    })
    .await?;
    let visitors = Visitors { address: door(), host: host.to_owned(), rate: RATE };
    let load = Load::start(&scene.cluster, visitors)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let killed = before.first().context("a sandbox")?.kill();
    let moment = Instant::now();
    tokio::time::sleep(AFTERMATH).await;
    let tally = load.end().await?;
    killed?;
    let late: Vec<_> =
        tally.failures.iter().filter(|failure| failure.begun > moment + KILL_TAKES).collect();
    ensure!(late.is_empty(), "{} failed who came later, the first: {:?}", late.len(), late[0]);
    let cut = tally.failures.len();
    ensure!(cut <= IN_FLIGHT_MAX, "{cut} failed, the first: {:?}", tally.failures[0]);
    let longest = tally.quantile(1.0);
    eprintln!(
        "    a sandbox of {app} is killed: {cut} of {} are cut, nobody waits longer than \
         {longest:?}",
        tally.asked()
    );
    ensure!(longest < WAIT_MAX, "somebody waited {longest:?}");
    let uids = |pods: &[pods::Running]| pods.iter().map(|pod| pod.uid().to_owned()).collect();
    let (before, after): (Vec<_>, Vec<_>) =
        (uids(&before), uids(&pods::running(&scene.cluster, TEAM, &selector)?));
    ensure!(before == after, "sandboxes were replaced: {before:?}, now {after:?}");
    scene.ready()
}
