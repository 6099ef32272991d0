//! Visitors who come at a steady pace, whether those before them were answered or not.
//!
//! A request's latency counts from the moment it was due. Nothing is tried again: any answer but
//! 2xx and any error of the transport is a failure. A connection that says it is closing is not
//! used again, as any client would do; a request that never left for that reason goes over
//! another one. So does a request that left as the gateway closed an HTTP/2 connection, if the
//! GOAWAY says that its stream was not taken (RFC 9113, section 6.8): no server can prevent that
//! the two cross. How many those were is counted and told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::OUTSIDE;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::inside::Inside;

/// Longer than anything in the platform makes a visitor wait.
const LIMIT: Duration = Duration::from_secs(90);
/// Connections of each multiplexed kind that are open at once.
const CONNECTIONS: usize = 4;
/// Connections that wait for their next request. Each is used several times a second, so none is
/// ever idle for long.
const IDLE_MAX: usize = 8;
/// Every so many requests, one takes long enough to be under way when something happens.
const SLOW_EACH: u64 = 10;
/// How long it takes.
const SLOW: &str = "/slow?ms=400";

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// HTTP/1.1, on a connection that was kept.
    KeptAlive,
    /// HTTP/1.1, on a connection of its own.
    Single,
    /// HTTP/2, on a connection that others share.
    Http2,
}

/// Where visitors go, and how many.
#[derive(Clone, Debug)]
pub struct Visitors {
    /// Where the gateways are reached, from outside the cluster.
    pub address: SocketAddr,
    /// Whom they ask for.
    pub host: String,
    /// Requests per second, half of them HTTP/2.
    pub rate: u32,
}

/// Visitors who are there.
#[derive(Debug)]
pub struct Load {
    inside: Inside<Tally>,
}

/// What visitors got.
#[derive(Debug, Default)]
pub struct Tally {
    /// From the moment each answered request was due to the end of its answer, sorted.
    pub latencies: Vec<Duration>,
    /// Everyone who did not get what they came for, in the order of the failures.
    pub failures: Vec<Failure>,
    /// Requests that crossed a GOAWAY which did not take them, and went over another connection.
    pub crossed: usize,
}

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    /// When it was sent.
    pub begun: Instant,
    /// When it was known to have failed.
    pub ended: Instant,
    /// How it travelled.
    pub way: Way,
    /// What happened.
    pub what: String,
}

impl Failure {
    /// Whether whoever was asked for a connection said that nobody listens.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.what.starts_with("connect: Connection refused")
    }
}

/// One visitor's connections of each kind.
struct Connections {
    visitors: Visitors,
    idle: RefCell<VecDeque<http1::SendRequest<Empty<Bytes>>>>,
    shared: RefCell<[Option<http2::SendRequest<Empty<Bytes>>>; CONNECTIONS]>,
    crossed: Cell<usize>,
}

impl Load {
    /// Begins to ask, from a host outside the cluster.
    ///
    /// # Errors
    /// When the cluster has no such host.
    pub fn start(cluster: &Cluster, visitors: Visitors) -> anyhow::Result<Self> {
        let inside = Inside::start(cluster, OUTSIDE, |stop| async move {
            LocalSet::new().run_until(visit(visitors, stop)).await
        })?;
        Ok(Self { inside })
    }

    /// Stops asking, waits for the last answer, and tells what became of all.
    ///
    /// # Errors
    /// When the visitors' thread failed.
    pub async fn end(self) -> anyhow::Result<Tally> {
        let mut tally = self.inside.end().await?;
        tally.latencies.sort_unstable();
        Ok(tally)
    }
}

impl Tally {
    /// How many asked.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.latencies.len() + self.failures.len()
    }

    /// The latency that this share of the answered requests did not exceed.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a position in a list of thousands"
        )]
        let position = (share * self.latencies.len() as f64) as usize;
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(position.min(last)).copied().unwrap_or_default()
    }
}

/// One visitor who asks for one host, on a connection of its own.
///
/// # Errors
/// With what was not as it should.
pub(crate) async fn ask_once(address: SocketAddr, host: String) -> Result<Duration, Failure> {
    let visitors = Visitors { address, host, rate: 1 };
    let connections = Connections::new(visitors);
    let begun = Instant::now();
    LocalSet::new().run_until(connections.timed(Way::Single, 0, "/", begun)).await
}

async fn visit(visitors: Visitors, stop: CancellationToken) -> Tally {
    let gap = Duration::from_secs(1) / visitors.rate;
    let connections = Rc::new(Connections::new(visitors));
    let (mut tally, mut under_way) = (Tally::default(), JoinSet::new());
    let mut due = tokio::time::Instant::now();
    for number in 0_u64.. {
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep_until(due) => {}
        }
        let connections = Rc::clone(&connections);
        let asked = due.into_std();
        under_way.spawn_local(async move { connections.visit(number, asked).await });
        due += gap;
        while let Some(visit) = under_way.try_join_next() {
            tally.add(visit.expect("a visit neither panics nor is aborted"));
        }
    }
    while let Some(visit) = under_way.join_next().await {
        tally.add(visit.expect("a visit neither panics nor is aborted"));
    }
    tally.crossed = connections.crossed.get();
    tally
}

