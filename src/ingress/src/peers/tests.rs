//! Links over real sockets, with a partner that only counts and echoes.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::accept::{Acceptor, Newest};
use super::credentials::Credential;
use super::metrics::Metrics;
use super::roster::{Peer, Roster};
use super::unheard::Unheard;
use crate::lending::PeerEnd;

use super::{Lending, LinkEnd, Violation, dial_all};

mod handshake;
mod links;

/// Longer than anything here takes; a machine under load gets its time.
const LIMIT: Duration = Duration::from_secs(20);

/// One end for all links of a gateway: numbers go out, what comes in is kept.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    begun: watch::Sender<Vec<Arc<str>>>,
    ended: watch::Sender<usize>,
    received: watch::Sender<Vec<Bytes>>,
}

impl Book {
    fn begun(&self) -> usize {
        self.0.lock().begun.borrow().len()
    }
}

impl Lending for Book {
    type Link = Page;

    fn link(&self, peer: Arc<str>) -> Page {
        self.0.lock().begun.send_modify(|begun| begun.push(peer));
        let number = self.begun();
        Page { book: self.clone(), greeting: Some(format!("hello {number}").into()) }
    }

    fn forget(&self, _peer: &str, _end: PeerEnd) {}
}

/// Greets, then listens.
struct Page {
    book: Book,
    greeting: Option<Bytes>,
}

impl LinkEnd for Page {
    async fn next(&mut self) -> Bytes {
        match self.greeting.take() {
            Some(greeting) => greeting,
            None => pending().await,
        }
    }

    fn take(&mut self, message: Bytes) -> Result<(), Violation> {
        if message == "forbidden" {
            return Err(Violation("it said the forbidden word"));
        }
        self.book.0.lock().received.send_modify(|received| received.push(message));
        Ok(())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.book.0.lock().ended.send_modify(|ended| *ended += 1);
    }
}

/// A gateway: its listener, its credential, its view of the others.
struct Place {
    name: Arc<str>,
    address: SocketAddr,
    credential: watch::Sender<Credential>,
    roster: watch::Sender<Arc<Roster>>,
    book: Book,
    metrics: Arc<Metrics>,
    unheard: Unheard,
    _tasks: JoinSet<()>,
}

impl Place {
    async fn new(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let credential = watch::Sender::new(Credential::generate().unwrap());
        let roster = watch::Sender::new(Arc::new(Roster::default()));
        let book = Book::default();
        let metrics = Arc::<Metrics>::default();
        let unheard = Unheard::default();
        let acceptor = Acceptor {
            own: name.into(),
            credential: credential.subscribe(),
            roster: roster.subscribe(),
            lending: book.clone(),
            metrics: Arc::clone(&metrics),
            newest: Arc::<Newest>::default(),
            unheard: unheard.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(dial_all(acceptor.clone()));
        tasks.spawn(async move { match acceptor.run(listener).await {} });
        let (name, _tasks) = (name.into(), tasks);
        Self { name, address, credential, roster, book, metrics, unheard, _tasks }
    }

    fn digest(&self) -> String {
        self.credential.borrow().digest().to_string()
    }

    fn peer(&self) -> (Arc<str>, Peer) {
        let certificates = vec![self.digest()];
        (Arc::clone(&self.name), Peer { address: self.address, certificates, serves: true })
    }

    fn sees(&self, peers: impl IntoIterator<Item = (Arc<str>, Peer)>) {
        self.roster.send_replace(Arc::new(Roster::of(peers)));
    }

    /// Waits until this many messages have come.
    async fn received(&self, count: usize) -> Vec<Bytes> {
        let mut received = self.book.0.lock().received.subscribe();
        let level = timeout(LIMIT, received.wait_for(|received| received.len() >= count)).await;
        level.unwrap_or_else(|_| panic!("{count} messages did not come")).unwrap().clone()
    }

    /// Waits until this many links have ended.
    async fn ended(&self, count: usize) {
        let mut ended = self.book.0.lock().ended.subscribe();
        let level = timeout(LIMIT, ended.wait_for(|ended| *ended >= count)).await;
        let _ = level.unwrap_or_else(|_| panic!("{count} links did not end")).unwrap();
    }
}
