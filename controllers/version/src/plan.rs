//! Which pools an App has, who owns them and what each is for. Pure: no client, no clock.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use portolan_api::resolve::pool_name;
use portolan_api::{
    AppVersion, PoolRole, PoolScale, SandboxPool, SandboxPoolSpec, VersionService, labels, names,
};
use serde::Serialize;

use crate::observe::{AppFacts, Seen};

/// What to do for one App.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Pools to apply, by name, each whole.
    pub(crate) pools: BTreeMap<String, SandboxPool>,
    /// The candidate version may not start verifying yet: too many others do.
    pub(crate) is_waiting: bool,
}

/// Decides from what was seen of the App, its versions and its pools.
///
/// Every pool is the work of one pass over all versions, because its owners are: the apply of one
/// version alone would drop the others.
pub(crate) fn plan(seen: &Seen) -> Plan {
    let Some(app) = seen.app.as_ref().filter(|app| !app.is_deleting) else {
        return Plan::default();
    };
    let users = users(seen);
    let candidate = candidate(app, seen);
    let is_waiting = candidate.is_some_and(|version| must_wait(version, app, seen));
    let pools = users
        .iter()
        .filter_map(|(name, users)| {
            let pool = desired_pool(name, users, app, seen, is_waiting)?;
            Some((name.clone(), pool))
        })
        .collect();
    Plan { pools, is_waiting }
}

/// One use of a pool: the version, and its service that the pool runs.
type User<'a> = (&'a AppVersion, &'a VersionService);

/// The uses of every pool that the versions name, by pool.
fn users(seen: &Seen) -> BTreeMap<String, Vec<User<'_>>> {
    let mut users = BTreeMap::<String, Vec<User<'_>>>::new();
    for version in seen.versions.values() {
        for service in &version.spec.services {
            users
                .entry(pool_name(&version.spec.app, service))
                .or_default()
                .push((version, service));
        }
    }
    users
}

/// The version on its way to be active.
pub(crate) fn candidate<'a>(app: &AppFacts, seen: &'a Seen) -> Option<&'a AppVersion> {
    let latest = app.latest.as_ref().filter(|latest| app.active.as_ref() != Some(latest))?;
    seen.versions.get(latest).map(AsRef::as_ref)
}

/// Whether the candidate is kept back: it has not begun, and as many pools as may verify do so.
fn must_wait(version: &AppVersion, app: &AppFacts, seen: &Seen) -> bool {
    let has_begun = version.spec.services.iter().any(|service| {
        seen.pools
            .get(&pool_name(&app.key.name, service))
            .is_some_and(|pool| pool.spec.role == PoolRole::Candidate)
    });
    !has_begun && !seen.may_verify
}

