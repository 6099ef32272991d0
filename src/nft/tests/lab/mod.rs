//! A node with a client and two sandboxes, each in a network namespace of its own.
//!
//! Namespaces have no name: they live as long as the laboratory, and nothing on the machine sees
//! them. A socket stays in the namespace in which it was made, so only its making is run there.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::allow_attributes, reason = "which part differs, so nothing can be expected")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, id};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use portolan_nft::{Affinity, Backends, Endpoint, NodePort, Protocol, ServicePort};

/// How long a client waits before it says that there is no answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A network namespace.
pub(crate) struct Namespace {
    file: File,
}

/// The node, who is outside, and two sandboxes.
pub(crate) struct Lab {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    pub(crate) sandboxes: [Namespace; 2],
}

/// Addresses: the client's network is 0, those of sandboxes are 1 and 2; the node has 1 in each.
pub(crate) fn v4(network: u8, host: u8) -> IpAddr {
    [10, 9, network, host].into()
}

/// The same for IPv6.
pub(crate) fn v6(network: u16, host: u16) -> IpAddr {
    [0xfd09, 0, 0, network, 0, 0, 0, host].into()
}

/// A virtual address.
pub(crate) fn vip(host: u8) -> IpAddr {
    [10, 96, 0, host].into()
}

/// The same for IPv6.
pub(crate) fn vip6(host: u16) -> IpAddr {
    [0xfd96, 0, 0, 0, 0, 0, 0, host].into()
}

/// What answers: who was asked and who asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) server: SocketAddr,
    pub(crate) client: IpAddr,
}

/// How asking ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Answer(Answer),
    Refused,
    Silence,
}

impl Namespace {
    /// An empty namespace with its loopback up.
    pub(crate) fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the privilege to make network namespaces");
            ip("link set lo up");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        Self { file: file.join().expect("a namespace") }
    }

    /// Runs something in the namespace.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Its path, for other programs.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.file.as_raw_fd())
    }

    /// Runs a program in it and gives what it prints.
    pub(crate) fn output(&self, program: &str, args: &[&str]) -> String {
        self.run(|| {
            let output = Command::new(program).args(args).output().expect(program);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program} {args:?}: {errors}");
            text
        })
    }

    /// Asks once over TCP.
    pub(crate) fn tcp(&self, to: impl Into<SocketAddr>) -> Outcome {
        let to = to.into();
        self.run(|| tcp(to))
    }

    /// Asks once over UDP, from a port of its own.
    pub(crate) fn udp(&self, to: impl Into<SocketAddr>) -> Outcome {
        let to = to.into();
        self.run(|| ask_udp(&udp_socket(to), to))
    }

    /// A UDP socket in the namespace, to ask with more than once.
    pub(crate) fn udp_socket(&self, to: impl Into<SocketAddr>) -> UdpSocket {
        let to = to.into();
        self.run(|| udp_socket(to))
    }

    /// Answers over TCP and UDP at an address, for as long as the test runs.
    pub(crate) fn serve(&self, at: SocketAddr) {
        let (tcp, udp) = self.run(|| {
            (TcpListener::bind(at).expect("a listener"), UdpSocket::bind(at).expect("a socket"))
        });
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let Ok(peer) = stream.peer_addr() else { continue };
                // Who has gone needs no answer.
                let _ = write!(stream, "{at} {}", peer.ip());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{at} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }
}

impl Lab {
    /// The node in the middle, everybody else behind a link of its own.
    pub(crate) fn new() -> Self {
        let lab = Self {
            node: Namespace::new(),
            client: Namespace::new(),
            sandboxes: [Namespace::new(), Namespace::new()],
        };
        lab.node.run(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect("a switch");
            }
        });
        let [one, two] = &lab.sandboxes;
        for (network, other) in [&lab.client, one, two].into_iter().enumerate() {
            lab.node.run(|| {
                ip(&format!("link add n{network} type veth peer name eth0 netns {}", other.path()));
                addresses(&format!("n{network}"), network, 1);
            });
            other.run(|| {
                addresses("eth0", network, 2);
                ip(&format!("route add default via {}", v4(network as u8, 1)));
                ip(&format!("route add default via {}", v6(network as u16, 1)));
            });
        }
        // What processes on the node send to virtual addresses needs some way out.
        lab.node.run(|| {
            ip(&format!("route add default via {}", v4(0, 2)));
            ip(&format!("route add default via {}", v6(0, 2)));
        });
        lab
    }
}

fn addresses(link: &str, network: usize, host: u8) {
    ip(&format!("addr add {}/24 dev {link}", v4(network as u8, host)));
    ip(&format!("addr add {}/64 dev {link} nodad", v6(network as u16, host.into())));
    ip(&format!("link set {link} up"));
}

fn ip(args: &str) {
    let args: Vec<_> = args.split(' ').collect();
    let output = Command::new("ip").args(&args).output().expect("iproute2");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args:?}: {errors}");
}

/// Asks once over TCP, from this thread's namespace.
pub(crate) fn tcp(to: SocketAddr) -> Outcome {
    let mut stream = match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Outcome::Refused;
        }
        Err(_) => return Outcome::Silence,
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        Ok(_) => answer(&text),
        Err(_) => Outcome::Silence,
    }
}

fn udp_socket(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    socket.connect(to).expect("a route");
    socket
}

/// Asks over a connected UDP socket.
pub(crate) fn ask_udp(socket: &UdpSocket, _: SocketAddr) -> Outcome {
    let mut buffer = [0; 128];
    let answered = socket.send(b"who").and_then(|_| socket.recv(&mut buffer));
    match answered {
        Ok(size) => answer(&String::from_utf8_lossy(&buffer[..size])),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(_) => Outcome::Silence,
    }
}

fn answer(text: &str) -> Outcome {
    let Some((server, client)) = text.split_once(' ') else { return Outcome::Silence };
    let server = server.parse().expect("the server's address");
    Outcome::Answer(Answer { server, client: client.parse().expect("the client's address") })
}

/// The answer of a server to a client.
pub(crate) fn by(server: impl Into<SocketAddr>, client: IpAddr) -> Outcome {
    Outcome::Answer(Answer { server: server.into(), client })
}

/// A port of a virtual address.
pub(crate) fn service(address: IpAddr, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { address, protocol, port }
}

/// A port of the node.
pub(crate) fn node_port(protocol: Protocol, port: u16) -> NodePort {
    NodePort { protocol, port }
}

/// Endpoints on this node, without affinity.
pub(crate) fn local<const N: usize>(endpoints: [(IpAddr, u16); N]) -> Backends {
    backends(endpoints, true, Affinity::None)
}

/// Endpoints elsewhere, without affinity.
pub(crate) fn remote<const N: usize>(endpoints: [(IpAddr, u16); N]) -> Backends {
    backends(endpoints, false, Affinity::None)
}

/// Endpoints on this node, with affinity.
pub(crate) fn sticky<const N: usize>(endpoints: [(IpAddr, u16); N]) -> Backends {
    backends(endpoints, true, Affinity::Source)
}

fn backends<const N: usize>(
    endpoints: [(IpAddr, u16); N],
    local: bool,
    affinity: Affinity,
) -> Backends {
    let endpoints =
        endpoints.into_iter().map(|(address, port)| Endpoint { address, port, local }).collect();
    Backends { affinity, endpoints }
}
