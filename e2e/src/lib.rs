//! What tests on the real cluster share.
//!
//! A test asks for a [`space::Space`]: a namespace of its own on the cluster `test`, which the first
//! test of a run starts and installs Portolan on. A suite that cannot have its cluster fails; nothing is
//! skipped. The crate knows how to set the scene, and nothing of what a test then expects.
//!
//! ```no_run
//! # async fn example(manifest: &str) -> anyhow::Result<()> {
//! portolan_e2e::with_platform("wakes", async |space| {
//!     space.apply(manifest).await?;
//!     space.kubectl(&["wait", "--for=condition=Ready", "app/nginx", "--timeout=180s"]).await?;
//!     Ok(())
//! })
//! .await
//! # }
//! ```

pub mod ingress;
pub mod pods;
pub mod space;
pub mod visitor;

use std::env;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Mutex;

use anyhow::Context;
use futures::FutureExt;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::{logs, platform};
use tokio::sync::OnceCell;

use crate::space::Space;

/// The cluster of the tests, unless `PORTOLAN_TEST_CLUSTER` names another.
const CLUSTER: &str = "test";
/// The cluster of tests that bring controllers of their own: Portolan is never installed there.
pub const BARE_CLUSTER: &str = "bare";

/// Runs a test in a namespace of its own, on a cluster without regard to what is installed there.
///
/// # Errors
/// With the error of the test. The namespace is gone afterwards either way, and the folder of the
/// logs is printed.
pub async fn with_cluster(
    name: &str,
    test: impl AsyncFnOnce(&Space) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cluster = Cluster::ensure(&cluster_name(), 1).await?;
    in_space(cluster, name, test).await
}

/// Runs a test in a namespace of its own, on a cluster with Portolan from this checkout.
///
/// # Errors
/// As [`with_cluster`], and when the charts cannot be installed.
pub async fn with_platform(
    name: &str,
    test: impl AsyncFnOnce(&Space) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED
        .get_or_try_init(async || {
            let cluster = Cluster::ensure(&cluster_name(), 1).await?;
            let installed = platform::install(&cluster, &[]).context("install Portolan");
            installed.inspect_err(|_| print_logs())
        })
        .await?;
    let cluster = Cluster::open(&cluster_name())?;
    in_space(cluster, name, test).await
}

/// Runs a story that needs a cluster to itself, on one that goes with it.
///
/// # Errors
/// With the error of the story; the folder of the logs is printed then.
pub async fn on_own_cluster(
    name: &str,
    story: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let result = story.await;
    if result.is_err()
        && let Ok(folder) = logs::collect(name)
    {
        eprintln!("the logs are in {}", folder.display());
    }
    result.and(Cluster::down(name))
}

async fn in_space(
    cluster: Cluster,
    name: &str,
    test: impl AsyncFnOnce(&Space) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let space = Space::create(cluster, name).await?;
    // A failed assertion must not leave the namespace to the tests that follow.
    let result = AssertUnwindSafe(test(&space)).catch_unwind().await;
    if !matches!(result, Ok(Ok(()))) {
        // Before the namespace goes: afterwards nothing would be left to read.
        print_logs();
    }
    let removed = space.remove().await;
    match result {
        Ok(result) => result.and(removed),
        Err(panic) => resume_unwind(panic),
    }
}

fn cluster_name() -> String {
    env::var("PORTOLAN_TEST_CLUSTER").unwrap_or_else(|_| CLUSTER.to_owned())
}

/// Tests that fail at once share the folder.
fn print_logs() {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    match logs::collect(&cluster_name()) {
        Ok(folder) => eprintln!("the logs are in {}", folder.display()),
        Err(error) => eprintln!("the logs could not be collected: {error:#}"),
    }
}
