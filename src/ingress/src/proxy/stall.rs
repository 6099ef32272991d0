//! Responses on their way to a client that may not take them.
//!
//! A client can stop a response without a word: over HTTP/2 one stream while the connection flows.
//! Nobody asks for the next frame of its body any more, so the body cannot notice, and its
//! sandbox's slot would be held for as long as the client likes. Therefore each body is shared with
//! its connection, whose timer takes it away. What has left the body is counted
//! ([`buffers`]) until the HTTP library has written it, which also says whether the
//! client takes anything.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::buffers::{self, Account, Charge, Need, NoRoom, Share, Wait};
use crate::metrics::Cut;
use crate::moved::Moved;
use crate::upstream::{Backing, DownloadError, UpstreamBody};

/// Entries that may be stale before they are looked through.
const STALE_COUNT_MAX: usize = 256;
/// Trailers up to this size pass with the last piece.
const TRAILERS_SIZE_MIN: usize = 1024;

/// The responses on their way over one connection, and what is held of them.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(super) account: Arc<Account>,
    responses: Mutex<Vec<Weak<Held>>>,
}

/// A body that may be taken away, and the record of what has left it. Pieces hold the record, so it
/// may outlive the body.
#[derive(Debug)]
struct Held {
    /// `None`: it has ended, or was taken away.
    body: Mutex<Option<Box<UpstreamBody>>>,
    account: Arc<Account>,
    /// Pieces that the client has not taken.
    pieces: AtomicU32,
    /// Who waits for room: first in turn when the client takes a piece, because this is what it
    /// reads.
    waiting: Mutex<Option<Waker>>,
    /// The client took one, or got one while it had none.
    moved: Moved,
}

/// A response's own end of its body.
#[derive(Debug)]
pub(super) struct Hold {
    held: Arc<Held>,
    wait: Option<Box<Wait>>,
    /// The memory that the last piece lies in, by its number, for as long as a piece holds it.
    backing: (u32, Weak<Charge>),
}

/// A part of a body on its way.
struct Piece {
    data: Bytes,
    held: Arc<Held>,
    own: Option<Charge>,
    backing: Option<Arc<Charge>>,
}

impl Streams {
    pub(super) fn new(share: Arc<Share>) -> Self {
        let account = Arc::new(Account::new(share));
        Self { account, responses: Mutex::new(Vec::new()) }
    }

    pub(super) fn hold(&self, body: Box<UpstreamBody>) -> Hold {
        let held = Arc::new(Held {
            body: Mutex::new(Some(body)),
            account: Arc::clone(&self.account),
            pieces: AtomicU32::new(0),
            waiting: Mutex::new(None),
            moved: Moved::new(),
        });
        let mut responses = self.responses.lock();
        if responses.len() >= STALE_COUNT_MAX {
            responses.retain(|held| held.strong_count() > 0);
        }
        responses.push(Arc::downgrade(&held));
        Hold { held, wait: None, backing: (0, Weak::new()) }
    }

    /// Takes away what its client has taken nothing of in `limit`. `false`: the connection has to
    /// go. Its client holds all that it may, so that its other answers wait for what this one does
    /// not take, and what has left a body only leaves with the connection.
    pub(crate) fn cut(&self, limit: Duration) -> bool {
        let mut has_stalled = false;
        let mut responses = self.responses.lock();
        responses.retain(|held| held.strong_count() > 0);
        let held = responses.iter().filter_map(Weak::upgrade);
        for held in held.filter(|held| held.has_stalled(limit)) {
            has_stalled = true;
            if held.let_go() {
                self.account.cut(Cut::Stream);
            }
        }
        drop(responses);
        has_stalled |= self.account.is_stuck_for(self.account.patience());
        let has_to_go = has_stalled && !self.account.has_room(Need::First);
        if has_to_go {
            self.account.cut(Cut::Connection);
        }
        !has_to_go
    }

    /// When to look again at the latest.
    pub(crate) fn patience(&self) -> Duration {
        if self.account.is_empty() { Duration::MAX } else { self.account.patience() }
    }
}

