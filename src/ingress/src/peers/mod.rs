//! Links between gateways: one mutually authenticated connection for each pair.
//!
//! Gateways find each other by their Leases and know each other's certificates by the digests
//! there. Of two, the one whose name comes first dials the other over TLS 1.3 and asks for the one
//! thing that is served: a POST whose two bodies stay open and carry messages both ways. A link
//! breaks and comes back at any time; whoever uses it starts anew then.
//!
//! **Does not know** what the messages say: [`Lending`] and its [`LinkEnd`]s make and take them.
//! Knows no client of the API either: the Leases come as a cache.
//!
//! # Entry points
//!
//! [`Peers::new`], [`Peers::shown`] for the Lease, then [`Peers::run`].
//!
//! # Invariants
//!
//! - Nothing is read from a connection before its certificate was found in a living gateway's
//!   Lease, and nothing but a head before the name that it claims was found to be that gateway's.
//! - A peer has at most one link; a newer one ends the one before.
//! - No private key leaves the process.
//! - Per link, one message waits to be sent and at most one is gathered; both are bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use portolan_api::Gateway;
use portolan_reconcile::{Cache, Clock, RunError};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::lending::PeerEnd;
use crate::peers::absent::Ended;
use crate::peers::accept::{Acceptor, Newest};
use crate::peers::credentials::{Credentials, Rotation};
use crate::peers::dial::Dialler;
use crate::peers::metrics::Metrics;
use crate::peers::roster::{Census, Roster};
use crate::peers::unheard::Unheard;
use crate::report::{Identity, Shown};

mod absent;
mod accept;
mod connection;
mod credentials;
mod dial;
mod exchange;
mod frame;
mod ingress;
mod metrics;
mod roster;
mod unheard;
mod verify;

#[cfg(test)]
mod tests;

pub use absent::Absent;
pub use credentials::CredentialError;

/// How long a new certificate is published before it is used, or half as long as one is used if
/// that is less. A watch that works shows it within a second; one that does not keeps its gateway's
/// old links.
const SETTLE: Duration = Duration::from_secs(60);

/// What meets other gateways here.
pub trait Lending: Clone + Send + Sync + 'static {
    /// One end of a link; dropped when the connection is down.
    type Link: LinkEnd;

    /// Begins a link with a peer, by instance. One that there is already is replaced.
    fn link(&self, peer: Arc<str>) -> Self::Link;

    /// The peer will never come back.
    fn forget(&self, peer: &str, end: PeerEnd);
}

/// One end of a link.
pub trait LinkEnd: Send + 'static {
    /// The next message to send, of at most one mebibyte. Cancel safe, and pending while there is
    /// none.
    fn next(&mut self) -> impl Future<Output = Bytes> + Send;

    /// Takes in a message of the other end.
    ///
    /// # Errors
    ///
    /// [`Violation`] if the other end may not say that; the link ends.
    fn take(&mut self, message: Bytes) -> Result<(), Violation>;
}

/// The other end breaks the protocol: what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub &'static str);

