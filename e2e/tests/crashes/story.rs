//! Two crashing runs cover every point between two writes: in one, each write takes place and its
//! answer is lost; in the other, of every two writes the second is lost. What stands in the end is
//! compared with a run that never crashed.

use anyhow::ensure;
use portolan_cluster::wait;
use portolan_reconcile::testing::{self, Crash, Strike};
use serde_json::{Value, json};

use crate::stage::{Place, start};

#[tokio::test]
async fn a_crash_between_any_two_writes_settles_to_the_same_state() -> anyhow::Result<()> {
    let expected = story(None).await?;
    for (nth, strike) in [(1, Strike::After), (2, Strike::Before)] {
        let crashing = story(Some((nth, strike))).await?;
        ensure!(crashing.lives > 10, "only {} lives: nothing was tested", crashing.lives);
        ensure!(
            crashing.state == expected.state,
            "crashes {strike:?} write {nth}, {} lives:\n{:#}\ninstead of\n{:#}",
            crashing.lives,
            crashing.state,
            expected.state
        );
    }
    Ok(())
}

/// How a story ended.
struct End {
    /// What stands, without what differs from run to run.
    state: Value,
    /// How often controllers were started.
    lives: usize,
}

/// Applies an App of two services and a Route, waits, changes one service, adds one, and waits.
async fn story(crash: Option<(usize, Strike)>) -> anyhow::Result<End> {
    let place = Place::make().await?;
    let told = async {
        place.route().await?;
        place.apply(&json!([service("web", "1"), service("worker", "1")])).await?;
        let mut lives = live(&place, crash, 1).await?;
        place
            .apply(&json!([service("web", "2"), service("worker", "1"), service("extra", "1")]))
            .await?;
        lives += live(&place, crash, 2).await?;
        Ok(End { state: place.state().await?, lives })
    }
    .await;
    place.remove().await?;
    told
}

fn service(name: &str, version: &str) -> Value {
    json!({
        "name": name,
        "port": 8080,
        "env": [{ "name": "VERSION", "value": version }],
        "scale": { "mode": "Fixed", "instances": 1 },
        "terminationGracePeriodSeconds": 1,
    })
}

/// Runs controllers until the App is ready for its generation and nothing else remains,
/// starting them again whenever they crash. Returns how often they were started.
async fn live(
    place: &Place,
    crash: Option<(usize, Strike)>,
    generation: i64,
) -> anyhow::Result<usize> {
    let settled = wait::until("the App to settle", wait::PATIENCE, async || {
        place.is_settled(generation).await
    });
    let mut lives = 0;
    let reborn = async {
        loop {
            lives += 1;
            let crash = crash.map_or(Crash::never(), |(nth, strike)| Crash::at(nth, strike));
            let life = start(&testing::context(crash.client(place.client.clone())));
            crash.struck().await;
            drop(life);
        }
    };
    tokio::select! {
        settled = settled => settled?,
        never = reborn => never,
    }
    Ok(lives)
}
