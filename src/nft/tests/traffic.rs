//! Traffic through the kernel, in namespaces: who answers, and what address they see.

mod lab;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lab::{
    Answer, Lab, Namespace, Outcome, by, local, node_port, remote, service, sticky, v4, v6, vip,
    vip6,
};
use portolan_nft::{Backends, ENDPOINTS_MAX, Protocol, Range, Ruleset};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn a_virtual_address_spreads_clients_over_its_endpoints() {
    let lab = Lab::new();
    let mut ruleset = Ruleset::default();
    for (at, address) in [(v4 as fn(u8, u8) -> IpAddr, vip(1)), (six, vip6(1))] {
        let ends = [(at(1, 2), 8080), (at(2, 2), 9090)];
        ends.iter().zip(&lab.sandboxes).for_each(|(end, sandbox)| sandbox.serve((*end).into()));
        add(&mut ruleset, address, 80, &local(ends));
    }
    let _forwarder = lab.start(ruleset);
    for (at, address) in [(v4 as fn(u8, u8) -> IpAddr, vip(1)), (six, vip6(1))] {
        for protocol in BOTH {
            let counts = answers(&lab.client, protocol, (address, 80).into(), 1000);
            assert_eq!(counts.len(), 2, "{address} {protocol:?}: both answer: {counts:?}");
            for (answer, count) in counts {
                assert_eq!(answer.client, at(0, 2), "the client's address stays");
                // Six standard deviations.
                assert!((400..=600).contains(&count), "{answer:?} has {count} of 1000");
            }
        }
    }
}

#[test]
fn ports_and_protocols_of_an_address_are_independent() {
    let lab = Lab::new();
    for (at, address) in [(v4 as fn(u8, u8) -> IpAddr, vip(1)), (six, vip6(1))] {
        let [one, two] = [(at(1, 2), 8080), (at(2, 2), 8080)];
        lab.sandboxes[0].serve(one.into());
        lab.sandboxes[1].serve(two.into());
        let mut ruleset = Ruleset::default();
        ruleset.services.insert(service(address, Protocol::Tcp, 53), local([one]));
        ruleset.services.insert(service(address, Protocol::Udp, 53), local([two]));
        ruleset.services.insert(service(address, Protocol::Tcp, 54), local([two]));
        let mut forwarder = lab.start(ruleset);
        assert_eq!(lab.client.tcp((address, 53)), by(one, at(0, 2)));
        assert_eq!(lab.client.udp((address, 53)), by(two, at(0, 2)));
        assert_eq!(lab.client.tcp((address, 54)), by(two, at(0, 2)));
        forwarder.table().replace(Ruleset::default());
        forwarder.flush().expect("the table");
    }
}

#[test]
fn each_of_many_endpoints_gets_traffic() {
    let lab = Lab::new();
    // The last is more than a service may have.
    for count in [17, 33, 300] {
        let ports = 20_000..20_000 + count;
        let ends: Vec<_> = ports.map(|port| (v4(1, 2), port)).collect();
        ends.iter().for_each(|end| lab.sandboxes[0].serve_udp((*end).into()));
        let mut ruleset = Ruleset::default();
        let endpoints = ends.iter().flat_map(|end| local([*end]).endpoints.to_vec()).collect();
        let backends = Backends { endpoints, ..Backends::default() };
        ruleset.services.insert(service(vip(1), Protocol::Udp, 80), backends);
        let mut forwarder = lab.start(ruleset);
        let expected = ends.len().min(ENDPOINTS_MAX);
        // Each is missed by so many with less than one in a million.
        let counts = answers(&lab.client, Protocol::Udp, (vip(1), 80).into(), expected * 40);
        assert_eq!(counts.len(), expected, "of {expected} all answer");
        lab.sandboxes[0].stop();
        forwarder.table().replace(Ruleset::default());
        forwarder.flush().expect("the table");
    }
}

