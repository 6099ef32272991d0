//! A pool's sandboxes, their slots and the requests that wait for one.
//!
//! One lock per pool, held for a few dozen instructions and never across an await. Whatever
//! changes under it, [`Pool::change`] hands free slots to the head of the queue before it lets go,
//! so nobody ever polls for capacity.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ledger::{Index, Ledger};
use super::member::Member;
use super::probe;
use super::wake::Wake;
use crate::core::Core;
use crate::demand::{PoolDemand, SandboxLoad};
use crate::lending::books::{Books, Todo};
use crate::model::{
    BootFailure, Concurrency, PoolConfig, PoolId, Probe, SandboxConfig, SandboxPhase,
};
use crate::upstream::Upstream;

/// Sandboxes made from one template.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) id: PoolId,
    pub(super) core: Arc<Core>,
    pub(super) state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) ledger: Ledger<Member, Waiter>,
    /// What is lent to other gateways, and borrowed.
    pub(super) books: Books,
    /// A task looks after what is borrowed.
    pub(super) is_ticking: bool,
    /// Slots lent and borrowed, as the metrics have them.
    pub(super) measured: (u32, u32),
    pub(super) config: Option<Arc<PoolConfig>>,
    failure: Option<BootFailure>,
    /// Whether a service sends its requests here.
    is_active: bool,
    /// Already in the list of changes.
    is_marked: bool,
    /// `None` until the first request.
    last_activity: Option<Instant>,
    rng: fastrand::Rng,
}

#[derive(Debug)]
pub(super) struct Waiter {
    since: Instant,
    verdict: oneshot::Sender<Verdict>,
}

/// How a wait ended.
#[derive(Debug)]
pub(super) enum Verdict {
    /// With a slot.
    Granted(Slot),
    /// The pool is no longer the service's active one: look again.
    Moved,
    /// No sandbox will come.
    Failed(BootFailure),
}

/// What a request met when it came.
#[derive(Debug)]
pub(super) enum Entrance {
    Granted(Slot),
    Waiting(Waiting),
    Moved,
    Failed(BootFailure),
    Full,
}

impl Pool {
    pub(super) fn new(id: PoolId, core: Arc<Core>) -> Arc<Self> {
        let state = State {
            ledger: Ledger::new(),
            books: Books::default(),
            is_ticking: false,
            measured: (0, 0),
            config: None,
            failure: None,
            is_active: false,
            is_marked: false,
            last_activity: None,
            rng: fastrand::Rng::new(),
        };
        Arc::new(Self { id, core, state: Mutex::new(state) })
    }

    pub(crate) const fn uid(&self) -> &Arc<str> {
        &self.id.uid
    }

    /// Whether the pool is known only from its sandboxes.
    pub(super) fn is_placeholder(&self) -> bool {
        self.state.lock().config.is_none()
    }

    pub(super) fn has_members(&self) -> bool {
        self.state.lock().ledger.iter().next().is_some()
    }

    #[cfg(test)]
    pub(crate) fn has_accounts(&self) -> bool {
        !self.state.lock().books.is_empty()
    }

    // --- what the feed says ---

    pub(super) fn configure(self: &Arc<Self>, config: PoolConfig) {
        self.change(|state| {
            state.config = Some(Arc::new(config));
            for index in state.indices() {
                state.settle(index);
            }
        });
        self.start_probes();
    }

    pub(super) fn upsert_sandbox(self: &Arc<Self>, sandbox: &SandboxConfig) {
        let now = Instant::now();
        self.change(|state| {
            let index = state.find(&sandbox.id.uid).unwrap_or_else(|| {
                state.ledger.insert(Member::new(sandbox.id.clone(), now), sandbox.slots)
            });
            state.ledger.member_mut(index).update(sandbox, now);
            state.ledger.set_slots(index, sandbox.slots);
            state.settle(index);
        });
        self.start_probes();
    }

    pub(super) fn remove_sandbox(self: &Arc<Self>, uid: &str) {
        self.change(|state| {
            if let Some(index) = state.find(uid) {
                state.ledger.remove(index);
            }
        });
    }

