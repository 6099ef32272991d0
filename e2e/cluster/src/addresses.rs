//! The addresses inside a cluster's own network.
//!
//! Every cluster lives in network namespaces of its own, so all of them use the same addresses and
//! two clusters never meet.

use std::net::Ipv4Addr;

/// The lab bridge: every member's default gateway.
pub const LAB: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
/// A host beside the cluster, with a route to the nodes and to nothing behind them.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);
/// The control plane.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 10);
/// The prefix length of the lab network.
pub const LAB_PREFIX: u8 = 24;
/// The range of all Pods; each node has one /24 of it.
pub const POD_RANGE: &str = "10.91.0.0/16";
/// The range of Service addresses.
pub const SERVICE_RANGE: &str = "10.92.0.0/16";
/// The Service address of the API server: the first of the range, as Kubernetes gives it.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 1);
/// The Service address of the cluster's DNS.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 92, 0, 10);
/// The most nodes a cluster can have: their addresses end where the lab network does.
pub const NODES_MAX: u8 = 200;

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
