//! The samples that are reached without a gateway: from outside the cluster at node ports, and
//! from a node at the addresses of their services.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};
use portolan_cluster::network::{OUTSIDE, namespace_file};
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;

use crate::samples::{DNS, IRC, apply, ready};

/// How long an answer may take before it counts as none.
const ANSWER: Duration = Duration::from_secs(5);
/// Asks for the address of kubernetes.default.svc.cluster.local.
const QUESTION: &[u8] = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
    \x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";

#[tokio::test]
async fn irc_and_dns_answer_outside_and_at_their_addresses() -> anyhow::Result<()> {
    with_platform("sample-l4", async |space| {
        apply(space, "04-l4.yaml").await?;
        ready(space, &["app/chat", "app/dns", "appservice/chat-irc"]).await?;
        let node =
            address(space, &["node", "-o", "jsonpath={.items[0].status.addresses[0].address}"]);
        let node = node.await?;
        let (outside, inside) = (Place::outside(space), Place::node(space)?);
        chat(&outside.connect((node, IRC).into())?).context("IRC at the node port")?;
        resolve(&outside, (node, DNS).into()).context("DNS at the node port")?;
        let own = cluster_ip(space, "chat-irc").await?;
        for port in [6667, 6697] {
            chat(&inside.connect((own, port).into())?).context("IRC at its own address")?;
        }
        let own = cluster_ip(space, "dns-resolver").await?;
        resolve(&inside, (own, 5300).into()).context("DNS at its own address")
    })
    .await
}

#[tokio::test]
async fn every_port_of_the_multi_port_app_leads_to_its_own() -> anyhow::Result<()> {
    with_platform("sample-wire", async |space| {
        apply(space, "02-echo.yaml").await?;
        ready(space, &["app/echo", "appservice/echo-wire"]).await?;
        let (inside, own) = (Place::node(space)?, cluster_ip(space, "echo-wire").await?);
        let mut tcp = inside.connect((own, 7000).into())?;
        tcp.write_all(b"over tcp")?;
        ensure!(&read(&mut tcp, 8)? == b"over tcp");
        let udp = inside.datagrams((own, 7001).into())?;
        udp.send(b"over udp")?;
        let mut answer = [0; 64];
        let size = udp.recv(&mut answer).context("no datagram came back")?;
        ensure!(&answer[..size] == b"over udp", "{:?}", &answer[..size]);
        let mut http = inside.connect((own, 8080).into())?;
        http.write_all(b"GET /health HTTP/1.1\r\nHost: wire\r\nConnection: close\r\n\r\n")?;
        let answer = read(&mut http, 12)?;
        ensure!(answer == b"HTTP/1.1 200", "{}", String::from_utf8_lossy(&answer));
        Ok(())
    })
    .await
}

/// Registers and reads until the server has welcomed us.
fn chat(mut stream: &TcpStream) -> anyhow::Result<()> {
    // A name of its own: the server may not have noticed yet that the last visitor has left.
    let name = format!("v{}", stream.local_addr()?.port());
    write!(stream, "NICK {name}\r\nUSER {name} 0 * :A visitor\r\n")?;
    let mut said = Vec::new();
    while !said.windows(5).any(|window| window == b" 001 ") {
        let mut part = [0; 512];
        let size = stream.read(&mut part);
        let size = size.with_context(|| format!("after {:?}", String::from_utf8_lossy(&said)))?;
        ensure!(size > 0, "it closed after {:?}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&part[..size]);
    }
    Ok(())
}

/// Asks over UDP and over TCP, on the same number.
fn resolve(from: &Place, server: SocketAddr) -> anyhow::Result<()> {
    let socket = from.datagrams(server)?;
    socket.send(QUESTION)?;
    let mut answer = [0; 512];
    let size = socket.recv(&mut answer).context("no answer over UDP")?;
    answered(&answer[..size])?;
    let mut stream = from.connect(server)?;
    let length = u16::try_from(QUESTION.len()).expect("a short question").to_be_bytes();
    stream.write_all(&[&length, QUESTION].concat())?;
    let length = read(&mut stream, 2).context("no answer over TCP")?;
    let answer = read(&mut stream, usize::from(u16::from_be_bytes([length[0], length[1]])))?;
    answered(&answer)
}

/// An answer to our question, without an error and with at least one record.
fn answered(message: &[u8]) -> anyhow::Result<()> {
    ensure!(message.len() > QUESTION.len(), "cut short: {message:?}");
    ensure!(message[..2] == QUESTION[..2] && message[3] & 15 == 0, "refused: {message:?}");
    ensure!(message[6..8] != [0, 0], "no record: {message:?}");
    Ok(())
}

fn read(stream: &mut TcpStream, size: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

async fn cluster_ip(space: &Space, service: &str) -> anyhow::Result<IpAddr> {
    address(space, &["appservice", service, "-o", "jsonpath={.status.clusterIPs[0]}"]).await
}

async fn address(space: &Space, what: &[&str]) -> anyhow::Result<IpAddr> {
    let text = space.kubectl(&[&["get"], what].concat()).await?;
    let address: Ipv4Addr = text.trim().parse().with_context(|| format!("{text:?} of {what:?}"))?;
    Ok(address.into())
}

/// A network to ask from.
struct Place(PathBuf);

impl Place {
    fn outside(space: &Space) -> Self {
        Self(namespace_file(&space.cluster().files().namespace(OUTSIDE)))
    }

    fn node(space: &Space) -> anyhow::Result<Self> {
        let nodes = space.cluster().nodes();
        let first = nodes.first().context("the cluster has a node")?;
        Ok(Self(namespace_file(&space.cluster().files().namespace(first.name()))))
    }

    fn connect(&self, to: SocketAddr) -> anyhow::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, ANSWER));
        let stream = stream.with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        Ok(stream)
    }

    fn datagrams(&self, to: SocketAddr) -> anyhow::Result<UdpSocket> {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(socket)
    }

    /// A socket belongs to the network in which it was made, whoever uses it.
    fn inside<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        let network = File::open(&self.0).expect("the network of a place that is there");
        thread::scope(|scope| {
            let maker = scope.spawn(|| {
                setns(network, CloneFlags::CLONE_NEWNET).expect("to enter the network");
                make()
            });
            maker.join().expect("no panic")
        })
    }
}