#[test]
fn who_has_no_endpoint_refuses() {
    let lab = Lab::new();
    let six_only = (v6(1, 2), 8080);
    lab.sandboxes[0].serve(six_only.into());
    let mut ruleset = Ruleset::default();
    add(&mut ruleset, vip(1), 80, &local([]));
    add(&mut ruleset, vip6(1), 80, &local([six_only]));
    add(&mut ruleset, vip6(2), 80, &local([]));
    for protocol in BOTH {
        ruleset.node_ports.insert(node_port(protocol, 6667), local([six_only]));
        ruleset.node_ports.insert(node_port(protocol, 6668), local([]));
    }
    ruleset.node_addresses = [v4(0, 1), v6(0, 1)].into();
    let mut forwarder = lab.start(ruleset);
    let askers = [("client", &lab.client), ("sandbox", &lab.sandboxes[1]), ("node", &lab.node)];
    for (name, asker) in askers {
        let refused = |at: SocketAddr| {
            assert_eq!(asker.tcp(at), Outcome::Refused, "{name} to {at} over TCP");
            assert_eq!(asker.udp(at), Outcome::Refused, "{name} to {at} over UDP");
        };
        refused((vip(1), 80).into());
        // Known address, unknown port.
        refused((vip(1), 81).into());
        refused((vip6(1), 81).into());
        refused((vip6(2), 80).into());
        refused((v4(0, 1), 6667).into());
        refused((v4(0, 1), 6668).into());
        refused((v6(0, 1), 6668).into());
        assert!(matches!(asker.tcp((vip6(1), 80)), Outcome::Answer(_)), "the other family works");
        assert!(
            matches!(asker.udp((v6(0, 1), 6667)), Outcome::Answer(_)),
            "the other family works"
        );
    }
    forwarder.table().replace(Ruleset::default());
    forwarder.flush().expect("the table");
    assert!(forwarder.table().is_empty(), "nothing is left of what is gone");
}

#[test]
fn a_node_port_is_served_at_the_nodes_addresses_only() {
    let lab = Lab::new();
    let ruleset = node_ports(&lab, true);
    let _forwarder = lab.start(ruleset);
    for (node, client, server) in [(v4(0, 1), v4(0, 2), v4(1, 2)), (v6(0, 1), v6(0, 2), v6(1, 2))] {
        let expected = by((server, 8080), client);
        assert_eq!(lab.client.tcp((node, 6667)), expected, "a local endpoint sees the client");
        assert_eq!(lab.client.udp((node, 6667)), expected, "a local endpoint sees the client");
        assert!(matches!(lab.node.tcp((node, 6667)), Outcome::Answer(_)), "from the node");
        assert!(matches!(lab.node.udp((node, 6667)), Outcome::Answer(_)), "from the node");
    }
    let elsewhere = [
        ("another of its addresses", &lab.client, (v4(1, 1), 6667)),
        ("another of its addresses", &lab.client, (v6(1, 1), 6667)),
        ("another port", &lab.client, (v4(0, 1), 6668)),
        ("another port", &lab.client, (v6(0, 1), 6668)),
        ("loopback", &lab.node, ([127, 0, 0, 1].into(), 6667)),
        ("loopback", &lab.node, (Ipv6Addr::LOCALHOST.into(), 6667)),
        ("another host, by way of the node", &lab.client, (v4(2, 2), 6667)),
        ("another host, by way of the node", &lab.client, (v6(2, 2), 6667)),
        ("another host, from the node", &lab.node, (v4(2, 2), 6667)),
        ("another host, from the node", &lab.node, (v6(2, 2), 6667)),
    ];
    for (what, asker, at) in elsewhere {
        assert_eq!(asker.tcp(at), Outcome::Refused, "{what}: {at:?} over TCP");
        assert_eq!(asker.udp(at), Outcome::Refused, "{what}: {at:?} over UDP");
    }
}

#[test]
fn a_remote_endpoint_of_a_node_port_sees_the_node() {
    let lab = Lab::new();
    let _forwarder = lab.start(node_ports(&lab, false));
    for (node, seen, server) in [(v4(0, 1), v4(1, 1), v4(1, 2)), (v6(0, 1), v6(1, 1), v6(1, 2))] {
        let expected = by((server, 8080), seen);
        for (name, asker) in [("client", &lab.client), ("node", &lab.node)] {
            assert_eq!(asker.tcp((node, 6667)), expected, "{name}: so that its answer comes back");
            assert_eq!(asker.udp((node, 6667)), expected, "{name}: so that its answer comes back");
        }
    }
}

#[test]
fn a_program_of_the_node_asks_others_from_where_their_answers_come_back() {
    let lab = Lab::new();
    // It serves the ends, and knows the node's addresses.
    let mut ruleset = node_ports(&lab, false);
    let ends = [(v4(1, 2), 8080), (v6(1, 2), 8080)];
    add(&mut ruleset, vip(1), 80, &remote(ends));
    add(&mut ruleset, vip6(1), 80, &remote(ends));
    let mut forwarder = lab.start(ruleset);
    let families = [(v4 as fn(u8, u8) -> IpAddr, vip(1)), (six, vip6(1))];
    for ((at, address), end) in families.into_iter().zip(ends) {
        let asked = SocketAddr::new(address, 80);
        assert_eq!(lab.node.tcp_from(at(0, 1), asked), by(end, at(1, 1)), "by the way to it");
        assert_eq!(lab.sandboxes[1].tcp(asked), by(end, at(2, 2)), "others keep theirs");
        forwarder.table().set_service(service(address, Protocol::Tcp, 80), local([end]));
        forwarder.flush().expect("the table");
        assert_eq!(lab.node.tcp_from(at(0, 1), asked), by(end, at(0, 1)), "what is here");
    }
}

