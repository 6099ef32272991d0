//! A service: follows its active pool and bounds how long a request waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::pool::{Entrance, Pool, Slot, Ticket, Verdict};
use crate::core::Core;
use crate::error::Code;
use crate::model::{BootFailure, FailureKind, ServiceKey};

/// Why a request got no slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoVersion,
    QueueFull,
    WaitTimeout,
    Failed(BootFailure),
}

impl Refusal {
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::NoVersion => Code::NoVersion,
            Self::QueueFull => Code::QueueFull,
            Self::WaitTimeout => Code::WaitTimeout,
            Self::Failed(BootFailure { kind: FailureKind::Boot, .. }) => Code::BootFailed,
            Self::Failed(BootFailure { kind: FailureKind::NoCapacity, .. }) => Code::NoCapacity,
        }
    }
}

/// A request's place in the order of all, and the end of its patience. Both begin when it first
/// has to wait.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    ticket: Option<Ticket>,
    deadline: Option<Instant>,
    /// When a service without an active version is believed to have none.
    believes: Option<Instant>,
}

/// Where the requests of a service go.
#[derive(Debug)]
pub(crate) struct Service {
    key: ServiceKey,
    active: ArcSwapOption<Pool>,
    /// An activation was seen; its pool may not have been.
    is_activated: AtomicBool,
    /// Wakes those who wait for the pool to be seen.
    changed: Notify,
    /// How many those are: they stand in no pool's queue, but are bounded alike.
    unplaced: AtomicUsize,
}

impl Service {
    pub(super) fn new(key: ServiceKey) -> Self {
        Self {
            key,
            active: ArcSwapOption::empty(),
            is_activated: AtomicBool::new(false),
            changed: Notify::new(),
            unplaced: AtomicUsize::new(0),
        }
    }

    pub(crate) const fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// Points to another pool, or to none as long as the active one has not been seen. Returns the
    /// one before.
    pub(super) fn follow(&self, is_activated: bool, pool: Option<Arc<Pool>>) -> Option<Arc<Pool>> {
        self.is_activated.store(is_activated, Ordering::Release);
        let previous = self.active.swap(pool);
        self.changed.notify_waiters();
        previous
    }

    /// Takes a slot, waiting for one if need be. Called again with the same turn, it resumes the
    /// request's place in the order and what is left of its wait.
    ///
    /// # Cancel safety
    ///
    /// A caller that goes away leaves the queue; no slot is lost.
    pub(crate) async fn acquire(&self, core: &Core, turn: &mut Turn) -> Result<Slot, Refusal> {
        let Turn { ticket, deadline, believes } = turn;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            let mut enter = |pool: &Arc<Pool>| {
                pool.enter(|| {
                    *ticket.get_or_insert_with(|| Ticket {
                        number: core.next_ticket(),
                        since: Instant::now(),
                    })
                })
            };
            let active = self.active.load();
            let entrance = active.as_ref().map(&mut enter);
            drop(active);
            let mut deadline =
                || *deadline.get_or_insert_with(|| Instant::now() + core.settings.wait);
            match entrance {
                Some(Entrance::Granted(slot)) => return Ok(slot),
                Some(Entrance::Failed(failure)) => return Err(Refusal::Failed(failure)),
                Some(Entrance::Full) => return Err(Refusal::QueueFull),
                // The service pointed elsewhere before the pool was closed: look again at once.
                Some(Entrance::Moved) => {}
                Some(Entrance::Waiting(waiting)) => match timeout_at(deadline(), waiting).await {
                    Ok(Verdict::Granted(slot)) => return Ok(slot),
                    Ok(Verdict::Failed(failure)) => return Err(Refusal::Failed(failure)),
                    Ok(Verdict::Moved) => {}
                    Err(_) => return Err(Refusal::WaitTimeout),
                },
                None => {
                    // Enabled before the second look, so that no switch in between is missed.
                    changed.as_mut().enable();
                    if self.active.load().is_some() {
                        continue;
                    }
                    let _place = self.stand_by(core)?;
                    let (end, refusal) = match self.is_activated.load(Ordering::Acquire) {
                        true => (deadline(), Refusal::WaitTimeout),
                        false => {
                            let end = Instant::now() + core.settings.no_version_wait;
                            (*believes.get_or_insert(end), Refusal::NoVersion)
                        }
                    };
                    if timeout_at(end, changed).await.is_err() {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// A place among those who wait for the pool to be seen.
    fn stand_by(&self, core: &Core) -> Result<Unplaced<'_>, Refusal> {
        let place = Unplaced(&self.unplaced);
        if self.unplaced.fetch_add(1, Ordering::Relaxed) >= core.settings.queue_limit {
            return Err(Refusal::QueueFull);
        }
        Ok(place)
    }
}

/// Counts one down when dropped.
struct Unplaced<'a>(&'a AtomicUsize);

impl Drop for Unplaced<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
