//! What gateways say: who lives, by their Leases, and what they see, by their reports. Pure.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use portolan_api::{DrainReport, GatewayReport, ReportShard};
use portolan_reconcile::ObjectKey;
use serde::Serialize;

/// A gateway and what it sees of one pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Gateway {
    /// The name of its Pod, which is also that of its Lease.
    pub(crate) name: String,
    /// Until when it counts as alive, unless it renews its Lease.
    pub(crate) expires: Timestamp,
    /// What it sees of the pool; all zero when it reports nothing.
    pub(crate) demand: Demand,
}

impl Gateway {
    /// Whether its Lease has not lapsed.
    pub(crate) fn is_live(&self, now: Timestamp) -> bool {
        self.expires > now
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
    }
}

/// A gateway's Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseView {
    pub(crate) gateway: String,
    renewed: Timestamp,
    pub(crate) expires: Timestamp,
}

impl LeaseView {
    /// Keeps what is needed; `None` for a Lease that nobody has taken yet.
    pub(crate) fn of(lease: Lease) -> Option<Self> {
        let gateway = lease.name_any();
        let spec = lease.spec?;
        let renewed = spec.renew_time?.0;
        let seconds = spec.lease_duration_seconds.unwrap_or_default().max(0);
        // A time beyond the calendar, which only a forged Lease has, is no Lease.
        let expires = renewed.checked_add(SignedDuration::from_secs(seconds.into())).ok()?;
        Some(Self { gateway, renewed, expires })
    }

    /// Whether a gateway came, went, or came back after its Lease had lapsed. A renewal in time is
    /// none of these; a lapse is no change of the object, it is waited for by time.
    pub(crate) fn came_or_went(old: Option<&Self>, new: Option<&Self>) -> bool {
        match (old, new) {
            (Some(old), Some(new)) => old.expires <= new.renewed,
            (old, new) => old.is_some() != new.is_some(),
        }
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
