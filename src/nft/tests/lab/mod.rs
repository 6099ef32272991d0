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
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use portolan_nft::{
    Affinity, Backends, Change, Elements, Endpoint, Error, ForwardError, Forwarder, Found, Kernel,
    NodePort, Protocol, Ruleset, ServicePort,
};
use socket2::{Domain, SockRef, Socket, Type};

/// How long a client waits before it says that there is no answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// A network namespace.
pub(crate) struct Namespace {
    file: File,
    servers: Mutex<Vec<UdpSocket>>,
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
            // Nobody else can have the addresses of a test.
            std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").expect("a switch");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        Self { file: file.join().expect("a namespace"), servers: Mutex::default() }
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

    /// Waits until all its links carry packets.
    fn await_links(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let links = self.output("ip", &["-o", "link"]);
            let waits = |link: &&str| !link.contains(" lo:") && !link.contains("state UP");
            let Some(waiting) = links.lines().find(waits) else { return };
            assert!(Instant::now() < deadline, "waited for a link, last seen: {waiting}");
            thread::sleep(Duration::from_millis(10));
        }
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
        self.run(|| udp(to))
    }

    /// A UDP socket in the namespace, to ask with more than once.
    pub(crate) fn udp_socket(&self, to: impl Into<SocketAddr>) -> UdpSocket {
        let to = to.into();
        self.run(|| udp_socket(to))
    }

    /// Connects over TCP and leaves again, this often; gives how many did not get through.
    pub(crate) fn failed_connects(&self, to: impl Into<SocketAddr>, times: usize) -> usize {
        let to = to.into();
        self.run(|| {
            let attempts = (0..times).map(|_| TcpStream::connect_timeout(&to, PATIENCE));
            let opened = attempts.map(|attempt| {
                // Reset rather than closed, so that no port waits for late packets.
                attempt.and_then(|stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO)))
            });
            opened.filter(Result::is_err).count()
        })
    }

    /// Asks once over TCP, from one of the namespace's addresses.
    pub(crate) fn tcp_from(&self, from: IpAddr, to: SocketAddr) -> Outcome {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None);
            let socket = socket.expect("a socket");
            socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of ours");
            let connected = socket.connect_timeout(&to.into(), PATIENCE);
            connected.map_or(Outcome::Silence, |()| read(socket.into()))
        })
    }

    /// Answers over TCP and UDP at an address, until it is told to stop or the test ends.
    pub(crate) fn serve(&self, at: SocketAddr) {
        self.serve_udp(at);
        let listener = self.run(|| TcpListener::bind(at).expect("a listener"));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Ok(peer) = stream.peer_addr() else { continue };
                // Who has gone needs no answer.
                let _ = write!(stream, "{at} {}", peer.ip());
            }
        });
    }

    /// Accepts connections over TCP and says nothing.
    pub(crate) fn accept(&self, at: SocketAddr) {
        let listener = self.run(|| TcpListener::bind(at).expect("a listener"));
        thread::spawn(move || listener.incoming().for_each(drop));
    }

    /// Answers over UDP only.
    pub(crate) fn serve_udp(&self, at: SocketAddr) {
        let socket = self.run(|| UdpSocket::bind(at).expect("a socket"));
        let kept = socket.try_clone().expect("a socket");
        self.servers.lock().expect("no panic").push(kept);
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((size, peer)) = socket.recv_from(&mut buffer) {
                if size == 0 {
                    break;
                }
                let _ = socket.send_to(format!("{at} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// Ends all that answer over UDP: their ports are free again when this returns.
    pub(crate) fn stop(&self) {
        for server in self.servers.lock().expect("no panic").drain(..) {
            // Ends the wait of the thread, and then its socket.
            SockRef::from(&server).shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

impl Lab {
    /// The node in the middle, everybody else behind a link of its own.
    pub(crate) fn new() -> Self {
        let lab = Self::empty();
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
        // The kernel looks at new links now and then; before, it routes IPv6 nowhere.
        [&lab.node, &lab.client, one, two].into_iter().for_each(Namespace::await_links);
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

/// Configures the network of this thread's namespace.
pub(crate) fn ip(args: &str) {
    let args: Vec<_> = args.split(' ').collect();
    let output = Command::new("ip").args(&args).output().expect("iproute2");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args:?}: {errors}");
}

/// Asks once over TCP, from this thread's namespace.
pub(crate) fn tcp(to: SocketAddr) -> Outcome {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(stream) => read(stream),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(_) => Outcome::Silence,
    }
}

fn read(mut stream: TcpStream) -> Outcome {
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

/// Asks once over UDP, from this thread's namespace.
pub(crate) fn udp(to: SocketAddr) -> Outcome {
    ask_udp(&udp_socket(to))
}

/// Asks over a connected UDP socket.
pub(crate) fn ask_udp(socket: &UdpSocket) -> Outcome {
    let mut buffer = [0; 128];
    // A process on the node is told at once that its packet was not sent, and then why.
    let sent = socket.send(b"who").map(|_| ()).or_else(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => Ok(()),
        _ => Err(error),
    });
    match sent.and_then(|()| socket.recv(&mut buffer)) {
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

impl Lab {
    /// Everybody, without links; the node forwards.
    fn empty() -> Self {
        let lab = Self {
            node: Namespace::new(),
            client: Namespace::new(),
            sandboxes: [Namespace::new(), Namespace::new()],
        };
        lab.node.run(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect("a switch");
            }
            // A kernel says only so often that a port is unreachable.
            for limit in ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"] {
                std::fs::write(format!("/proc/sys/net/{limit}"), "0").expect("a switch");
            }
        });
        lab
    }

    /// A node whose sandboxes hang on one bridge, as a bridge plugin connects them: they have the
    /// addresses 2 and 3 of network 9, and the node does not see what they say to each other.
    pub(crate) fn bridged() -> Self {
        let lab = Self::empty();
        lab.node.run(|| {
            ip("link add br0 type bridge");
            addresses("br0", 9, 1);
            // Where the kernel has bridge netfilter, it is on in each new namespace.
            for family in ["ip", "ip6"] {
                let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
                if std::path::Path::new(&switch).exists() {
                    std::fs::write(switch, "0").expect("a switch");
                }
            }
        });
        for (host, sandbox) in [2, 3].into_iter().zip(&lab.sandboxes) {
            lab.node.run(|| {
                let peer = format!("peer name eth0 netns {}", sandbox.path());
                ip(&format!("link add p{host} type veth {peer}"));
                ip(&format!("link set p{host} master br0 up"));
            });
            sandbox.run(|| {
                addresses("eth0", 9, host);
                ip(&format!("route add default via {}", v4(9, 1)));
                ip(&format!("route add default via {}", v6(9, 1)));
            });
        }
        let [one, two] = &lab.sandboxes;
        [&lab.node, one, two].into_iter().for_each(Namespace::await_links);
        lab
    }

    /// Forwards on the node.
    pub(crate) fn start(&self, ruleset: Ruleset) -> Forwarder {
        self.start_with(ruleset).expect("the table").0
    }

    /// Forwards on the node, and says what was to do.
    pub(crate) fn start_with(&self, ruleset: Ruleset) -> Result<(Forwarder, Change), ForwardError> {
        start_unowned(|| self.kernel(), ruleset)
    }

    /// Stops forwarding on the node.
    pub(crate) fn remove(&self) {
        once_unowned(|| Forwarder::remove(self.kernel())).expect("the table");
    }

    /// What the node's kernel has.
    pub(crate) fn elements(&self) -> Elements {
        match once_unowned(|| Ok(self.kernel().read()?)) {
            Ok(Found::Current(elements, _)) => elements,
            other => panic!("{other:?}"),
        }
    }

    /// The node's kernel.
    pub(crate) fn kernel(&self) -> Kernel {
        self.node.run(|| Kernel::open().expect("nf_tables"))
    }
}

/// Forwards in this kernel, and says what was to do.
pub(crate) fn start_unowned(
    kernel: impl Fn() -> Kernel,
    ruleset: Ruleset,
) -> Result<(Forwarder, Change), ForwardError> {
    once_unowned(|| Forwarder::start(kernel(), ruleset.clone()))
}

/// A socket of an earlier owner lives until a program that another test starts at this moment
/// has closed its copy; so it is waited for.
fn once_unowned<T>(attempt: impl Fn() -> Result<T, ForwardError>) -> Result<T, ForwardError> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match attempt() {
            Err(ForwardError::Kernel(Error::Owned)) if Instant::now() < deadline => {}
            other => return other,
        }
    }
}
