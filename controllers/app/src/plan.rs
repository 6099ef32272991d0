//! Which version an App asks for, when it takes over, and what goes. Pure: no client, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::resolve::{self, pool_name};
use portolan_api::{Activation, App, AppVersion, SandboxPool, labels, names};
use serde::Serialize;

use crate::l4::{self, Addresses, Followed, Withheld};
use crate::observe::{GatewaySeen, Seen};
use crate::policy::network_policy;

/// The epoch of an App's first activation: before it nothing serves.
const FIRST_EPOCH: i64 = 1;

/// Knobs of the decision.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the gateways.
    pub system_namespace: String,
}

/// What the App asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Wanted {
    /// This version; it exists or is made by this plan.
    Version(String),
    /// `spec.version` names one that does not exist or is another App's.
    Missing(String),
    /// The name is taken: by a version of an earlier App, or by other content.
    Taken(String),
}

/// What to do for one App.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// What the App asks for.
    pub(crate) wanted: Wanted,
    /// The version to make.
    pub(crate) create: Option<AppVersion>,
    /// The switch that gateways are to follow; `None` before the first.
    pub(crate) activation: Option<Activation>,
    /// The node ports for which the switch to what is wanted waits; what serves goes on.
    pub(crate) withheld: Vec<Withheld>,
    /// The last epoch that all live gateways follow.
    pub(crate) settled_epoch: Option<i64>,
    /// When `wanted` began to be wanted.
    pub(crate) wanted_since: Timestamp,
    /// The NetworkPolicy to apply.
    pub(crate) policy: NetworkPolicy,
    /// What leads to its AppServices.
    pub(crate) addresses: Addresses,
    /// Versions to delete, `(name, uid)`.
    pub(crate) prune: Vec<(String, String)>,
    /// When time alone changes the plan.
    pub(crate) look_again: Option<Timestamp>,
}

impl Plan {
    /// Takes back a switch: what would serve is not reachable, or not protected, as it must be.
    pub(crate) fn stay(&mut self, seen: &Seen) {
        let status = seen.app.as_ref().and_then(|app| app.status.as_ref());
        let standing = status.and_then(|status| status.activation.clone());
        if self.activation != standing {
            self.activation = standing;
            self.settled_epoch = status.and_then(|status| status.settled_epoch);
        }
    }
}

/// Decides from what was seen. `None` when there is nothing to do: the App is gone or going, and
/// Kubernetes collects what it owns.
pub(crate) fn plan(seen: &Seen, settings: &Settings, now: Timestamp) -> Option<Plan> {
    let app = seen.app.as_deref().filter(|app| app.metadata.deletion_timestamp.is_none())?;
    let (wanted, create) = wanted(app, seen);
    let wanted_since = wanted_since(app, &wanted, now);
    let withheld = withheld(app, &wanted, seen);
    let activation = activation(app, &wanted, &withheld, seen);
    let live: Vec<_> = seen.gateways.iter().filter(|gateway| gateway.lapses > now).collect();
    let followed = followed(app, &wanted, create.as_ref(), seen);
    let addresses = l4::addresses(app, followed, seen);
    let settled_epoch = settled_epoch(app, activation.as_ref(), &live, &addresses);
    let is_settled = activation.as_ref().map(|activation| activation.epoch) == settled_epoch;
    // What goes, goes when the switch is written.
    let is_complete = is_settled
        && is_written(app, activation.as_ref())
        && is_active(activation.as_ref(), &wanted);
    let deadline = deadline(app, wanted_since);
    let look_again = if !is_active(activation.as_ref(), &wanted) && deadline > now {
        Some(deadline)
    } else if !is_settled {
        live.iter().map(|gateway| gateway.lapses).min()
    } else {
        None
    };
    Some(Plan {
        policy: network_policy(
            app,
            &serving(app, &wanted, create.as_ref(), seen),
            &settings.system_namespace,
        ),
        addresses,
        prune: if is_complete { prune(app, seen) } else { Vec::new() },
        wanted,
        create,
        activation,
        withheld,
        settled_epoch,
        wanted_since,
        look_again,
    })
}

/// Whether what is wanted is what serves.
pub(crate) fn is_active(activation: Option<&Activation>, wanted: &Wanted) -> bool {
    match (activation, wanted) {
        (Some(activation), Wanted::Version(name)) => activation.version == *name,
        _ => false,
    }
}

/// When a version wanted since `since` is late.
pub(crate) fn deadline(app: &App, since: Timestamp) -> Timestamp {
    let limit = SignedDuration::from_secs(app.spec.progress_deadline_seconds.into());
    since.checked_add(limit).unwrap_or(Timestamp::MAX)
}