    pub(super) fn set_failure(self: &Arc<Self>, failure: Option<BootFailure>) {
        let failed = self.change(|state| {
            state.failure.clone_from(&failure);
            let failure = failure.filter(|_| !state.has_usable_member())?;
            Some((failure, state.ledger.drain_queue()))
        });
        if let Some((failure, waiters)) = failed {
            self.dismiss(waiters, || Verdict::Failed(failure.clone()));
        }
    }

    /// A service sends its requests here from now on.
    pub(super) fn open(self: &Arc<Self>) {
        self.change(|state| state.is_active = true);
        self.start_probes();
    }

    /// No service does any more. Requests that wait are sent to look again; those running go on.
    pub(super) fn close(self: &Arc<Self>) {
        let waiters = self.change(|state| {
            state.is_active = false;
            state.ledger.drain_queue()
        });
        self.dismiss(waiters, || Verdict::Moved);
    }

    // --- what requests do ---

    /// Takes a slot, or a place in the queue by order of `ticket`.
    pub(super) fn enter(self: &Arc<Self>, ticket: impl FnOnce() -> Ticket) -> Entrance {
        let entrance = self.change(|state| {
            if !state.is_active {
                return Entrance::Moved;
            }
            if let Some(index) = state.ledger.take(&mut state.rng) {
                return Entrance::Granted(self.slot(state, index, None));
            }
            if let Some(failure) = state.effective_failure() {
                state.last_activity = Some(Instant::now());
                return Entrance::Failed(failure);
            }
            if state.ledger.queued() >= self.core.settings.queue_limit {
                return Entrance::Full;
            }
            let (sender, verdict) = oneshot::channel();
            let Ticket { number, since } = ticket();
            state.ledger.enqueue(number, Waiter { since, verdict: sender });
            Entrance::Waiting(Waiting { pool: Arc::clone(self), ticket: number, verdict })
        });
        if matches!(entrance, Entrance::Waiting(_)) {
            self.core.metrics.queued.inc();
            self.start_probes();
        }
        entrance
    }

    fn release(self: &Arc<Self>, index: Index) {
        self.change(|state| {
            state.ledger.release(index);
            if state.ledger.running() == 0 {
                state.last_activity = Some(Instant::now());
            }
        });
    }

    fn mark_dead(self: &Arc<Self>, index: Index, upstream: &Arc<Upstream>) {
        let is_news = self.change(|state| {
            let member = state.ledger.member_mut(index);
            // The sandbox may have got a new address while the old one was being dialled.
            let is_current = member.upstream().is_some_and(|known| Arc::ptr_eq(known, upstream));
            if is_current {
                member.died();
                state.settle(index);
            }
            is_current
        });
        if is_news {
            self.start_probes();
        }
    }

    fn retire(self: &Arc<Self>, index: Index) {
        self.change(|state| {
            state.ledger.member_mut(index).is_retired = true;
            state.settle(index);
        });
    }

    // --- probes ---

    pub(super) fn probe_window(&self) -> Duration {
        self.core.settings.probe_window
    }

