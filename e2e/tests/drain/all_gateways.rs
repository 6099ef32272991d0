//! All gateways are killed at once.

use std::time::{Duration, Instant};

use anyhow::ensure;
use portolan_cluster::wait;
use portolan_e2e::pods;
use portolan_e2e::visitor::{ask, is_good};
use portolan_soak::load::{Load, Visitors};

use crate::crowd::{Crowd, Left};
use crate::scene::{SHOP, Scene, TEAM, door};

const GHOST: &str = "ghost.portolan.test";
/// One request for each sandbox, so that what gateways say of it is how many sandboxes it has.
const SCALE: &str = "requestsPerInstance: 1, scaleDownDelaySeconds: 1, min: 0, max: 4";
const LABEL: &str = "portolan.dev/app=ghost";

const RATE: u32 = 50;
const PEOPLE: usize = 2;
/// Longer than the test takes: they are asked for, and never answered.
const ENDLESS: &str = "/slow?ms=600000";
/// How long nothing may be served: the kubelet starts both containers again, and each begins with
/// its snapshot. The rest is for a busy machine.
const AWAY_MAX: Duration = Duration::from_secs(30);

pub(crate) async fn they_come_back_and_no_ghost_is_served(scene: &mut Scene) -> anyhow::Result<()> {
    let gateways = scene.two_gateways().await?;
    scene.deploy("ghost", SCALE).await?;
    // Those who wait for an answer that will never come, until their gateway is no more.
    let address = gateways[0].address;
    let ghosts = Crowd::gather(&scene.cluster, address, PEOPLE, GHOST, ENDLESS)?;
    wait::until("a sandbox for each of them", wait::PATIENCE, async || {
        let count = pods::running(&scene.cluster, TEAM, LABEL)?.len();
        ensure!(count == PEOPLE, "{count} sandboxes");
        anyhow::Ok(())
    })
    .await?;
    let shop = scene.sandbox()?;

    let visitors = Visitors { address: door(), host: SHOP.to_owned(), rate: RATE };
    let load = Load::start(&scene.cluster, visitors)?;
    let killed = gateways.iter().try_for_each(pods::Running::kill);
    let moment = Instant::now();
    // Who was cut leaves, though perhaps not before asking again while the second one is killed.
    let left = ghosts.leave().await;
    killed?;
    let port = scene.cluster.state().ports.http;
    wait::until("a gateway to serve again", AWAY_MAX, async || {
        let answer = ask(port, SHOP).await?;
        ensure!(is_good(&answer), "{answer}");
        anyhow::Ok(())
    })
    .await?;
    let away = moment.elapsed();
    scene.two_gateways().await?;
    let whole = moment.elapsed();
    // Whoever comes now is served.
    let settled = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tally = load.end().await?;
    let Left { answers, failures } = left?;
    ensure!(answers == 0 && failures.len() >= PEOPLE, "{answers} answered, and {failures:?}");
    ensure!(!tally.failures.is_empty(), "nobody noticed that there was no gateway");
    let late = tally.failures.iter().find(|failure| failure.begun > settled);
    ensure!(late.is_none(), "both are back, and somebody fails: {late:?}");
    eprintln!(
        "    both gateways killed: one serves after {away:?}, both after {whole:?}; {} of {} \
         visitors failed",
        tally.failures.len(),
        tally.asked()
    );

    // What the dead said of their visitors keeps nobody awake, and wakes nobody.
    wait::until("the App of the ghosts to sleep", wait::PATIENCE, async || {
        let pods = scene.kubectl(TEAM, &["get", "pods", "-l", LABEL, "-o", "name"])?;
        ensure!(pods.lines().count() <= PEOPLE, "more sandboxes than before: {pods}");
        ensure!(pods.trim().is_empty(), "{pods}");
        anyhow::Ok(())
    })
    .await?;
    eprintln!("    sandboxes of requests that are lost are gone after {:?}", moment.elapsed());
    ensure!(scene.sandbox()?.uid() == shop.uid(), "the shop's sandbox was replaced");
    scene.kubectl(TEAM, &["delete", "app,route", "ghost"]).map(drop)
}
