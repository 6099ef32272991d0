//! The short form of the long runs: whatever operators and failures do to a cluster with two
//! gateways, nobody who asks meanwhile fails who need not.

use anyhow::ensure;
use portolan_e2e::on_own_cluster;
use portolan_soak::{Extent, Report, Scenario, Scene, play, table};

const CLUSTER: &str = "soak";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let mut scene = Scene::set(CLUSTER).await?;
    let reports = play(&mut scene, Scenario::all(), &Extent::SHORT).await;
    let table = table(&reports);
    println!("{table}");
    ensure!(reports.iter().all(Report::is_good), "\n{table}");
    Ok(())
}
