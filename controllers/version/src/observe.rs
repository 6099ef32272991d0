//! All reads: the App, its versions and its pools, from caches; owners in doubt, live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use portolan_api::{App, AppVersion, PoolRole, SandboxPool};
use portolan_reconcile::{ObjectKey, Observed};

use crate::VersionReconciler;

/// Index of versions and pools: the key of their App.
pub(crate) const BY_APP: &str = "app";

/// How long a pool has a place to verify, whatever its App says: others wait for it.
const PATIENCE_MAX: SignedDuration = SignedDuration::from_mins(30);

/// What this controller needs of an App.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AppFacts {
    /// Namespace and name.
    pub(crate) key: ObjectKey,
    /// UID: versions of an earlier App of that name are not this one's.
    pub(crate) uid: String,
    /// The App is going, and everything it owns with it.
    pub(crate) is_deleting: bool,
    /// The version that serves.
    pub(crate) active: Option<String>,
    /// The version that the spec asks for.
    pub(crate) latest: Option<String>,
    /// All live gateways follow the activation.
    pub(crate) is_settled: bool,
    /// How long a version may take to become ready before it is late.
    pub(crate) patience: SignedDuration,
}

impl AppFacts {
    /// The facts of an App; `None` for one without identity, which the API server never sends.
    pub(crate) fn of(app: App) -> Option<Self> {
        let status = app.status.unwrap_or_default();
        let epoch = status.activation.as_ref().map(|activation| activation.epoch);
        Some(Self {
            key: ObjectKey::new(app.metadata.namespace?, app.metadata.name?),
            uid: app.metadata.uid?,
            is_deleting: app.metadata.deletion_timestamp.is_some(),
            active: status.activation.map(|activation| activation.version),
            latest: status.latest_version,
            is_settled: status.settled_epoch == epoch,
            patience: SignedDuration::from_secs(app.spec.progress_deadline_seconds.into()),
        })
    }
}

/// What was seen of one App.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The App; `None` when there is none.
    pub(crate) app: Option<AppFacts>,
    /// Its versions, by name.
    pub(crate) versions: BTreeMap<String, Arc<AppVersion>>,
    /// Its pools, by name.
    pub(crate) pools: BTreeMap<String, Arc<SandboxPool>>,
    /// UIDs of pool owners that a live read has declared gone.
    pub(crate) gone: BTreeSet<String>,
    /// Whether there is a place for it to verify a version.
    pub(crate) may_verify: bool,
}

impl VersionReconciler {
    /// Reads everything that the plan for `key` may know.
    pub(crate) async fn observe(&self, key: &ObjectKey) -> Seen {
        let Some(app) = self.apps.get(key) else { return Seen::default() };
        let index = key.to_string();
        let versions: BTreeMap<_, _> = self
            .versions
            .unpack_by_index(BY_APP, &index)
            .into_iter()
            .filter(|version| is_controlled_by(version, &app.uid))
            .filter_map(|version| Some((version.metadata.name.clone()?, version)))
            .collect();
        let pools: BTreeMap<_, _> = self
            .pools
            .unpack_by_index(BY_APP, &index)
            .into_iter()
            .filter_map(|pool| Some((pool.metadata.name.clone()?, pool)))
            .collect();
        let gone = self.gone(key, owners_in_doubt(&pools, &versions)).await;
        let may_verify = self.verifying.has_room(key);
        Seen { app: Some((*app).clone()), versions, pools, gone, may_verify }
    }

    /// Which of these `(name, uid)` no longer exist. A read that fails proves nothing.
    async fn gone(&self, app: &ObjectKey, doubts: BTreeSet<(String, String)>) -> BTreeSet<String> {
        let mut gone = BTreeSet::new();
        for (name, uid) in doubts {
            let live: Observed<AppVersion> =
                self.writer.get(&ObjectKey::new(app.namespace.clone(), name)).await;
            let is_gone = match live {
                Observed::Absent => true,
                Observed::Present(version) => version.metadata.uid.as_ref() != Some(&uid),
                Observed::Unknown(_) => false,
            };
            if is_gone {
                gone.insert(uid);
            }
        }
        gone
    }
}

fn is_controlled_by(version: &AppVersion, uid: &str) -> bool {
    let owners = version.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Whether the pool is a candidate's that has yet to show what it can. One that has failed tries
/// on, at a slowing pace; it takes no place, so that broken versions do not hold up all others.
pub(crate) fn is_verifying(pool: &SandboxPool) -> bool {
    pool.spec.role == PoolRole::Candidate && !pool.is_verified() && pool.failure().is_none()
}

/// When pools of the App that verify give up their places although they neither fail nor become
/// ready; `None` when none verifies, or none has said since when. They verify on without.
pub(crate) fn late_from(seen: &Seen) -> Option<Timestamp> {
    let patience = seen.app.as_ref()?.patience.min(PATIENCE_MAX);
    let verifying = seen.pools.values().filter(|pool| is_verifying(pool));
    let word = verifying.filter_map(|pool| pool.ready());
    // Until the pool has looked at its new role, its word is of another time.
    let starting = word.filter(|ready| ready.status == "Unknown");
    let since = starting.map(|ready| ready.last_transition_time.0).min()?;
    since.checked_add(patience).ok()
}

/// The owners that a pool has and the versions seen do not account for: each wants a live read
/// before it may be dropped. `(name, uid)`, without repetition.
pub(crate) fn owners_in_doubt(
    pools: &BTreeMap<String, Arc<SandboxPool>>,
    versions: &BTreeMap<String, Arc<AppVersion>>,
) -> BTreeSet<(String, String)> {
    let known: BTreeSet<_> =
        versions.values().filter_map(|version| version.metadata.uid.as_deref()).collect();
    pools
        .values()
        .flat_map(|pool| pool.metadata.owner_references.iter().flatten())
        .filter(|owner| owner.kind == "AppVersion" && !known.contains(owner.uid.as_str()))
        .map(|owner| (owner.name.clone(), owner.uid.clone()))
        .collect()
}
