//! Clients: one request, or bytes as they are.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gateway::soon;

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// A whole response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let collected = soon("the body ends", body.collect()).await.expect("a whole body");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
        Self { status: parts.status, headers: parts.headers, trailers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("x-portolan-error"), Some(code), "{self:?}");
    }
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// A `GET` for `shop.example`.
pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "shop.example").body(empty()).unwrap()
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::post(path).header("host", "shop.example").body(full(body)).unwrap()
}

/// Sends a request on a connection of its own; dropping the future closes that.
pub(crate) async fn send(gateway: SocketAddr, request: Request<Body>) -> Response<Incoming> {
    let mut sender = h1(gateway).await;
    let response = soon("a response", sender.send_request(request)).await.expect("a response");
    // The connection's task lives as long as the response's body.
    drop(sender);
    response
}

pub(crate) async fn fetch(gateway: SocketAddr, request: Request<Body>) -> Reply {
    Reply::read(send(gateway, request).await).await
}

pub(crate) async fn h1(gateway: SocketAddr) -> http1::SendRequest<Body> {
    h1_over(TcpStream::connect(gateway).await.unwrap()).await
}

pub(crate) async fn h1_over<T>(stream: T) -> http1::SendRequest<Body>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = driver.with_upgrades().await;
    });
    sender
}

pub(crate) async fn h2(gateway: SocketAddr) -> http2::SendRequest<Body> {
    h2_over(TcpStream::connect(gateway).await.unwrap()).await
}

pub(crate) async fn h2_over<T>(stream: T) -> http2::SendRequest<Body>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, driver) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = driver.await;
    });
    sender
}

/// Sends bytes and reads until the gateway closes.
pub(crate) async fn raw(gateway: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = soon("the gateway closes", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until what was read contains a text.
pub(crate) async fn read_until(stream: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut read = Vec::new();
    let whole = async {
        loop {
            let seen = String::from_utf8_lossy(&read).into_owned();
            if seen.contains(text) {
                return seen;
            }
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "ended after {seen:?}");
        }
    };
    soon(&format!("{text:?} to be read"), whole).await
}
