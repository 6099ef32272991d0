//! Writes the snapshot: after a change, at most once a second, and only what is complete.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use portolan_api::{App, Claim, Route, SandboxPool};
use portolan_process::ErrorChain;
use portolan_reconcile::{Cache, RunError};
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::file::{self, FileError};
use super::format::{Head, Record};
use super::{Directory, STATE};
use crate::feed::facts::{AppFacts, ClaimFacts, PodFacts, PoolFacts, RouteFacts};

/// Least time between two writes.
const SPACING: Duration = Duration::from_secs(1);

/// How many times as long as a write took it rests at least: a large cluster in which something
/// always changes costs a fiftieth of a core at most.
const REST_FACTOR: u32 = 50;

/// How often it is said that a snapshot still holds although nothing changes.
const VOUCH_EVERY: Duration = Duration::from_secs(15);

/// What a snapshot is made of.
#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) routes: Cache<Route, RouteFacts>,
    pub(crate) claims: Cache<Claim, ClaimFacts>,
    pub(crate) apps: Cache<App, AppFacts>,
    pub(crate) pools: Cache<SandboxPool, PoolFacts>,
    pub(crate) pods: Cache<Pod, PodFacts>,
}

impl Caches {
    /// Waits until everything has been listed once.
    pub(crate) async fn synced(&self) {
        self.routes.synced().await;
        self.claims.synced().await;
        self.apps.synced().await;
        self.pools.synced().await;
        self.pods.synced().await;
    }

    /// Until when everything was seen; `None`: until now.
    fn seen_until(&self) -> Option<Timestamp> {
        let interrupted = [
            self.routes.interrupted_since(),
            self.claims.interrupted_since(),
            self.apps.interrupted_since(),
            self.pools.interrupted_since(),
            self.pods.interrupted_since(),
        ];
        interrupted.into_iter().flatten().min()
    }
}

/// Keeps the snapshot in line with the caches.
pub(crate) struct Keeper {
    pub(crate) directory: Directory,
    pub(crate) caches: Caches,
    pub(crate) changed: Arc<Notify>,
}

impl Keeper {
    /// Writes until `shutdown`. What cannot be written is logged, counted, and tried again with
    /// the next change.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep() => {}
        }
        Ok(())
    }

    async fn keep(&self) {
        // What is not complete must not take the place of what was.
        self.caches.synced().await;
        self.changed.notify_one();
        let mut vouch = interval(VOUCH_EVERY);
        let mut is_current = false;
        let mut due = Instant::now();
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                _ = vouch.tick() => {
                    if is_current && self.caches.seen_until().is_none() {
                        self.vouch();
                    }
                    continue;
                }
            }
            sleep_until(due).await;
            let begun = Instant::now();
            is_current = self.write().await;
            due = Instant::now() + SPACING.max(begun.elapsed() * REST_FACTOR);
        }
    }

    async fn write(&self) -> bool {
        let (directory, caches) = (self.directory.clone(), self.caches.clone());
        let written = tokio::task::spawn_blocking(move || write(&directory, &caches)).await;
        let written = written.expect("writing a snapshot does not panic");
        self.directory.metrics.wrote(&written);
        match written {
            Ok(size) => {
                self.directory.metrics.size.set(i64::try_from(size).unwrap_or(i64::MAX));
                true
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "Snapshot not written");
                false
            }
        }
    }

    fn vouch(&self) {
        if let Err(error) = file::touch(&self.path(), SystemTime::now()) {
            tracing::warn!(error = %ErrorChain(&error), "Snapshot not vouched for");
        }
    }

    fn path(&self) -> Box<Path> {
        self.directory.path.join(STATE).into()
    }
}

/// One record after the other, straight from the caches: nothing is copied but one at a time.
fn write(directory: &Directory, caches: &Caches) -> Result<u64, FileError> {
    let vouched = caches.seen_until().map_or_else(SystemTime::now, SystemTime::from);
    file::write(&directory.path.join(STATE), directory.size_max, vouched, |records| {
        let pod_uid = directory.pod_uid.as_deref().map(str::to_owned);
        records.add(&Record::Head(Head { pod_uid }))?;
        for (key, route) in caches.routes.entries() {
            records.add(&Record::route(key, &route))?;
        }
        for (key, claim) in caches.claims.entries() {
            records.add(&Record::claim(key, &claim))?;
        }
        for (key, app) in caches.apps.entries() {
            records.add(&Record::app(key, &app))?;
        }
        for (key, pool) in caches.pools.entries() {
            records.add(&Record::pool(key, &pool))?;
        }
        for (key, pod) in caches.pods.entries() {
            records.add(&Record::sandbox(key, &pod))?;
        }
        Ok(())
    })
}
