//! When something moved last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A moment that many may set, none of whom waits for another.
#[derive(Debug)]
pub(crate) struct Moved {
    born: Instant,
    /// Milliseconds after `born`.
    at: AtomicU64,
}

impl Moved {
    /// Something moved now.
    pub(crate) fn new() -> Self {
        Self { born: Instant::now(), at: AtomicU64::new(0) }
    }

    pub(crate) fn note(&self) {
        let elapsed = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(elapsed, Ordering::Relaxed);
    }

    /// The moment, to the millisecond.
    pub(crate) fn last(&self) -> Instant {
        self.born + Duration::from_millis(self.at.load(Ordering::Relaxed))
    }
}
