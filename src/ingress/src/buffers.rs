//! What is held for clients that have not taken it, and how much more may be.
//!
//! Counted is memory, from when it is read until it is freed, wherever it waits in between. Three
//! counts: of the gateway, of each client (an address), of each connection. Who may hold more is
//! decided by what is left: a client may hold a part of what the gateway has left, a connection a
//! part of what its client has left. So the more is held, the less each may hold, something is left
//! for whoever comes, and no list says who is the worst.
//!
//! A connection's part is not the last word. A stream of which nothing is held needs only that its
//! client has room: its client may read it alone, before all the others. And one head may always
//! pass, because over HTTP/2 no window stops it: it is gone at once if the client reads at all.
//!
//! Room is asked for before a read and taken after it, so that what is held passes the limit by no
//! more than the reads that are made at once.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use crate::core::Core;
use crate::metrics::Cut;
use crate::moved::Moved;

/// A client may hold one part in so many of what is left: alone, a ninth of all there is. Forty that
/// come one after the other leave a hundredth, which is enough for those who read.
const CLIENT_PART: i64 = 8;
/// And a connection of what its client has left: alone, a fifth of that.
const CONNECTION_PART: i64 = 4;
/// What a piece costs beside its bytes: what describes it here, in the HTTP library and in the
/// allocator. Made large, so that many small pieces are no way around the limit.
const PIECE_SIZE: usize = 512;
/// What a field of a head costs beside its text.
const FIELD_SIZE: usize = 128;
/// A client that took nothing for this part of the usual time is cut once nothing is left.
const PATIENCE_PART: u32 = 12;
/// How often a response that waits for room looks by itself: for what others than its own client
/// have let go. What its client takes wakes it at once.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Responses of one client that are woken by what it takes; others look by themselves.
const WAITING_MAX: usize = 256;
/// Woken at a time: enough to go on at full speed, and one step of a client's does not run them all.
const WAKE_MAX: usize = 8;

/// What is held for one client.
#[derive(Debug)]
pub(crate) struct Share {
    core: Arc<Core>,
    held: AtomicI64,
    waiting: Mutex<VecDeque<Waker>>,
}

/// What is held for one connection.
#[derive(Debug)]
pub(crate) struct Account {
    share: Arc<Share>,
    held: AtomicI64,
    /// Heads among it.
    heads: AtomicUsize,
    /// Something of it, or it began to be held.
    moved: Moved,
}

/// For what room is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The head of a response.
    Head,
    /// Something of which nothing is held.
    First,
    /// More of the same.
    More,
}

/// A number of bytes, counted until dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Arc<Account>,
    size: i64,
    is_head: bool,
}

