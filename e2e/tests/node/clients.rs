//! Clients in the networks of nodes, of sandboxes and of whoever is outside.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use portolan_cluster::command;
use socket2::SockRef;

/// How long an answer may take before it counts as none.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a client waits before it goes on without an answer.
const PAUSE: Duration = Duration::from_millis(200);
const WORDS: &[u8] = b"NICK portolan\n";

/// A network to ask from.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) network: PathBuf,
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Talk {
    Tcp,
    Udp,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Echo,
    Refused,
    Silence,
}

/// A connection that stays open.
pub(crate) struct Open(TcpStream);

/// A socket that always sends from the same port.
pub(crate) struct Sender(UdpSocket);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Place {
    /// Asks once, from a port of its own.
    pub(crate) fn ask(&self, to: SocketAddr, talk: Talk) -> Outcome {
        let answer = match talk {
            Talk::Tcp => self.tcp(to).and_then(|stream| Open(stream).exchange()),
            Talk::Udp => self.udp(to).and_then(|socket| Sender(socket).exchange()),
        };
        match answer {
            Ok(()) => Outcome::Echo,
            Err(error) => match error.kind() {
                // The second is how a node refuses its own programs: before anything is sent.
                ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => Outcome::Refused,
                _ => Outcome::Silence,
            },
        }
    }

    /// The same, and once more if there was silence: to one machine a kernel says only once a second
    /// that there is nobody, and a redirect, as to a sandbox that reached itself, counts too.
    pub(crate) fn ask_patiently(&self, to: SocketAddr, talk: Talk) -> Outcome {
        match self.ask(to, talk) {
            Outcome::Silence => self.ask(to, talk),
            other => other,
        }
    }

    /// Which sandbox answers over HTTP for this host.
    pub(crate) fn sandbox(&self, to: SocketAddr, host: &str) -> anyhow::Result<String> {
        let mut stream = self.tcp(to)?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let named = answer.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("x-sandbox").then(|| value.trim().to_owned())
        });
        named.with_context(|| format!("no sandbox is named in {answer}"))
    }

    pub(crate) fn connect(&self, to: SocketAddr) -> anyhow::Result<Open> {
        let mut open = Open(self.tcp(to)?);
        open.echo()?;
        Ok(open)
    }

    pub(crate) fn sender(&self, to: SocketAddr) -> anyhow::Result<Sender> {
        Ok(Sender(self.udp(to)?))
    }

    /// Connects and leaves again, this often; how many did not get through.
    pub(crate) fn failed_connects(&self, to: SocketAddr, times: usize) -> usize {
        let attempt = |_: &usize| {
            let opened = TcpStream::connect_timeout(&to, ANSWER);
            opened.is_ok_and(|mut stream| {
                // Its program has it before the next one comes, so that the queue there stays
                // short. That the program goes then is no loss.
                let _ = stream.set_read_timeout(Some(PAUSE)).and_then(|()| stream.write_all(WORDS));
                let _ = stream.read(&mut [0; WORDS.len()]);
                // Reset rather than closed, so that no port waits for late packets.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).is_ok()
            })
        };
        self.inside(|| times - (0..times).filter(attempt).count())
    }

    /// The addresses of a name, IPv4 first, as the cluster's name server says them.
    pub(crate) fn resolve(&self, name: &str, server: IpAddr) -> anyhow::Result<Vec<IpAddr>> {
        let socket = self.udp(SocketAddr::new(server, 53))?;
        let ask = |kind: u8| {
            let mut question = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
            for label in name.split('.') {
                question.push(u8::try_from(label.len())?);
                question.extend(label.bytes());
            }
            question.extend([0, 0, kind, 0, 1]);
            socket.send(&question)?;
            let mut answer = [0; 512];
            let size = socket.recv(&mut answer)?;
            let answer = answer[..size].to_vec();
            ensure!(answer[3] & 15 == 0 && answer[6..8] == [0, 1], "{name}: {answer:?}");
            Ok(answer)
        };
        // What a record says is at its end, and there is one.
        let (v4, v6) = (ask(1)?, ask(28)?);
        let v4 = *v4.last_chunk::<4>().context("an address")?;
        let v6 = *v6.last_chunk::<16>().context("an address")?;
        Ok(vec![v4.into(), v6.into()])
    }

    /// Who is connected to this TCP port here.
    pub(crate) fn peers(&self, port: u16) -> anyhow::Result<Vec<IpAddr>> {
        let port = format!("sport = :{port}");
        let listing = self.output("ss", &["-Htn", "state", "established", &port])?;
        let peers = listing.lines().filter_map(|line| {
            let peer: SocketAddr = line.split_whitespace().nth(3)?.parse().ok()?;
            Some(peer.ip().to_canonical())
        });
        Ok(peers.collect())
    }

    /// The addresses by which others know it.
    pub(crate) fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let listing = self.output("ip", &["-o", "address", "show", "scope", "global"])?;
        let networks = listing.lines().filter_map(|line| line.split_whitespace().nth(3));
        let addresses = networks.filter_map(|network| network.split_once('/')?.0.parse().ok());
        Ok(addresses.collect())
    }

    /// Runs a program here.
    pub(crate) fn output(&self, program: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network.display())).arg(program).args(words);
        tokio::task::block_in_place(|| command::output(&mut command))
    }

    fn tcp(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, ANSWER))?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(stream)
    }

    fn udp(&self, to: SocketAddr) -> std::io::Result<UdpSocket> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.inside(|| UdpSocket::bind((any, 0)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(socket)
    }

    /// A socket belongs to the network in which it was made, whoever uses it.
    fn inside<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        let network = File::open(&self.network).expect("the network of a place that is there");
        thread::scope(|scope| {
            let maker = scope.spawn(|| {
                setns(network, CloneFlags::CLONE_NEWNET).expect("to enter the network");
                make()
            });
            maker.join().expect("no panic")
        })
    }
}

impl Open {
    pub(crate) fn echo(&mut self) -> anyhow::Result<()> {
        Ok(self.exchange()?)
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        self.0.write_all(WORDS)?;
        let mut answer = [0; WORDS.len()];
        self.0.read_exact(&mut answer)?;
        assert_eq!(answer, WORDS, "an echo says something else");
        Ok(())
    }
}

impl Sender {
    /// Asks until there is an answer, for some time: datagrams may be lost.
    pub(crate) fn echo(&self) -> anyhow::Result<()> {
        let first = self.exchange();
        ensure!(first.is_ok(), "no answer: {first:?}");
        Ok(())
    }

    fn exchange(&self) -> std::io::Result<()> {
        self.0.send(WORDS)?;
        let mut answer = [0; 64];
        let size = self.0.recv(&mut answer)?;
        assert_eq!(&answer[..size], WORDS, "an echo says something else");
        Ok(())
    }
}
