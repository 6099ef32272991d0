//! The end that listens: links from the gateways whose names come before ours.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use portolan_process::ErrorChain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::peers::connection::{
    ESTABLISH, HEADER_SIZE_MAX, INSTANCE, PATH, PING_INTERVAL, PING_TIMEOUT, Side, WINDOW,
};
use crate::peers::credentials::{Credential, digest};
use crate::peers::exchange::{Outgoing, exchange};
use crate::peers::metrics::Metrics;
use crate::peers::roster::Roster;
use crate::peers::unheard::Unheard;
use crate::peers::verify::server_config;
use crate::peers::{Broken, Lending};

/// Connections at once, those included that have not shown who they are.
const CONNECTIONS_MAX: usize = 1_024;
/// Pause after an accept that failed: file descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes links.
#[derive(Clone)]
pub(crate) struct Acceptor<L> {
    /// The name of this process.
    pub(crate) own: Arc<str>,
    pub(crate) credential: watch::Receiver<Credential>,
    pub(crate) roster: watch::Receiver<Arc<Roster>>,
    pub(crate) lending: L,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) newest: Arc<Newest>,
    pub(crate) unheard: Unheard,
}

/// The newest connection of each peer, by whose token the one before is ended.
#[derive(Debug, Default)]
pub(crate) struct Newest(Mutex<BTreeMap<Arc<str>, CancellationToken>>);

/// A request that was agreed to.
struct Agreed {
    peer: Arc<str>,
    outgoing: mpsc::Sender<bytes::Bytes>,
    incoming: Incoming,
}

/// Why a connection ended before there was a link.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("the own certificate cannot be used")]
    Own(#[source] rustls::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the other end shows no certificate")]
    Anonymous,
    #[error("HTTP failed")]
    Http(#[source] hyper::Error),
    #[error("the connection ended without a link")]
    Silent,
    #[error("no link within {ESTABLISH:?}")]
    Timeout,
}

impl<L: Lending> Acceptor<L> {
    /// Takes connections for ever.
    pub(crate) async fn run(self, listener: TcpListener) -> Infallible {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let taken = Arc::clone(&room).acquire_owned().await.expect("never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let acceptor = self.clone();
                    connections.spawn(async move {
                        acceptor.serve(stream).await;
                        drop(taken);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "Connection of a gateway not accepted");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream) {
        if let Err(error) = self.link(stream).await {
            self.metrics.refused.inc();
            tracing::debug!(error = %ErrorChain(&error), "No link from another gateway");
        }
    }

    async fn link(&self, stream: TcpStream) -> Result<(), AcceptError> {
        let stream = timeout(ESTABLISH, self.secure(stream)).await;
        let (stream, digest) = stream.unwrap_or(Err(AcceptError::Timeout))?;
        let (agree, mut agreed) = mpsc::channel(1);
        let (own, roster) = (Arc::clone(&self.own), self.roster.clone());
        let theirs = digest.clone();
        let service = service_fn(move |request| {
            let answer = answer(request, &own, &roster.borrow(), &theirs, &agree);
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let (side, _guard) = Side::new();
        let connection = http2::Builder::new(side)
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADER_SIZE_MAX)
            .max_concurrent_streams(1)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let link = tokio::select! {
            link = timeout(ESTABLISH, agreed.recv()) => link.map_err(|_| AcceptError::Timeout)?,
            ended = &mut connection => {
                return Err(ended.map_or_else(AcceptError::Http, |()| AcceptError::Silent));
            }
        };
        let Some(Agreed { peer, outgoing, mut incoming }) = link else {
            return Err(AcceptError::Silent);
        };
        let replaced = self.newest.replace(&peer);
        let mut link = self.lending.link(Arc::clone(&peer));
        self.unheard.remove(&peer);
        let open = self.metrics.open();
        tracing::info!(%peer, "Linked by another gateway");
        let broken = tokio::select! {
            biased;
            () = replaced.cancelled() => Broken::Replaced,
            broken = exchange(&mut link, &outgoing, &mut incoming) => broken,
            ended = &mut connection => ended.map_or_else(Broken::Connection, |()| Broken::Closed),
            () = self.disowned(&peer, &digest) => Broken::Disowned,
        };
        drop((link, open));
        // Whatever came last: the end of a link that was replaced is nobody's fault.
        let broken = if replaced.is_cancelled() { Broken::Replaced } else { broken };
        self.metrics.broke(&peer, &broken);
        match broken {
            // Whoever dialled the next one gives up the old one when it has the answer.
            Broken::Replaced => _ = timeout(ESTABLISH, connection).await,
            Broken::Connection(_) | Broken::Closed => {
                self.unheard.listen(&peer, &self.roster).await;
            }
            Broken::Disowned | Broken::Violation(_) => {}
        }
        Ok(())
    }

    async fn secure(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, String), AcceptError> {
        stream.set_nodelay(true).map_err(AcceptError::Tls)?;
        let config = server_config(&self.credential.borrow(), self.roster.borrow().clone());
        let acceptor = TlsAcceptor::from(Arc::new(config.map_err(AcceptError::Own)?));
        let stream = acceptor.accept(stream).await.map_err(AcceptError::Tls)?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(digest);
        Ok((stream, shown.ok_or(AcceptError::Anonymous)?))
    }

    /// Resolves when the peer does not live any more, or does not show this certificate.
    async fn disowned(&self, peer: &str, digest: &str) {
        let mut roster = self.roster.clone();
        if roster.wait_for(|roster| roster.verify(peer, digest).is_none()).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Newest {
    /// Ends the connection before of this peer; the token ends the new one when it is replaced.
    fn replace(&self, peer: &Arc<str>) -> CancellationToken {
        let token = CancellationToken::new();
        let before = self.0.lock().insert(Arc::clone(peer), token.clone());
        if let Some(before) = before {
            before.cancel();
        }
        token
    }

    /// Forgets the peers that are gone.
    pub(crate) fn retain(&self, roster: &Roster) {
        self.0.lock().retain(|peer, _| roster.get(peer).is_some());
    }
}

/// Agrees to the first request for a link by a peer that shows the connection's certificate.
fn answer(
    request: Request<Incoming>,
    own: &str,
    roster: &Roster,
    digest: &str,
    agree: &mpsc::Sender<Agreed>,
) -> Response<Either<Outgoing, String>> {
    if request.uri().path() != PATH {
        return refusal(StatusCode::NOT_FOUND, "nothing else is here");
    }
    if request.method() != Method::POST {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "a link is asked for by POST");
    }
    let claimed = request.headers().get(INSTANCE).and_then(|claimed| claimed.to_str().ok());
    let peer = claimed.and_then(|claimed| roster.verify(claimed, digest));
    let Some(peer) = peer.filter(|peer| **peer < *own) else {
        return refusal(
            StatusCode::FORBIDDEN,
            "the Lease of no such gateway shows this certificate",
        );
    };
    let (outgoing, body) = Outgoing::new();
    match agree.try_send(Agreed { peer, outgoing, incoming: request.into_body() }) {
        Ok(()) => Response::new(Either::Left(body)),
        Err(_) => refusal(StatusCode::CONFLICT, "this connection has its link"),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response<Either<Outgoing, String>> {
    let mut response = Response::new(Either::Right(format!("{why}\n")));
    *response.status_mut() = status;
    response
}
