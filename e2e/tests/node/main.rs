//! L4 services through the agents of two nodes: addresses and node ports from everywhere, beside
//! kube-proxy, while agents restart and others meddle.
//!
//! On a cluster of its own, because agents are killed and tables of nodes compared.

mod clients;
mod scene;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait;
use portolan_e2e::on_own_cluster;

use crate::clients::{Outcome, Place, Talk};
use crate::scene::{DNS, HTTP, IRC, PATIENCE, Scene};

const CLUSTER: &str = "node";

#[tokio::test(flavor = "multi_thread")]
async fn services_are_reached_through_the_agents() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let scene = Scene::set(Cluster::ensure(CLUSTER, 2).await?).await?;
    addresses_answer_from_everywhere(&scene)?;
    node_ports_answer_on_every_node_and_there_only(&scene)?;
    nothing_of_others_has_changed(&scene)?;
    nobody_else_changes_the_table(&scene)?;
    an_agent_speaks_for_its_node_alone(&scene)?;
    a_killed_agent_interrupts_nobody_and_changes_nothing(&scene).await?;
    a_sender_of_datagrams_follows_the_sandboxes(&scene).await?;
    a_service_that_goes_leaves_nothing(scene).await
}

/// From both nodes and from Pods on both, its own sandboxes among them; over both transports.
fn addresses_answer_from_everywhere(scene: &Scene) -> anyhow::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for place in scene.nodes().into_iter().chain(scene.sandboxes()?) {
        for port in [IRC, DNS] {
            let outcome = place.ask(scene.address(port.number), port.talk);
            ensure!(outcome == Outcome::Echo, "{place}, {port:?}: {outcome:?}");
        }
        // Ten each: that all of them meet the same of two is one chance in 2^39.
        for _ in 0..10 {
            seen.insert(place.sandbox(scene.address(HTTP.number))?);
        }
        for talk in [Talk::Tcp, Talk::Udp] {
            let outcome = place.ask_patiently(scene.address(9), talk);
            ensure!(outcome == Outcome::Refused, "{place}, {talk:?} to no port of it: {outcome:?}");
        }
    }
    ensure!(seen.len() == 2, "all connections went to {seen:?}");
    Ok(())
}

fn node_ports_answer_on_every_node_and_there_only(scene: &Scene) -> anyhow::Result<()> {
    let outside = scene.outside();
    for node in scene.node_addresses() {
        for port in [IRC, DNS] {
            let outcome = outside.ask(SocketAddr::new(node, port.number), port.talk);
            ensure!(outcome == Outcome::Echo, "{node}, {port:?}: {outcome:?}");
        }
        let other = outside.ask(SocketAddr::new(node, HTTP.number), Talk::Tcp);
        ensure!(other == Outcome::Refused, "{node}, a port that is no node port: {other:?}");
    }
    for (place, address) in scene.nodes().into_iter().zip(scene.node_addresses()) {
        let outcome = place.ask(SocketAddr::new(address, IRC.number), Talk::Tcp);
        ensure!(outcome == Outcome::Echo, "{place}, its own address: {outcome:?}");
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let outcome = place.ask(SocketAddr::new(loopback, IRC.number), Talk::Tcp);
        ensure!(outcome == Outcome::Refused, "{place}, its loopback: {outcome:?}");
    }
    Ok(())
}

fn nothing_of_others_has_changed(scene: &Scene) -> anyhow::Result<()> {
    for (number, (before, now)) in scene.tables.iter().zip(scene.tables_of_others()?).enumerate() {
        ensure!(!before.is_empty(), "node {number} has no table of kube-proxy");
        ensure!(*before == now, "tables of others on node {number} changed to\n{now}");
    }
    Ok(())
}

/// The kernel here knows owners of tables.
fn nobody_else_changes_the_table(scene: &Scene) -> anyhow::Result<()> {
    for node in scene.nodes() {
        let listing = node.nft("list table inet portolan")?;
        ensure!(listing.contains(&scene.vip.to_string()), "{listing}");
        let refused = node.nft("delete table inet portolan");
        ensure!(refused.is_err(), "{node}: the table could be deleted");
    }
    Ok(())
}

