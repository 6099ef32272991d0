//! Connections that outlive their endpoint, or came before it.

mod lab;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Lab, Outcome, ask_udp, by, local, node_port, service, v4, v6, vip, vip6};
use portolan_nft::{Backends, Conntrack, Flows, Former, Forwarder, Protocol, Ruleset, ServicePort};

/// A node that forwards, and a sender that always sends from the same port.
struct Sender {
    lab: Lab,
    forwarder: Forwarder,
    conntrack: Conntrack,
    socket: UdpSocket,
}

#[test]
fn a_sender_moves_with_the_endpoints() {
    for filters in [true, false] {
        let mut sender = Sender::new(filters);
        let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080)];
        let context = format!("with filters: {filters}");
        // Before the service exists its packets go where the route leads, and are tracked.
        let early = sender.early();
        assert_eq!(early, Outcome::Silence, "{context}: nobody is there yet");
        assert_eq!(sender.after(local([ends[0]])), by(ends[0], v4(0, 2)), "{context}: it comes");
        assert_eq!(sender.after(local([ends[1]])), by(ends[1], v4(0, 2)), "{context}: replaced");
        let other_port = (v4(2, 2), 9090);
        assert_eq!(sender.after(local([other_port])), by(other_port, v4(0, 2)), "{context}: port");
        assert_eq!(sender.after(local([])), Outcome::Refused, "{context}: nobody is left");
        assert_eq!(sender.after(local([ends[0]])), by(ends[0], v4(0, 2)), "{context}: it is back");
        // One more endpoint moves nobody.
        assert_eq!(sender.after(local(ends)), by(ends[0], v4(0, 2)), "{context}: one more");
    }
}

#[test]
fn a_sender_moves_before_packets_under_way_are_waited_for() {
    for filters in [true, false] {
        let Sender { lab: _lab, mut forwarder, mut conntrack, socket } = Sender::new(filters);
        let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080)];
        forwarder.table().set_service(target(), local([ends[0]]));
        settle(&mut forwarder, &mut conntrack);
        assert_eq!(ask_udp(&socket), by(ends[0], v4(0, 2)));
        forwarder.table().set_service(target(), local([ends[1]]));
        forwarder.advance().expect("the table");
        forwarder.end_at_once(&mut conntrack);
        assert_eq!(ask_udp(&socket), by(ends[1], v4(0, 2)), "with filters: {filters}");
        let stale = forwarder.table().take_stale();
        assert_eq!(stale.len(), 1, "one under way may have brought it back: {stale:?}");
    }
}

#[test]
fn a_sender_to_a_node_port_and_one_over_ipv6_move_too() {
    let mut sender = Sender::new(true);
    let Sender { lab, forwarder, conntrack, .. } = &mut sender;
    let port = node_port(Protocol::Udp, 6667);
    let target = service(vip6(1), Protocol::Udp, 53);
    forwarder.table().set_node_addresses([v4(0, 1)].into());
    let sockets = [
        (lab.client.udp_socket((v4(0, 1), 6667)), [(v4(1, 2), 8080), (v4(2, 2), 8080)], v4(0, 2)),
        (lab.client.udp_socket((vip6(1), 53)), [(v6(1, 2), 8080), (v6(2, 2), 8080)], v6(0, 2)),
    ];
    for round in 0..2 {
        forwarder.table().set_node_port(port, local([sockets[0].1[round]]));
        forwarder.table().set_service(target, local([sockets[1].1[round]]));
        settle(forwarder, conntrack);
        for (socket, ends, client) in &sockets {
            assert_eq!(ask_udp(socket), by(ends[round], *client), "{round}");
        }
    }
}

#[test]
fn other_connections_of_an_endpoint_go_on() {
    for (filters, family) in [(true, 4), (false, 4), (true, 6)] {
        let mut sender = Sender::new(filters);
        let (end, fronts, client) = match family {
            4 => ((v4(1, 2), 8080), [vip(1), vip(2)], v4(0, 2)),
            _ => ((v6(1, 2), 8080), [vip6(1), vip6(2)], v6(0, 2)),
        };
        let ports = fronts.map(|front| service(front, Protocol::Udp, 53));
        for port in ports {
            sender.forwarder.table().set_service(port, local([end]));
        }
        settle(&mut sender.forwarder, &mut sender.conntrack);
        let sockets = fronts.map(|front| sender.lab.client.udp_socket((front, 53)));
        sockets.iter().for_each(|socket| assert_eq!(ask_udp(socket), by(end, client)));
        assert_eq!(sender.entries(family), 2);
        sender.forwarder.table().set_service(ports[0], Backends::default());
        settle(&mut sender.forwarder, &mut sender.conntrack);
        assert_eq!(sender.entries(family), 1, "IPv{family}, filters {filters}: the other's stays");
        assert_eq!(ask_udp(&sockets[0]), Outcome::Refused);
        assert_eq!(ask_udp(&sockets[1]), by(end, client));
    }
}

