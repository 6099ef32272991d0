//! The end that dials: one link to one gateway, for as long as that lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use portolan_process::ErrorChain;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::DropGuard;

use crate::peers::connection::{
    ESTABLISH, HEADER_SIZE_MAX, INSTANCE, PATH, PING_INTERVAL, PING_TIMEOUT, Side, WINDOW,
};
use crate::peers::credentials::{Credential, digest};
use crate::peers::exchange::{Outgoing, exchange};
use crate::peers::metrics::Metrics;
use crate::peers::roster::{Peer, Roster};
use crate::peers::unheard::{Unheard, is_nobody};
use crate::peers::verify::client_config;
use crate::peers::{Broken, Lending, LinkEnd};

/// First and longest pause after an attempt that failed or a link that broke.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// A link that held this long broke for a new reason.
const STABLE: Duration = Duration::from_secs(10);

/// Why no link came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("the own certificate cannot be used")]
    Own(#[source] rustls::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] std::io::Error),
    #[error("the other end shows no certificate")]
    Anonymous,
    #[error("HTTP failed")]
    Http(#[source] hyper::Error),
    #[error("the other end answered {0}")]
    Refused(StatusCode),
    #[error("no answer within {ESTABLISH:?}")]
    Timeout,
}

/// One gateway that this one dials.
pub(crate) struct Dialler<L> {
    /// The name of this process.
    pub(crate) own: Arc<str>,
    /// The one to dial.
    pub(crate) peer: Arc<str>,
    pub(crate) credential: watch::Receiver<Credential>,
    pub(crate) roster: watch::Receiver<Arc<Roster>>,
    pub(crate) lending: L,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) unheard: Unheard,
}

/// A connection that the other end has agreed to.
struct Established {
    /// Without it, the connection would end with its streams.
    sender: http2::SendRequest<Outgoing>,
    outgoing: mpsc::Sender<Bytes>,
    incoming: Incoming,
    connection:
        http2::Connection<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>, Outgoing, Side>,
    /// Which of our certificates, and which of theirs.
    own: Arc<str>,
    theirs: String,
    _side: DropGuard,
}

impl<L: Lending> Dialler<L> {
    /// Keeps a link while the peer is in the roster.
    pub(crate) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut has_met = false;
        loop {
            let known = self.roster.borrow().get(&self.peer).cloned();
            let Some(peer) = known else {
                news(&mut self.roster, &self.peer, None).await;
                continue;
            };
            let begun = Instant::now();
            match self.dial(&peer).await {
                Ok(established) => {
                    has_met = true;
                    self.unheard.remove(&self.peer);
                    self.hold(established).await;
                }
                Err(error) => {
                    if has_met && matches!(&error, DialError::Connect(error) if is_nobody(error)) {
                        self.unheard.add(&self.peer, &self.roster.borrow());
                    }
                    self.metrics.failed.inc();
                    tracing::debug!(peer = %self.peer, error = %ErrorChain(&error),
                        "No link to another gateway");
                }
            }
            pause = match begun.elapsed() >= STABLE {
                true => PAUSE_MIN,
                false => (pause * 2).min(PAUSE_MAX),
            };
            // What is new of the peer may be what it takes.
            tokio::select! {
                () = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                () = news(&mut self.roster, &self.peer, Some(&peer)) => {}
            }
        }
    }

    /// Carries a link over one connection after the other: the next is made before the last one is
    /// given up, so that a change of certificates is no loss.
    async fn hold(&mut self, mut established: Established) {
        loop {
            let mut link = self.lending.link(Arc::clone(&self.peer));
            let _open = self.metrics.open();
            let (own, theirs) = (Arc::clone(&established.own), established.theirs.clone());
            tracing::info!(peer = %self.peer, "Linked to another gateway");
            tokio::select! {
                broken = established.run(&mut link) => {
                    self.metrics.broke(&self.peer, &broken);
                    return;
                }
                next = self.successor(&own, &theirs) => match next {
                    Some(next) => established = next,
                    None => return,
                },
            }
        }
    }

    /// The next connection, when there has to be one; `None` when there must be none any more.
    async fn successor(&self, own: &str, theirs: &str) -> Option<Established> {
        let (mut credential, mut roster) = (self.credential.clone(), self.roster.clone());
        let mut pause = PAUSE_MIN;
        loop {
            let is_outdated = *credential.borrow_and_update().digest().as_ref() != *own;
            let peer = roster.borrow_and_update().get(&self.peer).cloned()?;
            let is_outdated = is_outdated || !peer.shows(theirs);
            if is_outdated {
                match self.dial(&peer).await {
                    Ok(next) => return Some(next),
                    Err(error) => {
                        tracing::debug!(peer = %self.peer, error = %ErrorChain(&error),
                            "Link not renewed yet");
                        pause = (pause * 2).min(PAUSE_MAX);
                    }
                }
            }
            tokio::select! {
                () = sleep(pause), if is_outdated => {}
                Ok(()) = credential.changed() => {}
                Ok(()) = roster.changed() => {}
                else => return None,
            }
        }
    }

    async fn dial(&self, peer: &Peer) -> Result<Established, DialError> {
        timeout(ESTABLISH, self.establish(peer)).await.unwrap_or(Err(DialError::Timeout))
    }

    async fn establish(&self, peer: &Peer) -> Result<Established, DialError> {
        let stream = TcpStream::connect(peer.address).await.map_err(DialError::Connect)?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let credential = self.credential.borrow().clone();
        let config = client_config(&credential, peer.certificates.clone());
        let connector = TlsConnector::from(Arc::new(config.map_err(DialError::Own)?));
        let name = ServerName::IpAddress(peer.address.ip().into());
        let stream = connector.connect(name, stream).await.map_err(DialError::Tls)?;
        let theirs = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(digest);
        let theirs = theirs.ok_or(DialError::Anonymous)?;
        let (side, guard) = Side::new();
        let (mut sender, mut connection) = http2::Builder::new(side)
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADER_SIZE_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(DialError::Http)?;
        let (outgoing, body) = Outgoing::new();
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{PATH}", peer.address))
            .header(INSTANCE, &*self.own)
            .body(body)
            .expect("an address, a constant path and the name of a Pod");
        let response = tokio::select! {
            response = sender.send_request(request) => response.map_err(DialError::Http)?,
            ended = &mut connection => {
                return Err(match ended {
                    Ok(()) => DialError::Refused(StatusCode::SERVICE_UNAVAILABLE),
                    Err(error) => DialError::Http(error),
                });
            }
        };
        if response.status() != StatusCode::OK {
            return Err(DialError::Refused(response.status()));
        }
        let (incoming, own) = (response.into_body(), Arc::clone(credential.digest()));
        Ok(Established { sender, outgoing, incoming, connection, own, theirs, _side: guard })
    }
}

impl Established {
    async fn run(self, link: &mut impl LinkEnd) -> Broken {
        let Self { sender: _sender, outgoing, mut incoming, connection, _side, .. } = self;
        tokio::select! {
            broken = exchange(link, &outgoing, &mut incoming) => broken,
            ended = connection => ended.map_or_else(Broken::Connection, |()| Broken::Closed),
        }
    }
}

/// Resolves when the roster says something else of the peer than `known`.
async fn news(roster: &mut watch::Receiver<Arc<Roster>>, name: &str, known: Option<&Peer>) {
    let is_new = |roster: &Arc<Roster>| roster.get(name) != known;
    if roster.wait_for(is_new).await.is_err() {
        std::future::pending().await
    }
}