/// Why a link is no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection broke")]
    Connection(#[source] hyper::Error),
    #[error("the other end closed it")]
    Closed,
    #[error("a newer one took its place")]
    Replaced,
    #[error("the certificate is not shown any more")]
    Disowned,
    #[error("{0}")]
    Violation(&'static str),
}

/// Where a gateway meets others.
#[derive(Debug)]
pub struct PeersConfig {
    /// Where to listen.
    pub listener: TcpListener,
    /// Where others reach that: the Pod's address and the port.
    pub address: SocketAddr,
    /// How long a certificate is used before the next one.
    pub certificate_lifetime: Duration,
}

/// The links of one gateway.
pub struct Peers<L> {
    identity: Identity,
    config: PeersConfig,
    lending: L,
    credentials: Credentials,
    metrics: Arc<Metrics>,
    unheard: Unheard,
    absent: watch::Sender<Absent>,
}

/// The Leases of all gateways.
pub struct Gateways {
    /// As they are.
    pub cache: Cache<Lease, Gateway>,
    /// Told of every change but a renewal.
    pub changed: Arc<Notify>,
    /// The time they are measured by.
    pub clock: Clock,
    /// From when on no change can be seen: the watch has been told to end.
    pub ends: CancellationToken,
}

impl<L: Lending> Peers<L> {
    /// Makes the first certificate.
    ///
    /// # Errors
    ///
    /// If the system refuses to generate a key.
    pub fn new(
        identity: Identity,
        config: PeersConfig,
        lending: L,
    ) -> Result<Self, CredentialError> {
        let credentials = Credentials::generate()?;
        let (metrics, unheard) = (Arc::default(), Unheard::default());
        let absent = watch::Sender::default();
        Ok(Self { identity, config, lending, credentials, metrics, unheard, absent })
    }

    /// What the Lease has to show.
    pub fn shown(&self) -> Shown {
        Shown {
            address: self.config.address,
            certificates: self.credentials.shown(),
            published: self.credentials.published(),
        }
    }

    /// The processes of other gateways, by instance, whose link broke and where nobody listens any
    /// more.
    pub fn unheard(&self) -> watch::Receiver<BTreeSet<Arc<str>>> {
        self.unheard.subscribe()
    }

    /// Which other gateways are there no more.
    pub fn absent(&self) -> watch::Receiver<Absent> {
        self.absent.subscribe()
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Keeps the links until `stop`.
    ///
    /// # Errors
    ///
    /// None: what fails is counted, logged and tried again.
    pub async fn run(self, gateways: Gateways, stop: CancellationToken) -> Result<(), RunError> {
        let roster = watch::Sender::new(Arc::new(Roster::default()));
        let every = self.config.certificate_lifetime;
        let rotation = Rotation { every, settle: SETTLE.min(every / 2) };
        let acceptor = Acceptor {
            own: Arc::clone(&self.identity.instance),
            credential: self.credentials.current(),
            roster: roster.subscribe(),
            lending: self.lending.clone(),
            metrics: Arc::clone(&self.metrics),
            newest: Arc::new(Newest::default()),
            unheard: self.unheard.clone(),
        };
        let dialled = dial_all(acceptor.clone());
        let follower = Follower {
            own: &self.identity.pod,
            roster: &roster,
            unheard: self.unheard.subscribe(),
            absent: &self.absent,
            lending: &self.lending,
            known: &self.metrics.known,
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.credentials.rotate(rotation) => {}
            () = follower.run(gateways) => {}
            () = dialled => {}
            never = acceptor.run(self.config.listener) => match never {},
        }
        Ok(())
    }
}

/// Keeps the roster, and tells of those that have ended.
struct Follower<'a, L> {
    own: &'a str,
    roster: &'a watch::Sender<Arc<Roster>>,
    unheard: watch::Receiver<BTreeSet<Arc<str>>>,
    absent: &'a watch::Sender<Absent>,
    lending: &'a L,
    known: &'a Gauge,
}

impl<L: Lending> Follower<'_, L> {
    async fn run(mut self, gateways: Gateways) {
        let Gateways { cache, changed, clock, ends } = gateways;
        cache.synced().await;
        let mut census = Census::new(self.own.to_owned());
        let mut ended = Ended::default();
        loop {
            let now = clock();
            let unheard = self.unheard.borrow_and_update().clone();
            let leases = cache.list();
            let seen = census.look(&leases, cache.unbroken_since(), now);
            // First the links go, so that nobody lends to one that has ended.
            self.known.set(i64::try_from(seen.roster.iter().count()).unwrap_or(i64::MAX));
            self.roster.send_if_modified(|current| {
                let is_new = **current != seen.roster;
                *current = Arc::new(seen.roster.clone());
                is_new
            });
            for (peer, end) in seen.ended {
                tracing::info!(%peer, ?end, "Another gateway has ended");
                self.lending.forget(&peer, end);
                ended.note(peer, end, &leases, &unheard);
            }
            let absent = ended.absent(&seen.roster, &unheard);
            self.absent.send_if_modified(|current| {
                let is_new = *current != absent;
                *current = absent;
                is_new
            });
            tokio::select! {
                biased;
                // This gateway drains. Nobody's Lease lapses because we do not see it renewed, and
                // what is known now holds to the end.
                () = ends.cancelled() => return pending().await,
                () = changed.notified() => {}
                Ok(()) = self.unheard.changed() => {}
                () = until(seen.look_again, now) => {}
            }
        }
    }
}

async fn until(then: Option<Timestamp>, now: Timestamp) {
    let Some(then) = then else { pending().await };
    // At least a little: a Lease may say that it lapses in no time at all.
    let pause = then.duration_since(now).max(SignedDuration::from_millis(10));
    sleep(pause.unsigned_abs()).await;
}

/// Dials those of the roster whose names come after ours, each for as long as it lives.
async fn dial_all<L: Lending>(acceptor: Acceptor<L>) {
    let Acceptor { own, credential, mut roster, lending, metrics, newest, unheard } = acceptor;
    let mut dialled: BTreeMap<Arc<str>, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let now = Arc::clone(&roster.borrow_and_update());
        newest.retain(&now);
        unheard.retain(&now);
        dialled.retain(|peer, _| now.get(peer).is_some());
        for (peer, _) in now.iter().filter(|(peer, _)| **peer > own) {
            dialled.entry(Arc::clone(peer)).or_insert_with(|| {
                let dialler = Dialler {
                    own: Arc::clone(&own),
                    peer: Arc::clone(peer),
                    credential: credential.clone(),
                    roster: roster.clone(),
                    lending: lending.clone(),
                    metrics: Arc::clone(&metrics),
                    unheard: unheard.clone(),
                };
                AbortOnDropHandle::new(tokio::spawn(dialler.run()))
            });
        }
        if roster.changed().await.is_err() {
            return;
        }
    }
}
