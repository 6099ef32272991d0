//! The visitors' way in, as a test takes it: one request per connection, over loopback.

use anyhow::Context;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use portolan_cluster::state::Ports;
use tokio::net::TcpStream;

/// The ingress of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Ingress {
    ports: Ports,
}

impl Ingress {
    pub(crate) fn new(ports: Ports) -> Self {
        Self { ports }
    }

    /// The loopback ports that lead to it, for tests that speak other protocols.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Asks for a path of a host over plain HTTP.
    ///
    /// # Errors
    /// When there is no answer; every answer, of whatever status, is `Ok`.
    pub async fn get(&self, host: &str, path: &str) -> anyhow::Result<Response<Bytes>> {
        let request = Request::get(path)
            .header(http::header::HOST, host)
            .body(Full::default())
            .context("form a request")?;
        self.send(request).await
    }

    /// Sends a request over plain HTTP and reads the whole answer.
    ///
    /// # Errors
    /// As [`Ingress::get`].
    pub async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
        let stream = TcpStream::connect(("127.0.0.1", self.ports.http))
            .await
            .context("connect to the ingress")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .context("begin HTTP with the ingress")?;
        let exchange = async {
            let response = sender.send_request(request).await.context("ask the ingress")?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.context("read the answer")?.to_bytes();
            // The connection ends when nobody can send on it any more.
            drop(sender);
            anyhow::Ok(Response::from_parts(head, body))
        };
        let (response, _) = tokio::join!(exchange, connection);
        response
    }
}
