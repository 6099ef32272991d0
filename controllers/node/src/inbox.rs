//! What the watches hand to the thread that writes to the kernel.
//!
//! It is no queue: it holds the index itself and which services were touched, so however much
//! comes while the kernel is busy, what waits is bounded by what there is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use portolan_nft::Range;

use crate::index::{Changes, Index, Sizes};

/// What the rules need to know of the machine itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ground {
    /// The node's addresses at which node ports answer.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Ranges of Pods on a bridge that hides what they say to each other from the rules.
    pub(crate) bridged: BTreeSet<Range>,
}

/// Between the watches and the writer. Shared by reference.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    /// The machine, if it was not taken yet; and as it was said last.
    ground: Option<Ground>,
    last_ground: Option<Ground>,
    /// When the oldest of what waits came in.
    since: Option<Instant>,
    verify: bool,
    stop: bool,
}

/// What the writer is woken for.
#[derive(Debug)]
pub(crate) enum Wake {
    /// To end.
    Stop,
    /// To do this.
    Work(Work),
    /// Nothing happened until the time it gave.
    Deadline,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) changes: Changes,
    /// The machine, if it is another than before.
    pub(crate) ground: Option<Ground>,
    /// Whether the table should be read: somebody may have changed it.
    pub(crate) verify: bool,
    /// When the oldest change came in.
    pub(crate) since: Option<Instant>,
    /// How much there is, with the changes.
    pub(crate) sizes: Sizes,
}

impl Inbox {
    /// Changes the index; called by watches.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Index)) {
        self.leave(|state| {
            change(&mut state.index);
            state.index.is_touched()
        });
    }

    /// Says what the machine is like.
    pub(crate) fn set_ground(&self, ground: Ground) {
        self.leave(|state| {
            state.last_ground = Some(ground.clone());
            state.ground = Some(ground);
            true
        });
    }

    /// Asks to read the table and to repair it.
    pub(crate) fn verify(&self) {
        self.leave(|state| {
            state.verify = true;
            true
        });
    }

    /// Takes out the addresses that some slice lists now.
    pub(crate) fn forget_listed(&self, addresses: &mut BTreeSet<IpAddr>) {
        if !addresses.is_empty() {
            let state = self.state.lock();
            addresses.retain(|address| !state.index.lists(*address));
        }
    }

    /// Whether a sandbox or a gateway may have this address.
    pub(crate) fn may_have(&self, address: IpAddr) -> bool {
        self.state.lock().index.may_have(address)
    }

    /// The node ports over UDP that AppServices ask for.
    pub(crate) fn asked_over_udp(&self) -> BTreeSet<u16> {
        self.state.lock().index.asked_over_udp()
    }

    /// Says everything again.
    pub(crate) fn repeat(&self) {
        self.leave(|state| {
            state.index.touch_all();
            state.ground = state.last_ground.clone();
            true
        });
    }

    /// Ends the writer.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.rung.notify_all();
    }

    /// Waits until there is something to do and it is not earlier than `earliest`; or until
    /// `deadline`.
    pub(crate) fn wait(&self, earliest: Instant, deadline: Instant) -> Wake {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return Wake::Stop;
            }
            let now = Instant::now();
            let until = match state.has_work() {
                true if now >= earliest => return Wake::Work(state.take()),
                true => earliest.min(deadline),
                false => deadline,
            };
            if now >= deadline {
                return Wake::Deadline;
            }
            self.rung.wait_until(&mut state, until);
        }
    }

    fn leave(&self, note: impl FnOnce(&mut State) -> bool) {
        let mut state = self.state.lock();
        if note(&mut state) && state.since.is_none() {
            state.since = Some(Instant::now());
            self.rung.notify_all();
        }
    }
}

impl State {
    fn has_work(&self) -> bool {
        self.verify || self.ground.is_some() || self.index.is_touched()
    }

    fn take(&mut self) -> Work {
        let changes = self.index.take_changes();
        Work {
            changes,
            ground: self.ground.take(),
            verify: std::mem::take(&mut self.verify),
            since: self.since.take(),
            sizes: self.index.sizes(),
        }
    }
}
