//! One request on a connection of its own.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Asks for a page over HTTP/1.1; the whole of it, if the answer is 200.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> anyhow::Result<Bytes> {
    page(address, host, path, Version::HTTP_11, None).await
}

/// Asks for a page over HTTP/1.1 or HTTP/2, with `POST` if there is something to send; the whole of
/// it, if the answer is 200.
pub(crate) async fn page(
    address: SocketAddr,
    host: &str,
    path: &str,
    version: Version,
    sent: Option<&'static str>,
) -> anyhow::Result<Bytes> {
    let io = TokioIo::new(TcpStream::connect(address).await.context("connect")?);
    let method = if sent.is_some() { Method::POST } else { Method::GET };
    let request = Request::builder().method(method).version(version);
    let request = match version {
        Version::HTTP_2 => request.uri(format!("http://{host}{path}")),
        _ => request.uri(path).header(header::HOST, host),
    };
    let body = Full::new(Bytes::from_static(sent.unwrap_or_default().as_bytes()));
    let request = request.body(body).context("form a request")?;
    if version == Version::HTTP_2 {
        let connection = http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, driver) = connection.context("begin")?;
        return exchange(sender.send_request(request), driver).await;
    }
    let (mut sender, driver) = http1::handshake(io).await.context("begin")?;
    exchange(sender.send_request(request), driver).await
}

async fn exchange(
    asked: impl Future<Output = hyper::Result<Response<Incoming>>>,
    driver: impl Future<Output = hyper::Result<()>>,
) -> anyhow::Result<Bytes> {
    let answered = async {
        let answer = asked.await.context("ask")?;
        ensure!(answer.status() == 200, "answered {}", answer.status());
        Ok(answer.into_body().collect().await.context("read")?.to_bytes())
    };
    tokio::select! {
        answer = answered => answer,
        ended = driver => bail!("the connection ended: {ended:?}"),
    }
}
