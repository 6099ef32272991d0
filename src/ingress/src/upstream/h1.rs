//! HTTP/1.1 connections: one request at a time, kept on a stack in between.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::{ConnectError, RequestBody, Upstream, dial};
use crate::activator::Slot;
use crate::core::Core;

/// A connection that runs no request, or the one it was taken for.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) sender: SendRequest<RequestBody>,
    line: Arc<Line>,
    home: Arc<Upstream>,
}

/// What a connection and the task that drives it share.
#[derive(Debug, Default)]
struct Line {
    end: Mutex<End>,
    kill: Notify,
}

#[derive(Debug, Default)]
struct End {
    is_closed: bool,
    /// A slot that is free when the connection is closed.
    held: Option<Slot>,
}

impl Connection {
    /// Connects to a sandbox.
    pub(super) async fn open(home: &Arc<Upstream>, core: &Arc<Core>) -> Result<Self, ConnectError> {
        let stream = dial(home.address, core).await?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ConnectError::Handshake)?;
        let line = Arc::new(Line::default());
        let guard = LineGuard { line: Arc::clone(&line), core: Arc::clone(core) };
        core.metrics.upstream_connections.inc();
        core.spawn(async move {
            // Declared first, so dropped last: the slot is free when the socket is closed, also
            // when the task is ended from outside.
            let guard = guard;
            let driver = driver.with_upgrades();
            tokio::select! {
                biased;
                // Errors reach the request that ran, if any.
                _ = driver => {}
                () = guard.line.kill.notified() => {}
            }
        });
        Ok(Self { sender, line, home: Arc::clone(home) })
    }

    /// Closes the connection; the slot is free when that has happened.
    pub(super) fn close(self, slot: Slot) {
        let mut end = self.line.end.lock();
        if end.is_closed {
            drop(end);
            drop(slot);
        } else {
            end.held = Some(slot);
            drop(end);
            self.line.kill.notify_one();
        }
    }

    /// Puts the connection on the stack of its sandbox.
    pub(super) fn put_back(self, core: &Arc<Core>) {
        if !self.sender.is_closed() {
            let home = Arc::clone(&self.home);
            home.idle.put(self, core);
        }
    }
}

/// Tells of the end of the connection, however its task ends.
struct LineGuard {
    line: Arc<Line>,
    core: Arc<Core>,
}

impl Drop for LineGuard {
    fn drop(&mut self) {
        let held = {
            let mut end = self.line.end.lock();
            end.is_closed = true;
            end.held.take()
        };
        drop(held);
        self.core.metrics.upstream_connections.dec();
    }
}

/// Unused connections, the last used on top: the others grow old and are closed.
#[derive(Debug)]
pub(super) struct Idle {
    stack: Mutex<Stack>,
}

#[derive(Debug)]
struct Stack {
    /// Oldest first.
    entries: Vec<Entry>,
    is_swept: bool,
}

/// Does not hold its sandbox, which holds it.
#[derive(Debug)]
struct Entry {
    sender: SendRequest<RequestBody>,
    line: Arc<Line>,
    since: Instant,
    _counted: Counted,
}

/// One up in a gauge for as long as it lives.
#[derive(Debug)]
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Idle {
    pub(super) const fn new() -> Self {
        Self { stack: Mutex::new(Stack { entries: Vec::new(), is_swept: false }) }
    }

    /// Takes the connection used last that is still open.
    pub(super) async fn take(&self, home: &Arc<Upstream>) -> Option<Connection> {
        loop {
            let Entry { mut sender, line, .. } = self.stack.lock().entries.pop()?;
            // Put back at the end of a body, the connection may have a turn of its task to go
            // before it takes a request; or it has been closed meanwhile.
            if sender.ready().await.is_ok() {
                return Some(Connection { sender, line, home: Arc::clone(home) });
            }
        }
    }

    fn put(&self, connection: Connection, core: &Arc<Core>) {
        let Connection { sender, line, home } = connection;
        let entry = Entry {
            sender,
            line,
            since: Instant::now(),
            _counted: Counted::new(&core.metrics.upstream_idle),
        };
        let mut stack = self.stack.lock();
        if stack.entries.len() >= core.settings.idle_connections_per_sandbox {
            return;
        }
        stack.entries.push(entry);
        let is_swept = std::mem::replace(&mut stack.is_swept, true);
        drop(stack);
        if !is_swept {
            core.spawn(sweep(Arc::downgrade(&home), core.settings.upstream_idle));
        }
    }

    /// Closes what is too old. Returns whether anything is left to watch.
    fn sweep(&self, age_max: Duration) -> bool {
        let mut stack = self.stack.lock();
        let now = Instant::now();
        let old = stack.entries.partition_point(|entry| now - entry.since >= age_max);
        let old: Vec<_> = stack.entries.drain(..old).collect();
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
