//! The admin server: metrics and probes over HTTP/1.1.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{Metrics, Readiness, bindable};

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A scraper and two probes need a handful; more is a fault or an attack and waits its turn.
const CONNECTIONS_MAX: usize = 64;

/// How long a client may take to send a request's head; probes are local and send it at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to rest after `accept` failed, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the admin server could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address could not be bound.
    #[error("bind admin address {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Serves `/metrics`, `/healthz` and `/readyz`.
///
/// `/healthz` only says that the process still schedules its tasks. It depends on nothing outside
/// the process, because restarting a healthy process does not bring an API server back.
/// `/readyz` is 200 while every gate is open, else 503 with one line per closed gate.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
    pages: Pages,
}

impl AdminServer {
    /// Binds the address, or what is [`bindable`] instead; port 0 picks a free one.
    ///
    /// # Errors
    ///
    /// [`AdminError::Bind`] when the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Bind { address, source };
        let listener = TcpListener::bind(&*bindable(address)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, pages: Pages { metrics, readiness } })
    }

    /// The address the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled, then drops what is open.
    ///
    /// # Errors
    ///
    /// None at present: a connection that fails is its client's affair, and a failing `accept` is
    /// tried again. The type is what [`Tasks`](crate::Tasks) takes.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), AdminError> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(serve_connection(stream, self.pages.clone()));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "Admin connection not accepted");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            }
        }
    }
}

/// What the server can answer from.
#[derive(Clone, Debug)]
struct Pages {
    metrics: Metrics,
    readiness: Readiness,
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => page(StatusCode::OK, OPEN_METRICS, self.metrics.encode()),
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => self.ready(),
            _ => text(StatusCode::NOT_FOUND, "see /metrics, /healthz, /readyz\n".to_owned()),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let closed = self.readiness.closed();
        if closed.is_empty() {
            return text(StatusCode::OK, "ready\n".to_owned());
        }
        let lines = closed.iter().map(|gate| format!("not ready: {gate}\n")).collect();
        text(StatusCode::SERVICE_UNAVAILABLE, lines)
    }
}

async fn serve_connection(stream: TcpStream, pages: Pages) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = pages.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "Admin connection ended early");
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body)
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
