//! The AppServices of an App: which ones it should have, what leads there, and who else holds the
//! node ports of a version. Pure.
//!
//! They are created and replaced rather than applied: a name may be another App's (`a-b` with the
//! service `c` and `a` with `b-c` want the same), and an apply would take it over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::resolve::pool_name;
use portolan_api::{
    App, AppService, AppServicePort, AppServiceSpec, AppVersion, Port, VersionService, labels,
    names,
};
use portolan_reconcile::{ObjectKey, Target};
use serde::Serialize;

use crate::observe::Seen;
use crate::plan::is_ours;

/// What to do about the AppServices of one App. A name that is not this App's is in none of the
/// lists: it is told, and nothing of it is touched.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct Addresses {
    /// To make; the name must be free.
    pub(crate) create: Vec<AppService>,
    /// As they shall be, each carrying the version that was seen.
    pub(crate) replace: Vec<AppService>,
    /// Those whose service is gone or http-only now. To be deleted last, and only in a pass in
    /// which nothing failed.
    pub(crate) delete: Vec<Target>,
    /// Whether all that should be is there, and the service controller has acted on it.
    pub(crate) is_followed: bool,
    /// Whether there should be any.
    pub(crate) is_needed: bool,
}

/// The version that the addresses follow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Followed<'a> {
    /// The one that serves.
    Active(&'a AppVersion),
    /// None serves yet, so the one that will: an address exists before anything answers on it.
    Coming(&'a AppVersion),
}

/// A node port that a version asks for and another App holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Withheld {
    /// The service that asks for it.
    service: String,
    /// The name of its port.
    port: String,
    /// The node port as people read it: `6697/TCP`.
    node_port: String,
    /// The AppService that holds it.
    holder: ObjectKey,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, node_port, holder } = self;
        write!(f, "service {service}: node port {node_port} (port {port}) ")?;
        write!(f, "is held by AppService {holder}")
    }
}

/// What leads to the AppServices that this version needs. Without a version nothing is known of
/// what is needed, so all stays as it is.
pub(crate) fn addresses(app: &App, followed: Option<Followed<'_>>, seen: &Seen) -> Addresses {
    let Some(followed) = followed else { return Addresses::default() };
    let desired = desired(app, followed);
    let is_needed = !desired.is_empty();
    let mut plan = Addresses { is_followed: true, is_needed, ..Addresses::default() };
    for (name, service) in &desired {
        match seen.services.get(name) {
            None => plan.create.push(service.clone()),
            Some(live) if !is_for(live, app, &service.spec.service) => continue,
            // Its successor is made when it is gone.
            Some(live) if live.metadata.deletion_timestamp.is_some() => continue,
            Some(live) => match brought_up(live, service) {
                Some(changed) => plan.replace.push(changed),
                None if live.is_current() => continue,
                None => {}
            },
        }
        plan.is_followed = false;
    }
    let unneeded = seen.services.iter().filter(|(name, live)| {
        is_ours(live.as_ref(), app)
            && !desired.contains_key(*name)
            && live.metadata.deletion_timestamp.is_none()
    });
    plan.delete = unneeded.map(|(_, live)| Target::of(live.as_ref())).collect();
    plan
}

/// Whether an AppService is the one of this App's service: neither another's nor an earlier App's.
pub(crate) fn is_for(live: &AppService, app: &App, service: &str) -> bool {
    is_ours(live, app) && live.spec.service == service
}

/// The services of a version that have an address, with the names of their AppServices.
pub(crate) fn addressed(
    version: &AppVersion,
) -> impl Iterator<Item = (&VersionService, String)> + use<'_> {
    let services = version.spec.services.iter().filter(|service| service.has_l4());
    services.map(|service| (service, names::app_service(&version.spec.app, &service.name)))
}

/// The Apps whose AppService may have this name: each part of it that ends before a hyphen.
pub(crate) fn possible_apps(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('-').map(|(end, _)| &name[..end])
}

