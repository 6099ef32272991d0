//! A pool's part in lending slots to other gateways, and borrowing theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use tokio::time::sleep;

use super::pool::{Pool, State};
use crate::lending::books::Todo;
use crate::lending::link::Outbox;
use crate::lending::message::{Hold, Message};
use crate::lending::{PeerEnd, ProtocolError};
use crate::model::Concurrency;

impl Pool {
    // --- what links do ---

    /// A link begins: adds what is still used of the other end's.
    pub(crate) fn greet(self: &Arc<Self>, peer: &str, link: &Arc<Outbox>, holds: &mut Vec<Hold>) {
        self.change(|state| state.books.greet(&self.id.uid, peer, link, holds));
    }

    /// The other end of a new link uses so much of ours, by sandbox.
    pub(crate) fn greeted(self: &Arc<Self>, peer: &Arc<str>, holds: &BTreeMap<Arc<str>, u32>) {
        self.change(|state| state.books.greeted(&mut state.ledger, peer, holds));
    }

    /// A link has ended.
    pub(crate) fn disconnect(self: &Arc<Self>, peer: &str, link: &Arc<Outbox>) {
        self.change(|state| state.books.disconnect(peer, link));
    }

    /// The next message about this pool.
    pub(crate) fn next_message(&self, peer: &str, link: &Arc<Outbox>) -> Option<Message> {
        self.state.lock().books.next(&self.id.uid, peer, link)
    }

    /// Takes in a message about this pool.
    pub(crate) fn take_message(
        self: &Arc<Self>,
        peer: &Arc<str>,
        link: &Arc<Outbox>,
        message: Message,
    ) -> Result<(), ProtocolError> {
        self.change(|state| {
            let ticket = || self.core.next_ticket();
            state.books.take(&mut state.ledger, (peer, link), message, ticket)
        })
    }

    // --- how gateways end ---

    pub(crate) fn forget_peer(self: &Arc<Self>, peer: &str, end: PeerEnd) {
        self.change(|state| {
            let lent = state.books.forget(&mut state.ledger, peer);
            let concurrency = state.config.as_ref().map(|config| config.concurrency);
            if end == PeerEnd::Left || concurrency == Some(Concurrency::Soft) {
                return;
            }
            // What the lost gateway had on its way may still run there.
            for uid in lent {
                if let Some(index) = state.find(&uid) {
                    state.ledger.member_mut(index).is_retired = true;
                    state.settle(index);
                }
            }
        });
    }

    pub(crate) fn call_home(self: &Arc<Self>) {
        self.change(|state| state.books.leave());
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state.lock().ledger.running() == 0
    }

    /// Under `Soft`, what runs elsewhere on slots of ours holds nobody up: the promise is not worth
    /// that visitors wait for the end of a stream.
    pub(crate) fn is_square(&self) -> bool {
        let state = self.state.lock();
        let mut members = state.ledger.iter();
        let is_seen = members.all(|(_, member, ..)| !member.is_retired);
        let concurrency = state.config.as_ref().map(|config| config.concurrency);
        let is_lent = concurrency != Some(Concurrency::Soft) && state.books.totals().0 > 0;
        is_seen && state.ledger.running() == 0 && !is_lent && state.books.owes_nothing()
    }

    // --- under the lock ---

    /// Returns what others want back, then gives what is free to those who wait here and
    /// elsewhere, in the order in which they came.
    pub(super) fn trade(self: &Arc<Self>, state: &mut State) -> Todo {
        state.books.reclaim(&mut state.ledger);
        loop {
            let Some(head) = state.books.head(&state.ledger) else {
                self.hand_over(state, u64::MAX);
                break;
            };
            self.hand_over(state, head);
            if state.ledger.has_free_slot() {
                state.books.lend(&mut state.ledger, self.core.next_ticket());
            }
        }
        let links = self.core.links.load();
        let (todo, recalls) = state.books.update(&state.ledger, &links);
        self.core.metrics.slots_recalled.inc_by(recalls.into());
        self.measure(state);
        todo
    }

    fn measure(&self, state: &mut State) {
        let (lent, borrowed) = state.books.totals();
        let before = std::mem::replace(&mut state.measured, (lent, borrowed));
        let metrics = &self.core.metrics;
        metrics.slots_lent.inc_by(i64::from(lent) - i64::from(before.0));
        metrics.slots_borrowed.inc_by(i64::from(borrowed) - i64::from(before.1));
    }

    // --- outside the lock ---

    /// Tells the links that there is something to say, and sees to the time it may take.
    pub(super) fn see_to(self: &Arc<Self>, todo: Todo) {
        for link in todo.links {
            link.push(Arc::clone(self));
        }
        if todo.is_asking {
            self.core.spawn(await_answers(Arc::downgrade(self)));
        }
        if todo.is_busy && !std::mem::replace(&mut self.state.lock().is_ticking, true) {
            self.core.spawn(tick(Arc::downgrade(self)));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (lent, borrowed) = self.state.get_mut().measured;
        self.core.metrics.slots_lent.dec_by(lent.into());
        self.core.metrics.slots_borrowed.dec_by(borrowed.into());
    }
}

/// Another sandbox is asked for when the other gateways took too long to answer.
async fn await_answers(pool: Weak<Pool>) {
    let Some(time) = pool.upgrade().map(|pool| pool.core.settings.loan_answer) else { return };
    sleep(time).await;
    if let Some(pool) = pool.upgrade() {
        pool.change(|state| state.books.stop_asking());
    }
}

/// Looks after what is borrowed and what is wanted until nothing is.
async fn tick(pool: Weak<Pool>) {
    let Some(time) = pool.upgrade().map(|pool| pool.core.settings.loan_linger) else { return };
    loop {
        sleep(time).await;
        let Some(pool) = pool.upgrade() else { return };
        let is_busy = pool.change(|state| {
            state.is_ticking = state.books.tick(&mut state.ledger);
            state.is_ticking
        });
        if !is_busy {
            return;
        }
    }
}
