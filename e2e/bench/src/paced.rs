//! Requests at a fixed rate, whether or not the answers keep up: the latency that visitors see.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::roles::HOST;

/// Latencies at one rate, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latency {
    /// Half of the requests took no longer.
    pub(crate) p50: f64,
    /// 99 of 100 requests took no longer.
    pub(crate) p99: f64,
}

/// A kept connection.
pub(crate) type Connection = SendRequest<Empty<Bytes>>;

/// Sends `rate` requests per second for a while, each counted from the moment it was due: one that
/// had to wait for the one before it is slow, not absent.
pub(crate) async fn measure(
    address: SocketAddr,
    rate: u32,
    time: Duration,
) -> anyhow::Result<Latency> {
    let idle: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let start = Instant::now() + Duration::from_millis(50);
    let count = rate * u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let mut requests = JoinSet::new();
    for number in 0..count {
        let due = start + Duration::from_secs(1) * number / rate;
        let idle = idle.clone();
        sleep_until(due).await;
        requests.spawn(async move {
            let parked = idle.lock().await.pop();
            let mut connection = match parked {
                Some(connection) => connection,
                None => connect(address).await?,
            };
            let request = Request::get("/").header(http::header::HOST, HOST).body(Empty::new())?;
            let answer = connection.send_request(request).await.context("send a request")?;
            ensure!(answer.status() == 200, "answered {}", answer.status());
            answer.into_body().collect().await.context("read an answer")?;
            let took = due.elapsed();
            idle.lock().await.push(connection);
            Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(request) = requests.join_next().await {
        took.push(request.context("a request panicked")??.as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
    Ok(Latency { p50: at(50), p99: at(99) })
}

/// A new connection, driven on the side.
pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (connection, driver) = handshake(TokioIo::new(stream)).await.context("begin HTTP")?;
    tokio::spawn(driver);
    Ok(connection)
}