#[test]
fn a_connection_to_an_endpoint_that_drains_goes_on_and_one_to_a_dead_sandbox_is_reset() {
    for filters in [true, false] {
        let mut sender = Sender::new(filters);
        let (end, target) = ((v4(1, 2), 7000), service(vip(1), Protocol::Tcp, 80));
        let echo = sender.lab.sandboxes[0].run(|| TcpListener::bind(end).expect("a listener"));
        thread::spawn(move || {
            let (mut stream, _) = echo.accept().expect("a connection");
            let mut writer = stream.try_clone().expect("a stream");
            let _ = std::io::copy(&mut stream, &mut writer);
        });
        sender.forwarder.table().set_service(target, local([end]));
        settle(&mut sender.forwarder, &mut sender.conntrack);
        let connect = || TcpStream::connect((vip(1), 80)).expect("a connection");
        let mut stream = sender.lab.client.run(connect);
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket option");
        let mut buffer = [0; 4];
        let mut echo = |stream: &mut TcpStream| {
            stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut buffer))
        };
        echo(&mut stream).expect("an echo");
        sender.forwarder.table().set_service(target, Backends::default());
        settle(&mut sender.forwarder, &mut sender.conntrack);
        echo(&mut stream).expect("an endpoint that drains still answers");
        // The sandbox dies without a word: its link goes down.
        sender.lab.sandboxes[0].run(|| lab::ip("link set eth0 down"));
        let gone = BTreeSet::from([Flows::Sandbox(end.0)]);
        sender.conntrack.end(&gone).expect("connection tracking");
        let began = Instant::now();
        let error = echo(&mut stream).expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "with filters: {filters}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        stream.shutdown(Shutdown::Both).ok();
    }
}

#[test]
fn nothing_of_before_reaches_a_sandbox_with_a_used_address() {
    for (filters, family) in [(true, 4), (false, 4), (true, 6)] {
        let mut sender = Sender::new(filters);
        let (front, used, other, client) = match family {
            4 => (vip(1), v4(1, 2), v4(2, 2), v4(0, 2)),
            _ => (vip6(1), v6(1, 2), v6(2, 2), v6(0, 2)),
        };
        let Sender { lab, forwarder, conntrack, .. } = &mut sender;
        let [inbound, outbound] =
            [(&lab.client, used), (&lab.sandboxes[0], other)].map(|(asker, end)| {
                let port = service(front, Protocol::Udp, if end == used { 53 } else { 54 });
                forwarder.table().set_service(port, local([(end, 8080)]));
                settle(forwarder, conntrack);
                let socket = asker.udp_socket((front, port.port));
                assert!(matches!(ask_udp(&socket), Outcome::Answer(_)), "IPv{family}");
                (port, socket)
            });
        let listed = |what: &str| {
            let address = used.to_string();
            let family = format!("ipv{family}");
            lab.node.output("conntrack", &["-L", "-f", &family, what, &address]).lines().count()
        };
        assert_eq!((listed("--orig-src"), listed("--reply-src")), (1, 1), "IPv{family}");
        // The sandbox is gone, and its address is given to another.
        forwarder.table().set_service(inbound.0, local([(other, 8080)]));
        forwarder.flush().expect("the table");
        conntrack.end(&BTreeSet::from([Flows::Sandbox(used)])).expect("connection tracking");
        assert_eq!((listed("--orig-src"), listed("--reply-src")), (0, 0), "IPv{family}");
        assert_eq!(ask_udp(&inbound.1), by((other, 8080), client), "IPv{family}: led anew");
        drop(outbound);
    }
}

