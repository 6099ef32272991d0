//! How many requests run at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};

/// Counts requests from their head to the end of their response.
#[derive(Debug, Default)]
pub(crate) struct Concurrency {
    now: AtomicUsize,
    max: AtomicUsize,
    total: AtomicU64,
}

/// A request that runs, until it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Concurrency>);

/// A body whose request runs until its last byte is taken, or nobody wants it.
#[derive(Debug)]
pub(crate) struct Counted<B> {
    body: B,
    _running: Running,
}

/// What was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests that run.
    pub(crate) now: usize,
    /// The most that ran at once since the start.
    pub(crate) max: usize,
    /// All since the start.
    pub(crate) total: u64,
}

impl Concurrency {
    /// Counts a request until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Running {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.max.fetch_max(now, SeqCst);
        self.total.fetch_add(1, SeqCst);
        Running(Arc::clone(self))
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            now: self.now.load(SeqCst),
            max: self.max.load(SeqCst),
            total: self.total.load(SeqCst),
        }
    }
}

impl Running {
    /// Runs until this body ends.
    pub(crate) fn until_end_of<B>(self, body: B) -> Counted<B> {
        Counted { body, _running: self }
    }
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maximum_stays_when_requests_end() {
        let concurrency = Arc::new(Concurrency::default());
        let first = concurrency.enter();
        let second = concurrency.enter();
        drop(first);
        drop(second);
        drop(concurrency.enter());
        assert_eq!(concurrency.counts(), Counts { now: 0, max: 2, total: 3 });
    }
}
