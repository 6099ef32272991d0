//! Which AppServices a change concerns. Pure look-ups in the cache of AppServices; a change that
//! says nothing new wakes nobody.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_api::{AppService, Claim, labels};
use portolan_claims::holder_key;
use portolan_reconcile::{Cache, Change, ObjectKey, Packed};

use crate::REALM;
use crate::observe::{BY_ADDRESS, BY_NODE_PORT, BY_POD, BY_POOL};
use crate::ports::NodePort;
use crate::view::{Listeners, ServiceView};

/// A Claim concerns its holder and whoever asks for that port.
pub(crate) fn by_claim(
    change: &Change<'_, Packed<Claim>>,
    known: &Cache<AppService>,
) -> BTreeSet<ObjectKey> {
    let mut woken = BTreeSet::new();
    for claim in change.sides().filter(|claim| claim.spec.kind == REALM.kind) {
        if REALM.has(&claim) {
            woken.insert(holder_key(&claim));
        }
        woken.extend(found(known, BY_NODE_PORT, &claim.spec.value));
    }
    woken
}

/// A Service concerns the AppService of its name, and whoever asks for a node port that it took
/// or gave up, be it at one address only.
pub(crate) fn by_service(
    change: &Change<'_, ServiceView>,
    known: &Cache<AppService>,
) -> BTreeSet<ObjectKey> {
    let taken = |side: Option<&Arc<ServiceView>>| {
        let taken = side.map(|one| (one.node_ports.clone(), one.outside.clone()));
        taken.unwrap_or_default()
    };
    let (old, new) = (taken(change.old), taken(change.new));
    let moved = old.1.symmetric_difference(&new.1).map(|(_, port)| port);
    let mut woken = by_ports(old.0.symmetric_difference(&new.0).chain(moved), known);
    // Most Services of a cluster are nobody's here.
    woken.extend(known.get(change.key).map(|_| change.key.clone()));
    woken
}

/// A node's report concerns whoever asks for a port that a process opened or closed there, or that
/// a Service has at an address which the node got or lost.
pub(crate) fn by_report(
    change: &Change<'_, Listeners>,
    known: &Cache<AppService>,
    services: &Cache<Service, ServiceView>,
) -> BTreeSet<ObjectKey> {
    let said = |side: Option<&Arc<Listeners>>| {
        let said = side.map(|one| (one.ports.clone(), one.addresses.clone()));
        said.unwrap_or_default()
    };
    let (old, new) = (said(change.old), said(change.new));
    let mut woken = by_ports(old.0.symmetric_difference(&new.0), known);
    for address in old.1.symmetric_difference(&new.1) {
        for service in services.by_index(BY_ADDRESS, &address.to_string()) {
            let there = service.outside.iter().filter(|(other, _)| other == address);
            woken.extend(by_ports(there.map(|(_, port)| port), known));
        }
    }
    woken
}

/// A slice concerns the AppService that it says it is of.
pub(crate) fn by_slice(change: &Change<'_, EndpointSlice>) -> Vec<ObjectKey> {
    change.each(service_of)
}

/// A Pod concerns the AppServices whose slices list it: one that is gone must leave them, be it of
/// a former pool or of an AppService that is gone itself.
pub(crate) fn by_pod(pod: &ObjectKey, slices: &Cache<EndpointSlice>) -> Vec<ObjectKey> {
    let listing = slices.by_index(BY_POD, &pod.to_string());
    listing.iter().filter_map(|slice| service_of(slice)).collect()
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let of = slice.metadata.labels.as_ref().and_then(|all| all.get(labels::SLICE_SERVICE));
    let namespace = slice.metadata.namespace.clone().unwrap_or_default();
    of.map(|name| ObjectKey::new(namespace, name))
}

/// A pool, or one of its Pods, concerns the AppServices that lead to it.
pub(crate) fn by_pools(
    pools: impl IntoIterator<Item = ObjectKey>,
    known: &Cache<AppService>,
) -> BTreeSet<ObjectKey> {
    pools.into_iter().flat_map(|pool| found(known, BY_POOL, &pool.to_string())).collect()
}

/// Node ports concern whoever asks for one of them.
fn by_ports<'a>(
    ports: impl Iterator<Item = &'a NodePort>,
    known: &Cache<AppService>,
) -> BTreeSet<ObjectKey> {
    ports.flat_map(|port| found(known, BY_NODE_PORT, &port.value())).collect()
}

fn found(known: &Cache<AppService>, index: &str, value: &str) -> BTreeSet<ObjectKey> {
    known.keys_by_index(index, value).into_iter().collect()
}