fn wanted(app: &App, seen: &Seen) -> (Wanted, Option<AppVersion>) {
    let name = app.metadata.name.clone().unwrap_or_default();
    if let Some(pinned) = &app.spec.version {
        let found = seen.versions.get(pinned).is_some_and(|version| is_ours(version.as_ref(), app));
        let wanted = if found { Wanted::Version } else { Wanted::Missing };
        return (wanted(pinned.clone()), None);
    }
    let spec = resolve::resolve(&name, &app.spec);
    let version = names::version(&name, &spec.digest);
    match seen.versions.get(&version) {
        Some(hit) if is_ours(hit.as_ref(), app) && hit.spec.digest == spec.digest => {
            (Wanted::Version(version), None)
        }
        Some(_) => (Wanted::Taken(version), None),
        None => {
            let object = AppVersion {
                metadata: ObjectMeta {
                    name: Some(version.clone()),
                    namespace: app.metadata.namespace.clone(),
                    labels: Some(BTreeMap::from([
                        (labels::APP.into(), names::label_value(&name)),
                        (labels::MANAGED_BY.into(), labels::MANAGER.into()),
                    ])),
                    owner_references: app.controller_owner_ref(&()).map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                },
                spec,
                status: None,
            };
            (Wanted::Version(version), Some(object))
        }
    }
}

/// Whether an object belongs to this App and not to an earlier one of the same name.
pub(crate) fn is_ours(object: &impl Resource, app: &App) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    let uid = app.metadata.uid.as_deref();
    owners.into_iter().any(|o| o.controller == Some(true) && Some(o.uid.as_str()) == uid)
}

fn wanted_since(app: &App, wanted: &Wanted, now: Timestamp) -> Timestamp {
    let status = app.status.as_ref();
    let standing = status.filter(|status| match wanted {
        Wanted::Version(name) => status.latest_version.as_ref() == Some(name),
        Wanted::Missing(_) | Wanted::Taken(_) => true,
    });
    let since = standing.and_then(|status| status.latest_since.as_ref());
    since.map_or(now, |since| since.0)
}

/// The node ports that keep the wanted version from taking over from one that serves. Claims decide
/// in the end: what could not be known before the switch, the AppService tells after it.
///
/// A first version waits for none: nothing serves that would go on, and its other ports can.
fn withheld(app: &App, wanted: &Wanted, seen: &Seen) -> Vec<Withheld> {
    let standing = app.status.as_ref().and_then(|status| status.activation.as_ref());
    let (Some(standing), Wanted::Version(wanted)) = (standing, wanted) else { return Vec::new() };
    match (own(app, &standing.version, seen), own(app, wanted, seen)) {
        (Some(from), Some(to)) => l4::withheld(app, from, to, seen),
        // One that is made by this plan is looked at when it is there.
        _ => Vec::new(),
    }
}

/// The switch after this pass: to the wanted version as soon as all its pools are verified and
/// nobody withholds a node port, in one write, with the next epoch.
fn activation(
    app: &App,
    wanted: &Wanted,
    withheld: &[Withheld],
    seen: &Seen,
) -> Option<Activation> {
    let standing = app.status.as_ref().and_then(|status| status.activation.clone());
    let Wanted::Version(name) = wanted else { return standing };
    if standing.as_ref().is_some_and(|standing| standing.version == *name) {
        return standing;
    }
    let is_verified = seen.versions.get(name).is_some_and(|version| is_verified(version, seen));
    if !is_verified || !withheld.is_empty() {
        return standing;
    }
    let epoch = standing.map_or(FIRST_EPOCH, |standing| standing.epoch + 1);
    Some(Activation { version: name.clone(), epoch })
}

fn is_verified(version: &AppVersion, seen: &Seen) -> bool {
    let Some(uid) = version.metadata.uid.as_deref() else { return false };
    version.spec.services.iter().all(|service| {
        let pool = seen.pools.get(&pool_name(&version.spec.app, service));
        pool.is_some_and(|pool| pool.is_owned_by(uid) && pool.is_verified())
    })
}

/// The version whose ports have addresses: the one that serves according to what is written, so
/// that no address moves before the switch has happened.
fn followed<'a>(
    app: &App,
    wanted: &Wanted,
    create: Option<&'a AppVersion>,
    seen: &'a Seen,
) -> Option<Followed<'a>> {
    match (app.status.as_ref().and_then(|status| status.activation.as_ref()), wanted) {
        (Some(activation), _) => own(app, &activation.version, seen).map(Followed::Active),
        (None, Wanted::Version(name)) => {
            create.or_else(|| own(app, name, seen)).map(Followed::Coming)
        }
        (None, Wanted::Missing(_) | Wanted::Taken(_)) => None,
    }
}

/// The version of this App that has the name.
fn own<'a>(app: &App, name: &str, seen: &'a Seen) -> Option<&'a AppVersion> {
    let version = seen.versions.get(name).map(AsRef::as_ref);
    version.filter(|version| is_ours(*version, app))
}

