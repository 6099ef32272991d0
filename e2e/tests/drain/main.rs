//! Nodes are drained, leaders end or are killed, the API server hangs: visitors of an App with a
//! single sandbox are all answered, and an App that sleeps wakes.
//!
//! On a cluster of its own, because nodes are cordoned and the API server stops.

mod drains;
mod leaders;
mod scene;
mod silence;

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
    silence::a_hanging_api_server_is_noticed(&mut scene).await
}
