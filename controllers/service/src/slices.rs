//! The EndpointSlices of an `AppService`: one for each family of its addresses. Pure.
//!
//! All sandboxes of a pool listen on the same ports, so one slice names them all; the node agents
//! match its ports by name.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::{AppService, labels};
use serde::Serialize;

use crate::address;
use crate::ports::transport_name;
use crate::view::Sandbox;

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
        owner_references: of.controller_owner_ref(&()).map(|owner| vec![owner]),
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
    one.metadata.labels == other.metadata.labels
        && one.ports == other.ports
        && endpoints(one) == endpoints(other)
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
