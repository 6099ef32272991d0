//! Sandboxes on one bridge whose frames go through nf_tables too: bridge netfilter.
//!
//! Without it, what two of them say to each other passes the node by; that is in `traffic.rs`.

mod lab;

use std::net::IpAddr;

use lab::{Lab, Outcome, by, ip, local, service, v4, v6, vip, vip6};
use portolan_nft::{Protocol, Ruleset};

/// The ports of the bridge in the laboratory.
const PORTS: [&str; 2] = ["p2", "p3"];

/// The addresses of one family: of the first sandbox, the second, the node, and a virtual one.
struct Addresses {
    first: IpAddr,
    second: IpAddr,
    node: IpAddr,
    vip: IpAddr,
}

fn families() -> [Addresses; 2] {
    [
        Addresses { first: v4(9, 2), second: v4(9, 3), node: v4(9, 1), vip: vip(1) },
        Addresses { first: v6(9, 2), second: v6(9, 3), node: v6(9, 1), vip: vip6(1) },
    ]
}

/// A bridge as a network plugin leaves it: each port may get back what it sent, and frames are
/// seen by nf_tables.
fn bridged() -> Lab {
    let lab = Lab::bridged();
    lab.node.run(|| {
        for port in PORTS {
            ip(&format!("link set {port} type bridge_slave hairpin on"));
        }
        for family in ["ip", "ip6"] {
            let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
            std::fs::write(&switch, "1").expect("bridge netfilter; `modprobe br_netfilter`");
        }
        // What processes on the node send to virtual addresses needs some way out.
        for gateway in [v4(9, 2), v6(9, 2)] {
            ip(&format!("route add default via {gateway}"));
        }
    });
    lab
}

#[test]
fn with_bridge_netfilter_sandboxes_on_one_bridge_keep_their_addresses() {
    let lab = bridged();
    for Addresses { first, second, node, vip } in families() {
        let end = (first, 8080);
        lab.sandboxes[0].serve(end.into());
        let mut ruleset = Ruleset::default();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            ruleset.services.insert(service(vip, protocol, 80), local([end]));
        }
        // No network is named as bridged: that is what the agent says then.
        let mut forwarder = lab.start(ruleset);
        let [itself, other] = [&lab.sandboxes[0], &lab.sandboxes[1]];
        let own = by(end, second);
        assert_eq!(other.tcp((vip, 80)), own, "it sees who asked");
        assert_eq!(other.udp((vip, 80)), own, "it sees who asked");
        let seen = by(end, node);
        assert_eq!(itself.tcp((vip, 80)), seen, "it sees the node, not itself");
        assert_eq!(itself.udp((vip, 80)), seen, "it sees the node, not itself");
        assert!(matches!(lab.node.tcp((vip, 80)), Outcome::Answer(_)), "from the node");
        assert_eq!(other.tcp((vip, 81)), Outcome::Refused, "a port that there is not");
        forwarder.table().replace(Ruleset::default());
        forwarder.flush().expect("the table");
    }
}

/// What the kernel does changes when somebody loads the module or turns the switch; until the agent
/// has noticed, its rules are those of before.
#[test]
fn rules_for_a_bridge_without_netfilter_still_serve_one_with_it() {
    let lab = bridged();
    let [Addresses { first, node, vip, .. }, _] = families();
    let end = (first, 8080);
    lab.sandboxes[0].serve(end.into());
    let target = service(vip, Protocol::Tcp, 80);
    let ruleset = Ruleset { services: [(target, local([end]))].into(), ..Ruleset::default() };
    let mut forwarder = lab.start(ruleset);
    let network = portolan_nft::Range { address: v4(9, 0), length: 24 };
    forwarder.table().set_bridged([network].into());
    forwarder.flush().expect("the table");
    for asker in &lab.sandboxes {
        assert_eq!(asker.tcp((vip, 80)), by(end, node), "it sees the node");
    }
}
