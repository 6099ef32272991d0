//! Clients whose network is gone: nothing says goodbye for them, and nobody answers for them.
//!
//! They come from an address of their own, which is then taken away from the host that has it. What
//! they hold, an event stream that goes on and a WebSocket that is silent, is all that its App has.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::{OUTSIDE, node_name};
use portolan_cluster::{addresses, command, platform, wait};
use portolan_e2e::pods;
use portolan_soak::concurrency::Concurrency;
use portolan_soak::inside::Inside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::scene::{TEAM, door};

/// Two requests at once, in one sandbox and no other.
const SCALE: &str = "requestsPerInstance: 2, min: 1, max: 1";

const EVENTS: &str = "GET /sse?ms=500 HTTP/1.1\r\nHost: held.portolan.test\r\n\r\n";
/// The key is that of RFC 6455's own example.
const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: held.portolan.test\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An address of the lab that no machine has.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 3);
/// How long somebody who is gone may hold what he has: a minute, and by half a minute more where
/// the kernel cannot even send what it repeats. The rest is for a busy machine.
const GONE_MAX: Duration = Duration::from_secs(120);

/// Two clients who are gone, and hold their sockets.
pub(crate) struct Vanished {
    clients: Inside<()>,
    freed: Inside<anyhow::Result<Duration>>,
}

impl Vanished {
    /// Lets them come, take both slots of their App, and vanish.
    pub(crate) async fn begin(cluster: &Cluster) -> anyhow::Result<Self> {
        let held = platform::app(TEAM, "held", SCALE);
        command::feed(cluster.program("kubectl").args(["apply", "-f", "-"]), &held)?;
        let mut kubectl = cluster.program("kubectl");
        kubectl.args(["--namespace", TEAM, "wait", "--for=condition=Ready", "--timeout=90s"]);
        tokio::task::block_in_place(|| command::output(kubectl.args(["app/held", "route/held"])))?;
        let sandbox = pods::running(cluster, TEAM, "portolan.dev/app=held")?;
        let sandbox = sandbox.first().context("a sandbox")?.address;

        address(cluster, "add")?;
        let (come, came) = oneshot::channel();
        let clients = Inside::start(cluster, OUTSIDE, |stop| hold(come, stop))?;
        came.await.context("the clients")??;
        let looked = Inside::start(cluster, &node_name(1), move |_| Concurrency::of(sandbox))?;
        let begun = looked.end().await??.now;
        ensure!(begun == 2, "{begun} requests run in the sandbox, not the two clients'");
        address(cluster, "del")?;
        let vanished = Instant::now();
        let freed = Inside::start(cluster, &node_name(1), move |_| async move {
            wait::until("the slots of those who are gone to be free", GONE_MAX, async || {
                let running = Concurrency::of(sandbox).await?.now;
                ensure!(running == 0, "{running} requests run");
                anyhow::Ok(())
            })
            .await?;
            Ok(vanished.elapsed())
        })?;
        Ok(Self { clients, freed })
    }

    /// How long it took until both slots were free.
    pub(crate) async fn end(self) -> anyhow::Result<Duration> {
        let freed = self.freed.end().await?;
        self.clients.end().await?;
        freed
    }
}

/// Two connections that begin and are held until `stop`; says when both have begun.
async fn hold(come: oneshot::Sender<anyhow::Result<()>>, stop: CancellationToken) {
    let begun = tokio::try_join!(begin(EVENTS, "200"), begin(WEBSOCKET, "101"));
    let (held, said) = match begun {
        Ok(held) => (Some(held), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // Whoever waits for it has gone only if the test failed.
    let _ = come.send(said);
    stop.cancelled().await;
    drop(held);
}

/// Asks from the address that will go, again while the Route is not known, and reads what begins
/// the answer.
async fn begin(request: &str, status: &str) -> anyhow::Result<TcpStream> {
    let expected = format!("HTTP/1.1 {status} ");
    wait::until("an App that answers", wait::PATIENCE, async || {
        let socket = TcpSocket::new_v4().context("a socket")?;
        socket.bind((ADDRESS, 0).into()).context("come from its own address")?;
        let mut stream = socket.connect(door()).await.context("connect")?;
        stream.write_all(request.as_bytes()).await.context("ask")?;
        let mut start = [0; 13];
        stream.read_exact(&mut start).await.context("read the answer")?;
        ensure!(start == expected.as_bytes(), "{:?}", String::from_utf8_lossy(&start));
        Ok(stream)
    })
    .await
}

/// Gives the address to the host outside, or takes it away.
fn address(cluster: &Cluster, verb: &str) -> anyhow::Result<()> {
    let outside = cluster.files().namespace(OUTSIDE);
    let address = format!("{ADDRESS}/{}", addresses::LAB_PREFIX);
    let mut ip = Command::new("ip");
    ip.args(["-netns", &outside, "address", verb, &address, "dev", "eth0"]);
    tokio::task::block_in_place(|| command::output(&mut ip)).map(drop)
}
