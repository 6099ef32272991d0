//! What gateways say: who lives, by their Leases, and what they see, by their reports. Pure.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use portolan_api::{DrainReport, GatewayPhase, GatewayReport, ReportShard};
use portolan_reconcile::ObjectKey;
use serde::Serialize;

/// A gateway and what it sees of one pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Gateway {
    /// The name of its Pod, which is also that of its Lease.
    pub(crate) name: String,
    /// Its process, which slots are granted to.
    pub(crate) instance: String,
    /// How far it is in its life.
    pub(crate) phase: GatewayPhase,
    /// Until when it counts as alive, unless it renews its Lease.
    pub(crate) expires: Timestamp,
    /// What it sees of the pool; all zero when it reports nothing.
    pub(crate) demand: Demand,
}

impl Gateway {
    /// Whether its Lease has not lapsed. One that left is no gateway: it waits for nothing, and
    /// nobody waits for it.
    pub(crate) fn is_live(&self, now: Timestamp) -> bool {
        self.phase != GatewayPhase::Left && self.expires > now
    }
}

/// Raw counts of one pool, as one gateway reports them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Demand {
    /// Requests that wait for a sandbox.
    pub(crate) queued: i64,
    /// Requests that a sandbox is serving.
    pub(crate) running: i64,
    /// When the last request ended.
    pub(crate) last_activity: Option<Timestamp>,
    /// Sandboxes that drain, with what still runs on them.
    pub(crate) draining: Vec<DrainReport>,
    /// Names of sandboxes that it can use no more, so that they are to be replaced.
    pub(crate) retired: Vec<String>,
}

impl Demand {
    /// Requests that need a slot now. Counts below zero, which no gateway sends, are none.
    pub(crate) fn total(&self) -> i64 {
        self.queued.max(0).saturating_add(self.running.max(0))
    }

    /// Adds what another shard of the same gateway says.
    pub(crate) fn add(&mut self, other: &Self) {
        self.queued = self.queued.saturating_add(other.queued);
        self.running = self.running.saturating_add(other.running);
        self.last_activity = self.last_activity.max(other.last_activity);
        self.draining.extend(other.draining.iter().cloned());
        self.retired.extend(other.retired.iter().cloned());
    }
}

/// A gateway's report of demand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReportView {
    pub(crate) gateway: String,
    pub(crate) pools: HashMap<ObjectKey, Demand>,
}

impl ReportView {
    /// Keeps the demand; `None` for the shards that hold none.
    pub(crate) fn of(report: GatewayReport) -> Option<Self> {
        if report.spec.shard != ReportShard::Demand {
            return None;
        }
        let mut pools: HashMap<ObjectKey, Demand> = HashMap::new();
        for pool in report.spec.pools {
            let demand = Demand {
                queued: pool.queued,
                running: pool.running,
                last_activity: pool.last_activity.map(|time| time.0),
                draining: pool.draining,
                retired: pool.retired,
            };
            pools.entry(ObjectKey::new(pool.namespace, pool.name)).or_default().add(&demand);
        }
        Some(Self { gateway: report.spec.gateway, pools })
    }

    /// The pools of which two states of one report say different things.
    pub(crate) fn changed(old: Option<&Self>, new: Option<&Self>) -> Vec<ObjectKey> {
        let demand = |side: Option<&Self>, key: &ObjectKey| {
            side.and_then(|report| report.pools.get(key)).cloned()
        };
        let named: BTreeSet<&ObjectKey> =
            old.into_iter().chain(new).flat_map(|report| report.pools.keys()).collect();
        let changed = named.into_iter().filter(|key| demand(old, key) != demand(new, key));
        changed.cloned().collect()
    }
}

#[cfg(test)]
mod tests;
