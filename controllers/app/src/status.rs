//! What an App reports. Pure: no client, no clock.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portolan_api::conditions::{
    PROGRESSING, READY, ROUTES_READY, SERVICES_READY, SLEEPABLE, reason,
};
use portolan_api::resolve::pool_name;
use portolan_api::{App, AppStatus, AppVersion, SandboxPool, ServiceStatus, VersionService};
use portolan_reconcile::{Conditions, Transition, Verdict};

use crate::l4;
use crate::observe::Seen;
use crate::plan::{Plan, Wanted, deadline, is_active};
use crate::policy::sleepless;

/// Verdict, reason and message of one condition.
type Word = (Verdict, &'static str, String);

/// The status of the App after this plan, with the conditions that flipped. `refusal`: what the API
/// server refused of it, and why.
pub(crate) fn status(
    app: &App,
    seen: &Seen,
    plan: &Plan,
    refusal: Option<&str>,
    now: Timestamp,
) -> (AppStatus, Vec<Transition>) {
    let observed = app.status.as_ref();
    let generation = app.metadata.generation.unwrap_or(1);
    let active = plan.activation.as_ref().and_then(|a| seen.versions.get(&a.version));
    let active = active.map(AsRef::as_ref);
    let services = services_ready(app, active, seen);
    let mut conditions =
        Conditions::new(observed.map_or(&[][..], |status| &status.conditions), generation, now);
    let mut set = |kind: &str, (verdict, reason, message): Word| {
        if kind == READY && reason == reason::NODE_PORT_CONFLICT {
            conditions.set_naming(kind, verdict, reason, &message);
        } else {
            conditions.set(kind, verdict, reason, &message);
        }
    };
    let stuck = stuck(plan, refusal);
    set(READY, stuck.clone().unwrap_or_else(|| ready(app, seen, plan, &services, now)));
    set(PROGRESSING, stuck.unwrap_or_else(|| progressing(app, seen, plan, now)));
    set(SERVICES_READY, services);
    set(ROUTES_READY, routes_ready(seen));
    if let Some(word) = active.and_then(sleepable) {
        set(SLEEPABLE, word);
    }
    let (conditions, transitions) = conditions.finish();
    let latest = match &plan.wanted {
        Wanted::Version(name) => Some(name.clone()),
        Wanted::Missing(_) | Wanted::Taken(_) => observed.and_then(|o| o.latest_version.clone()),
    };
    let status = AppStatus {
        observed_generation: Some(generation),
        latest_since: latest.is_some().then_some(Time(plan.wanted_since)),
        latest_version: latest,
        active_version: plan.activation.as_ref().map(|activation| activation.version.clone()),
        activation: plan.activation.clone(),
        settled_epoch: plan.settled_epoch,
        url: url(seen),
        services: active.map(service_pools).unwrap_or_default(),
        conditions,
    };
    (status, transitions)
}

/// Whether this only adds to the word that a rollout is on its way, which may wait: the first word
/// on a generation, a switch, and what goes wrong may not.
pub(crate) fn is_progress(observed: Option<&AppStatus>, desired: &AppStatus) -> bool {
    let Some(said) = observed.filter(|said| *said != desired) else { return false };
    let find = |status: &'_ AppStatus, type_: &str| {
        status.conditions.iter().find(|condition| condition.type_ == type_).cloned()
    };
    let rolls_out = |status: &AppStatus| {
        find(status, READY).is_some_and(|ready| ready.reason == reason::ROLLING_OUT)
    };
    let mut bad = desired.conditions.iter().filter(|condition| condition.status == "False");
    rolls_out(said)
        && rolls_out(desired)
        && said.observed_generation == desired.observed_generation
        && said.latest_version == desired.latest_version
        && said.activation == desired.activation
        && said.settled_epoch == desired.settled_epoch
        && bad.all(|bad| find(said, &bad.type_).is_some_and(|said| said.status == "False"))
}

/// Speaks of what the spec asks for: while another version still serves, it is not True.
fn ready(app: &App, seen: &Seen, plan: &Plan, services: &Word, now: Timestamp) -> Word {
    if is_active(plan.activation.as_ref(), &plan.wanted) {
        if !is_settled(plan) {
            let message = "the new version is active; not all gateways have reported it yet";
            return (Verdict::Unknown, reason::SWITCHING, message.into());
        }
        return services.clone();
    }
    let serving = serving(plan);
    if let Some((reason, message)) = failure(seen, plan) {
        return (Verdict::False, reason, format!("{message}; {serving}"));
    }
    if deadline(app, plan.wanted_since) <= now {
        let why = hint(seen, plan).map(|message| format!(": {message}")).unwrap_or_default();
        let message = format!("the new version did not become ready in time{why}; {serving}");
        return (Verdict::False, reason::DEADLINE_EXCEEDED, message);
    }
    let name = match &plan.wanted {
        Wanted::Version(name) | Wanted::Missing(name) | Wanted::Taken(name) => name,
    };
    (Verdict::Unknown, reason::ROLLING_OUT, format!("version {name} is being verified; {serving}"))
}