fn desired_pool(
    name: &str,
    users: &[User<'_>],
    app: &AppFacts,
    seen: &Seen,
    is_waiting: bool,
) -> Option<SandboxPool> {
    let observed = seen.pools.get(name);
    let used_by = |wanted: &Option<String>| {
        users.iter().find(|(version, _)| wanted.is_some() && version.metadata.name == *wanted)
    };
    let active = used_by(&app.active);
    let latest = used_by(&app.latest);
    let role = match (active, latest) {
        (Some(_), _) => PoolRole::Active,
        // Gateways may still send to it: it stays until all of them report the switch, also when
        // the App has been sent back to it meanwhile.
        _ if !app.is_settled && observed.is_some_and(|p| p.spec.role == PoolRole::Active) => {
            PoolRole::Active
        }
        (None, Some(_)) if !is_waiting => PoolRole::Candidate,
        _ => PoolRole::Retired,
    };
    if observed.is_none() && role == PoolRole::Retired {
        return None;
    }
    let (_, service) = active.or(latest).or(users.first())?;
    let is_candidate = latest.is_some() && app.latest != app.active && !is_waiting;
    let spec = SandboxPoolSpec {
        app: app.key.name.clone(),
        service: service.name.clone(),
        sandbox: service.sandbox.clone(),
        role,
        scale: match observed {
            // Only a version that serves or is being verified sets the scale.
            Some(observed) if active.is_none() && role != PoolRole::Candidate => {
                observed.spec.scale.clone()
            }
            _ => scale(service),
        },
        floor: is_candidate.then(|| floor(service, observed.map(AsRef::as_ref), app, seen)),
        // The pool controller's: left out, so that this apply does not own it.
        replicas: None,
    };
    Some(SandboxPool {
        metadata: metadata(name, users, observed.map(AsRef::as_ref), app, seen),
        spec,
        status: None,
    })
}

/// The service's scale; one that something else than a request for it may need never sleeps,
/// because nothing would wake it.
fn scale(service: &VersionService) -> PoolScale {
    let mut scale = service.scale.clone();
    if !service.can_sleep() {
        scale.min = scale.min.max(1);
        scale.max = scale.max.max(scale.min);
    }
    scale
}

/// How many sandboxes a candidate has to show: as many as serve the service today, at least one.
/// It only rises while the candidate verifies, so that verified once stays verified.
fn floor(
    service: &VersionService,
    observed: Option<&SandboxPool>,
    app: &AppFacts,
    seen: &Seen,
) -> i32 {
    let serving = seen.pools.values().find(|pool| {
        pool.spec.service == service.name && pool.spec.role == PoolRole::Active && {
            let active = app.active.as_ref().and_then(|active| seen.versions.get(active));
            let uid = active.and_then(|version| version.metadata.uid.as_deref());
            uid.is_some_and(|uid| pool.is_owned_by(uid))
        }
    });
    let is_itself = serving.map(|pool| pool.metadata.name.as_ref())
        == observed.map(|pool| pool.metadata.name.as_ref());
    let ready = match serving.and_then(|pool| pool.status.as_ref()) {
        Some(status) if !is_itself => status.ready_replicas,
        _ => 1,
    };
    let standing = observed.and_then(|pool| pool.spec.floor).unwrap_or(1);
    ready.max(standing).clamp(1, service.scale.max.max(1))
}

fn metadata(
    name: &str,
    users: &[User<'_>],
    observed: Option<&SandboxPool>,
    app: &AppFacts,
    seen: &Seen,
) -> ObjectMeta {
    let (_, service) = users[0];
    let label = |key: &str, value: &str| (key.to_string(), names::label_value(value));
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(app.key.namespace.clone()),
        // What was decided for the pool as seen is not to be applied to a later one.
        uid: observed.and_then(|pool| pool.metadata.uid.clone()),
        resource_version: observed.and_then(|pool| pool.metadata.resource_version.clone()),
        labels: Some(BTreeMap::from([
            label(labels::APP, &app.key.name),
            label(labels::SERVICE, &service.name),
            label(labels::MANAGED_BY, labels::MANAGER),
        ])),
        owner_references: Some(owners(users, observed, seen)),
        ..ObjectMeta::default()
    }
}

/// Every version that uses the pool, and every other owner that a live read has not declared
/// gone: a cache that lags must not take an owner away.
fn owners(users: &[User<'_>], observed: Option<&SandboxPool>, seen: &Seen) -> Vec<OwnerReference> {
    let mut by_uid: BTreeMap<(String, String), OwnerReference> = users
        .iter()
        .filter_map(|(version, _)| owner(version))
        .map(|owner| ((owner.name.clone(), owner.uid.clone()), owner))
        .collect();
    let standing = observed.and_then(|pool| pool.metadata.owner_references.as_ref());
    for owner in standing.into_iter().flatten() {
        if owner.kind == "AppVersion" && !seen.gone.contains(&owner.uid) {
            by_uid.entry((owner.name.clone(), owner.uid.clone())).or_insert_with(|| owner.clone());
        }
    }
    by_uid.into_values().collect()
}

fn owner(version: &AppVersion) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: AppVersion::api_version(&()).into(),
        kind: AppVersion::kind(&()).into(),
        name: version.metadata.name.clone()?,
        uid: version.metadata.uid.clone()?,
        block_owner_deletion: None,
        controller: None,
    })
}
