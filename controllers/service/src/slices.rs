//! The EndpointSlices of an `AppService`: one for each family of its addresses. Pure.
//!
//! All sandboxes of a pool listen on the same ports, so one slice names them all; the node agents
//! match its ports by name.
//!
//! Sandboxes that a slice lists stay in it, as going and not serving, until their Pods are gone,
//! whatever becomes of their pool and of the AppService: by what leaves a slice, agents know what
//! is gone. So a slice has no owner that takes it along, but says by an annotation whose it is.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::{AppService, labels};
use portolan_reconcile::ObjectKey;
use serde::Serialize;

use crate::address;
use crate::ports::transport_name;
use crate::view::{Belongs, Sandbox};

/// What the API server accepts in one slice. A pool has at most as many sandboxes that do not
/// drain; of more, draining ones are left out first.
const ENDPOINTS_MAX: usize = 1000;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The name of the slice of this family.
    pub(crate) fn slice(self, service: &str) -> String {
        match self {
            Self::V4 => format!("{service}-ipv4"),
            Self::V6 => format!("{service}-ipv6"),
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The slice as it is created.
pub(crate) fn new(of: &AppService, family: Family, sandboxes: &[Arc<Sandbox>]) -> EndpointSlice {
    let name = family.slice(of.metadata.name.as_deref().unwrap_or_default());
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: of.metadata.namespace.clone(),
        ..ObjectMeta::default()
    };
    let address_type = family.address_type().to_owned();
    let bare = EndpointSlice { metadata, address_type, endpoints: None, ports: None };
    brought_up(&bare, of, family, sandboxes)
}

/// The slice as it is, with the endpoints of now. Sorted by the name of the sandbox, so that the
/// same endpoints are the same slice.
pub(crate) fn brought_up(
    live: &EndpointSlice,
    of: &AppService,
    family: Family,
    sandboxes: &[Arc<Sandbox>],
) -> EndpointSlice {
    let mut slice = live.clone();
    let ours = slice.metadata.labels.get_or_insert_default();
    ours.extend(address::labels_of(of));
    ours.insert(labels::SLICE_MANAGED_BY.into(), labels::SLICE_MANAGER.into());
    ours.insert(labels::SLICE_SERVICE.into(), of.metadata.name.clone().unwrap_or_default());
    let uid = of.metadata.uid.clone().unwrap_or_default();
    slice.metadata.annotations.get_or_insert_default().insert(labels::APP_SERVICE_UID.into(), uid);
    // A former release made AppServices their owners.
    let owners = slice.metadata.owner_references.take().into_iter().flatten();
    let owners: Vec<_> = owners.filter(|owner| owner.kind != AppService::kind(&())).collect();
    slice.metadata.owner_references = Some(owners).filter(|owners| !owners.is_empty());
    let ports = of.spec.ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.target_port),
        protocol: Some(transport_name(port.r#type.into()).into()),
        app_protocol: None,
    });
    slice.ports = Some(ports.collect());
    slice.endpoints = Some(endpoints(family, sandboxes)).filter(|all| !all.is_empty());
    slice
}

/// Whether two slices say the same: the API server writes no endpoints as null or as none.
pub(crate) fn is_same(one: &EndpointSlice, other: &EndpointSlice) -> bool {
    let endpoints = |slice: &EndpointSlice| slice.endpoints.clone().unwrap_or_default();
    let metadata = |slice: &EndpointSlice| {
        let ObjectMeta { labels, annotations, owner_references, .. } = slice.metadata.clone();
        (labels, annotations, owner_references)
    };
    metadata(one) == metadata(other)
        && one.ports == other.ports
        && endpoints(one) == endpoints(other)
}

/// Whose a slice is that has the name of one of ours. What a former AppService of the name left is
/// taken over, with the sandboxes that it lists.
pub(crate) fn belongs(slice: &EndpointSlice, to: &AppService) -> Belongs {
    match is_left_by(slice, to.metadata.name.as_deref().unwrap_or_default()) {
        true => Belongs::Here,
        false if slice.metadata.deletion_timestamp.is_some() => Belongs::Former,
        false => Belongs::of(slice, to),
    }
}

/// Whether a slice was made for an AppService of this name, and stays.
pub(crate) fn is_left_by(slice: &EndpointSlice, name: &str) -> bool {
    let metadata = &slice.metadata;
    let labels = metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|all| all.get(key)).map(String::as_str);
    let has_uid = metadata.annotations.as_ref();
    let has_uid = has_uid.is_some_and(|all| all.contains_key(labels::APP_SERVICE_UID));
    let is_ours = label(labels::SLICE_MANAGED_BY) == Some(labels::SLICE_MANAGER)
        && label(labels::SLICE_SERVICE) == Some(name);
    has_uid && is_ours && metadata.deletion_timestamp.is_none()
}

/// The sandboxes that a slice lists, each as one that is going: nothing new is led to them.
pub(crate) fn listed(slice: &EndpointSlice) -> Vec<Sandbox> {
    let endpoints = slice.endpoints.iter().flatten();
    let sandbox = |endpoint: &Endpoint| {
        let target = endpoint.target_ref.as_ref().filter(|target| target.uid.is_some())?;
        let namespace = slice.metadata.namespace.clone().unwrap_or_default();
        Some(Sandbox {
            key: ObjectKey::new(namespace, target.name.clone()?),
            uid: target.uid.clone()?,
            pool: ObjectKey::default(),
            owner: None,
            addresses: vec![endpoint.addresses.first()?.parse().ok()?],
            node: endpoint.node_name.clone(),
            serving: false,
            leaving: true,
        })
    };
    endpoints.filter_map(sandbox).collect()
}

/// A slice whose AppService is gone, with those of its sandboxes that are still there.
pub(crate) fn farewell(
    live: &EndpointSlice,
    family: Family,
    there: &[Arc<Sandbox>],
) -> EndpointSlice {
    let endpoints = Some(endpoints(family, there)).filter(|all| !all.is_empty());
    EndpointSlice { endpoints, ..live.clone() }
}

fn endpoints(family: Family, sandboxes: &[Arc<Sandbox>]) -> Vec<Endpoint> {
    let mut known: Vec<_> = sandboxes
        .iter()
        .filter_map(|sandbox| {
            let mut addresses = sandbox.addresses.iter();
            let address = addresses.find(|address| Family::of(**address) == family)?;
            Some((sandbox, *address))
        })
        .collect();
    known.sort_by_key(|(sandbox, _)| (sandbox.leaving, !sandbox.serving, sandbox.key.clone()));
    known.truncate(ENDPOINTS_MAX);
    known.sort_by_key(|(sandbox, _)| sandbox.key.clone());
    known.into_iter().map(|(sandbox, address)| endpoint(sandbox, address)).collect()
}

fn endpoint(sandbox: &Sandbox, address: IpAddr) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(sandbox.serving && !sandbox.leaving),
            serving: Some(sandbox.serving),
            terminating: Some(sandbox.leaving),
        }),
        node_name: sandbox.node.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(sandbox.key.namespace.clone()),
            name: Some(sandbox.key.name.clone()),
            uid: Some(sandbox.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}
