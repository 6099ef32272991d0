//! L4 services through the agents of two nodes: addresses and node ports from everywhere, beside
//! kube-proxy, while agents restart and others meddle.
//!
//! On a cluster of its own, because agents are killed and tables of nodes compared.

mod churn;
mod clients;
mod drains;
mod exhaustion;
mod scene;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait;
use portolan_e2e::on_own_cluster;

use crate::clients::{Outcome, Place, Talk};
use crate::scene::{DNS, HTTP, IRC, STACK, Scene};

const CLUSTER: &str = "node";

/// An App that speaks http only.
const SITE: &str = "
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: { name: site, namespace: node }
spec:
  image: docker.io/portolan/sample-echo:dev
  services: [{ name: web, port: 8080, terminationGracePeriodSeconds: 1 }]
";

#[tokio::test(flavor = "multi_thread")]
async fn services_are_reached_through_the_agents() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let mut scene = Scene::set(Cluster::ensure_with(CLUSTER, 2, STACK).await?).await?;
    addresses_answer_from_everywhere(&scene)?;
    names_answer_over_both_transports(&scene)?;
    node_ports_answer_on_every_node_and_there_only(&scene)?;
    programs_of_a_node_reach_the_other_nodes_sandbox_through_their_own_node_port(&scene)?;
    programs_see_who_connects_as_documented(&scene)?;
    an_internal_name_answers_at_both_its_addresses(&scene).await?;
    nothing_of_others_has_changed(&scene)?;
    nobody_else_changes_the_table(&scene)?;
    an_agent_speaks_for_its_node_alone(&scene)?;
    a_killed_agent_interrupts_nobody_and_changes_nothing(&scene).await?;
    a_table_that_went_while_no_agent_ran_is_made_again(&scene).await?;
    a_sender_of_datagrams_follows_the_sandboxes(&scene).await?;
    drains::connections_live_as_long_as_their_sandbox_and_no_longer(&scene).await?;
    exhaustion::an_app_without_an_address_gets_one_when_there_are_more(&mut scene).await?;
    churn::no_connection_is_lost_while_endpoints_come_and_go(&scene).await?;
    a_service_that_goes_leaves_nothing(scene).await
}

/// From both nodes and from Pods on both, its own sandboxes among them; over both transports.
fn addresses_answer_from_everywhere(scene: &Scene) -> anyhow::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for place in scene.nodes().into_iter().chain(scene.sandboxes()?) {
        for port in [IRC, DNS] {
            for address in scene.addresses(port.number) {
                let outcome = place.ask(address, port.talk);
                ensure!(outcome == Outcome::Echo, "{place}, {address}, {port:?}: {outcome:?}");
            }
        }
        // Ten each: that all of them meet the same of two is one chance in 2^79.
        for address in scene.addresses(HTTP.number) {
            for _ in 0..10 {
                seen.insert(place.sandbox(address, "chat")?);
            }
        }
        for (address, talk) in each(&scene.addresses(9), [Talk::Tcp, Talk::Udp]) {
            let outcome = place.ask_patiently(address, talk);
            ensure!(outcome == Outcome::Refused, "{place}, {talk:?} to {address}: {outcome:?}");
        }
    }
    ensure!(seen.len() == 2, "all connections went to {seen:?}");
    Ok(())
}

/// As a program inside the cluster finds it: by its name.
fn names_answer_over_both_transports(scene: &Scene) -> anyhow::Result<()> {
    let words = ["-n", "kube-system", "get", "svc", "kube-dns", "-o", "jsonpath={.spec.clusterIP}"];
    let server = scene.kubectl(&words)?.trim().parse()?;
    for place in scene.sandboxes()? {
        let addresses = place.resolve("chat-irc.node.svc.cluster.local", server)?;
        ensure!(addresses == scene.vips, "{place}: {addresses:?} instead of {:?}", scene.vips);
        for (address, port) in each(&addresses, [IRC, DNS]) {
            let outcome = place.ask(SocketAddr::new(address, port.number), port.talk);
            ensure!(outcome == Outcome::Echo, "{place}, {address}, {port:?}: {outcome:?}");
        }
    }
    Ok(())
}

fn node_ports_answer_on_every_node_and_there_only(scene: &Scene) -> anyhow::Result<()> {
    let outside = scene.outside();
    for node in scene.node_addresses().into_iter().flatten() {
        for port in [IRC, DNS] {
            let outcome = outside.ask(SocketAddr::new(node, port.number), port.talk);
            ensure!(outcome == Outcome::Echo, "{node}, {port:?}: {outcome:?}");
        }
        let other = outside.ask(SocketAddr::new(node, HTTP.number), Talk::Tcp);
        ensure!(other == Outcome::Refused, "{node}, a port that is no node port: {other:?}");
    }
    for (place, addresses) in scene.nodes().into_iter().zip(scene.node_addresses()) {
        for address in addresses {
            let outcome = place.ask(SocketAddr::new(address, IRC.number), Talk::Tcp);
            ensure!(outcome == Outcome::Echo, "{place}, its own {address}: {outcome:?}");
        }
        for loopback in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let outcome = place.ask(SocketAddr::new(loopback, IRC.number), Talk::Tcp);
            ensure!(outcome == Outcome::Refused, "{place}, its {loopback}: {outcome:?}");
        }
    }
    Ok(())
}