/// A response that waits for room.
#[derive(Debug)]
pub(crate) struct Wait {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

/// There was none for too long.
#[derive(Debug, thiserror::Error)]
#[error("client does not take what is held for it, and there is no room for more")]
pub(crate) struct NoRoom;

impl Share {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, held: AtomicI64::new(0), waiting: Mutex::new(VecDeque::new()) }
    }

    fn size_max(&self) -> i64 {
        i64::try_from(self.core.settings.response_buffers_max).unwrap_or(i64::MAX)
    }

    /// What nobody holds; below zero where reads met.
    fn left(&self) -> i64 {
        self.size_max() - self.core.metrics.response_buffers.get()
    }

    /// What the client may hold beyond what it does.
    fn room(&self) -> i64 {
        self.left() / CLIENT_PART - self.held.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let count = waiting.len().min(WAKE_MAX);
        let woken: Vec<Waker> = waiting.drain(..count).collect();
        // A waker is the business of its task, which may ask for room at once.
        drop(waiting);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Account {
    pub(crate) fn new(share: Arc<Share>) -> Self {
        let (held, heads) = (AtomicI64::new(0), AtomicUsize::new(0));
        Self { share, held, heads, moved: Moved::new() }
    }

    pub(crate) fn has_room(&self, need: Need) -> bool {
        let room = self.share.room();
        match need {
            Need::Head => room > 0 || self.heads.load(Ordering::SeqCst) == 0,
            Need::First => room > 0,
            Need::More => self.held.load(Ordering::SeqCst) < room / CONNECTION_PART,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.load(Ordering::Relaxed) <= 0
    }

    pub(crate) fn charge(self: &Arc<Self>, size: usize) -> Charge {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        self.share.core.metrics.response_buffers.inc_by(size);
        self.share.held.fetch_add(size, Ordering::SeqCst);
        if self.held.fetch_add(size, Ordering::SeqCst) == 0 {
            self.moved.note();
        }
        Charge { account: Arc::clone(self), size, is_head: false }
    }

    pub(crate) fn charge_head(self: &Arc<Self>, size: usize) -> Charge {
        self.heads.fetch_add(1, Ordering::SeqCst);
        let mut charge = self.charge(size);
        charge.is_head = true;
        charge
    }

    /// Something of what is held has moved, and as much is held as before.
    pub(crate) fn note(&self) {
        self.moved.note();
    }

    /// Counts a piece of a response, beside what it shares with others.
    pub(crate) fn charge_piece(self: &Arc<Self>, size: usize) -> Charge {
        self.charge(PIECE_SIZE + size)
    }

    /// How long a client may take nothing: the usual time while nothing is held, and ever less.
    pub(crate) fn patience(&self) -> Duration {
        let usual = self.share.core.settings.write_stall;
        let max = self.share.size_max().max(1);
        let left = self.share.left().clamp(0, max);
        #[expect(clippy::cast_precision_loss, reason = "a share of a time, not an amount")]
        let part = left as f64 / max as f64;
        usual.mul_f64(part).max(usual / PATIENCE_PART)
    }

    /// Whether the client took nothing of what is held for it for that long.
    pub(crate) fn is_stuck_for(&self, limit: Duration) -> bool {
        !self.is_empty() && self.moved.last().elapsed() >= limit
    }

    /// Ready when there is room, with an error when there was none for as long as a client may take
    /// nothing.
    pub(crate) fn poll_room(
        &self,
        need: Need,
        wait: &mut Option<Box<Wait>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), NoRoom>> {
        if self.has_room(need) {
            *wait = None;
            return Poll::Ready(Ok(()));
        }
        let limit = self.share.core.settings.write_stall;
        let wait = wait.get_or_insert_with(|| Box::new(Wait::begin(limit)));
        loop {
            if wait.since.elapsed() >= limit {
                self.cut(Cut::NoRoom);
                return Poll::Ready(Err(NoRoom));
            }
            if self.queue(need, cx.waker()) {
                return Poll::Ready(Ok(()));
            }
            ready!(wait.timer.as_mut().poll(cx));
            wait.timer.as_mut().reset(Instant::now() + LOOK_AGAIN.min(limit));
        }
    }

    /// As [`Self::poll_room`], awaited.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken.
    pub(crate) async fn room(&self, need: Need) -> Result<(), NoRoom> {
        let mut wait = None;
        poll_fn(|cx| self.poll_room(need, &mut wait, cx)).await
    }

    pub(crate) fn cut(&self, what: Cut) {
        self.share.core.metrics.cut(what);
    }

    /// Has a task woken when its client takes something; `true`: there is room meanwhile.
    fn queue(&self, need: Need, waker: &Waker) -> bool {
        let mut waiting = self.share.waiting.lock();
        // Under the lock that whoever lets go takes afterwards: seen by one of the two.
        if self.has_room(need) {
            return true;
        }
        let is_known = waiting.iter().any(|known| known.will_wake(waker));
        if !is_known && waiting.len() < WAITING_MAX {
            waiting.push_back(waker.clone());
        }
        false
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Account { share, held, heads, moved } = &*self.account;
        if self.is_head {
            heads.fetch_sub(1, Ordering::SeqCst);
        }
        moved.note();
        held.fetch_sub(self.size, Ordering::SeqCst);
        share.held.fetch_sub(self.size, Ordering::SeqCst);
        share.core.metrics.response_buffers.dec_by(self.size);
        share.wake();
    }
}

impl Wait {
    fn begin(limit: Duration) -> Self {
        Self { since: Instant::now(), timer: Box::pin(sleep(LOOK_AGAIN.min(limit))) }
    }
}

/// Text of ours that is counted while it is held.
struct Counted {
    text: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// A value that counts for all of its head: the HTTP library lets go of the fields of a head
/// together, when it has written them.
pub(crate) fn counting(value: &HeaderValue, charge: Charge) -> HeaderValue {
    let counted = Counted { text: Bytes::copy_from_slice(value.as_bytes()), _charge: charge };
    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(counted))
        .expect("what was a value is one");
    // Or the connection's compression would keep it, for as long as it likes.
    value.set_sensitive(true);
    value
}

/// What a head or trailers take.
pub(crate) fn size_of(fields: &HeaderMap) -> usize {
    let size = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_SIZE);
    size.sum()
}

#[cfg(test)]
mod tests;