    /// Starts the probes that are wanted and not running.
    fn start_probes(self: &Arc<Self>) {
        let mut wanted = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(config) = state.config.clone() else { return };
            for index in state.indices() {
                let member = state.ledger.member_mut(index);
                let target = member.upstream().map(|upstream| upstream.address().ip());
                let probe = member.wanted_probe(&config).filter(|_| !member.is_probing);
                if let Some((address, probe)) = target.zip(probe) {
                    member.is_probing = true;
                    wanted.push(probe::Task { sandbox: member.id.clone(), address, probe });
                }
            }
        }
        for task in wanted {
            self.core.spawn(task.run(Arc::downgrade(self)));
        }
    }

    /// The probe to go on with; `None`: it has become pointless. `is_new`: within its window.
    pub(super) fn next_probe(&self, task: &probe::Task, is_new: bool) -> Option<Probe> {
        let mut state = self.state.lock();
        let is_awaited = state.ledger.queued() > 0;
        let config = state.config.clone()?;
        let index = state.find(&task.sandbox.uid)?;
        let member = state.ledger.member_mut(index);
        let is_same = member.upstream().is_some_and(|up| up.address().ip() == task.address);
        let probe = member.wanted_probe(&config).filter(|_| is_same && (is_new || is_awaited));
        member.is_probing = probe.is_some();
        probe
    }

    /// The probe succeeded at the address it was sent to.
    pub(super) fn probe_succeeded(self: &Arc<Self>, task: &probe::Task) {
        self.change(|state| {
            let Some(index) = state.find(&task.sandbox.uid) else { return };
            let member = state.ledger.member_mut(index);
            member.is_probing = false;
            if member.upstream().is_some_and(|up| up.address().ip() == task.address) {
                member.answered();
                state.settle(index);
            }
        });
        // The address may have changed meanwhile.
        self.start_probes();
    }

    // --- demand ---

    /// What to report. Reading it makes the next change count as one.
    pub(crate) fn demand(&self) -> PoolDemand {
        let mut state = self.state.lock();
        state.is_marked = false;
        let running = state.ledger.running();
        let waiting = u32::try_from(state.ledger.queued()).unwrap_or(u32::MAX);
        let is_busy = running > 0 || waiting > 0;
        // As long as another gateway may have a free slot, no sandbox is asked for.
        let queued = if state.books.is_asking() { 0 } else { waiting };
        let sandboxes = state
            .ledger
            .iter()
            .map(|(_, member, slots, used)| SandboxLoad {
                id: member.id.clone(),
                running: used,
                slots,
                draining: match member.phase {
                    SandboxPhase::Draining { epoch } => Some(epoch),
                    _ => None,
                },
                retired: member.is_retired,
            })
            .collect();
        let since = state.last_activity.map(|last| last.elapsed());
        let idle = if is_busy { Some(Duration::ZERO) } else { since };
        PoolDemand { pool: self.id.clone(), queued, running, idle, sandboxes }
    }

    // --- under the lock ---

    pub(super) fn change<R>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let todo = self.settle_all(&mut state);
        let is_first = !std::mem::replace(&mut state.is_marked, true);
        drop(state);
        if is_first {
            self.core.changes.push(Arc::clone(self));
        }
        if let Some(todo) = todo {
            self.see_to(todo);
        }
        result
    }

    /// Gives free slots to those who wait, here or at other gateways.
    fn settle_all(self: &Arc<Self>, state: &mut State) -> Option<Todo> {
        // The last account closed still has to be measured.
        if state.books.is_empty() && state.measured == (0, 0) {
            self.hand_over(state, u64::MAX);
            if state.ledger.queued() == 0 || self.core.links.load().is_empty() {
                return None;
            }
        }
        Some(self.trade(state))
    }

    /// Gives free slots to the head of the queue, up to a place in the order of arrival.
    pub(super) fn hand_over(self: &Arc<Self>, state: &mut State, end: u64) {
        while state.ledger.head().is_some_and(|ticket| ticket < end) {
            let Some((waiter, index)) = state.ledger.next(&mut state.rng) else { return };
            let slot = self.slot(state, index, Some(waiter.since));
            self.core.metrics.queued.dec();
            if let Err(Verdict::Granted(slot)) = waiter.verdict.send(Verdict::Granted(slot)) {
                // Nobody listens. The lock is held, so the slot must not give itself back.
                slot.forget();
                state.ledger.release(index);
            }
        }
    }

    fn slot(self: &Arc<Self>, state: &State, index: Index, waited_since: Option<Instant>) -> Slot {
        let member = state.ledger.member(index);
        let upstream = member.upstream().expect("a usable member has an upstream");
        let config = state.config.as_ref().expect("a member with an upstream has a pool config");
        Slot {
            upstream: Arc::clone(upstream),
            wake: waited_since
                .map(|since| Box::new(Wake::split(since, Instant::now(), &member.stages))),
            concurrency: config.concurrency,
            index,
            pool: Some(Arc::clone(self)),
        }
    }

    /// Sends waiters away, outside the lock.
    fn dismiss(&self, waiters: impl Iterator<Item = Waiter>, verdict: impl Fn() -> Verdict) {
        for waiter in waiters {
            self.core.metrics.queued.dec();
            // An error means that the waiter has just given up.
            let _ = waiter.verdict.send(verdict());
        }
    }
}

