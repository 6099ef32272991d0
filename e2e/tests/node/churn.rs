//! Endpoints that come and go all the time, while clients connect and an agent is killed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::join_all;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use portolan_cluster::network::node_name;
use portolan_cluster::wait;
use portolan_e2e::pods::{Running, gateways};
use serde_json::{Value, json};
use tokio::time::interval;

use crate::clients::Place;
use crate::scene::{IRC, Scene, TEAM};

/// The endpoints of the App's service.
const SLICES: [&str; 2] = ["chat-irc-ipv4", "chat-irc-ipv6"];
/// What all clients together open.
const CONNECTS: usize = 100_000;
/// As long as that may take. It is half a minute's work, for a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(600);
/// A change this often: the API server needs the processors that the clients need too.
const CHANGE_EVERY: Duration = Duration::from_millis(40);
/// Rounds of changes before an agent is killed, at a moment that it does not choose.
const ROUNDS_BEFORE_THE_KILL: usize = 5;
/// Connections between two looks at the clock.
const STRETCH: usize = 1_000;

/// What an endpoint is at one moment. One that goes is not chosen for a moment before it is gone,
/// as a sandbox that ends; nothing is opened to it meanwhile.
#[derive(Clone, Copy)]
enum Is {
    Ready,
    Going,
    Gone,
}

/// The agent that is killed, and where.
struct Killed {
    agent: Running,
    node: Place,
}

/// One round of two endpoints: each goes and comes back, and there is always another.
const ROUND: [[Is; 2]; 6] = [
    [Is::Ready, Is::Ready],
    [Is::Going, Is::Ready],
    [Is::Gone, Is::Ready],
    [Is::Ready, Is::Ready],
    [Is::Ready, Is::Going],
    [Is::Ready, Is::Gone],
];

/// The real agents of both nodes follow the real API server; only who says which sandboxes are
/// ready is the test, in place of the controller.
pub(crate) async fn no_connection_is_lost_while_endpoints_come_and_go(
    scene: &Scene,
) -> anyhow::Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(scene.cluster.client().await?, TEAM);
    let endpoints = at_rest(&slices).await?;
    controllers(scene, 0).await?;
    let nodes = scene.nodes();
    let before = commits(&nodes[0])?;
    let clients = clients(scene)?;
    let killed = Killed { agent: scene.agent(&node_name(2))?, node: nodes[1].clone() };
    let client = scene.cluster.client().await?;
    let begun = Instant::now();
    let (rounds, failed) =
        tokio::task::block_in_place(|| under_churn(&clients, &endpoints, &client, &killed))?;
    let took = begun.elapsed();
    say(&slices, &endpoints, ROUND[0]).await?;
    // The count of the one that was killed began anew.
    let made = [commits(&nodes[0])? - before, commits(&nodes[1])?];
    println!("{CONNECTS} connections in {took:?}, {rounds} rounds, commits {made:?}");
    for ((place, to), failed) in clients.iter().zip(&failed) {
        ensure!(*failed == Some(0), "{place} at {to}: {failed:?} of its connections were lost");
    }
    ensure!(rounds >= 10, "only {rounds} rounds of changes");
    // Two families and both batches; the agent may take several words as one.
    ensure!(made.iter().all(|made| *made >= 20.0), "commits of the agents: {made:?}");
    controllers(scene, 2).await
}

/// Connects while endpoints change and an agent is killed in between: the rounds of changes, and
/// what came of each client.
fn under_churn(
    clients: &[(Place, SocketAddr)],
    endpoints: &[Value],
    client: &Client,
    killed: &Killed,
) -> anyhow::Result<(usize, Vec<Option<usize>>)> {
    let (done, share) = (AtomicBool::new(false), CONNECTS / clients.len());
    let here = tokio::runtime::Handle::current();
    thread::scope(|scope| {
        let churn = scope.spawn(|| here.block_on(churn(client, endpoints, killed, &done)));
        let connecting: Vec<_> = clients
            .iter()
            .map(|(place, to)| scope.spawn(move || connects(place, *to, share)))
            .collect();
        let results = connecting.into_iter().map(|one| one.join().expect("no panic"));
        let failed: Vec<_> = results.collect();
        done.store(true, Ordering::Relaxed);
        Ok((churn.join().expect("no panic")?, failed))
    })
}

