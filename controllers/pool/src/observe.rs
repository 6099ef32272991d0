//! All that a decision may know, and how it is read: from caches only, so a pass that changes
//! nothing asks the API server nothing.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use parking_lot::Mutex;
use portolan_api::{Gateway as GatewayLease, GatewayReport, SandboxPool};
use portolan_reconcile::{Cache, ObjectKey, Observed, Packed};

use crate::{
    gateway::{Demand, Gateway, ReportView},
    sandbox::Sandbox,
    scale::History,
    setback::Setback,
};

/// Index of Pods: by the pool that their label names, as `namespace/name`.
pub(crate) const BY_POOL: &str = "pool";
/// Index of reports: by gateway.
pub(crate) const BY_GATEWAY: &str = "gateway";

/// How long a gateway without a Lease is not taken for lost by a reader who may not have seen all,
/// nor a pool for idle: as long as a Lease holds. A gateway that was cut off itself is back within
/// that time, with a report.
const GRACE: SignedDuration = SignedDuration::from_secs(15);

/// A pool and everything around it.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    pub(crate) pool: Arc<SandboxPool>,
    /// Every Pod that carries the pool's label, foreign ones too.
    pub(crate) sandboxes: Vec<Arc<Sandbox>>,
    /// Every gateway with a Lease, lapsed ones too.
    pub(crate) gateways: Vec<Gateway>,
    /// From when on a gateway that has no Lease is lost. Later than now after an outage or a
    /// start: its Lease may only not have been seen.
    pub(crate) all_seen: Timestamp,
    /// From when on reports are of now. Later than now after an outage or a start: gateways went
    /// on meanwhile, and what they have reported since may only not have been seen.
    pub(crate) reports_fresh: Timestamp,
    /// What was needed before; `None` after a restart, and of a pool that slept.
    pub(crate) history: Option<History>,
    /// The greatest incarnation that is used up and that the status does not say yet; else zero.
    pub(crate) incarnation: i64,
    /// The number of replicas that is decided, and greater than the spec says yet; else zero.
    pub(crate) unwritten: i32,
    /// What stood in the way of new sandboxes the last time.
    pub(crate) setback: Option<Setback>,
}

/// The caches.
pub(crate) struct Caches {
    pub(crate) pools: Cache<SandboxPool, Packed<SandboxPool>>,
    pub(crate) sandboxes: Cache<Pod, Sandbox>,
    pub(crate) leases: Cache<Lease, GatewayLease>,
    pub(crate) reports: Cache<GatewayReport, ReportView>,
}

impl Caches {
    /// Reads what concerns this pool. One that is being deleted is taken for absent: the garbage
    /// collector ends its sandboxes, and a new one would outlive it.
    pub(crate) fn observe(
        &self,
        key: &ObjectKey,
        memory: &Memory,
        now: Timestamp,
    ) -> Observed<Situation> {
        // Read once, so that one pass judges all gateways alike.
        let unbroken = self.leases.unbroken_since();
        let gateway = |lease: &Arc<GatewayLease>| Gateway {
            name: lease.name.clone(),
            instance: lease.instance.clone(),
            phase: lease.phase,
            expires: lease.lapses_for(unbroken, now),
            demand: self.demand(&lease.name, key),
        };
        let pool = match self.pools.observed(key).map(|packed| packed.unpack()) {
            Observed::Present(pool) if pool.metadata.deletion_timestamp.is_some() => {
                Observed::Absent
            }
            pool => pool,
        };
        pool.map(|pool| {
            let Remembered { history, incarnation, unwritten, setback, uid: _ } =
                memory.recall(key, pool.metadata.uid.as_deref()).unwrap_or_default();
            Situation {
                sandboxes: self.sandboxes.by_index(BY_POOL, &key.to_string()),
                gateways: self.leases.list().iter().map(gateway).collect(),
                all_seen: trusted_from(unbroken, now),
                reports_fresh: trusted_from(self.reports.unbroken_since(), now),
                history,
                incarnation,
                unwritten,
                setback,
                pool: Arc::new(pool),
            }
        })
    }

    fn demand(&self, gateway: &str, pool: &ObjectKey) -> Demand {
        let mut sum = Demand::default();
        for report in self.reports.by_index(BY_GATEWAY, gateway) {
            if let Some(demand) = report.pools.get(pool) {
                sum.add(demand);
            }
        }
        sum
    }

    /// The pools that a gateway's coming or going concerns: with sandboxes, which have slots and
    /// drains, or with requests in its report.
    pub(crate) fn concerned(
        sandboxes: &Cache<Pod, Sandbox>,
        reports: &Cache<GatewayReport, ReportView>,
        gateway: &str,
    ) -> Vec<ObjectKey> {
        let mut keys: Vec<ObjectKey> =
            sandboxes.list().iter().map(|sandbox| sandbox.pool.clone()).collect();
        for report in reports.by_index(BY_GATEWAY, gateway) {
            keys.extend(report.pools.keys().cloned());
        }
        keys.sort();
        keys.dedup();
        keys
    }
}

/// When a cache that misses nothing since then may be taken at its word.
fn trusted_from(unbroken: Option<Timestamp>, now: Timestamp) -> Timestamp {
    unbroken.unwrap_or(now).saturating_add(GRACE).unwrap_or(now)
}

/// What this process remembers of pools that are awake. Losing it costs nothing but a number of
/// sandboxes kept a little longer; see [`crate::scale`].
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pools: Mutex<HashMap<ObjectKey, Remembered>>,
}

/// What is remembered of one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Remembered {
    pub(crate) uid: Option<String>,
    /// See [`Situation::history`].
    pub(crate) history: Option<History>,
    /// See [`Situation::incarnation`].
    pub(crate) incarnation: i64,
    /// See [`Situation::unwritten`].
    pub(crate) unwritten: i32,
    /// See [`Situation::setback`].
    pub(crate) setback: Option<Setback>,
}

impl Memory {
    fn recall(&self, key: &ObjectKey, uid: Option<&str>) -> Option<Remembered> {
        self.pools.lock().get(key).filter(|pool| pool.uid.as_deref() == uid).cloned()
    }

    /// Replaces what is remembered of the pool; its UID is filled in.
    pub(crate) fn keep(&self, pool: &SandboxPool, remembered: Remembered) {
        let key = ObjectKey::of(pool);
        if remembered == Remembered::default() {
            return self.forget(&key);
        }
        let uid = pool.metadata.uid.clone();
        self.pools.lock().insert(key, Remembered { uid, ..remembered });
    }

    /// Forgets a pool that is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.pools.lock().remove(key);
    }
}

#[cfg(test)]
mod tests;