/// A swap of one endpoint for another is one commit, after which nothing has to go.
#[test]
fn no_packet_under_way_brings_a_connection_back() {
    let mut sender = Sender::new(true);
    let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080)];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            let socket = sender.lab.client.udp_socket((vip(1), 53));
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Refused or not: what counts is that packets are always under way.
                    let _ = socket.send(b"x");
                }
            });
        }
        let left: usize = (0..60)
            .map(|round| {
                sender.forwarder.table().set_service(target(), local([ends[round % 2]]));
                settle(&mut sender.forwarder, &mut sender.conntrack);
                let desired = sender.forwarder.table().desired().clone();
                sweep(&mut sender.conntrack, &desired, &Former::default())
            })
            .sum();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(left, 0, "connections to a former endpoint");
    });
}

#[test]
fn a_sender_to_an_address_that_the_node_lost_is_led_no_more() {
    let mut sender = Sender::new(true);
    let Sender { lab, forwarder, conntrack, .. } = &mut sender;
    let (address, port) = (v4(0, 1), node_port(Protocol::Udp, 6667));
    forwarder.table().set_node_port(port, local([(v4(1, 2), 8080)]));
    forwarder.table().set_node_addresses([address].into());
    settle(forwarder, conntrack);
    let socket = lab.client.udp_socket((address, 6667));
    let led = by((v4(1, 2), 8080), v4(0, 2));
    assert_eq!(ask_udp(&socket), led);
    forwarder.table().set_node_addresses([].into());
    settle(forwarder, conntrack);
    assert_eq!(ask_udp(&socket), Outcome::Refused, "nobody listens on the node itself");
    forwarder.table().set_node_addresses([address].into());
    settle(forwarder, conntrack);
    assert_eq!(ask_udp(&socket), led, "the address is back");
}

#[test]
fn a_restart_ends_what_was_not_ended_before() {
    let mut sender = Sender::new(true);
    let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080)];
    assert_eq!(sender.after(local([ends[0]])), by(ends[0], v4(0, 2)));
    // Killed between the change and the end of connections.
    sender.forwarder.table().set_service(target(), local([ends[1]]));
    sender.forwarder.flush().expect("the table");
    assert_eq!(ask_udp(&sender.socket), by(ends[0], v4(0, 2)), "still there");
    let desired = sender.forwarder.table().desired().clone();
    let none = Former::default();
    assert_eq!(sweep(&mut sender.conntrack, &desired, &none), 1);
    assert_eq!(ask_udp(&sender.socket), by(ends[1], v4(0, 2)));
    assert_eq!(sweep(&mut sender.conntrack, &desired, &none), 0, "only once");
    // The service went while nobody ran: only the table still knows of it.
    let Sender { lab, forwarder, mut conntrack, socket } = sender;
    drop(forwarder);
    let mut forwarder = lab.start(Ruleset::default());
    let former = forwarder.take_former();
    assert_eq!(sweep(&mut conntrack, &Ruleset::default(), &none), 0, "as far as is known");
    assert_eq!(sweep(&mut conntrack, &Ruleset::default(), &former), 1, "{former:?}");
    assert!(!matches!(ask_udp(&socket), Outcome::Answer(_)), "it is led nowhere");
}

/// Sandboxes may die while nobody runs, and their clients wait. But what others lead is theirs,
/// also through a port that is ours by now.
#[test]
fn a_restart_ends_what_leads_to_sandboxes_that_nobody_lists() {
    let Sender { lab, forwarder, mut conntrack, .. } = Sender::new(true);
    drop(forwarder);
    let (dead, alive, theirs) = ((v4(1, 2), 7000), (v4(2, 2), 7000), (v4(1, 3), 7000));
    let [first, second] = &lab.sandboxes;
    first.run(|| lab::ip("addr add 10.9.1.3/24 dev eth0"));
    let _listeners = [(first, dead), (second, alive), (first, theirs)]
        .map(|(sandbox, end)| sandbox.run(|| TcpListener::bind(end).expect("a listener")));
    let connect =
        |front: (IpAddr, u16)| lab.client.run(|| TcpStream::connect(front).expect("a connection"));
    // As a port of the host is led to its Pod.
    let others = "add table ip other;
        add chain ip other c { type nat hook prerouting priority -100; };
        add rule ip other c ip daddr 10.9.0.1 tcp dport 6667 dnat to 10.9.1.3:7000";
    lab.node.output("nft", &[others]);
    let fronts = [(vip(1), 80), (vip(2), 80), (v4(0, 1), 6667)];
    let foreign = connect(fronts[2]);
    let mut desired = Ruleset { node_addresses: [v4(0, 1)].into(), ..Ruleset::default() };
    for (front, end) in fronts.into_iter().zip([dead, alive]) {
        desired.services.insert(service(front.0, Protocol::Tcp, 80), local([end]));
    }
    desired.node_ports.insert(node_port(Protocol::Tcp, 6667), local([alive]));
    drop(lab.start(desired.clone()));
    let ours = [connect(fronts[0]), connect(fronts[1])];
    desired.services.insert(service(vip(1), Protocol::Tcp, 80), Backends::default());
    let former = lab.start(desired.clone()).take_former();
    let is_tracked = |(address, port): (IpAddr, u16)| {
        let listed = lab.node.output("conntrack", &["-L", "-f", "ipv4", "-p", "tcp"]);
        let (address, port) = (format!(" dst={address} "), format!(" dport={port} "));
        listed.lines().any(|line| line.contains(&address) && line.contains(&port))
    };
    assert_eq!(fronts.map(is_tracked), [true, true, true]);
    let swept = conntrack.sweep(&desired, &former, |address| address == alive.0);
    assert_eq!(swept.expect("connection tracking"), 1, "{former:?}");
    assert_eq!(fronts.map(is_tracked), [false, true, true]);
    drop((ours, foreign));
}

