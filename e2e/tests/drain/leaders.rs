//! The controller that starts sandboxes ends, or is killed, while somebody waits for one.

use std::time::Duration;

use anyhow::ensure;
use portolan_cluster::platform::NAMESPACE;

use crate::scene::Scene;

/// The Lease of who starts sandboxes.
const MATTER: &str = "pool";

/// How long a wake may take without a leader: its Lease lapses after 15 s, who waits for it looks
/// every 2 s, and then the sandbox starts. The rest is for a busy machine.
const KILLED_MAX: Duration = Duration::from_secs(25);
/// The same when it gave its Lease back.
const ENDED_MAX: Duration = Duration::from_secs(12);

pub(crate) async fn a_killed_one_is_followed(scene: &mut Scene) -> anyhow::Result<()> {
    let took = wake_after(scene, "killed", async |scene| scene.leader(MATTER)?.kill()).await?;
    ensure!(took < KILLED_MAX, "{took:?} after the leader was killed");
    Ok(())
}

pub(crate) async fn one_that_ends_is_followed_at_once(scene: &mut Scene) -> anyhow::Result<()> {
    let took = wake_after(scene, "deleted", async |scene| {
        let leader = scene.leader(MATTER)?;
        scene.kubectl(NAMESPACE, &["delete", "pod", &leader.name, "--wait=false"]).map(drop)
    })
    .await?;
    ensure!(took < ENDED_MAX, "{took:?} after the leader ended");
    Ok(())
}

/// How long an App takes to wake once this has been done to the leader. Those who visit another
/// App notice nothing.
async fn wake_after(
    scene: &mut Scene,
    what: &str,
    deed: impl AsyncFnOnce(&mut Scene) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    scene.asleep().await?;
    let mut took = Duration::ZERO;
    scene
        .visited(async |scene| {
            deed(scene).await?;
            took = scene.wake().await?;
            Ok(())
        })
        .await?;
    eprintln!("    a wake takes {took:?} when the leader was {what} before");
    Ok(took)
}
