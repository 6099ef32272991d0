//! Connections through a real kernel: which of them the agent ends when it did not see who left,
//! when others led them elsewhere, and when connection tracking comes late.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use caps::{CapSet, Capability};
use portolan_nft::{Batch, Data, Owner, Set};

use super::*;

/// How long anybody waits for an answer.
const ANSWER: Duration = Duration::from_secs(2);

#[test]
fn what_left_while_the_agent_was_away_is_ended_when_it_starts_again() {
    in_namespace(|| {
        let _sandboxes = inhabit(&[(1, &[1, 2]), (2, &[3]), (3, &[4])]);
        let agent = Agent::with(&[(1, &[1]), (2, &[3]), (3, &[4])]);
        let senders = [1, 3].map(Sender::to);
        assert_eq!(senders.each_ref().map(Sender::ask), [Some(1), Some(4)]);
        let _streams = [1, 2].map(connect);
        let seen = || (tracked(1, "tcp"), tracked(2, "tcp"), tracked(3, "udp"));
        assert_eq!(seen(), (1, 1, 1));
        agent.stop();
        assert_eq!(senders[0].ask(), Some(1), "what is open goes on without an agent");

        // A sandbox was replaced, and a service has gone.
        let agent = Agent::with(&[(1, &[2]), (2, &[3])]);
        assert_eq!(senders[0].ask(), Some(2), "a sender follows the sandboxes");
        assert_eq!(seen(), (0, 1, 0), "only who is still there keeps what it has");
        agent.stop();
    });
}

