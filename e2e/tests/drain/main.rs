//! Nodes are drained, fall silent or are cut off, leaders end or are killed, gateways are evicted or killed all
//! at once, sandboxes die, the API server hangs: visitors of an App with a single sandbox are
//! answered wherever somebody can, and an App that sleeps wakes.
//!
//! On a cluster of its own, because nodes are cordoned and the API server stops.

mod all_gateways;
mod counts;
mod crowd;
mod cut_node;
mod drains;
mod killed_sandbox;
mod leaders;
mod leaving;
mod placement;
mod rotation;
mod scene;
mod silence;
mod silent_node;

use portolan_cluster::cluster::Cluster;
use portolan_e2e::on_own_cluster;

use crate::scene::Scene;

const CLUSTER: &str = "drain";

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_interrupts_nobody() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let mut scene = Scene::set(Cluster::ensure(CLUSTER, 2).await?).await?;
    drains::the_only_sandbox_moves(&mut scene).await?;
    leaders::a_killed_one_is_followed(&mut scene).await?;
    leaders::one_that_ends_is_followed_at_once(&mut scene).await?;
    killed_sandbox::only_its_own_requests_fail(&mut scene).await?;
    // From here on there is a gateway on each node, which the drain has left on one.
    placement::a_rollout_takes_none_away(&mut scene, rotation::OFTEN).await?;
    rotation::lending_goes_on(&mut scene).await?;
    placement::one_eviction_at_a_time(&mut scene).await?;
    leaving::its_visitors_get_sandboxes_that_come_later(&mut scene).await?;
    silent_node::its_gateway_is_replaced_and_rejoins(&mut scene).await?;
    cut_node::its_sandboxes_are_left_alone(&mut scene).await?;
    all_gateways::they_come_back_and_no_ghost_is_served(&mut scene).await?;
    silence::a_hanging_api_server_is_noticed(&mut scene).await
}