/// What serves meanwhile.
fn serving(plan: &Plan) -> String {
    match &plan.activation {
        Some(activation) => format!("version {} keeps serving", activation.version),
        None => "no version serves yet".into(),
    }
}

fn progressing(app: &App, seen: &Seen, plan: &Plan, now: Timestamp) -> Word {
    if is_active(plan.activation.as_ref(), &plan.wanted) {
        return match (is_settled(plan), &app.spec.version) {
            (false, _) => {
                let message = "waiting for all gateways to report the switch";
                (Verdict::True, reason::SWITCHING, message.into())
            }
            (true, Some(pinned)) => {
                let message = format!("pinned to {pinned}; remove spec.version to follow the spec");
                (Verdict::True, reason::PINNED, message)
            }
            (true, None) => (Verdict::True, reason::COMPLETE, "the rollout is complete".into()),
        };
    }
    if deadline(app, plan.wanted_since) <= now {
        let seconds = app.spec.progress_deadline_seconds;
        let failure = failure(seen, plan).map(|(_, message)| message);
        let why = failure.or_else(|| hint(seen, plan)).map(|message| format!(": {message}"));
        let message = format!(
            "not ready within {seconds} s{}; nothing was torn down, and it still tries",
            why.unwrap_or_default()
        );
        return (Verdict::False, reason::DEADLINE_EXCEEDED, message);
    }
    if is_waiting(seen, plan) {
        let message = "waits until fewer versions verify at once in this cluster";
        return (Verdict::True, reason::WAITING, message.into());
    }
    (Verdict::True, reason::ROLLING_OUT, "the new version is being verified".into())
}

/// What keeps a rollout from even beginning, or from going on.
fn stuck(plan: &Plan, refusal: Option<&str>) -> Option<Word> {
    match &plan.wanted {
        Wanted::Version(name) => {
            let refused = refusal.map(|refusal| (reason::OBJECT_REFUSED, refusal.to_owned()));
            let (reason, message) = refused.or_else(|| withheld(name, plan))?;
            Some((Verdict::False, reason, format!("{message}; {}", serving(plan))))
        }
        Wanted::Missing(name) => Some((
            Verdict::False,
            reason::VERSION_NOT_FOUND,
            format!(
                "spec.version names {name}, which is no version of this App; see kubectl get appversions"
            ),
        )),
        Wanted::Taken(name) => Some((
            Verdict::False,
            reason::NAME_CONFLICT,
            format!(
                "an AppVersion named {name} exists and is not this App's; it may be one of an earlier App that is still going, else delete it"
            ),
        )),
    }
}

/// The node ports for which the switch waits. It is told at once: whether the version is verified
/// meanwhile changes nothing about it.
fn withheld(version: &str, plan: &Plan) -> Option<(&'static str, String)> {
    if plan.withheld.is_empty() {
        return None;
    }
    let ports = Vec::from_iter(plan.withheld.iter().map(ToString::to_string)).join(", ");
    let message = format!(
        "{ports}; choose another, or have it released there: version {version} takes over then by itself"
    );
    Some((reason::NODE_PORT_CONFLICT, message))
}

fn is_settled(plan: &Plan) -> bool {
    plan.settled_epoch == plan.activation.as_ref().map(|activation| activation.epoch)
}

fn is_waiting(seen: &Seen, plan: &Plan) -> bool {
    let Wanted::Version(name) = &plan.wanted else { return false };
    let status = seen.versions.get(name).and_then(|version| version.status.as_ref());
    let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == READY && condition.reason == reason::WAITING)
}

/// The first pool of the wanted version that says what is wrong with it.
fn failure(seen: &Seen, plan: &Plan) -> Option<(&'static str, String)> {
    let Wanted::Version(name) = &plan.wanted else { return None };
    let version = seen.versions.get(name)?;
    pools(version, seen).find_map(|(service, pool)| {
        let (reason, message) = pool?.failure()?;
        Some((reason, format!("service {service}: {message}")))
    })
}

/// What the first pool of the wanted version waits for that is neither ready nor known to fail.
fn hint(seen: &Seen, plan: &Plan) -> Option<String> {
    let Wanted::Version(name) = &plan.wanted else { return None };
    let version = seen.versions.get(name)?;
    pools(version, seen).find_map(|(service, pool)| {
        let ready = pool?.ready().filter(|condition| condition.status == "Unknown")?;
        Some(format!("service {service}: {}", ready.message))
    })
}