/// Changes the endpoints until it is done; the rounds of changes.
async fn churn(
    client: &Client,
    endpoints: &[Value],
    killed: &Killed,
    done: &AtomicBool,
) -> anyhow::Result<usize> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), TEAM);
    let (mut rounds, mut beat) = (0, interval(CHANGE_EVERY));
    while !done.load(Ordering::Relaxed) {
        for states in ROUND {
            beat.tick().await;
            say(&slices, endpoints, states).await?;
        }
        rounds += 1;
        if rounds == ROUNDS_BEFORE_THE_KILL {
            let old = killed.node.first_programming()?;
            killed.agent.kill()?;
            // A sandbox of which nobody says any more that it is there is ended as one, and the
            // next agent would do so while clients are still led to it.
            say(&slices, endpoints, ROUND[0]).await?;
            killed.node.await_next_agent(old).await?;
        }
    }
    Ok(rounds)
}

/// The endpoints of each slice, once there are two and both are ready.
async fn at_rest(slices: &Api<EndpointSlice>) -> anyhow::Result<Vec<Value>> {
    wait::until("the endpoints to come to rest", wait::PATIENCE, async || {
        let mut endpoints = Vec::new();
        for name in SLICES {
            let all = serde_json::to_value(slices.get(name).await?.endpoints)?;
            let ready = all.as_array().map(|all| {
                all.iter().filter(|one| one["conditions"]["ready"] == true).count() == all.len()
            });
            let count = all.as_array().map(Vec::len);
            ensure!(ready == Some(true) && count == Some(2), "{name}: {all}");
            endpoints.push(all);
        }
        anyhow::Ok(endpoints)
    })
    .await
}

/// From the node whose agent is killed and from a Pod, for each family. The Pod is none of the sandboxes: agents end the
/// connections of one that is gone, its own ones too.
fn clients(scene: &Scene) -> anyhow::Result<Vec<(Place, SocketAddr)>> {
    let [_, node] = scene.nodes();
    let gateway = gateways(&scene.cluster)?.pop().context("a gateway")?;
    let places = [node, Place { network: gateway.process()?.join("ns/net"), name: gateway.name }];
    Ok(crate::each(&places, scene.addresses(IRC.number)))
}

/// How many of so many connections failed; `None` if there was no time for all.
fn connects(place: &Place, to: SocketAddr, times: usize) -> Option<usize> {
    let deadline = Instant::now() + LIMIT;
    let mut failed = 0;
    for _ in 0..times / STRETCH {
        failed += place.failed_connects(to, STRETCH);
        if Instant::now() > deadline {
            return None;
        }
    }
    Some(failed)
}

/// Says in the slices of both families which of the endpoints are what.
async fn say(
    slices: &Api<EndpointSlice>,
    endpoints: &[Value],
    states: [Is; 2],
) -> anyhow::Result<()> {
    let patch = |all: &Value| {
        let kept = all.as_array().into_iter().flatten().zip(states);
        let said = kept.filter_map(|(endpoint, is)| {
            let (ready, going) = match is {
                Is::Ready => (true, false),
                Is::Going => (false, true),
                Is::Gone => return None,
            };
            let mut endpoint = endpoint.clone();
            endpoint["conditions"] =
                json!({ "ready": ready, "serving": true, "terminating": going });
            Some(endpoint)
        });
        json!({ "endpoints": said.collect::<Vec<_>>() })
    };
    let params = PatchParams::default();
    let all = SLICES.iter().zip(endpoints).map(|(name, all)| {
        let (patch, params) = (Patch::Merge(patch(all)), &params);
        async move { slices.patch(name, params, &patch).await }
    });
    for written in join_all(all).await {
        written?;
    }
    Ok(())
}

fn commits(node: &Place) -> anyhow::Result<f64> {
    node.metric("portolan_node_commits_total")
}

/// Lets this many controllers run.
async fn controllers(scene: &Scene, count: usize) -> anyhow::Result<()> {
    let replicas = format!("--replicas={count}");
    let system = portolan_cluster::platform::NAMESPACE;
    let deployment = "deployment/portolan-controller";
    scene.kubectl(&["-n", system, "scale", deployment, &replicas])?;
    wait::until(&format!("{count} controllers"), wait::PATIENCE, async || {
        let selector = "app.kubernetes.io/component=controller";
        let pods = scene.kubectl(&["-n", system, "get", "pods", "-l", selector, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods)?;
        let pods = pods["items"].as_array().map(Vec::len).unwrap_or_default();
        ensure!(pods == count, "{pods} Pods");
        anyhow::Ok(())
    })
    .await
}