#[test]
fn a_sandbox_reaches_itself_and_others_through_a_virtual_address() {
    let lab = Lab::new();
    for (at, address) in [(v4 as fn(u8, u8) -> IpAddr, vip(1)), (six, vip6(1))] {
        let end = (at(1, 2), 8080);
        lab.sandboxes[0].serve(end.into());
        let mut ruleset = Ruleset::default();
        add(&mut ruleset, address, 80, &local([end]));
        let mut forwarder = lab.start(ruleset);
        let itself = by(end, at(1, 1));
        assert_eq!(lab.sandboxes[0].tcp((address, 80)), itself, "it sees the node");
        assert_eq!(lab.sandboxes[0].udp((address, 80)), itself, "it sees the node");
        let other = by(end, at(2, 2));
        assert_eq!(lab.sandboxes[1].tcp((address, 80)), other, "another keeps its address");
        assert_eq!(lab.sandboxes[1].udp((address, 80)), other, "another keeps its address");
        assert!(matches!(lab.node.tcp((address, 80)), Outcome::Answer(_)), "from the node");
        assert!(matches!(lab.node.udp((address, 80)), Outcome::Answer(_)), "from the node");
        forwarder.table().replace(Ruleset::default());
        forwarder.flush().expect("the table");
    }
}

#[test]
fn sandboxes_on_one_bridge_reach_each_other_through_a_virtual_address() {
    let lab = Lab::bridged();
    for (at, address) in [(v4 as fn(u8, u8) -> IpAddr, vip(1)), (six, vip6(1))] {
        let end = (at(9, 2), 8080);
        lab.sandboxes[0].serve(end.into());
        let mut ruleset = Ruleset::default();
        add(&mut ruleset, address, 80, &local([end]));
        let mut forwarder = lab.start(ruleset);
        // The answer goes past the node, from an address that was not asked.
        let [itself, other] = [&lab.sandboxes[0], &lab.sandboxes[1]];
        assert!(!matches!(other.tcp((address, 80)), Outcome::Answer(_)), "without help: {address}");
        let length = if address.is_ipv4() { 24 } else { 64 };
        forwarder.table().set_bridged([Range { address: at(9, 0), length }].into());
        forwarder.flush().expect("the table");
        let expected = by(end, at(9, 1));
        for asker in [itself, other] {
            assert_eq!(asker.tcp((address, 80)), expected, "it sees the node");
            assert_eq!(asker.udp((address, 80)), expected, "it sees the node");
        }
        forwarder.table().replace(Ruleset::default());
        forwarder.flush().expect("the table");
    }
}

#[test]
fn what_others_lead_on_a_bridge_keeps_its_source() {
    let lab = Lab::new();
    let end = (v4(1, 2), 8080);
    lab.sandboxes[0].serve(end.into());
    let mut ruleset = Ruleset { node_addresses: [v4(2, 1)].into(), ..Ruleset::default() };
    // The rules know of bridges by this alone.
    ruleset.bridged = [Range { address: v4(0, 0), length: 16 }].into();
    add(&mut ruleset, vip(1), 80, &local([end]));
    ruleset.node_ports.insert(node_port(Protocol::Tcp, 6667), local([end]));
    let _forwarder = lab.start(ruleset);
    let others = "add table ip other;
        add chain ip other c { type nat hook prerouting priority -100; };
        add rule ip other c ip daddr 10.96.0.9 tcp dport 80 dnat to 10.9.1.2:8080";
    lab.node.output("nft", &[others]);
    let asker = &lab.sandboxes[1];
    assert_eq!(asker.tcp((vip(9), 80)), by(end, v4(2, 2)), "another's service");
    assert_eq!(asker.tcp((vip(1), 80)), by(end, v4(1, 1)), "it sees the node");
    assert_eq!(asker.tcp((v4(2, 1), 6667)), by(end, v4(1, 1)), "it sees the node");
}