/// Whether every live gateway reports the epoch or a later one.
fn is_followed(activation: Option<&Activation>, live: &[&GatewaySeen]) -> bool {
    activation.is_some_and(|Activation { epoch, .. }| {
        live.iter().all(|gateway| gateway.epoch.is_some_and(|followed| followed >= *epoch))
    })
}

/// An epoch has settled when every live gateway and every address follows it. It stays settled: a
/// gateway that starts afterwards begins with what the API server says.
///
/// The first epoch needs no gateway's word: there is nothing that one could still send elsewhere,
/// and no sandbox waits to be let go. Until a gateway follows, it answers 503 as it did before.
fn settled_epoch(
    app: &App,
    activation: Option<&Activation>,
    live: &[&GatewaySeen],
    addresses: &Addresses,
) -> Option<i64> {
    let standing = app.status.as_ref().and_then(|status| status.settled_epoch);
    let epoch = activation?.epoch;
    let is_first = epoch == FIRST_EPOCH;
    // Addresses follow what is written; where there are none, nothing has to be read back.
    let is_written = is_written(app, activation) || (is_first && !addresses.is_needed);
    let is_followed = addresses.is_followed && (is_first || is_followed(activation, live));
    if standing == Some(epoch) || (is_written && is_followed) { Some(epoch) } else { standing }
}

/// Whether the API server has this switch.
fn is_written(app: &App, activation: Option<&Activation>) -> bool {
    app.status.as_ref().and_then(|status| status.activation.as_ref()) == activation
}

/// The versions whose sandboxes may run, for which the network has to be open.
fn serving<'a>(
    app: &'a App,
    wanted: &Wanted,
    create: Option<&'a AppVersion>,
    seen: &'a Seen,
) -> Vec<&'a AppVersion> {
    let active = app.status.as_ref().and_then(|status| status.activation.as_ref());
    let active = active.map(|activation| activation.version.as_str());
    let latest = match wanted {
        Wanted::Version(name) => Some(name.as_str()),
        Wanted::Missing(_) | Wanted::Taken(_) => None,
    };
    let is_settling = app.status.as_ref().is_some_and(|status| {
        status.settled_epoch != status.activation.as_ref().map(|activation| activation.epoch)
    });
    seen.versions
        .values()
        .map(AsRef::as_ref)
        .filter(|version| is_ours(*version, app))
        .filter(|version| {
            let name = version.metadata.name.as_deref();
            is_settling || name == active || name == latest
        })
        .chain(create)
        .collect()
}

/// The versions beyond the limit, oldest first; never one that serves, is wanted, or whose
/// sandboxes still drain.
fn prune(app: &App, seen: &Seen) -> Vec<(String, String)> {
    let status = app.status.as_ref();
    let keep = |name: &Option<String>| {
        let is = |other: Option<&String>| other.is_some() && other == name.as_ref();
        is(status.and_then(|status| status.active_version.as_ref()))
            || is(status.and_then(|status| status.activation.as_ref()).map(|a| &a.version))
            || is(status.and_then(|status| status.latest_version.as_ref()))
    };
    let mut idle: Vec<_> = seen
        .versions
        .values()
        .filter(|version| is_ours(version.as_ref(), app) && !keep(&version.metadata.name))
        .collect();
    // What never served goes first: who looks for what to go back to looks for what worked.
    idle.sort_by_key(|version| {
        let created = version.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (version.has_served(), created, version.metadata.name.clone())
    });
    let limit = usize::try_from(app.spec.revision_history_limit).unwrap_or(0);
    let excess = idle.len().saturating_sub(limit);
    idle.truncate(excess);
    let has_sandboxes = |version: &AppVersion| {
        let pools = version.spec.services.iter();
        let mut pools = pools.filter_map(|s| seen.pools.get(&pool_name(&version.spec.app, s)));
        pools.any(|pool| is_in_use(pool) && !is_kept(pool, &idle, seen))
    };
    idle.iter()
        .filter(|version| !has_sandboxes(version))
        .filter_map(|version| Some((version.metadata.name.clone()?, version.metadata.uid.clone()?)))
        .collect()
}

/// Whether sandboxes of the pool serve or drain. With the pool they would go at once, whatever
/// runs there.
fn is_in_use(pool: &SandboxPool) -> bool {
    let counts = pool.status.as_ref().map(|status| (status.replicas, status.draining_replicas));
    counts.is_some_and(|counts| counts != (0, 0))
}

/// Whether the pool outlives these versions because another one owns it too.
fn is_kept(pool: &SandboxPool, going: &[&Arc<AppVersion>], seen: &Seen) -> bool {
    let owns = |version: &AppVersion| {
        version.metadata.uid.as_deref().is_some_and(|uid| pool.is_owned_by(uid))
    };
    let goes = |version: &Arc<AppVersion>| going.iter().any(|going| Arc::ptr_eq(going, version));
    seen.versions.values().any(|version| owns(version) && !goes(version))
}