/// The node ports that a switch from one version to another would be the first to ask for, and
/// would not get, in the order of the version that comes.
///
/// A port that the version before asks for as well is none of them: with it no switch makes
/// anything worse, and an App that waits for its port can be changed in all other respects.
pub(crate) fn withheld(
    app: &App,
    from: &AppVersion,
    to: &AppVersion,
    seen: &Seen,
) -> Vec<Withheld> {
    let before = asked(from);
    let ports = to.spec.services.iter().flat_map(|service| {
        let name = &service.name;
        service.ports.iter().map(move |port| (name, port))
    });
    let withheld = ports.filter_map(|(service, port)| {
        let value = node_port(port).filter(|value| !before.contains(value))?;
        let mut holders = seen.holders.get(&value)?.iter();
        // What the App holds itself moves from one of its services to another.
        let holder = holders.find(|holder| !is_ours(holder.as_ref(), app))?;
        Some(Withheld {
            service: service.clone(),
            port: port.name.clone(),
            node_port: value.to_ascii_uppercase(),
            holder: ObjectKey::of(holder.as_ref()),
        })
    });
    withheld.collect()
}

/// The node ports that a version asks for, as Claims say them.
pub(crate) fn asked(version: &AppVersion) -> BTreeSet<String> {
    let ports = version.spec.services.iter().flat_map(|service| &service.ports);
    ports.filter_map(node_port).collect()
}

/// The node ports that an AppService says it holds and still asks for, as Claims say them: one
/// that it does not ask for any more goes to whoever does.
pub(crate) fn held(service: &AppService) -> BTreeSet<String> {
    let held = service.status.as_ref().map(|status| status.node_ports.as_slice());
    let held = held.unwrap_or_default();
    let ports = service.spec.ports.iter().filter_map(|port| {
        let number = port.node_port?;
        let is_held = held.iter().any(|held| held.is_of(port));
        is_held.then(|| names::node_port(number, port.r#type.transport()))
    });
    ports.collect()
}

/// The node ports that an AppService came to hold or gave up between two states of it, as Claims
/// say them.
pub(crate) fn moved(old: Option<&AppService>, new: Option<&AppService>) -> BTreeSet<String> {
    let old = old.map(held).unwrap_or_default();
    let new = new.map(held).unwrap_or_default();
    old.symmetric_difference(&new).cloned().collect()
}

fn node_port(port: &Port) -> Option<String> {
    port.node_port.map(|number| names::node_port(number, port.r#type.transport()))
}

fn desired(app: &App, followed: Followed<'_>) -> BTreeMap<String, AppService> {
    let (version, is_active) = match followed {
        Followed::Active(version) => (version, true),
        Followed::Coming(version) => (version, false),
    };
    addressed(version)
        .map(|(service, name)| {
            let spec = AppServiceSpec {
                app: version.spec.app.clone(),
                service: service.name.clone(),
                pool: is_active.then(|| pool_name(&version.spec.app, service)),
                ports: service.ports.iter().map(port).collect(),
                session_affinity: service.session_affinity,
            };
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: app.metadata.namespace.clone(),
                labels: Some(BTreeMap::from([
                    (labels::APP.into(), names::label_value(&spec.app)),
                    (labels::SERVICE.into(), names::label_value(&spec.service)),
                    (labels::MANAGED_BY.into(), labels::MANAGER.into()),
                ])),
                owner_references: app.controller_owner_ref(&()).map(|owner| vec![owner]),
                ..ObjectMeta::default()
            };
            (name, AppService { metadata, spec, status: None })
        })
        .collect()
}

fn port(port: &Port) -> AppServicePort {
    AppServicePort {
        name: port.name.clone(),
        port: port.port,
        r#type: port.r#type,
        target_port: port.port,
        node_port: port.node_port,
    }
}

/// The live object with what it should say; `None` if it says it already. What others have added
/// to its metadata stays.
fn brought_up(live: &AppService, desired: &AppService) -> Option<AppService> {
    let mut changed = live.clone();
    changed.spec = desired.spec.clone();
    let labels = changed.metadata.labels.get_or_insert_default();
    labels.extend(desired.metadata.labels.clone().unwrap_or_default());
    (changed != *live).then_some(changed)
}