#[test]
fn a_client_with_affinity_comes_back_to_its_endpoint() {
    let lab = Lab::new();
    let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080)];
    ends.iter().zip(&lab.sandboxes).for_each(|(end, sandbox)| sandbox.serve((*end).into()));
    let clients: Vec<_> = (10..250).collect();
    lab.client.run(|| {
        clients.iter().for_each(|host| lab::ip(&format!("addr add {}/32 dev eth0", v4(0, *host))));
    });
    let mut ruleset = Ruleset::default();
    add(&mut ruleset, vip(1), 80, &sticky(ends));
    ruleset.node_ports.insert(node_port(Protocol::Tcp, 6667), sticky(ends));
    ruleset.node_addresses = [v4(0, 1)].into();
    let mut forwarder = lab.start(ruleset);
    let server = |client: u8, to: SocketAddr| match lab.client.tcp_from(v4(0, client), to) {
        Outcome::Answer(answer) => answer.server,
        other => panic!("{other:?}"),
    };
    for client in &clients[..4] {
        for to in [SocketAddr::from((vip(1), 80)), (v4(0, 1), 6667).into()] {
            let known = server(*client, to);
            assert!((1..50).all(|_| server(*client, to) == known), "{client} at {to}");
        }
    }
    let to = SocketAddr::from((vip(1), 80));
    let first: Vec<_> = clients.iter().map(|client| server(*client, to)).collect();
    let of_one = first.iter().filter(|server| **server == ends[0].into()).count();
    assert!((80..=160).contains(&of_one), "clients are spread: {of_one} of 240 are at the first");
    // A third endpoint: its share of clients moves, and to it alone.
    let third = (v4(2, 2), 9090);
    lab.sandboxes[1].serve(third.into());
    forwarder
        .table()
        .set_service(service(vip(1), Protocol::Tcp, 80), sticky([ends[0], ends[1], third]));
    forwarder.flush().expect("the table");
    let mut moved = 0;
    for (client, before) in clients.iter().zip(first) {
        let now = server(*client, to);
        assert!(now == before || now == third.into(), "{client} moved to {now}");
        moved += usize::from(now != before);
    }
    // A third of 240, with five standard deviations of how clients fall into slots.
    assert!((44..=116).contains(&moved), "{moved} of 240 moved");
}

#[test]
fn affinity_holds_over_both_transports_and_families() {
    let lab = Lab::new();
    let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080), (v6(1, 2), 8080), (v6(2, 2), 8080)];
    ends.iter().zip([0, 1, 0, 1]).for_each(|(end, at)| lab.sandboxes[at].serve((*end).into()));
    let mut ruleset = Ruleset { node_addresses: [v4(0, 1), v6(0, 1)].into(), ..Ruleset::default() };
    add(&mut ruleset, vip(1), 80, &sticky(ends));
    add(&mut ruleset, vip6(1), 80, &sticky(ends));
    for protocol in BOTH {
        ruleset.node_ports.insert(node_port(protocol, 6667), sticky(ends));
    }
    let _forwarder = lab.start(ruleset);
    let fronts = [(vip(1), 80), (vip6(1), 80), (v4(0, 1), 6667), (v6(0, 1), 6667)];
    for (front, protocol) in fronts.into_iter().flat_map(|front| BOTH.map(|it| (front, it))) {
        let counts = answers(&lab.client, protocol, front.into(), 50);
        assert_eq!(counts.len(), 1, "{front:?} over {protocol:?}: {counts:?}");
    }
}

fn node_ports(lab: &Lab, is_local: bool) -> Ruleset {
    let ends = [(v4(1, 2), 8080), (v6(1, 2), 8080)];
    ends.iter().for_each(|end| lab.sandboxes[0].serve((*end).into()));
    let backends = if is_local { local(ends) } else { remote(ends) };
    Ruleset {
        node_ports: BOTH.map(|protocol| (node_port(protocol, 6667), backends.clone())).into(),
        node_addresses: [v4(0, 1), v6(0, 1)].into(),
        ..Ruleset::default()
    }
}

fn add(ruleset: &mut Ruleset, address: IpAddr, port: u16, backends: &Backends) {
    for protocol in BOTH {
        ruleset.services.insert(service(address, protocol, port), backends.clone());
    }
}

/// Asks this often and counts the answers; anything else is a failure.
fn answers(
    asker: &Namespace,
    protocol: Protocol,
    to: SocketAddr,
    times: usize,
) -> BTreeMap<Answer, usize> {
    let outcomes = asker.run(|| {
        let ask = |_| match protocol {
            Protocol::Tcp => lab::tcp(to),
            Protocol::Udp => lab::udp(to),
        };
        (0..times).map(ask).collect::<Vec<_>>()
    });
    outcomes.into_iter().fold(BTreeMap::new(), |mut counts, outcome| {
        let Outcome::Answer(answer) = outcome else {
            panic!("{to} over {protocol:?}: {outcome:?}")
        };
        *counts.entry(answer).or_default() += 1;
        counts
    })
}

/// An IPv6 address of the laboratory, with arguments like those of IPv4.
fn six(network: u8, host: u8) -> IpAddr {
    v6(network.into(), host.into())
}