#[test]
fn many_are_ended_in_one_pass() {
    let mut sender = Sender::new(true);
    let ports = 100..150_u16;
    let flows = |end: (std::net::IpAddr, u16)| local([end]);
    let set = |forwarder: &mut Forwarder, end| {
        for port in ports.clone() {
            forwarder.table().set_service(service(vip(3), Protocol::Udp, port), flows(end));
        }
    };
    let ends = [(v4(1, 2), 8080), (v4(2, 2), 8080)];
    set(&mut sender.forwarder, ends[0]);
    settle(&mut sender.forwarder, &mut sender.conntrack);
    let sockets: Vec<_> =
        ports.clone().map(|port| sender.lab.client.udp_socket((vip(3), port))).collect();
    assert!(sockets.iter().all(|socket| ask_udp(socket) == by(ends[0], v4(0, 2))));
    set(&mut sender.forwarder, ends[1]);
    settle(&mut sender.forwarder, &mut sender.conntrack);
    assert!(sockets.iter().all(|socket| ask_udp(socket) == by(ends[1], v4(0, 2))));
}

impl Sender {
    fn new(filters: bool) -> Self {
        let lab = Lab::new();
        for (network, sandbox) in [1, 2].into_iter().zip(&lab.sandboxes) {
            for port in [8080, 9090] {
                sandbox.serve((v4(network, 2), port).into());
            }
            sandbox.serve((v6(network.into(), 2), 8080).into());
        }
        let forwarder = lab.start(Ruleset::default());
        let conntrack = lab.node.run(|| Conntrack::open().expect("connection tracking"));
        let conntrack = if filters { conntrack } else { conntrack.without_filters() };
        let socket = lab.client.udp_socket((vip(1), 53));
        Self { lab, forwarder, conntrack, socket }
    }

    /// Sends before there is anybody.
    fn early(&self) -> Outcome {
        self.socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket option");
        let outcome = ask_udp(&self.socket);
        self.socket.set_read_timeout(Some(lab::PATIENCE)).expect("a socket option");
        outcome
    }

    /// Who answers the sender after a change.
    fn after(&mut self, backends: Backends) -> Outcome {
        self.forwarder.table().set_service(target(), backends);
        settle(&mut self.forwarder, &mut self.conntrack);
        ask_udp(&self.socket)
    }

    /// How many UDP connections the node tracks to virtual addresses.
    fn entries(&self, family: u8) -> usize {
        let family = format!("ipv{family}");
        let listed = self.lab.node.output("conntrack", &["-L", "-f", &family, "-p", "udp"]);
        let to_virtual = |line: &&str| line.contains("dst=10.96.") || line.contains("dst=fd96:");
        listed.lines().filter(to_virtual).count()
    }
}

fn target() -> ServicePort {
    service(vip(1), Protocol::Udp, 53)
}

/// Ends what nobody ended, while everybody is still there.
fn sweep(conntrack: &mut Conntrack, desired: &Ruleset, former: &Former) -> usize {
    conntrack.sweep(desired, former, |_| true).expect("connection tracking")
}

fn settle(forwarder: &mut Forwarder, conntrack: &mut Conntrack) {
    forwarder.flush().expect("the table");
    let ended = forwarder.end_connections(conntrack, &mut BTreeSet::new());
    ended.expect("connection tracking");
}
