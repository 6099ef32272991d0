//! The addresses inside a cluster's own network.
//!
//! Every cluster lives in network namespaces of its own, so all of them use the same addresses and
//! two clusters never meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The lab bridge: every member's default gateway.
pub const LAB: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
/// A host beside the cluster, with a route to the nodes and to nothing behind them.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);
/// The control plane.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 10);
/// The prefix length of the lab network.
pub const LAB_PREFIX: u8 = 24;
/// The same for IPv6.
pub const LAB_PREFIX_V6: u8 = 64;
/// The Service address of the API server: the first of the range, as Kubernetes gives it.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 1);
/// The Service address of the cluster's DNS.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 10);
/// The most nodes a cluster can have: their addresses end where the lab network does.
pub const NODES_MAX: u8 = 200;

/// The IP families of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Stack {
    /// IPv4 alone.
    #[default]
    Single,
    /// IPv4 and IPv6, with so few Service addresses that a test can use them up.
    Dual,
}

impl Stack {
    /// The range of all Pods; each node has one /24 of it, and one /64.
    #[must_use]
    pub fn pod_range(self) -> &'static str {
        match self {
            Self::Single => "10.91.0.0/16",
            Self::Dual => "10.91.0.0/16,fd91::/48",
        }
    }

    /// The range of Service addresses.
    #[must_use]
    pub fn service_range(self) -> &'static str {
        match self {
            Self::Single => "10.92.0.0/16",
            Self::Dual => "10.92.0.0/27,fd92::/123",
        }
    }

    /// The Pod ranges of a node, in CIDR notation.
    #[must_use]
    pub fn pods(self, number: u8) -> Vec<String> {
        let v4 = pods(number);
        match self {
            Self::Single => vec![v4],
            Self::Dual => vec![v4, pods_v6(number)],
        }
    }

    /// The default routes of a Pod.
    #[must_use]
    pub fn everywhere(self) -> &'static [&'static str] {
        match self {
            Self::Single => &["0.0.0.0/0"],
            Self::Dual => &["0.0.0.0/0", "::/0"],
        }
    }

    /// All addresses of a node.
    #[must_use]
    pub fn node(self, number: u8) -> Vec<IpAddr> {
        let v4 = node(number);
        match self {
            Self::Single => vec![v4.into()],
            Self::Dual => vec![v4.into(), v6(v4).into()],
        }
    }
}

/// The lab address of a node; nodes count from 1.
#[must_use]
pub fn node(number: u8) -> Ipv4Addr {
    assert!((1..=NODES_MAX).contains(&number), "node {number} is outside 1..={NODES_MAX}");
    Ipv4Addr::new(10, 90, 0, 10 + number)
}

/// The Pod range of a node, in CIDR notation.
#[must_use]
pub fn pods(number: u8) -> String {
    assert!((1..=NODES_MAX).contains(&number), "node {number} is outside 1..={NODES_MAX}");
    format!("10.91.{number}.0/24")
}

/// The IPv6 address of a member of the lab network: it ends as its IPv4 address does.
#[must_use]
pub fn v6(member: Ipv4Addr) -> Ipv6Addr {
    let [.., last] = member.octets();
    Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 0, last.into())
}

/// The IPv6 Pod range of a node, in CIDR notation.
#[must_use]
pub fn pods_v6(number: u8) -> String {
    format!("fd91:0:0:{number:x}::/64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_members_share_an_address() {
        let mut all: Vec<_> = (1..=NODES_MAX).map(node).chain([LAB, OUTSIDE, CONTROL]).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_last_node_is_still_in_the_lab_network() {
        assert_eq!(node(NODES_MAX).octets()[..3], LAB.octets()[..3]);
        assert_eq!(pods(NODES_MAX), "10.91.200.0/24");
    }
}
