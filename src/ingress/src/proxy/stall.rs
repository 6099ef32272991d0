//! Responses that wait for their client, on connections that carry several.
//!
//! Over HTTP/2 a client can stop one stream while the connection flows: nobody asks for the next
//! frame of its body any more, so the body cannot notice, and its sandbox's slot would be held for
//! as long as the client likes. Therefore each body is shared with its connection, whose timer
//! takes it away.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::upstream::{DownloadError, UpstreamBody};

/// Entries that may be stale before they are looked through.
const STALE_COUNT_MAX: usize = 256;

/// The bodies on their way over one connection.
#[derive(Debug)]
pub(crate) struct Streams {
    born: Instant,
    bodies: Mutex<Vec<Weak<Held>>>,
}

/// A body that may be taken away.
#[derive(Debug)]
pub(super) struct Held {
    body: Mutex<Option<Box<UpstreamBody>>>,
    born: Instant,
    /// Milliseconds after `born`, plus one, since when it is the client's turn; zero: it is the
    /// sandbox's.
    waits_since: AtomicU64,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { born: Instant::now(), bodies: Mutex::new(Vec::new()) }
    }

    pub(super) fn hold(&self, body: Box<UpstreamBody>) -> Arc<Held> {
        let held = Held {
            body: Mutex::new(Some(body)),
            born: self.born,
            waits_since: AtomicU64::new(millis(self.born.elapsed()) + 1),
        };
        let held = Arc::new(held);
        let mut bodies = self.bodies.lock();
        if bodies.len() >= STALE_COUNT_MAX {
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Arc::downgrade(&held));
        held
    }

    /// Takes away what its client has not asked for in `limit`.
    pub(crate) fn cut(&self, limit: Duration) {
        let now = millis(self.born.elapsed());
        let mut bodies = self.bodies.lock();
        bodies.retain(|body| body.strong_count() > 0);
        for held in bodies.iter().filter_map(Weak::upgrade) {
            let since = held.waits_since.load(Ordering::Relaxed);
            if since > 0 && Duration::from_millis(now.saturating_sub(since - 1)) >= limit {
                // The lock is free again before the body, and with it the slot, is dropped.
                let body = held.body.lock().take();
                drop(body);
            }
        }
    }
}

impl Held {
    pub(super) fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let mut body = self.body.lock();
        let Some(body) = body.as_mut() else {
            return Poll::Ready(Some(Err(DownloadError::NotTaken)));
        };
        let result = Pin::new(body).poll_frame(cx);
        let since = if result.is_ready() { millis(self.born.elapsed()) + 1 } else { 0 };
        self.waits_since.store(since, Ordering::Relaxed);
        result
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.lock().as_ref().is_some_and(Body::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.lock().as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
