//! Visitors that speak more than one request per connection: HTTP/1.1 and HTTP/2, plain and over
//! TLS.

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::Context;
use futures::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portolan_cluster::wait::PATIENCE;
use portolan_e2e::space::Space;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A request's body.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// Reads an answer to its end.
    pub(crate) async fn read(response: Response<Incoming>) -> anyhow::Result<Self> {
        let (head, body) = response.into_parts();
        let body = soon("the end of an answer", body.collect()).await?.context("read an answer")?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, trailers, body: body.to_bytes() })
    }

    /// A header as text; empty when it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Waits for a step of a conversation.
pub(crate) async fn soon<T>(what: &str, step: impl Future<Output = T>) -> anyhow::Result<T> {
    let step = tokio::time::timeout(PATIENCE, step);
    step.await.with_context(|| format!("waited {PATIENCE:?} for {what}"))
}

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().boxed()
}

/// A body of known length.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// A body in pieces, of a length that is not told.
pub(crate) fn pieces(pieces: Vec<Bytes>) -> Body {
    let frames = stream::iter(pieces).map(|piece| Ok(Frame::data(piece)));
    BodyExt::boxed(StreamBody::new(frames))
}

/// A `GET` as HTTP/1.1 words it.
pub(crate) fn get(host: &str, path: &str) -> Request<Body> {
    let request = Request::get(path).header(http::header::HOST, host).body(empty());
    request.expect("host and path are plain")
}

/// A connection to the plain port of the ingress.
pub(crate) async fn plain(space: &Space) -> anyhow::Result<TcpStream> {
    connect(space.ingress().ports().http).await
}

/// A connection to the TLS port, on which the visitor asks for `name`, trusts `root` alone, and
/// speaks `alpn`.
pub(crate) async fn tls(
    space: &Space,
    name: &str,
    root: &CertificateDer<'static>,
    alpn: &[u8],
) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).context("trust the certificate")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(name.to_owned()).context("a name for TLS")?;
    let stream = connect(space.ingress().ports().https).await?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    soon("a TLS handshake", handshake).await?.context("shake hands")
}

async fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect to the ingress")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Speaks HTTP/1.1. The connection lives as long as the sender or an answer's body.
pub(crate) async fn http1<T>(stream: T) -> anyhow::Result<http1::SendRequest<Body>>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("begin")?;
    // How it ends is told to whoever waits for an answer.
    tokio::spawn(connection);
    Ok(sender)
}

/// Speaks HTTP/2 with prior knowledge, or after ALPN has said so.
pub(crate) async fn http2<T>(stream: T) -> anyhow::Result<http2::SendRequest<Body>>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.context("begin HTTP/2")?;
    tokio::spawn(connection);
    Ok(sender)
}
