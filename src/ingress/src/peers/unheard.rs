//! Which other gateways have ended, by all that a connection can tell: the link to one broke, and
//! where it listened nobody does.
//!
//! The kernel of a node closes what a killed process had open at once, a second before its kubelet
//! looks. It is a hint and no proof, for a network may say the same; so it takes nothing from that
//! gateway but new visitors.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::peers::roster::Roster;

/// How long an answer may take: the next attempt is made, should this be lost.
const ANSWER_MAX: Duration = Duration::from_millis(200);
/// Pauses before attempts: a process that is being killed may lose its link before its listener.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
];

/// The gateways that have ended, by instance. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unheard(Arc<watch::Sender<BTreeSet<Arc<str>>>>);

impl Unheard {
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeSet<Arc<str>>> {
        self.0.subscribe()
    }

    /// Nobody listens where this one did, to which there was a link. Of one that leaves that is no
    /// news.
    pub(crate) fn add(&self, peer: &Arc<str>, roster: &Roster) {
        if !roster.get(peer).is_some_and(|peer| peer.serves) {
            return;
        }
        let is_new = self.0.send_if_modified(|unheard| unheard.insert(Arc::clone(peer)));
        if is_new {
            tracing::warn!(%peer, "Another gateway seems to have ended");
        }
    }

    /// There is a link to it.
    pub(crate) fn remove(&self, peer: &str) {
        self.0.send_if_modified(|unheard| unheard.remove(peer));
    }

    /// Forgets those that are known to be gone.
    pub(crate) fn retain(&self, roster: &Roster) {
        self.0.send_if_modified(|unheard| {
            let before = unheard.len();
            unheard.retain(|peer| roster.get(peer).is_some());
            unheard.len() != before
        });
    }

    /// Finds out whether somebody still listens where the peer did whose link broke.
    pub(crate) async fn listen(&self, peer: &Arc<str>, roster: &watch::Receiver<Arc<Roster>>) {
        for pause in PAUSES {
            sleep(pause).await;
            let Some(address) = roster.borrow().get(peer).map(|peer| peer.address) else { return };
            let attempt = timeout(ANSWER_MAX, TcpStream::connect(address)).await;
            if let Ok(Err(error)) = attempt
                && is_nobody(&error)
            {
                return self.add(peer, &roster.borrow());
            }
        }
    }
}

/// Whether the node answers that nobody listens there.
pub(crate) fn is_nobody(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
