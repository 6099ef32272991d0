use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn node() -> NodeFacts {
    let addresses = ["192.0.2.10", "203.0.113.10", "2001:db8::10"].map(ip).into();
    NodeFacts { uid: "node-uid".into(), addresses }
}

fn seen(filters_bridges: bool) -> Seen {
    Seen {
        addresses: ["192.0.2.10", "2001:db8::10", "198.51.100.7", "10.8.1.1"].map(ip).into(),
        bridges: [Range { address: ip("10.8.1.1"), length: 24 }].into(),
        default_routes: [Family::V4].into(),
        filters_bridges,
    }
}

#[test]
fn node_ports_answer_at_addresses_that_are_the_nodes_and_here() {
    let machine = machine(&node(), &seen(false));
    assert_eq!(machine.ground.addresses, ["192.0.2.10", "2001:db8::10"].map(ip).into());
    assert_eq!(machine.default_routes, [Family::V4].into());
}

#[test]
fn what_is_on_a_bridge_is_hidden_unless_bridge_netfilter_is_on() {
    assert_eq!(machine(&node(), &seen(false)).ground.bridged, seen(false).bridges);
    assert_eq!(machine(&node(), &seen(true)).ground.bridged, [].into());
}

#[test]
fn a_machine_is_seen_as_it_is() {
    on_a_machine(async {
        set("link add bridge0 type bridge");
        set("addr add 10.8.1.1/24 dev bridge0");
        set("addr add fd08::1/64 dev bridge0 nodad");
        set("link set bridge0 up");
        // A link between two points: the other's address is not this machine's.
        set("addr add 192.0.2.10 peer 192.0.2.1 dev uplink");
        set("route add default via 192.0.2.1");
        // This leads nowhere.
        set("-6 route add unreachable default metric 1");
        let (connection, handle, _) = rtnetlink::new_connection().expect("rtnetlink");
        tokio::spawn(connection);
        let seen = survey(&handle).await.expect("the machine");
        for address in ["127.0.0.1", "::1", "10.8.1.1", "fd08::1", "192.0.2.10"].map(ip) {
            assert!(seen.addresses.contains(&address), "{address}: {seen:?}");
        }
        assert!(!seen.addresses.contains(&ip("192.0.2.1")), "{seen:?}");
        let bridges = [("10.8.1.1", 24), ("fd08::1", 64)];
        let bridges = bridges.map(|(at, length)| Range { address: ip(at), length });
        assert_eq!(seen.bridges, bridges.into(), "without those that each link has");
        assert_eq!(seen.default_routes, [Family::V4].into());
    });
}

/// All within less time than after which it would look by itself.
#[test]
fn what_changes_on_a_machine_is_noticed() {
    on_a_machine(async {
        let node = NodeFacts { uid: String::new(), addresses: [ip("192.0.2.10")].into() };
        let (facts, shutdown) = (watch::channel(None).0, CancellationToken::new());
        let (machine, mut told) = watch::channel(None);
        let inbox = Arc::new(Inbox::default());
        let surveyor =
            Surveyor { inbox, node: facts.subscribe(), machine, shutdown: shutdown.clone() };
        let running = tokio::spawn(surveyor.run());
        facts.send_replace(Some(node));
        let mut until = async |addresses: &[&str], routes: &[Family]| {
            let addresses: BTreeSet<_> = addresses.iter().map(|text| ip(text)).collect();
            let routes: BTreeSet<_> = routes.iter().copied().collect();
            let is_so = |machine: &Option<Machine>| {
                machine.as_ref().is_some_and(|machine| {
                    machine.ground.addresses == addresses && machine.default_routes == routes
                })
            };
            let told = timeout(LOOK_EVERY / 2, told.wait_for(is_so)).await;
            drop(told.expect("it is noticed").expect("somebody looks"));
        };
        until(&[], &[]).await;
        set("addr add 192.0.2.10 peer 192.0.2.1 dev uplink");
        until(&["192.0.2.10"], &[]).await;
        set("route add default via 192.0.2.1");
        until(&["192.0.2.10"], &[Family::V4]).await;
        set("-6 route add default dev uplink");
        until(&["192.0.2.10"], &[Family::V4, Family::V6]).await;
        set("route del default");
        until(&["192.0.2.10"], &[Family::V6]).await;
        set("addr del 192.0.2.10 peer 192.0.2.1 dev uplink");
        until(&[], &[Family::V6]).await;
        shutdown.cancel();
        running.await.expect("a task").expect("it ends in order");
    });
}

/// Runs on a machine with one link, which is a network namespace that is gone afterwards.
fn on_a_machine(f: impl Future<Output = ()> + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the privilege to make network namespaces");
            set("link set lo up");
            set("link add uplink type veth peer name other");
            set("link set uplink up");
            set("link set other up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(f);
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// What an administrator does to the machine.
fn set(command: &str) {
    let status = Command::new("ip").args(command.split_whitespace()).status().expect("ip");
    assert!(status.success(), "ip {command}");
}