/// The sandbox sees the node and answers it; there, the connection is one of the node with itself.
fn programs_of_a_node_reach_the_other_nodes_sandbox_through_their_own_node_port(
    scene: &Scene,
) -> anyhow::Result<()> {
    let sandboxes = scene.sandboxes()?;
    let nodes = scene.nodes().into_iter().zip(scene.node_addresses());
    for ((node, addresses), other) in nodes.zip(sandboxes.iter().rev()) {
        for address in addresses {
            let mut is_reached = false;
            // That one of two sandboxes is never chosen is one chance in 2^20.
            for _ in 0..20 {
                let _open = node.connect(SocketAddr::new(address, IRC.number))?;
                is_reached |= other.peers(IRC.number)?.contains(&address);
            }
            ensure!(is_reached, "{node} reached only its own sandbox through its own {address}");
        }
    }
    Ok(())
}

/// As docs/traffic.md has it, for both families.
fn programs_see_who_connects_as_documented(scene: &Scene) -> anyhow::Result<()> {
    let sandboxes = scene.sandboxes()?;
    let seen = || -> anyhow::Result<Vec<_>> {
        sandboxes.iter().map(|sandbox| sandbox.peers(IRC.number)).collect()
    };
    let (outside, nodes) = (scene.outside(), scene.node_addresses());
    for (family, client) in scene::outside_addresses().into_iter().enumerate() {
        let node = nodes[0][family];
        let (mut local, mut remote) = (false, false);
        // That one of two sandboxes is never chosen is one chance in 2^19.
        for _ in 0..20 {
            let _open = outside.connect(SocketAddr::new(node, IRC.number))?;
            let peers = seen()?;
            local |= peers[0].contains(&client);
            remote |= peers[1].contains(&node);
            ensure!(!peers[0].contains(&node) && !peers[1].contains(&client), "{peers:?}");
        }
        ensure!(local && remote, "{node}: the client here {local}, the node there {remote}");
    }
    for (asker, vip) in each(&sandboxes, scene.addresses(IRC.number)) {
        let own = asker.addresses()?;
        let other = sandboxes.iter().position(|one| one.name != asker.name).context("another")?;
        let (mut itself, mut kept) = (false, false);
        for _ in 0..20 {
            let _open = asker.connect(vip)?;
            let peers = seen()?;
            kept |= peers[other].iter().any(|peer| own.contains(peer));
            itself |= !peers[1 - other].is_empty();
            ensure!(!peers[1 - other].iter().any(|peer| own.contains(peer)), "{peers:?}");
        }
        ensure!(itself && kept, "{asker} at {vip}: itself {itself}, by its own address {kept}");
    }
    Ok(())
}

async fn an_internal_name_answers_at_both_its_addresses(scene: &Scene) -> anyhow::Result<()> {
    scene.apply(SITE)?;
    let addresses = wait::until("the internal name", wait::PATIENCE, async || {
        let spec = scene.kubectl(&["-n", scene::TEAM, "get", "svc", "site-web", "-o", "json"])?;
        let spec: serde_json::Value = serde_json::from_str(&spec)?;
        scene::addresses_of(&spec["spec"])
    })
    .await?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    for (place, address) in each(&scene.sandboxes()?, addresses) {
        wait::until(&format!("{address} to answer to {place}"), wait::PATIENCE, async || {
            let sandbox = place.sandbox(SocketAddr::new(address, 80), "site-web.node")?;
            ensure!(sandbox.starts_with("site-"), "{sandbox}");
            anyhow::Ok(())
        })
        .await?;
    }
    scene.kubectl(&["-n", scene::TEAM, "delete", "app", "site"]).map(drop)
}

fn nothing_of_others_has_changed(scene: &Scene) -> anyhow::Result<()> {
    for (number, (before, now)) in scene.tables.iter().zip(scene.tables_of_others()?).enumerate() {
        ensure!(before.contains("kube-proxy"), "node {number} has no table of kube-proxy");
        ensure!(*before == now, "tables of others on node {number} changed to\n{now}");
    }
    Ok(())
}

