//! Node ports that share a number.

mod lab;

use std::net::IpAddr;

use lab::{Lab, Outcome, by, local, node_port, remote, v4, v6};
use portolan_nft::{Protocol, Ruleset};

/// Two services hold one number, each over its own transport.
#[test]
fn tcp_and_udp_of_one_number_are_two_node_ports() {
    let lab = Lab::new();
    let families: [fn(u8) -> IpAddr; 2] =
        [|network| v4(network, 2), |network| v6(network.into(), 2)];
    let nodes = [v4(0, 1), v6(0, 1)];
    for (at, node) in families.into_iter().zip(nodes) {
        let [one, two] = [(at(1), 8080), (at(2), 9090)];
        lab.sandboxes[0].serve(one.into());
        lab.sandboxes[1].serve(two.into());
        let ports = [
            (node_port(Protocol::Tcp, 6667), local([one])),
            (node_port(Protocol::Udp, 6667), local([two])),
        ];
        let ruleset = Ruleset {
            node_ports: ports.into(),
            node_addresses: nodes.into(),
            ..Ruleset::default()
        };
        let mut forwarder = lab.start(ruleset);
        assert_eq!(lab.client.tcp((node, 6667)), by(one, at(0)));
        assert_eq!(lab.client.udp((node, 6667)), by(two, at(0)));

        // One goes, and one moves to another node: neither touches the other.
        forwarder.table().remove_node_port(node_port(Protocol::Tcp, 6667));
        forwarder.table().set_node_port(node_port(Protocol::Udp, 6667), remote([two]));
        forwarder.flush().expect("the table");
        assert_eq!(lab.client.tcp((node, 6667)), Outcome::Refused, "nobody has it");
        assert!(matches!(lab.client.udp((node, 6667)), Outcome::Answer(_)), "the other stays");
        forwarder.table().replace(Ruleset::default());
        forwarder.flush().expect("the table");
    }
}
