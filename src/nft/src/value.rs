//! What a node should forward, as a value. No IO, no kernel words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A transport that services speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What clients inside the cluster address: one port of one virtual address.
///
/// A dual-stack service is two of these, one for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// The virtual address. First, so that all ports of an address are neighbours in a map.
    pub address: IpAddr,
    /// The transport.
    pub protocol: Protocol,
    /// The port, never 0.
    pub port: u16,
}

/// What clients outside the cluster address: one port of each of the node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort {
    /// The transport.
    pub protocol: Protocol,
    /// The port, never 0.
    pub port: u16,
}

/// Where a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The sandbox's address.
    pub address: IpAddr,
    /// The port it listens on; need not be the port that the client addressed.
    pub port: u16,
    /// Whether the sandbox runs on this node. Then it sees the client's own address.
    pub local: bool,
}

/// How a client finds its endpoint again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Affinity {
    /// It does not: each connection goes to any endpoint.
    #[default]
    None,
    /// By its source address, as long as the endpoint exists.
    Source,
}

/// What stands behind a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backends {
    /// How clients are spread over the endpoints.
    pub affinity: Affinity,
    /// Where connections go. Empty: they are refused. Behind a virtual address only the endpoints
    /// of its family count; a node port serves each family with the endpoints of that family, and
    /// refuses a family that has none. Beyond [`crate::ENDPOINTS_MAX`] the first in order count.
    pub endpoints: Endpoints,
}

/// Endpoints, each once and in order.
///
/// There is no room for more: these are thousands, most of them of a few endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoints(Box<[Endpoint]>);

/// A range of addresses: those that share the first `length` bits of `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// Any address of the range.
    pub address: IpAddr,
    /// 0 to 32 or 128; larger ones count as the largest.
    pub length: u8,
}

/// All that a node should forward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Ports of virtual addresses. Any other TCP or UDP port of an address that occurs here is
    /// refused.
    pub services: BTreeMap<ServicePort, Backends>,
    /// Ports of the node.
    pub node_ports: BTreeMap<NodePort, Backends>,
    /// The node's addresses that accept node ports. Empty: node ports are not served.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Ranges of sandboxes that share a link on which this node does not see their packets to
    /// each other (a bridge without bridge netfilter). A connection through a port of this ruleset
    /// between two of them gets the node's address as its source, since its answers would pass
    /// the node by; ranges are not told apart. Empty where sandboxes are routed.
    pub bridged: BTreeSet<Range>,
}

/// Where a table led connections that an earlier process left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Ports of virtual addresses.
    pub services: BTreeSet<ServicePort>,
    /// Ports of the node.
    pub node_ports: BTreeSet<NodePort>,
    /// The node's addresses that accepted these.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Addresses of the endpoints behind any of the ports.
    pub endpoints: BTreeSet<IpAddr>,
}

/// Connections that the kernel should forget, so that their next packet is led anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flows {
    /// Those through one port that were led to one endpoint; or to the port itself, which means
    /// that they were there before it was a service's.
    Led {
        /// What the client addressed: a port of a virtual address or of the node.
        front: SocketAddr,
        /// Over which transport.
        protocol: Protocol,
        /// Who answers.
        endpoint: SocketAddr,
    },
    /// All that begin or end at a sandbox that is no more, before its address is another's.
    Sandbox(IpAddr),
}

// === impl Family ===

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

// === impl Protocol ===

impl Protocol {
    /// The number in the header of an IP packet.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The transport with a number; `None` if it is no transport of services.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

// === impl Endpoints ===

impl Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        &self.0
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut all: Vec<_> = endpoints.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_boxed_slice())
    }
}

impl<const N: usize> From<[Endpoint; N]> for Endpoints {
    fn from(endpoints: [Endpoint; N]) -> Self {
        endpoints.into_iter().collect()
    }
}

// === impl Former ===

impl Former {
    /// Whether what came to a port over a transport was led.
    pub(crate) fn led(&self, front: SocketAddr, protocol: Protocol) -> bool {
        let (address, port) = (front.ip(), front.port());
        self.services.contains(&ServicePort { address, protocol, port })
            || self.node_addresses.contains(&address)
                && self.node_ports.contains(&NodePort { protocol, port })
    }
}

// === impl Range ===

impl Range {
    /// Whether an address is in the range.
    pub fn contains(self, address: IpAddr) -> bool {
        let other = Self { address, length: u8::MAX };
        let ((first, last), (at, _)) = (self.bounds(), other.bounds());
        Family::of(self.address) == Family::of(address) && (first..=last).contains(&at)
    }

    /// The first and the last address, as numbers: comparable within a family only.
    pub(crate) fn bounds(self) -> (u128, u128) {
        let (bits, value) = match self.address {
            IpAddr::V4(address) => (32, u128::from(address.to_bits())),
            IpAddr::V6(address) => (128, address.to_bits()),
        };
        let host = bits - u32::from(self.length).min(bits);
        let mask = 1_u128.checked_shl(host).map_or(u128::MAX, |size| size - 1);
        (value & !mask, value | mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_contains_what_shares_its_first_bits() {
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let range = Range { address: ip("10.8.1.77"), length: 24 };
        assert!(["10.8.1.0", "10.8.1.255"].map(ip).into_iter().all(|at| range.contains(at)));
        assert!(
            !["10.8.0.255", "10.8.2.0", "::a08:101"].map(ip).iter().any(|at| range.contains(*at))
        );
        let range = Range { address: ip("fd08::"), length: 0 };
        assert!(range.contains(ip("ffff::1")) && !range.contains(ip("10.8.1.1")));
    }
}