impl Tally {
    /// Counts one more.
    pub(crate) fn add(&mut self, visit: Result<Duration, Failure>) {
        match visit {
            Ok(latency) => self.latencies.push(latency),
            Err(failure) => self.failures.push(failure),
        }
    }
}

impl Connections {
    fn new(visitors: Visitors) -> Self {
        Self {
            visitors,
            idle: RefCell::default(),
            shared: RefCell::default(),
            crossed: Cell::default(),
        }
    }

    async fn visit(&self, number: u64, due: Instant) -> Result<Duration, Failure> {
        let way = match number % 4 {
            0 => Way::KeptAlive,
            1 => Way::Single,
            _ => Way::Http2,
        };
        let path = if number % SLOW_EACH == 3 { SLOW } else { "/" };
        self.timed(way, number, path, due).await
    }

    async fn timed(
        &self,
        way: Way,
        number: u64,
        path: &str,
        due: Instant,
    ) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let asked = timeout(LIMIT, self.ask(way, number, path)).await;
        let what = match asked {
            Ok(Ok(())) => return Ok(due.elapsed()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer in {LIMIT:?}"),
        };
        Err(Failure { begun, ended: Instant::now(), way, what })
    }

    async fn ask(&self, way: Way, number: u64, path: &str) -> anyhow::Result<()> {
        match way {
            Way::KeptAlive => self.kept_alive(path).await,
            Way::Single => {
                let mut request = self.request(path)?;
                let close = http::HeaderValue::from_static("close");
                request.headers_mut().insert(header::CONNECTION, close);
                let mut connection = self.dial().await?;
                finish(connection.send_request(request).await?).await
            }
            Way::Http2 => {
                let slot = usize::try_from(number / 2).unwrap_or_default() % CONNECTIONS;
                self.multiplexed(slot, path).await
            }
        }
    }

    async fn kept_alive(&self, path: &str) -> anyhow::Result<()> {
        let mut request = self.request(path)?;
        loop {
            let kept = self.idle.borrow_mut().pop_front();
            let mut connection = match kept {
                Some(connection) if connection.is_ready() => connection,
                Some(_) => continue,
                None => self.dial().await?,
            };
            match connection.try_send_request(request).await {
                Ok(answer) => {
                    finish(answer).await?;
                    if connection.ready().await.is_ok() && self.idle.borrow().len() < IDLE_MAX {
                        self.idle.borrow_mut().push_back(connection);
                    }
                    return Ok(());
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
    }

    async fn multiplexed(&self, slot: usize, path: &str) -> anyhow::Result<()> {
        let target: Uri =
            format!("http://{}{path}", self.visitors.host).parse().context("form a target")?;
        loop {
            let shared = self.shared.borrow()[slot].clone();
            let mut connection = match shared.filter(|connection| !connection.is_closed()) {
                Some(connection) => connection,
                None => {
                    let connection = self.dial_http2().await?;
                    self.shared.borrow_mut()[slot] = Some(connection.clone());
                    connection
                }
            };
            // It says here that it is closing, before anything is sent.
            if connection.ready().await.is_err() {
                continue;
            }
            let request = Request::get(&target).version(http::Version::HTTP_2);
            let request = request.body(Empty::new()).context("form a request")?;
            let mut error = match connection.try_send_request(request).await {
                Ok(answer) => return finish(answer).await,
                Err(error) => error,
            };
            if error.take_message().is_some() {
                continue;
            }
            if !is_untaken(error.error()) {
                return Err(error.into_error().into());
            }
            self.crossed.set(self.crossed.get() + 1);
        }
    }

    fn request(&self, path: &str) -> anyhow::Result<Request<Empty<Bytes>>> {
        let request = Request::get(path).header(header::HOST, &self.visitors.host);
        request.body(Empty::new()).context("form a request")
    }

    async fn dial(&self) -> anyhow::Result<http1::SendRequest<Empty<Bytes>>> {
        let (sender, driver) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::task::spawn_local(driver);
        Ok(sender)
    }

    async fn dial_http2(&self) -> anyhow::Result<http2::SendRequest<Empty<Bytes>>> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        let (sender, driver) = builder.handshake(TokioIo::new(self.connect().await?)).await?;
        tokio::task::spawn_local(driver);
        Ok(sender)
    }

    async fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(self.visitors.address).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Whether the other side closed the connection without fault and had not taken this stream.
///
/// A request that waits for a stream until then has not left, and hyper drops it: it says then that
/// whoever sends is gone, which it calls the user's fault, and keeps the request.
fn is_untaken(error: &hyper::Error) -> bool {
    if error.is_user() {
        return true;
    }
    let cause = error.source().and_then(<dyn Error>::downcast_ref::<h2::Error>);
    cause.is_some_and(|cause| {
        cause.is_remote() && cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// Reads an answer to its end.
async fn finish(answer: Response<Incoming>) -> anyhow::Result<()> {
    let status = answer.status();
    let code = answer.headers().get("x-portolan-error").cloned();
    let body = answer.into_body().collect().await.context("read the answer")?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        bail!("answered {status}, code {code:?}: {text}");
    }
    Ok(())
}
