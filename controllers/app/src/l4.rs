//! The AppServices of an App: which ones it should have, and what leads there. Pure.
//!
//! They are created and replaced rather than applied: a name may be another App's (`a-b` with the
//! service `c` and `a` with `b-c` want the same), and an apply would take it over.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::resolve::pool_name;
use portolan_api::{
    App, AppService, AppServicePort, AppServiceSpec, AppVersion, Port, VersionService, labels,
    names,
};
use portolan_reconcile::Target;
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