impl State {
    fn indices(&self) -> Vec<Index> {
        self.ledger.iter().map(|(index, ..)| index).collect()
    }

    /// Pools have a few dozen sandboxes at most, and only the feed looks them up.
    pub(super) fn find(&self, uid: &str) -> Option<Index> {
        self.ledger.iter().find(|(_, member, ..)| &*member.id.uid == uid).map(|(index, ..)| index)
    }

    fn has_usable_member(&self) -> bool {
        self.ledger.iter().any(|(_, member, ..)| member.is_usable())
    }

    /// The failure that a new request meets. A pool without any sandbox that could come up is asked
    /// for one again: a failure that outlived its sandboxes says nothing about the next.
    fn effective_failure(&self) -> Option<BootFailure> {
        let failure = self.failure.as_ref()?;
        let is_coming = |member: &Member| !matches!(member.phase, SandboxPhase::Draining { .. });
        let has_coming = self.ledger.iter().any(|(_, member, ..)| is_coming(member));
        (has_coming && !self.has_usable_member()).then(|| failure.clone())
    }

    /// Brings a member and its place in the ledger in line with what changed.
    pub(super) fn settle(&mut self, index: Index) {
        let config = self.config.clone();
        let member = self.ledger.member_mut(index);
        member.configure(config.as_deref());
        let is_usable = member.is_usable();
        if is_usable && !self.ledger.balance(index).is_usable {
            self.books.refresh();
        }
        let member = self.ledger.member_mut(index);
        if is_usable {
            member.stages.ready.get_or_insert_with(Instant::now);
        }
        self.ledger.set_usable(index, is_usable);
    }
}

/// A waiter's place in line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    /// Order among all requests of the process.
    pub(super) number: u64,
    /// When the request came.
    pub(super) since: Instant,
}

/// A place in the queue. Dropping it leaves the queue; a slot that was on its way goes back.
#[derive(Debug)]
pub(super) struct Waiting {
    pool: Arc<Pool>,
    ticket: u64,
    verdict: oneshot::Receiver<Verdict>,
}

impl Future for Waiting {
    type Output = Verdict;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Verdict> {
        // The sender is only dropped after it was used, or together with the pool.
        Pin::new(&mut self.verdict).poll(cx).map(|verdict| verdict.unwrap_or(Verdict::Moved))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let cancelled = self.pool.change(|state| state.ledger.cancel(self.ticket));
        if cancelled.is_some() {
            self.pool.core.metrics.queued.dec();
        }
        // The receiver is dropped after this, outside the lock, and with it a slot that was
        // granted but not collected.
    }
}

/// The right to run one request on one sandbox. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    upstream: Arc<Upstream>,
    wake: Option<Box<Wake>>,
    concurrency: Concurrency,
    index: Index,
    /// `None` only once forgotten.
    pool: Option<Arc<Pool>>,
}

impl Slot {
    /// Where the request goes.
    pub(crate) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// What it shares with everything else, reached through the slot because a count of its own
    /// would be one more that all requests on all processors write.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.pool.as_ref().expect("nobody has a slot that was forgotten").core
    }

    /// What happens to the slot if the client gives up.
    pub(crate) const fn concurrency(&self) -> Concurrency {
        self.concurrency
    }

    /// How the wait for it went; `None`: it was free.
    pub(crate) fn wake(&self) -> Option<&Wake> {
        self.wake.as_deref()
    }

    /// Gives the slot back and says that its sandbox accepts no connection.
    pub(crate) fn give_back_dead(self) {
        if let Some(pool) = &self.pool {
            pool.mark_dead(self.index, &self.upstream);
        }
    }

    /// Gives the slot back and says that its sandbox did not end a response in time.
    pub(crate) fn give_back_retired(self) {
        if let Some(pool) = &self.pool {
            pool.retire(self.index);
        }
    }

    /// Ends without freeing the slot.
    fn forget(mut self) {
        self.pool = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.release(self.index);
        }
    }
}
