//! Decides the Services of an App's internal names. Pure: no IO, no clock.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::{App, labels, names};
use portolan_reconcile::{Observed, Packed, Target};

use crate::internal::observe::{Led, Named, Situation};

/// The port that a caller need not write.
const HTTP: i32 = 80;

/// What a pass does, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// To make; the name must be free.
    pub(crate) create: Vec<Service>,
    /// As they shall be, each carrying the version that was seen.
    pub(crate) replace: Vec<Service>,
    /// Those whose service is gone or has an address of its own now. Only in a pass in which
    /// nothing failed.
    pub(crate) delete: Vec<Target>,
    /// Names that are somebody else's, in order.
    pub(crate) taken: Vec<String>,
    /// A name of which nothing is known, and why. What has it is left alone.
    pub(crate) unknown: Option<String>,
}

/// Decides what to do about the internal names of an App. Without a version nothing is known of
/// which it needs, so all stay.
pub(crate) fn plan(app: &App, situation: &Situation) -> Plan {
    let mut plan = Plan::default();
    let Some(names) = &situation.names else { return plan };
    for Led { name, service, port } in &names.services {
        match situation.there.get(&**name) {
            None | Some(Observed::Absent) => {
                plan.create.push(brought_up(&blank(app, name), app, service, *port));
            }
            Some(Observed::Unknown(why)) => plan.unknown = Some(why.clone()),
            Some(Observed::Present(there)) => match own(there, app) {
                Some(live) => {
                    let wanted = brought_up(&live, app, service, *port);
                    plan.replace.extend((wanted != live).then_some(wanted));
                }
                None if there.is_passing(app, service) => {}
                None => plan.taken.push(name.to_string()),
            },
        }
    }
    let owned = situation.owned.iter().filter_map(|named| own(named, app));
    let unneeded = owned.filter(|live| {
        let name = live.metadata.name.as_deref().unwrap_or_default();
        names.services.iter().all(|led| *led.name != *name)
    });
    plan.delete = unneeded.map(|live| Target::of(&live)).collect();
    plan
}

/// The Service, if it is an internal name that this App controls, by UID, and that stays.
fn own(named: &Named, app: &App) -> Option<Service> {
    let owner = named.owner.as_ref()?;
    let is_own = app.metadata.uid.as_ref() == Some(&owner.uid) && !named.leaving;
    named.internal.as_ref().filter(|_| is_own).map(Packed::unpack)
}

fn blank(app: &App, name: &str) -> Service {
    let metadata = ObjectMeta {
        name: Some(name.into()),
        namespace: app.metadata.namespace.clone(),
        owner_references: app.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = ServiceSpec {
        // One address of each family that the cluster has.
        ip_family_policy: Some("PreferDualStack".into()),
        ..ServiceSpec::default()
    };
    Service { metadata, spec: Some(spec), status: None }
}

/// The Service as it is, with what it should say. Its addresses stay.
fn brought_up(live: &Service, app: &App, service: &str, port: i32) -> Service {
    let mut changed = live.clone();
    let name = app.metadata.name.as_deref().unwrap_or_default();
    changed.metadata.labels.get_or_insert_default().extend(BTreeMap::from([
        (labels::APP.into(), names::label_value(name)),
        (labels::SERVICE.into(), names::label_value(service)),
        (labels::MANAGED_BY.into(), labels::MANAGER.into()),
        (labels::SERVICE_PROXY.into(), labels::MANAGER.into()),
        (labels::INTERNAL.into(), labels::INTERNAL_HTTP.into()),
    ]));
    let spec = changed.spec.get_or_insert_default();
    spec.type_ = Some("ClusterIP".into());
    // With a selector, Kubernetes would make endpoints, and callers would pass by the gateways.
    spec.selector = None;
    let numbers = std::iter::once(HTTP).chain((port != HTTP).then_some(port));
    let before = spec.ports.take().unwrap_or_default();
    spec.ports = Some(numbers.map(|number| service_port(number, &before)).collect());
    changed
}

/// The port, with what the API server added to it when it was made.
fn service_port(number: i32, before: &[ServicePort]) -> ServicePort {
    let name = if number == HTTP { "http".into() } else { format!("http-{number}") };
    let same = before.iter().find(|port| port.name.as_ref() == Some(&name));
    let target = same.filter(|port| port.port == number).and_then(|p| p.target_port.clone());
    ServicePort {
        name: Some(name),
        port: number,
        protocol: Some("TCP".into()),
        target_port: target,
        ..ServicePort::default()
    }
}
