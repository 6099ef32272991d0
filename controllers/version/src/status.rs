//! What each version reports. Pure: no client, no clock.

use std::collections::BTreeMap;

use jiff::Timestamp;
use portolan_api::conditions::{READY, reason};
use portolan_api::resolve::pool_name;
use portolan_api::{AppVersion, AppVersionStatus};
use portolan_reconcile::{Conditions, Transition, Verdict};

use crate::observe::{AppFacts, Seen};
use crate::plan::Plan;

/// The status of every version of the App, by name, with the conditions that flipped.
pub(crate) fn status(
    seen: &Seen,
    plan: &Plan,
    now: Timestamp,
) -> BTreeMap<String, (AppVersionStatus, Vec<Transition>)> {
    let Some(app) = seen.app.as_ref().filter(|app| !app.is_deleting) else {
        return BTreeMap::new();
    };
    seen.versions
        .iter()
        .filter(|(name, version)| has_a_part(app, name, version))
        .map(|(name, version)| {
            let (verdict, reason, message) = ready(app, version, seen, plan);
            let observed = version.status.as_ref().map_or(&[][..], |status| &status.conditions);
            let generation = version.metadata.generation.unwrap_or(1);
            let mut conditions = Conditions::new(observed, generation, now);
            conditions.set(READY, verdict, reason, &message);
            let (conditions, transitions) = conditions.finish();
            let status = AppVersionStatus { observed_generation: Some(generation), conditions };
            (name.clone(), (status, transitions))
        })
        .collect()
}

/// Whether this is word of a step on the way to serve, which may wait: what failed before has to
/// be taken back at once.
pub(crate) fn is_progress(observed: Option<&AppVersionStatus>, desired: &AppVersionStatus) -> bool {
    let said = observed.and_then(|status| status.conditions.first());
    let ready = desired.conditions.first();
    let is_step = ready.is_some_and(|ready| {
        [reason::VERIFYING, reason::VERIFIED].contains(&ready.reason.as_str())
    });
    is_step && said.is_none_or(|said| said.status != "False") && said != ready
}

/// A version that has just been made is named by the App's status a moment later; until then it
/// has nothing to say.
fn has_a_part(app: &AppFacts, name: &str, version: &AppVersion) -> bool {
    let is_named = |by: &Option<String>| by.as_deref() == Some(name);
    version.status.is_some() || is_named(&app.active) || is_named(&app.latest)
}

fn ready(
    app: &AppFacts,
    version: &AppVersion,
    seen: &Seen,
    plan: &Plan,
) -> (Verdict, &'static str, String) {
    let name = version.metadata.name.as_ref();
    if app.active.as_ref() == name {
        return (Verdict::True, reason::ACTIVE, "serves".into());
    }
    if app.latest.as_ref() != name {
        let reason = if version.has_served() { reason::REPLACED } else { reason::SUPERSEDED };
        return (Verdict::True, reason, "another version serves".into());
    }
    if plan.is_waiting {
        let message = "waits until fewer versions verify at once in this cluster";
        return (Verdict::Unknown, reason::WAITING, message.into());
    }
    let pools: Vec<_> = version
        .spec
        .services
        .iter()
        .map(|service| (service, seen.pools.get(&pool_name(&app.key.name, service))))
        .collect();
    if pools.iter().all(|(_, pool)| pool.is_some_and(|pool| pool.is_verified())) {
        return (Verdict::True, reason::VERIFIED, "all services are ready".into());
    }
    let failing = pools.iter().find_map(|(service, pool)| {
        let (reason, message) = pool.as_ref()?.failure()?;
        Some((Verdict::False, reason, format!("service {}: {message}", service.name)))
    });
    failing.unwrap_or_else(|| {
        let names: Vec<_> = pools
            .iter()
            .filter(|(_, pool)| !pool.is_some_and(|pool| pool.is_verified()))
            .map(|(service, _)| service.name.as_str())
            .collect();
        (Verdict::Unknown, reason::VERIFYING, format!("services starting: {}", names.join(", ")))
    })
}
