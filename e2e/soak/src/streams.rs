//! Visitors who stay: WebSockets and server-sent events, held against when they may be cut.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::node_name;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

use crate::inside::Inside;

/// Between two signs of life of a stream.
const BEAT: Duration = Duration::from_secs(1);
/// A stream that is silent for so long is cut: longer than a machine stands still that starts a
/// hundred containers at once.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Pause before a stream that could not be opened is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// The gateways' port inside the cluster.
const PORT: u16 = 8080;

/// Streams that are open.
#[derive(Debug)]
pub struct Streams {
    inside: Inside<Vec<Held>>,
}

/// What one visitor saw who wanted a stream all the time.
#[derive(Debug, Default)]
struct Held {
    has_begun: bool,
    cuts: Vec<Cut>,
}

/// What all of them saw.
#[derive(Debug, Default)]
pub struct Kept {
    /// Visitors who never got a stream.
    pub never: usize,
    /// Every stream that ended while it was wanted.
    pub cuts: Vec<Cut>,
}

/// A stream that ended while its visitor wanted it.
#[derive(Clone, Debug)]
pub struct Cut {
    /// When.
    pub at: Instant,
    /// Through which gateway it went.
    pub gateway: IpAddr,
    /// Which sandbox served it.
    pub sandbox: String,
    /// What the visitor saw.
    pub what: String,
}

/// When streams may be cut.
#[derive(Clone, Debug, Default)]
pub struct Departures {
    /// Since when Pods are on their way out, and how long their streams may stay: gateways by
    /// address, sandboxes by name.
    pub leaving: BTreeMap<String, (Instant, Duration)>,
    /// Gateways that were ended by force, by address, and when.
    pub killed: Vec<(String, Instant)>,
}

impl Streams {
    /// Opens `count` streams, half of each kind, spread over the gateways, and opens each that
    /// ends anew. They go from a node to each gateway itself, so that it is known which one cut.
    ///
    /// # Errors
    /// When the cluster has no such machine.
    pub fn open(
        cluster: &Cluster,
        host: &str,
        count: usize,
        gateways: watch::Receiver<Vec<IpAddr>>,
    ) -> anyhow::Result<Self> {
        let host: Arc<str> = host.into();
        let inside = Inside::start(cluster, &node_name(1), move |stop| async move {
            let mut all = JoinSet::new();
            for number in 0..count {
                all.spawn(hold(number, Arc::clone(&host), gateways.clone(), stop.clone()));
            }
            all.join_all().await
        })?;
        Ok(Self { inside })
    }

    /// Closes all, and tells what they saw.
    ///
    /// # Errors
    /// When their thread failed.
    pub async fn close(self) -> anyhow::Result<Kept> {
        let held = self.inside.end().await?;
        let never = held.iter().filter(|held| !held.has_begun).count();
        Ok(Kept { never, cuts: held.into_iter().flat_map(|held| held.cuts).collect() })
    }
}

impl Departures {
    /// Whether a stream was cut before its gateway or its sandbox had the right to. `late` is by how
    /// much a departure may have been noticed too late.
    #[must_use]
    pub fn is_early(&self, cut: &Cut, late: Duration) -> bool {
        let had_time = |who: &str| {
            let left = self.leaving.get(who);
            left.is_some_and(|(since, limit)| cut.at + late >= *since + *limit)
        };
        let gateway = cut.gateway.to_string();
        // Later ones go through the process that came after.
        let was_killed = self.killed.iter().any(|(who, at)| {
            *who == gateway && cut.at >= *at && cut.at <= *at + SILENCE_MAX + late
        });
        !was_killed && !had_time(&gateway) && !had_time(&cut.sandbox)
    }
}