#[test]
fn who_was_led_astray_by_another_comes_back_with_the_repair() {
    in_namespace(|| {
        let _sandboxes = inhabit(&[(1, &[1, 2])]);
        let agent = Agent::shared(&[(1, &[1])]);
        lead_astray(2);
        let sender = Sender::to(1);
        assert_eq!(sender.ask(), Some(2), "another has seen to that");
        agent.inbox.verify();
        await_that("the sender to be led where it should", || match sender.ask() {
            Some(1) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        agent.stop();
    });
}

#[test]
fn what_a_former_sandbox_had_open_is_ended_when_another_has_its_address() {
    in_namespace(|| {
        let _sandboxes = inhabit(&[(1, &[1]), (2, &[2])]);
        let agent = Agent::with(&[(1, &[1]), (2, &[2])]);
        let _streams = [1, 2].map(connect);
        assert_eq!([1, 2].map(|service| tracked(service, "tcp")), [1, 1]);
        // Nobody has said that the first is gone, and nothing is led elsewhere.
        let (before, mut after) = (slice(1, &[1]), slice(1, &[1]));
        Arc::make_mut(&mut after).endpoints[0].pod = 1;
        agent.inbox.change(|index| index.slice(&key(1), Some(&before), Some(&after)));
        await_that("its connection to end", || match tracked(1, "tcp") {
            0 => Ok(()),
            count => Err(format!("{count} are tracked")),
        });
        assert_eq!(tracked(2, "tcp"), 1, "that of another sandbox goes on");
        agent.stop();
    });
}

#[test]
fn connection_tracking_that_comes_late_makes_up_for_what_it_missed() {
    in_namespace(|| {
        let _sandboxes = inhabit(&[(1, &[1, 2])]);
        let inbox = Arc::new(fed(&[(1, &[1])]));
        let writer = Writer {
            inbox: inbox.clone(),
            open: Box::new(Kernel::open),
            metrics: Metrics::register(&mut Registry::default()),
            state: watch::channel(State::default()).0,
            opened: watch::channel(None).0,
        };
        let mut running = writer.begin().expect("nobody told it to stop");
        let (sender, _stream) = (Sender::to(1), connect(1));
        assert_eq!((sender.ask(), tracked(1, "tcp")), (Some(1), 1));
        // As where its module cannot be loaded yet.
        running.conntrack = None;
        writer.opened.send_modify(|opened| opened.as_mut().expect("a kernel").filters = None);
        let (before, after) = (slice(1, &[1]), slice(1, &[2]));
        inbox.change(|index| index.slice(&key(1), Some(&before), Some(&after)));
        writer.round(&mut running, work(&inbox)).expect("the table");
        assert_eq!((sender.ask(), tracked(1, "tcp")), (Some(1), 1), "nobody could end them");

        let look = Work { verify: true, ..Work::default() };
        writer.round(&mut running, look).expect("the table");
        assert_eq!((sender.ask(), tracked(1, "tcp")), (Some(2), 0));
        let opened: Option<Opened> = *writer.opened.borrow();
        assert!(opened.is_some_and(|opened| opened.filters.is_some()), "the report is told");
    });
}

#[test]
fn what_the_kernel_would_not_end_is_tried_again_until_it_does() {
    in_namespace(|| {
        let _sandboxes = inhabit(&[(1, &[1, 2])]);
        let inbox = Arc::new(fed(&[(1, &[1])]));
        let writer = Writer {
            inbox: inbox.clone(),
            open: Box::new(Kernel::open),
            metrics: Metrics::register(&mut Registry::default()),
            state: watch::channel(State::default()).0,
            opened: watch::channel(None).0,
        };
        let mut running = writer.begin().expect("nobody told it to stop");
        let (sender, _stream) = (Sender::to(1), connect(1));
        assert_eq!((sender.ask(), tracked(1, "tcp")), (Some(1), 1));
        let (before, after) = (slice(1, &[1]), slice(1, &[2]));
        inbox.change(|index| index.slice(&key(1), Some(&before), Some(&after)));
        let changes = work(&inbox).changes;
        for (port, backends) in changes.services {
            running.forwarder.table().set_service(port, backends.expect("it stays"));
        }
        running.forwarder.flush().expect("the table");
        running.gone = changes.gone;
        for (failures, rest) in [(1, REST_MIN), (2, REST_MIN * 2)] {
            unprivileged(|| writer.end_connections(&mut running));
            assert_eq!(writer.metrics.unended.get(), failures);
            assert_eq!(running.unended.map(|retry| retry.rest), Some(rest));
        }
        assert_eq!((sender.ask(), tracked(1, "tcp")), (Some(1), 1), "nobody could end them");

        writer.end_connections(&mut running);
        assert!(running.unended.is_none(), "nothing is left to be ended");
        assert_eq!((sender.ask(), tracked(1, "tcp")), (Some(2), 0));
        assert_eq!(writer.metrics.unended.get(), 2);
    });
}

/// Does something while the kernel refuses this thread what needs a privilege.
fn unprivileged(does: impl FnOnce()) {
    let (set, privilege) = (CapSet::Effective, Capability::CAP_NET_ADMIN);
    caps::drop(None, set, privilege).expect("a privilege can be laid down");
    does();
    caps::raise(None, set, privilege).expect("and is still permitted");
}

/// Gives the sandboxes of these services addresses of this namespace. Each answers over UDP with
/// its number, and takes connections over TCP as long as its listener is kept.
fn inhabit(services: &[(u8, &[u8])]) -> Vec<TcpListener> {
    ip("link set lo up");
    ip("address add 192.0.2.99/32 dev lo");
    // As a node's default route: without any, nothing is sent to a virtual address.
    ip("route add 10.96.0.0/16 dev lo src 192.0.2.99");
    let mut listeners = Vec::new();
    for (service, sandboxes) in services {
        for number in sandboxes.iter().copied() {
            let address = [10, 8, *service, number];
            ip(&format!("address add 10.8.{service}.{number}/32 dev lo"));
            let socket = UdpSocket::bind(SocketAddr::from((address, 53))).expect("a socket");
            thread::spawn(move || {
                let mut question = [0; 16];
                while let Ok((_, asker)) = socket.recv_from(&mut question) {
                    // Who has gone needs no answer.
                    let _ = socket.send_to(&[number], asker);
                }
            });
            let listener = TcpListener::bind(SocketAddr::from((address, 6667)));
            listeners.push(listener.expect("a listener"));
        }
    }
    listeners
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {words}: {errors}");
}

/// Asks a service over UDP, always from the same port: so it is led where it was led first, until
/// somebody ends that.
struct Sender(UdpSocket);

impl Sender {
    fn to(service: u8) -> Self {
        let socket = UdpSocket::bind("192.0.2.99:0").expect("a socket");
        socket.set_read_timeout(Some(ANSWER)).expect("a socket option");
        socket.connect(SocketAddr::from(([10, 96, 0, service], 53))).expect("a route");
        Self(socket)
    }

    /// The number of the sandbox that answers; `None` if none does.
    fn ask(&self) -> Option<u8> {
        let mut answer = [0];
        self.0.send(b"who").ok()?;
        self.0.recv(&mut answer).ok()?;
        Some(answer[0])
    }
}

/// A connection to a service over TCP.
fn connect(service: u8) -> TcpStream {
    let to = SocketAddr::from(([10, 96, 0, service], 6667));
    TcpStream::connect_timeout(&to, ANSWER).expect("a connection")
}

/// How many connections to a service are tracked.
fn tracked(service: u8, protocol: &str) -> usize {
    let words = ["-L", "-f", "ipv4", "-p", protocol];
    let output = Command::new("conntrack").args(words).output().expect("conntrack");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "conntrack {words:?}: {errors}");
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = format!(" dst=10.96.0.{service} ");
    listing.lines().filter(|line| line.contains(&address)).count()
}

/// Leads who asks the first service over UDP to another of its sandboxes, as somebody may do where
/// tables have no owner.
fn lead_astray(to: u8) {
    let asked = ServicePort { address: [10, 96, 0, 1].into(), protocol: Protocol::Udp, port: 53 };
    let mut slots = read(open_shared().expect("a kernel")).into_iter().filter(|(element, _)| {
        matches!(element.set, Set::Slots(..)) && element.owner() == Owner::Service(asked)
    });
    let (slot, data) = slots.next().expect("a slot");
    let mut bytes = data.as_slice().to_vec();
    bytes[3] = to;
    let data = Data::new(&bytes).expect("as long as before");
    let batch = Batch { delete: vec![slot], add: vec![(slot, data)] };
    open_shared().expect("a kernel").commit(&batch, None).expect("the batch");
}
