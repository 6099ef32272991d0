//! The keyed work queue: every key at most once in it, and at most once in work.

mod core;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

pub use self::core::Backoff;
use self::core::Core;
pub(crate) use self::core::{Added, Finish, Taken};
use crate::{ObjectKey, metrics::QueueMetrics};

/// The keys a controller still has to look at.
///
/// Cheap to clone; all clones are the same queue. A key that is added many times before a worker
/// takes it is worked on once; a key that is added while it is in work is worked on once more
/// afterwards. The number of keys is bounded: when the bound is reached the queue refuses keys and
/// asks the controller for a full pass as soon as half of it is free, so that none is lost.
#[derive(Clone, Debug)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    changed: Notify,
    metrics: QueueMetrics,
}

impl Queue {
    pub(crate) fn new(backoff: Backoff, capacity: usize, metrics: QueueMetrics) -> Self {
        let core = Mutex::new(Core::new(backoff, capacity));
        metrics.capacity.set(i64::try_from(capacity).unwrap_or(i64::MAX));
        Self { shared: Arc::new(Shared { core, changed: Notify::new(), metrics }) }
    }

    /// Asks for a key to be looked at as soon as possible.
    pub fn add(&self, key: ObjectKey) {
        self.offer(|core| core.add(key, now()));
    }

    /// Asks for a key to be looked at after `delay`; the earliest of several such wishes counts.
    pub fn add_after(&self, key: ObjectKey, delay: Duration) {
        self.offer(|core| core.add_at(key, now() + delay));
    }

    /// Whether both are handles of one queue.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Waits for a key and takes it; it must be given back with [`Queue::finish`].
    ///
    /// # Cancel safety
    ///
    /// A key is only taken when the future resolves.
    pub(crate) async fn take(&self) -> Taken {
        loop {
            let due = {
                let mut core = self.shared.core.lock();
                let taken = core.take(now());
                self.show(&core);
                if let Some(taken) = taken {
                    self.shared.metrics.wait.observe(taken.waited.as_secs_f64());
                    return taken;
                }
                core.next_due()
            };
            let changed = self.shared.changed.notified();
            match due {
                Some(due) => {
                    // Either way the answer is to look again.
                    let _ = tokio::time::timeout_at(due.into(), changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// Gives a key back. Returns the delay before it is tried again, when it failed.
    pub(crate) fn finish(&self, key: &ObjectKey, how: Finish) -> Option<Duration> {
        let mut core = self.shared.core.lock();
        let delay = core.finish(key, how, now());
        self.show(&core);
        drop(core);
        self.shared.changed.notify_one();
        delay
    }

    /// Whether keys were refused and a full pass is due now; asked once, answered once.
    pub(crate) fn take_overflow(&self) -> bool {
        self.shared.core.lock().take_overflow()
    }

    /// Whether one more key would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.core.lock().has_room()
    }

    fn offer(&self, add: impl FnOnce(&mut Core) -> Added) {
        let mut core = self.shared.core.lock();
        let added = add(&mut core);
        self.show(&core);
        drop(core);
        match added {
            // `notify_one` keeps a permit, so a key added between look and wait is not missed.
            Added::Queued => self.shared.changed.notify_one(),
            Added::Merged => {}
            Added::Refused => {
                self.shared.metrics.refused.inc();
            }
        }
    }

    fn show(&self, core: &Core) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.shared.metrics.depth.set(count(core.depth()));
        self.shared.metrics.scheduled.set(count(core.scheduled()));
    }
}

/// Tokio's clock, so that tests can hold it still.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
