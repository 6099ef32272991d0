//! A node falls silent: its kubelet and its gateway stand still, nobody reports that anything has
//! ended, and connections to it are taken by the kernel and never answered. Then it comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use portolan_cluster::process::ProcessId;
use portolan_cluster::wait;
use portolan_e2e::pods::Running;
use serde_json::Value;

use crate::counts::Counts;
use crate::crowd::Crowd;
use crate::scene::{SHOP, Scene, TEAM};

/// How long its slots may stay with a gateway that is silent: its Lease lapses after 15 s. The rest
/// is for a busy machine. Kubernetes itself would notice after 50 s.
const TAKEN_OVER_MAX: Duration = Duration::from_secs(35);

/// Requests that one sandbox takes at once where any gateway's share of it is missed.
const NARROW_SLOTS: u64 = 2;

/// What a program does for as long as this cannot be stopped: whether a request has ended is seen
/// by the answer alone.
const WORK: &str = "/work?ms=100";

const NARROW: &str = "narrow.portolan.test";
const STRICT: &str = "strict.portolan.test";

pub(crate) async fn its_gateway_is_replaced_and_rejoins(scene: &mut Scene) -> anyhow::Result<()> {
    let [other, silent] = scene.two_gateways().await?;
    scene.deploy("narrow", "requestsPerInstance: 2, min: 1, max: 1").await?;
    let strict = "requestsPerInstance: 1, concurrency: Strict, min: 2, max: 2";
    scene.deploy("strict", strict).await?;
    // Pods that Kubernetes would still give to the silent node would not start.
    scene.kubectl(TEAM, &["cordon", &silent.node])?;
    let (narrow, strict) = (
        Counts::start(&scene.cluster, "narrow").await?,
        Counts::start(&scene.cluster, "strict").await?,
    );
    let gather = |gateway: &Running, people, host, path| {
        Crowd::gather(&scene.cluster, gateway.address, people, host, path)
    };
    // Twice as many as there are slots, so that each is in use, lent or owed all the time.
    let unlucky = [gather(&silent, 4, STRICT, WORK)?, gather(&silent, 4, NARROW, WORK)?];
    let (at_strict, at_narrow) =
        (gather(&other, 4, STRICT, WORK)?, gather(&other, 4, NARROW, WORK)?);
    let at_shop = gather(&other, 2, SHOP, "/")?;
    for crowd in unlucky.iter().chain([&at_strict, &at_narrow, &at_shop]) {
        crowd.until_more_than(crowd.answers() + 5).await?;
    }

    let mut shares = slots(scene)?;
    shares.retain(|(who, _)| who.starts_with(&silent.name));
    let silent_had = sum(&shares);
    let asleep = Asleep::begin(scene, &silent)?;
    let begun = Instant::now();
    wait::until("all slots to be the other gateway's", TAKEN_OVER_MAX, async || {
        let slots = slots(scene)?;
        let is_taken = slots.iter().all(|(who, _)| who.starts_with(&other.name));
        ensure!(is_taken && sum(&slots) == NARROW_SLOTS, "{slots:?}");
        anyhow::Ok(())
    })
    .await?;
    let taken_over = begun.elapsed();
    for crowd in [&at_shop, &at_narrow, &at_strict] {
        crowd.until_more_than(crowd.answers() + 20).await?;
    }
    eprintln!(
        "    the slots of a silent node's gateway were the other's after {taken_over:?}, strict \
         ones were replaced after {:?}",
        begun.elapsed()
    );

    let before: Vec<_> = unlucky.iter().map(Crowd::answers).collect();
    asleep.end()?;
    // Those who waited all the while are answered, over slots that are lent now.
    for (crowd, before) in unlucky.iter().zip(before) {
        crowd.until_more_than(before + 20).await?;
    }
    for gateway in [&silent, &other] {
        linked(gateway).await?;
    }
    let owned = slots(scene)?;
    ensure!(sum(&owned) == NARROW_SLOTS, "{owned:?} after the gateway came back");

    let failures = at_shop.leave().await?.failures;
    ensure!(failures.is_empty(), "visitors of the other gateway: {failures:?}");
    let failures = at_narrow.leave().await?.failures;
    ensure!(failures.is_empty(), "visitors who waited for slots: {failures:?}");
    // Requests that were in a sandbox that was replaced may have been cut.
    at_strict.leave().await?;
    for crowd in unlucky {
        crowd.leave().await?;
    }
    strict.never_more_than(1).await?;
    // `Soft` counts who is silent as gone: when it comes back, what it had is used twice until it
    // has read who has it now.
    narrow.never_more_than(NARROW_SLOTS + silent_had).await?;
    scene.kubectl(TEAM, &["uncordon", &silent.node])?;
    scene.kubectl(TEAM, &["delete", "apps,routes", "narrow", "strict"]).map(drop)
}

/// A node that stands still. It goes on when this is dropped.
struct Asleep {
    processes: Vec<ProcessId>,
}

impl Asleep {
    fn begin(scene: &Scene, gateway: &Running) -> anyhow::Result<Self> {
        let state = scene.cluster.state();
        let kubelet = state.processes.get(&format!("{}/kubelet", gateway.node));
        let kubelet = kubelet.context("the node's kubelet")?.id;
        let process = gateway.process()?;
        let number = process.file_name().and_then(|name| name.to_str()?.parse().ok());
        let process = ProcessId::of(number.context("a process's number")?)?;
        // The kubelet first: it would take what stands still for what does not answer its probes.
        let asleep = Self { processes: vec![kubelet, process] };
        for process in &asleep.processes {
            process.signal(Signal::SIGSTOP)?;
        }
        Ok(asleep)
    }

    fn end(&self) -> anyhow::Result<()> {
        self.processes.iter().rev().try_for_each(|process| process.signal(Signal::SIGCONT))
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("    a node still stands still: {error:#}");
        }
    }
}

/// Waits until a gateway has a link to the other one.
pub(crate) async fn linked(gateway: &Running) -> anyhow::Result<()> {
    wait::until("the gateways to be linked", wait::PATIENCE, async || {
        let links = gateway.metric("portolan_peer_links")?;
        ensure!(links >= 1.0, "{} has {links} links", gateway.name);
        anyhow::Ok(())
    })
    .await
}

/// Whose the slots of the narrow App's sandbox are, by process.
fn slots(scene: &Scene) -> anyhow::Result<Vec<(String, u64)>> {
    let selector = "portolan.dev/app=narrow";
    let pods = scene.kubectl(TEAM, &["get", "pods", "-l", selector, "-o", "json"])?;
    let pods: Value = serde_json::from_str(&pods).context("a list of Pods")?;
    let [pod] = &pods["items"].as_array().context("a list")?[..] else {
        anyhow::bail!("not one sandbox: {pods}");
    };
    let granted = pod["metadata"]["annotations"]["portolan.dev/slots"].as_str();
    let granted = granted.context("slots")?.split(',').map(|entry| {
        let (who, count) = entry.split_once('=').context("slots of a gateway")?;
        Ok((who.to_owned(), count.parse().context("a count of slots")?))
    });
    granted.collect()
}

fn sum(slots: &[(String, u64)]) -> u64 {
    slots.iter().map(|(_, count)| count).sum()
}