/// Keeps one stream open until told to stop.
async fn hold(
    number: usize,
    host: Arc<str>,
    gateways: watch::Receiver<Vec<IpAddr>>,
    stop: CancellationToken,
) -> Held {
    let mut held = Held::default();
    while !stop.is_cancelled() {
        let gateway = {
            let gateways = gateways.borrow();
            let position = number / 2 % gateways.len().max(1);
            gateways.get(position).copied()
        };
        let Some(gateway) = gateway else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let mut sandbox = String::new();
        let stream = async {
            match number % 2 {
                0 => events(gateway, &host, &mut sandbox).await,
                _ => websocket(gateway, &host, &mut sandbox).await,
            }
        };
        let ended = tokio::select! {
            () = stop.cancelled() => None,
            Err(error) = stream => Some(format!("{error:#}")),
        };
        held.has_begun |= !sandbox.is_empty();
        let Some(what) = ended else { break };
        if sandbox.is_empty() {
            // It never began: requests that fail are the load's business.
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        held.cuts.push(Cut { at: Instant::now(), gateway, sandbox, what });
    }
    held
}

/// Reads server-sent events; ends only with an error.
async fn events(gateway: IpAddr, host: &str, sandbox: &mut String) -> anyhow::Result<()> {
    let stream = TcpStream::connect((gateway, PORT)).await.context("connect")?;
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("begin")?;
    let request = Request::get(format!("/sse?ms={}", BEAT.as_millis()))
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())
        .context("form a request")?;
    let exchange = async {
        let answer = sender.send_request(request).await.context("ask")?;
        if answer.status() != 200 {
            bail!("answered {}", answer.status());
        }
        answer.headers().get("x-sandbox").context("no sandbox")?.to_str()?.clone_into(sandbox);
        let mut body = answer.into_body();
        loop {
            let frame = timeout(SILENCE_MAX, body.frame()).await.context("silence")?;
            frame.context("the events ended")?.context("the events broke off")?;
        }
    };
    tokio::select! {
        ended = exchange => ended,
        ended = driver => bail!("the connection ended: {ended:?}"),
    }
}

/// Sends a message each second and takes its echo; ends only with an error.
async fn websocket(gateway: IpAddr, host: &str, sandbox: &mut String) -> anyhow::Result<()> {
    let stream = TcpStream::connect((gateway, PORT)).await.context("connect")?;
    let request = format!("ws://{host}/ws").into_client_request().context("form a request")?;
    let (mut socket, answer) = client_async(request, stream).await.context("open")?;
    answer.headers().get("x-sandbox").context("no sandbox")?.to_str()?.clone_into(sandbox);
    loop {
        socket.send(Message::text("beat")).await.context("send")?;
        let echo = timeout(SILENCE_MAX, socket.next()).await.context("silence")?;
        match echo.context("it ended")?.context("it broke off")? {
            Message::Close(frame) => bail!("closed: {frame:?}"),
            _ => tokio::time::sleep(BEAT).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_early_unless_its_gateway_or_its_sandbox_had_its_time() {
        let limit = Duration::from_secs(30);
        let begun = Instant::now();
        let gateway = IpAddr::from([10, 91, 1, 5]);
        let cut = |seconds| Cut {
            at: begun + Duration::from_secs(seconds),
            gateway,
            sandbox: "shop-0-1".into(),
            what: String::new(),
        };
        let leaving = |who: &str| Departures {
            leaving: BTreeMap::from([(who.to_owned(), (begun, limit))]),
            killed: Vec::new(),
        };
        let late = Duration::from_secs(2);
        assert!(Departures::default().is_early(&cut(100), late));
        assert!(leaving("10.91.1.5").is_early(&cut(27), late));
        assert!(!leaving("10.91.1.5").is_early(&cut(28), late));
        assert!(!leaving("shop-0-1").is_early(&cut(31), late));
        assert!(leaving("shop-1-1").is_early(&cut(31), late));
        let killed = |who: &str| Departures {
            killed: vec![(who.to_owned(), begun + Duration::from_secs(50))],
            ..Departures::default()
        };
        assert!(killed("10.91.1.5").is_early(&cut(49), late));
        assert!(!killed("10.91.1.5").is_early(&cut(50), late));
        assert!(killed("10.91.1.5").is_early(&cut(90), late), "it went through the next process");
        assert!(killed("10.91.1.6").is_early(&cut(50), late));
    }
}