impl Held {
    fn has_stalled(&self, limit: Duration) -> bool {
        self.pieces.load(Ordering::Acquire) > 0 && self.moved.last().elapsed() >= limit
    }

    fn need(&self) -> Need {
        match self.pieces.load(Ordering::Acquire) {
            0 => Need::First,
            _ => Need::More,
        }
    }

    /// Drops the body, if there is one still.
    fn let_go(&self) -> bool {
        // The lock is free again before the body, and with it the slot, is dropped.
        let body = self.body.lock().take();
        body.is_some()
    }
}

impl Hold {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if ready!(self.poll_room(cx)).is_err() {
            self.held.let_go();
            return Poll::Ready(Some(Err(DownloadError::NotTaken)));
        }
        let mut body = self.held.body.lock();
        let Some(upstream) = body.as_mut() else {
            return Poll::Ready(Some(Err(DownloadError::NotTaken)));
        };
        let frame = ready!(Pin::new(&mut *upstream).poll_frame(cx));
        let (backing, is_last) = (upstream.backing(), upstream.is_end_stream());
        drop(body);
        Poll::Ready(frame.map(|frame| frame.map(|frame| self.count(frame, backing, is_last))))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NoRoom>> {
        let held = &*self.held;
        if let Poll::Ready(room) = held.account.poll_room(held.need(), &mut self.wait, cx) {
            return Poll::Ready(room);
        }
        *held.waiting.lock() = Some(cx.waker().clone());
        // What was taken before that woke nobody.
        if held.account.has_room(held.need()) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.held.body.lock().as_ref().is_some_and(Body::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.held.body.lock().as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }

    fn count(&mut self, frame: Frame<Bytes>, backing: Backing, is_last: bool) -> Frame<Bytes> {
        let data = match frame.into_data() {
            Ok(data) if data.is_empty() => return Frame::data(data),
            Ok(data) => data,
            Err(frame) => return self.count_trailers(frame),
        };
        // Nothing comes after it that would need the memory it lies in.
        let is_copied = is_last && data.len() * 2 <= backing.size();
        let (data, backing, own) = match (is_copied, backing) {
            (true, _) => (Bytes::copy_from_slice(&data), None, data.len()),
            (false, Backing::Read { .. }) => (data, Some(self.charge_backing(backing)), 0),
            // What was read makes room for as much behind it.
            (false, Backing::Window(_)) => {
                let size = data.len();
                (data, Some(self.charge_backing(backing)), size)
            }
        };
        let held = Arc::clone(&self.held);
        let own = Some(held.account.charge_piece(own));
        if held.pieces.load(Ordering::Relaxed) == 0 {
            held.moved.note();
        }
        held.pieces.fetch_add(1, Ordering::Release);
        Frame::data(Bytes::from_owner(Piece { data, held, own, backing }))
    }

    /// Memory that several pieces lie in counts once.
    fn charge_backing(&mut self, backing: Backing) -> Arc<Charge> {
        let number = backing.number();
        let known = self.backing.1.upgrade().filter(|_| self.backing.0 == number);
        known.unwrap_or_else(|| {
            let charge = Arc::new(self.held.account.charge(backing.size()));
            self.backing = (number, Arc::downgrade(&charge));
            charge
        })
    }

    fn count_trailers(&self, mut frame: Frame<Bytes>) -> Frame<Bytes> {
        let Some(trailers) = frame.trailers_mut() else { return frame };
        let size = buffers::size_of(trailers);
        if size > TRAILERS_SIZE_MIN
            && let Some(value) = trailers.values_mut().next()
        {
            *value = buffers::counting(value, self.held.account.charge(size));
        }
        frame
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.let_go();
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // Who is woken finds what this makes room for.
        (self.own, self.backing) = (None, None);
        self.held.moved.note();
        self.held.pieces.fetch_sub(1, Ordering::Release);
        let waiting = self.held.waiting.lock().take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}
