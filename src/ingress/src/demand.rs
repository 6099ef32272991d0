//! Raw demand per pool, for whoever reports it.
//!
//! Pools mark themselves changed under the lock they hold anyway; the reader is woken by the first
//! mark after it has read. How often it reads is its own choice: nothing here grows with requests.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::activator::Pool;
use crate::model::{PoolId, SandboxId, Slots};

/// What one gateway sees of one pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolDemand {
    /// Which pool.
    pub pool: PoolId,
    /// Requests that wait for a slot.
    pub queued: u32,
    /// Requests that hold a slot, on any of the pool's sandboxes, gone ones included.
    pub running: u32,
    /// Time since a request last began, ended or was refused; zero while one runs or waits; `None`
    /// if there never was one.
    pub idle: Option<Duration>,
    /// Load of each known sandbox, in no particular order.
    pub sandboxes: Vec<SandboxLoad>,
}

/// What one gateway runs on one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxLoad {
    /// Which sandbox.
    pub id: SandboxId,
    /// Requests running there; more than `slots` only just after the grant was lowered.
    pub running: u32,
    /// The grant this gateway follows.
    pub slots: Slots,
    /// Epoch of the draining mark this gateway follows.
    pub draining: Option<u64>,
    /// A request the client gave up did not end in time under `Strict`: nothing is sent there any
    /// more, and the sandbox should be replaced.
    pub retired: bool,
}

/// The pools that changed since they were last read.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pools: Mutex<Vec<Arc<Pool>>>,
    wake: Notify,
}

impl Changes {
    /// Adds a pool. The pool calls it once per reading, so the list is bounded by their number.
    pub(crate) fn push(&self, pool: Arc<Pool>) {
        self.pools.lock().push(pool);
        self.wake.notify_one();
    }

    /// Waits until the list is not empty.
    pub(crate) async fn wait(&self) {
        loop {
            // The permit of `notify_one` is kept while nobody waits, so no mark is missed between
            // the look at the list and the wait.
            if !self.pools.lock().is_empty() {
                return;
            }
            self.wake.notified().await;
        }
    }

    /// Empties the list.
    pub(crate) fn take(&self) -> Vec<Arc<Pool>> {
        std::mem::take(&mut *self.pools.lock())
    }
}