/// The services of a version with the pools that run them.
fn pools<'a>(
    version: &'a AppVersion,
    seen: &'a Seen,
) -> impl Iterator<Item = (&'a str, Option<&'a SandboxPool>)> {
    version.spec.services.iter().map(|service| {
        let pool = seen.pools.get(&pool_name(&version.spec.app, service));
        (service.name.as_str(), pool.map(AsRef::as_ref))
    })
}

/// Speaks of the version that serves now. Waking from sleep does not shake it.
fn services_ready(app: &App, active: Option<&AppVersion>, seen: &Seen) -> Word {
    let Some(version) = active else {
        let message = "no version has been activated yet";
        return (Verdict::False, reason::NO_ACTIVE_VERSION, message.into());
    };
    for (service, pool) in pools(version, seen) {
        let Some(pool) = pool else {
            let message = format!("service {service}: its pool is being made");
            return (Verdict::Unknown, reason::STARTING, message);
        };
        if let Some((reason, message)) = pool.failure() {
            return (Verdict::False, reason, format!("service {service}: {message}"));
        }
    }
    if let Some(word) = unreachable(app, version, seen) {
        return word;
    }
    let is_asleep =
        pools(version, seen).all(|(_, pool)| pool.is_some_and(|p| p.spec.wanted() == 0));
    if is_asleep {
        return (Verdict::True, reason::ASLEEP, "asleep; the first request wakes it".into());
    }
    (Verdict::True, reason::AVAILABLE, "all services are ready or asleep".into())
}

/// What keeps the addresses of the services from taking connections; what has failed comes before
/// what is on its way.
fn unreachable(app: &App, version: &AppVersion, seen: &Seen) -> Option<Word> {
    let words = l4::addressed(version).filter_map(|(service, name)| {
        let service = &service.name;
        let Some(live) = seen.services.get(&name) else {
            let message = format!("service {service}: its AppService {name} is being made");
            return Some((Verdict::Unknown, reason::STARTING, message));
        };
        if !l4::is_for(live, app, service) {
            let message = format!(
                "service {service}: an AppService named {name} exists and is of service {} of App {}; it may be one of an earlier App that is still going, else rename one of the services or Apps",
                live.spec.service, live.spec.app,
            );
            return Some((Verdict::False, reason::NAME_CONFLICT, message));
        }
        match (live.failure(), live.ready()) {
            (Some((reason, message)), _) => {
                Some((Verdict::False, reason, format!("service {service}: {message}")))
            }
            (None, Some(_)) => None,
            (None, None) => {
                let message = format!("service {service}: its address is being made");
                Some((Verdict::Unknown, reason::STARTING, message))
            }
        }
    });
    let mut words = Vec::from_iter(words);
    words.sort_by_key(|(verdict, ..)| *verdict != Verdict::False);
    words.into_iter().next()
}

fn routes_ready(seen: &Seen) -> Word {
    if seen.routes.is_empty() {
        return (Verdict::True, reason::NO_ROUTES, "no Route names this App".into());
    }
    for (name, route) in &seen.routes {
        match &route.ready {
            Some(ready) if ready.status == "True" => {}
            Some(ready) if ready.status == "False" => {
                let message = format!("route {name}: {}", ready.message);
                return (Verdict::False, reason::ROUTE_NOT_READY, message);
            }
            _ => {
                let message = format!("route {name} is being looked at");
                return (Verdict::Unknown, reason::ROUTE_NOT_READY, message);
            }
        }
    }
    (Verdict::True, reason::ROUTES_READY, "all routes are ready".into())
}

fn sleepable(version: &AppVersion) -> Option<Word> {
    let services = Vec::from_iter(sleepless(version));
    if services.is_empty() {
        return None;
    }
    let message = format!(
        "services without an http port, or with a tcp or udp port or a nodePort, keep one sandbox, \
         because only http wakes: {}",
        services.join(", ")
    );
    let has_l4 = version.spec.services.iter().any(VersionService::has_l4);
    let reason = if has_l4 { reason::L4_PORTS } else { reason::NO_HTTP_PORT };
    Some((Verdict::False, reason, message))
}

/// Where the oldest ready Route answers.
fn url(seen: &Seen) -> Option<String> {
    let ready = seen.routes.values().filter(|route| {
        route.url.is_some() && route.ready.as_ref().is_some_and(|ready| ready.status == "True")
    });
    ready.min_by_key(|route| (route.created, &route.key.name)).and_then(|route| route.url.clone())
}

fn service_pools(version: &AppVersion) -> Vec<ServiceStatus> {
    let services = version.spec.services.iter();
    services
        .map(|service| ServiceStatus {
            name: service.name.clone(),
            pool: pool_name(&version.spec.app, service),
        })
        .collect()
}
