//! Unused connections to one sandbox.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep};

use super::wire::Wire;
use super::{Connection, Counted};
use crate::core::Core;
use crate::upstream::Upstream;

/// Unused connections, the last used on top: the others grow old and are closed.
#[derive(Debug)]
pub(in crate::upstream) struct Idle {
    stack: Mutex<Stack>,
}

#[derive(Debug)]
struct Stack {
    /// Oldest first.
    entries: Vec<Entry>,
    is_swept: bool,
    /// Counts the entries of all stacks; `None`: there has been none on this one.
    gauge: Option<Gauge>,
}

impl Stack {
    fn push(&mut self, entry: Entry, gauge: &Gauge) {
        self.gauge.get_or_insert_with(|| gauge.clone()).inc();
        self.entries.push(entry);
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop()?;
        self.left(1);
        Some(entry)
    }

    fn left(&self, count: usize) {
        if let Some(gauge) = &self.gauge {
            gauge.dec_by(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.left(self.entries.len());
    }
}

/// Does not hold its sandbox, which holds it.
#[derive(Debug)]
struct Entry {
    wire: Box<Wire>,
    since: Instant,
    open: Counted,
}

impl Idle {
    pub(in crate::upstream) const fn new() -> Self {
        let stack = Stack { entries: Vec::new(), is_swept: false, gauge: None };
        Self { stack: Mutex::new(stack) }
    }

    /// Takes the connection used last that is still open.
    pub(in crate::upstream) fn take(&self) -> Option<Connection> {
        loop {
            let Entry { wire, open, .. } = self.stack.lock().pop()?;
            if wire.is_reusable() {
                return Some(Connection { wire, _counted: open });
            }
        }
    }

    pub(super) fn put(&self, connection: Connection, home: &Arc<Upstream>, core: &Core) {
        let Connection { wire, _counted: open } = connection;
        let entry = Entry { wire, since: Instant::now(), open };
        let mut stack = self.stack.lock();
        if stack.entries.len() >= core.settings.idle_connections_per_sandbox {
            return;
        }
        stack.push(entry, &core.metrics.upstream_idle);
        let is_swept = std::mem::replace(&mut stack.is_swept, true);
        drop(stack);
        if !is_swept {
            core.spawn(sweep(Arc::downgrade(home), core.settings.upstream_idle));
        }
    }

    /// Closes what is too old. Returns whether anything is left to watch.
    fn sweep(&self, age_max: Duration) -> bool {
        let mut stack = self.stack.lock();
        let now = Instant::now();
        let old = stack.entries.partition_point(|entry| now - entry.since >= age_max);
        let old: Vec<_> = stack.entries.drain(..old).collect();
        stack.left(old.len());
        stack.is_swept = !stack.entries.is_empty();
        let is_swept = stack.is_swept;
        drop(stack);
        drop(old);
        is_swept
    }
}

/// Watches the stack of one sandbox while there is something on it.
async fn sweep(home: Weak<Upstream>, age_max: Duration) {
    loop {
        sleep(age_max / 2).await;
        let Some(home) = home.upgrade() else { return };
        if !home.idle.sweep(age_max) {
            return;
        }
    }
}
