//! What is kept of each object, and what makes an object worth nothing. Pure.
//!
//! A word that cannot be understood (an address that is none, a port out of range) is left out
//! alone: what else the object says still holds.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort as ApiServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint as ApiEndpoint, EndpointSlice};
use kube::Resource;
use portolan_api::{AppService, AppServicePort, PortType, SessionAffinity, labels};
use portolan_nft::{Affinity, Family, Protocol};
use portolan_reconcile::{ObjectKey, Uid};

/// An AppService, as far as it is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceFacts {
    /// Its identity: only slices that it controls count.
    pub(crate) uid: Uid,
    /// Its virtual addresses.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) affinity: Affinity,
    pub(crate) ports: Vec<PortFacts>,
}

/// A port of an AppService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortFacts {
    /// The name, by which slices say which port of the sandbox it is.
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
    /// The port of the virtual addresses.
    pub(crate) port: u16,
    /// The port of every node that it asks for.
    pub(crate) asked: Option<u16>,
    /// The port of every node, if the AppService holds one.
    pub(crate) node_port: Option<u16>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceFacts {
    /// The Service, and so the AppService, that it is about; in the slice's namespace.
    pub(crate) service: Arc<ObjectKey>,
    /// UID of the AppService that it is of; `None` if it says none.
    pub(crate) controller: Option<Uid>,
    pub(crate) ports: Vec<(Box<str>, Protocol, u16)>,
    pub(crate) endpoints: Vec<EndpointFacts>,
}

/// An endpoint of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndpointFacts {
    pub(crate) address: IpAddr,
    /// Tells Pods that have the address one after the other from each other: a hash of the UID,
    /// for thousands are kept.
    pub(crate) pod: u32,
    /// Whether it runs on this node.
    pub(crate) local: bool,
    /// Takes connections.
    pub(crate) ready: bool,
    /// Takes connections if no other does: it goes, but still answers.
    pub(crate) last_resort: bool,
    /// It goes, or will.
    pub(crate) terminating: bool,
}

/// A Service that is the internal name of an http-only service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InternalFacts {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<(Protocol, u16)>,
}

/// This agent's Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) uid: String,
    /// Addresses by which others reach the node.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

// === impl ServiceFacts ===

impl ServiceFacts {
    pub(crate) fn of(service: &AppService) -> Self {
        let status = service.status.as_ref();
        let held = status.map(|status| status.node_ports.as_slice()).unwrap_or_default();
        let port = |port: &AppServicePort| {
            let held = held.iter().find(|held| held.is_of(port));
            Some(PortFacts {
                name: port.name.as_str().into(),
                protocol: transport(port.r#type),
                port: number(port.port)?,
                asked: port.node_port.and_then(number),
                node_port: held.and_then(|held| number(held.port)),
            })
        };
        Self {
            uid: service.meta().uid.as_deref().unwrap_or_default().into(),
            addresses: status.map(|status| addresses(&status.cluster_ips)).unwrap_or_default(),
            affinity: match service.spec.session_affinity {
                Some(SessionAffinity::ClientIP) => Affinity::Source,
                Some(SessionAffinity::None) | None => Affinity::None,
            },
            ports: exact(service.spec.ports.iter().filter_map(port)),
        }
    }
}

// === impl SliceFacts ===

impl SliceFacts {
    /// What is kept of a slice on this node; `None` for one that is about no Service or has no IP
    /// addresses.
    pub(crate) fn of(slice: &EndpointSlice, node: &str) -> Option<Self> {
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        let metadata = &slice.metadata;
        let service = metadata.labels.as_ref()?.get(labels::SLICE_SERVICE)?;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let named = metadata.annotations.as_ref().and_then(|all| all.get(labels::APP_SERVICE_UID));
        // Slices of a former release say it so.
        let mut owners = metadata.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true)).map(|owner| &owner.uid);
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default().into();
            Some((name, protocol(port.protocol.as_deref())?, number(port.port?)?))
        });
        let endpoints = slice.endpoints.iter().flatten();
        Some(Self {
            service: ObjectKey::new(namespace, service).shared(),
            controller: named.or(owner).map(|uid| uid.as_str().into()),
            ports: exact(ports),
            endpoints: exact(endpoints.filter_map(|end| EndpointFacts::of(end, family, node))),
        })
    }
}

// === impl EndpointFacts ===

impl EndpointFacts {
    /// The API lets an endpoint have several addresses, which all are the same Pod; the first is
    /// taken, as Kubernetes' own proxies do.
    fn of(endpoint: &ApiEndpoint, family: Family, node: &str) -> Option<Self> {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        if Family::of(address) != family || !is_reachable(address) {
            return None;
        }
        let conditions = endpoint.conditions.as_ref();
        // What is not said: ready, serving if ready, not going.
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|conditions| conditions.terminating) == Some(true);
        Some(Self {
            address,
            pod: pod_of(endpoint),
            local: endpoint.node_name.as_deref() == Some(node),
            ready,
            last_resort: serving && terminating,
            terminating,
        })
    }
}

// === impl InternalFacts ===

impl InternalFacts {
    /// `None` for a Service without addresses of its own.
    pub(crate) fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let addresses = addresses(spec.cluster_ips.as_deref().unwrap_or_default());
        if addresses.is_empty() {
            return None;
        }
        let port =
            |port: &ApiServicePort| Some((protocol(port.protocol.as_deref())?, number(port.port)?));
        let ports = exact(spec.ports.iter().flatten().filter_map(port));
        Some(Self { addresses, ports })
    }
}

// === impl NodeFacts ===

impl NodeFacts {
    pub(crate) fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let shown = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let reaches = |kind: &str| matches!(kind, "InternalIP" | "ExternalIP");
        let shown = shown.iter().filter(|address| reaches(&address.type_));
        Self {
            uid: node.metadata.uid.clone().unwrap_or_default(),
            addresses: shown.filter_map(|address| address.address.parse().ok()).collect(),
        }
    }
}

fn pod_of(endpoint: &ApiEndpoint) -> u32 {
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref());
    // FNV-1a: two Pods of one address with one hash are one chance in four thousand million.
    let bytes = uid.unwrap_or_default().bytes();
    bytes.fold(OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME))
}

fn transport(port: PortType) -> Protocol {
    match port {
        PortType::Http | PortType::Tcp => Protocol::Tcp,
        PortType::Udp => Protocol::Udp,
    }
}

/// What is not said is TCP; SCTP is none of ours.
fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// Headless Services have the word `None` here.
fn addresses(texts: &[String]) -> Vec<IpAddr> {
    let addresses = texts.iter().filter_map(|text| text.parse().ok());
    exact(addresses.filter(|address| is_reachable(*address)))
}

/// A list without room for more: what is kept of an object does not grow, and thousands are kept.
fn exact<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

/// Whether an address is one machine's, in the same way from every node. The API server refuses
/// the others in EndpointSlices too: they would let who writes one reach into the node itself.
fn is_reachable(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local)
}

#[cfg(test)]
mod tests;
