//! One connection to another gateway: its messages from and to the books of all pools.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ProtocolError;
use super::message::{HOLDS_MAX, Hold, Message};
use crate::activator::Pool;
use crate::ingress::Shared;

/// Most slots a greeting may list, in all its parts.
const GREETING_MAX: usize = 1 << 20;
/// Pools asked for that are not known here; more wait until the want is repeated.
const UNKNOWN_MAX: usize = 1_000;

/// The gateways that are connected, by instance.
pub(crate) type Links = Vec<(Arc<str>, Arc<Outbox>)>;

/// The pools that have something to say on one link: each at most once.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pools: Mutex<VecDeque<Arc<Pool>>>,
    wake: Notify,
}

impl Outbox {
    /// Adds a pool. It does so once until it was asked for all it had to say.
    pub(crate) fn push(&self, pool: Arc<Pool>) {
        self.pools.lock().push_back(pool);
        self.wake.notify_one();
    }

    fn pop(&self) -> Option<Arc<Pool>> {
        self.pools.lock().pop_front()
    }
}

/// One end of a connection to another gateway. Dropping it says that the connection is down.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    peer: Arc<str>,
    outbox: Arc<Outbox>,
    /// What is left to send of our greeting.
    greeting: VecDeque<Message>,
    /// What the other end's greeting has listed so far; `None`: it is complete.
    holds: Option<Vec<Hold>>,
    /// Pools that the other end asked for and that are not known here.
    unknown: BTreeSet<Arc<str>>,
}

impl Link {
    pub(crate) fn new(shared: Arc<Shared>, peer: Arc<str>) -> Self {
        let outbox = Arc::default();
        shared.end_link(&peer, None);
        shared.core.links.rcu(|links| {
            let mut links = Links::clone(links);
            links.retain(|(known, _)| *known != peer);
            links.push((Arc::clone(&peer), Arc::clone(&outbox)));
            links
        });
        let (greeting, holds) = (VecDeque::new(), Some(Vec::new()));
        let mut link = Self { shared, peer, outbox, greeting, holds, unknown: BTreeSet::new() };
        // Before anything is taken in: the accounts begin anew with it.
        link.greeting = link.greet();
        link
    }

    /// The next message to send, as things are now.
    ///
    /// # Cancel safety
    ///
    /// Safe; what was returned has to be sent, or the link dropped.
    pub async fn next(&mut self) -> Message {
        loop {
            if let Some(message) = self.try_next() {
                return message;
            }
            self.outbox.wake.notified().await;
        }
    }

    /// Takes in a message of the other end.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if it may not say that; the link is to be dropped.
    pub fn take(&mut self, message: Message) -> Result<(), ProtocolError> {
        if !self.is_current() {
            return Err(ProtocolError("a newer link took its place"));
        }
        let uid = match &message {
            Message::Hello { .. } => return self.take_greeting(message),
            _ if self.holds.is_some() => return Err(ProtocolError("no greeting came first")),
            Message::Want { pool, .. } | Message::Later { pool } => pool,
            Message::Lent(hold) | Message::Recall(hold) | Message::Returned { hold, .. } => {
                &hold.pool
            }
        };
        let pool = self.shared.registry.lock().pool_of(uid).cloned();
        match pool {
            Some(pool) => pool.take_message(&self.peer, &self.outbox, message),
            None => {
                self.decline(message);
                Ok(())
            }
        }
    }

    pub(crate) fn try_next(&mut self) -> Option<Message> {
        if let Some(part) = self.greeting.pop_front() {
            return Some(part);
        }
        if let Some(pool) = self.unknown.pop_first() {
            return Some(Message::Later { pool });
        }
        while let Some(pool) = self.outbox.pop() {
            if let Some(message) = pool.next_message(&self.peer, &self.outbox) {
                // Behind the others: a pool with much to say does not keep them waiting.
                self.outbox.pools.lock().push_back(pool);
                return Some(message);
            }
        }
        None
    }

    /// What is used of the other end's slots, in parts. A change of a pool from now on is told
    /// after it.
    fn greet(&self) -> VecDeque<Message> {
        let mut holds = Vec::new();
        for pool in self.shared.pools() {
            pool.greet(&self.peer, &self.outbox, &mut holds);
        }
        let count = holds.chunks(HOLDS_MAX).len().max(1);
        let mut chunks = holds.chunks(HOLDS_MAX);
        (1..=count)
            .map(|part| {
                let holds = chunks.next().unwrap_or_default().to_vec();
                Message::Hello { holds, is_last: part == count }
            })
            .collect()
    }

    fn take_greeting(&mut self, message: Message) -> Result<(), ProtocolError> {
        let Message::Hello { holds, is_last } = message else { return Ok(()) };
        let listed = self.holds.as_mut().ok_or(ProtocolError("a second greeting"))?;
        listed.extend(holds);
        if listed.len() > GREETING_MAX {
            return Err(ProtocolError("a greeting is too long"));
        }
        if !is_last {
            return Ok(());
        }
        let mut by_pool: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u32>> = BTreeMap::new();
        for Hold { pool, sandbox, count } in self.holds.take().unwrap_or_default() {
            by_pool.entry(pool).or_default().insert(sandbox, count);
        }
        let nothing = BTreeMap::new();
        for pool in self.shared.pools() {
            pool.greeted(&self.peer, by_pool.get(pool.uid()).unwrap_or(&nothing));
        }
        Ok(())
    }

    /// A pool that is not known here has nothing to lend, and no use for what is lent.
    fn decline(&mut self, message: Message) {
        match message {
            Message::Want { pool, count, .. } if count > 0 && self.unknown.len() < UNKNOWN_MAX => {
                self.unknown.insert(pool);
                self.outbox.wake.notify_one();
            }
            // The pool was deleted, with it its sandboxes: nobody misses their slots.
            _ => {}
        }
    }

    fn is_current(&self) -> bool {
        self.shared.core.links.load().iter().any(|(_, link)| Arc::ptr_eq(link, &self.outbox))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.end_link(&self.peer, Some(&self.outbox));
    }
}

impl Shared {
    /// Ends the link with a peer: this one, or whichever there is.
    pub(crate) fn end_link(&self, peer: &str, link: Option<&Arc<Outbox>>) {
        let links = self.core.links.load_full();
        let known = links.iter().find(|(known, _)| **known == *peer).map(|(_, known)| known);
        let ended = link.or(known);
        let Some(ended) = ended else { return };
        self.core.links.rcu(|links| {
            let mut links = Links::clone(links);
            links.retain(|(_, link)| !Arc::ptr_eq(link, ended));
            links
        });
        // After that no pool begins to use it.
        for pool in self.pools() {
            pool.disconnect(peer, ended);
        }
    }
}
