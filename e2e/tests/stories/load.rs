//! A light load from visitors, and what became of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_e2e::ingress::Ingress;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::support::Echo;

/// Between two requests: often enough that none of the moments of a rollout goes unseen, seldom
/// enough that several tests share two processors.
const INTERVAL: Duration = Duration::from_millis(50);

/// Visitors who come at a steady pace, whether those before them were answered or not.
pub(crate) struct Load {
    stop: CancellationToken,
    visits: JoinHandle<Tally>,
}

/// What the visitors got.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Answers of the program, by the version that gave them.
    pub(crate) answers: BTreeMap<String, usize>,
    /// Everything else, in words.
    pub(crate) failures: Vec<String>,
}

impl Load {
    /// Begins to ask for `/` of the App's host.
    pub(crate) fn start(echo: &Echo<'_>) -> Self {
        let stop = CancellationToken::new();
        let visits = tokio::spawn(visits(echo.space.ingress(), echo.host(), stop.clone()));
        Self { stop, visits }
    }

    /// Waits for the last visitors and counts. Dropping the load instead ends it with the test.
    pub(crate) async fn end(self) -> anyhow::Result<Tally> {
        self.stop.cancel();
        self.visits.await.context("the load ends")
    }

    /// Ends the load; an error if a single visitor did not get the program's answer.
    pub(crate) async fn all_were_answered(self) -> anyhow::Result<Tally> {
        let tally = self.end().await?;
        let (count, first) = (tally.failures.len(), tally.failures.first());
        ensure!(count == 0, "{count} visitors failed, the first with {first:?}; {tally:?}");
        ensure!(!tally.answers.is_empty(), "nobody came");
        Ok(tally)
    }
}

async fn visits(ingress: Ingress, host: String, stop: CancellationToken) -> Tally {
    let mut tally = Tally::default();
    let mut visitors = JoinSet::new();
    let mut pace = interval(INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = pace.tick() => {
                let host = host.clone();
                visitors.spawn(async move { visit(ingress, &host).await });
            }
            Some(visit) = visitors.join_next() => tally.add(visit),
        }
    }
    while let Some(visit) = visitors.join_next().await {
        tally.add(visit);
    }
    tally
}

/// The version that answered.
async fn visit(ingress: Ingress, host: &str) -> anyhow::Result<String> {
    let answer = ingress.get(host, "/").await?;
    let (status, headers) = (answer.status(), answer.headers());
    ensure!(status == 200, "{status}, {:?}", headers.get("x-portolan-error"));
    let version = headers.get("x-version").context("an answer without a version")?;
    Ok(version.to_str()?.to_owned())
}

impl Tally {
    fn add(&mut self, visit: Result<anyhow::Result<String>, tokio::task::JoinError>) {
        match visit {
            Ok(Ok(version)) => *self.answers.entry(version).or_default() += 1,
            Ok(Err(error)) => self.failures.push(format!("{error:#}")),
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}