fn an_agent_speaks_for_its_node_alone(scene: &Scene) -> anyhow::Result<()> {
    let agents = scene.agents()?;
    let [one, other] = &agents[..] else { bail!("two nodes have {} agents", agents.len()) };
    scene.report_as(one, &one.node).context("the report of its own node")?;
    let refused = scene.report_as(one, &other.node);
    let refusal = refused.err().context("it wrote the report of another node")?;
    ensure!(format!("{refusal:#}").contains("may write only"), "{refusal:#}");
    for node in ["node1", "node2"] {
        let report = scene.kubectl(&["get", "nodereport", node, "-o", "json"])?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let ready = &report["spec"]["conditions"][0];
        ensure!(ready["reason"] == "Programmed", "{node}: {ready}");
        ensure!(report["metadata"]["ownerReferences"][0]["kind"] == "Node", "{report}");
        let listens = report["spec"]["listening"].as_array().into_iter().flatten();
        let ports: Vec<_> = listens.map(|port| port["port"].as_i64()).collect();
        ensure!(ports.contains(&Some(10250)), "{node} shows no kubelet: {ports:?}");
    }
    Ok(())
}

async fn a_killed_agent_interrupts_nobody_and_changes_nothing(scene: &Scene) -> anyhow::Result<()> {
    let [node, _] = scene.nodes();
    let address = SocketAddr::new(scene.node_addresses()[0], IRC.number);
    let mut open = scene.outside().connect(address)?;
    let before = node.nft("list table inet portolan")?;
    let agents = scene.agents()?;
    let agent = agents.iter().find(|agent| agent.node == "node1").context("an agent")?;
    let old = node.metric("portolan_node_first_programming_seconds")?;
    agent.kill()?;
    let outcome = scene.outside().ask(address, Talk::Tcp);
    ensure!(outcome == Outcome::Echo, "while the agent is away: {outcome:?}");
    wait::until("the next agent to have programmed", PATIENCE, async || {
        let new = node.metric("portolan_node_first_programming_seconds")?;
        ensure!(new > 0.0 && new.to_bits() != old.to_bits(), "{new}");
        anyhow::Ok(())
    })
    .await?;
    let commits = node.metric("portolan_node_commits_total")?;
    ensure!(commits == 0.0, "an agent that found all as it should be committed {commits} times");
    ensure!(node.nft("list table inet portolan")? == before, "the table has changed");
    open.echo().context("a connection that was there before")
}

/// One socket, one source port: its connection is tracked, and has to be led anew.
async fn a_sender_of_datagrams_follows_the_sandboxes(scene: &Scene) -> anyhow::Result<()> {
    let outside = scene.outside();
    let address = SocketAddr::new(scene.node_addresses()[0], DNS.number);
    let sender = outside.sender(address)?;
    sender.echo().context("before anything happens")?;
    let sandboxes: Vec<_> = scene.running()?.into_iter().map(|pod| pod.name).collect();
    for name in &sandboxes {
        scene.kubectl(&["-n", scene::TEAM, "delete", "pod", name, "--wait=false"])?;
        let deadline = Instant::now() + PATIENCE;
        let mut silence = Duration::ZERO;
        loop {
            let begun = Instant::now();
            // A Pod that does not run yet is an error there.
            let (answer, pods) = (sender.echo(), scene.running().unwrap_or_default());
            silence = if answer.is_ok() { Duration::ZERO } else { silence + begun.elapsed() };
            if answer.is_ok() && pods.len() == 2 && pods.iter().all(|pod| pod.name != *name) {
                break;
            }
            ensure!(Instant::now() < deadline, "{name} was deleted, {silence:?} of silence");
        }
    }
    sender.echo().context("after all sandboxes are others")
}

async fn a_service_that_goes_leaves_nothing(scene: Scene) -> anyhow::Result<()> {
    scene.kubectl(&["-n", scene::TEAM, "delete", "app", "chat", "--wait=false"])?;
    for node in scene.nodes() {
        wait::until("the address to leave the node", PATIENCE, async || {
            let listing = node.nft("list table inet portolan")?;
            ensure!(!listing.contains(&scene.vip.to_string()), "{listing}");
            anyhow::Ok(())
        })
        .await?;
    }
    nothing_of_others_has_changed(&scene)?;
    // What an agent leaves goes with the cleanup.
    scene.kubectl(&["-n", scene::AGENTS, "delete", "ds", "portolan-node", "--wait"])?;
    for node in scene.nodes() {
        // As long as the agent runs, the table is its own.
        wait::until("the cleanup", PATIENCE, async || node.clean_up()).await?;
        ensure!(node.nft("list table inet portolan").is_err(), "the table outlives its cleanup");
    }
    Ok(())
}

impl Place {
    fn nft(&self, words: &str) -> anyhow::Result<String> {
        self.output("nft", &words.split(' ').collect::<Vec<_>>())
    }

    /// A metric of the agent on this node.
    fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let page = self.output("curl", &["-sSf", "-m", "5", "http://127.0.0.1:9462/metrics"])?;
        let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(found.with_context(|| format!("no {name}"))?.parse()?)
    }
}