/// The kernel here knows owners of tables.
fn nobody_else_changes_the_table(scene: &Scene) -> anyhow::Result<()> {
    for node in scene.nodes() {
        let listing = node.nft("list table inet portolan")?;
        ensure!(scene.vips.iter().all(|vip| listing.contains(&vip.to_string())), "{listing}");
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
    let address = SocketAddr::new(scene.node_addresses()[0][0], IRC.number);
    let mut open = scene.outside().connect(address)?;
    let before = node.nft("list table inet portolan")?;
    let old = node.first_programming()?;
    scene.agent("node1")?.kill()?;
    let outcome = scene.outside().ask(address, Talk::Tcp);
    ensure!(outcome == Outcome::Echo, "while the agent is away: {outcome:?}");
    node.await_next_agent(old).await?;
    let commits = node.metric("portolan_node_commits_total")?;
    ensure!(commits == 0.0, "an agent that found all as it should be committed {commits} times");
    ensure!(node.nft("list table inet portolan")? == before, "the table has changed");
    open.echo().context("a connection that was there before")
}

/// While one runs, nobody else can delete it.
async fn a_table_that_went_while_no_agent_ran_is_made_again(scene: &Scene) -> anyhow::Result<()> {
    let [node, _] = scene.nodes();
    // It was killed before, so that kubelet starts the next one ten seconds later.
    scene.agent("node1")?.kill()?;
    wait::until("the table to be deleted", wait::PATIENCE, async || {
        node.nft("delete table inet portolan")
    })
    .await?;
    for address in scene.addresses(IRC.number) {
        wait::until(&format!("{address} to answer again"), wait::PATIENCE, async || {
            let outcome = node.ask(address, Talk::Tcp);
            ensure!(outcome == Outcome::Echo, "{outcome:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    nothing_of_others_has_changed(scene)
}

/// How long nobody may answer while another sandbox is there. What is measured is much less, see
/// `docs/benchmarks.md`; the rest is for a machine that stands still.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// One socket, one source port: its connection is tracked, and has to be led anew.
async fn a_sender_of_datagrams_follows_the_sandboxes(scene: &Scene) -> anyhow::Result<()> {
    let outside = scene.outside();
    let address = SocketAddr::new(scene.node_addresses()[0][0], DNS.number);
    let sender = outside.sender(address)?;
    sender.echo().context("before anything happens")?;
    let sandboxes: Vec<_> = scene.running()?.into_iter().map(|pod| pod.name).collect();
    for name in &sandboxes {
        scene.kubectl(&["-n", scene::TEAM, "delete", "pod", name, "--wait=false"])?;
        let deadline = Instant::now() + wait::PATIENCE;
        let mut silence = Duration::ZERO;
        loop {
            let begun = Instant::now();
            // A Pod that does not run yet is an error there.
            let (answer, pods) = (sender.echo(), scene.running().unwrap_or_default());
            silence = if answer.is_ok() { Duration::ZERO } else { silence + begun.elapsed() };
            if answer.is_ok() && pods.len() == 2 && pods.iter().all(|pod| pod.name != *name) {
                break;
            }
            ensure!(silence < SILENCE_MAX, "{name} was deleted, {silence:?} of silence");
            ensure!(Instant::now() < deadline, "{name} was deleted and not replaced");
        }
    }
    sender.echo().context("after all sandboxes are others")
}

async fn a_service_that_goes_leaves_nothing(scene: Scene) -> anyhow::Result<()> {
    scene.kubectl(&["-n", scene::TEAM, "delete", "app", "chat", "--wait=false"])?;
    for node in scene.nodes() {
        wait::until("the address to leave the node", wait::PATIENCE, async || {
            let listing = node.nft("list table inet portolan")?;
            let left = scene.vips.iter().any(|vip| listing.contains(&vip.to_string()));
            ensure!(!left, "{listing}");
            anyhow::Ok(())
        })
        .await?;
    }
    nothing_of_others_has_changed(&scene)?;
    // What an agent leaves goes with the cleanup.
    scene.kubectl(&["-n", scene::AGENTS, "delete", "ds", "portolan-node", "--wait"])?;
    for node in scene.nodes() {
        // As long as the agent runs, the table is its own.
        wait::until("the cleanup", wait::PATIENCE, async || node.clean_up()).await?;
        ensure!(node.nft("list table inet portolan").is_err(), "the table outlives its cleanup");
    }
    Ok(())
}

/// Each of these with each of those.
fn each<A: Clone, B: Clone>(these: &[A], those: impl IntoIterator<Item = B>) -> Vec<(A, B)> {
    let those: Vec<_> = those.into_iter().collect();
    let pair = |this: &A| those.iter().map(|that| (this.clone(), that.clone())).collect::<Vec<_>>();
    these.iter().flat_map(pair).collect()
}

impl Place {
    pub(crate) fn nft(&self, words: &str) -> anyhow::Result<String> {
        self.output("nft", &words.split(' ').collect::<Vec<_>>())
    }

    /// How many seconds the agent on this node took for it: no two take the same.
    pub(crate) fn first_programming(&self) -> anyhow::Result<f64> {
        self.metric("portolan_node_first_programming_seconds")
    }

    /// Waits until another agent than this one has programmed.
    pub(crate) async fn await_next_agent(&self, old: f64) -> anyhow::Result<()> {
        wait::until("the next agent to have programmed", wait::PATIENCE, async || {
            let new = self.first_programming()?;
            ensure!(new > 0.0 && new.to_bits() != old.to_bits(), "{new}");
            anyhow::Ok(())
        })
        .await
    }

    /// A metric of the agent on this node.
    pub(crate) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let page = self.output("curl", &["-sSf", "-m", "5", "http://127.0.0.1:9462/metrics"])?;
        let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(found.with_context(|| format!("no {name}"))?.parse()?)
    }
}
