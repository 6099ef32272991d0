//! The accounts of one pool with every other gateway.
//!
//! Pure: the pool calls [`Books::reclaim`], hands over what is free, and calls [`Books::update`],
//! after each change and under its lock. What has to be said follows from the accounts, so nothing
//! queues: counts that were not sent yet add up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ProtocolError;
use super::link::Outbox;
use super::message::{Hold, Message};
use crate::activator::{Index, Ledger};
use crate::model::Slots;

/// Slots asked for at once, at most.
const WANT_MAX: u32 = 1 << 16;

/// What the books need to know of a sandbox.
pub(crate) trait Lendable {
    fn uid(&self) -> &Arc<str>;
    /// Something that cannot be seen may run there: its slots move no more.
    fn is_retired(&self) -> bool;
}

/// One pool's accounts.
#[derive(Debug, Default)]
pub(crate) struct Books {
    accounts: BTreeMap<Arc<str>, Account>,
    /// The gateway ends: everything goes home, nothing is lent any more.
    is_leaving: bool,
    /// What was refused by others may have become welcome.
    is_fresh: bool,
}

/// One pool's account with one other gateway.
#[derive(Debug, Default)]
struct Account {
    /// `None` while there is no connection.
    link: Option<Arc<Outbox>>,
    /// The link knows that there is something to say.
    is_marked: bool,

    /// Slots that we could use.
    want: u32,
    /// What the other end was told of it.
    told: u32,
    /// To be told again in any case.
    is_want_due: bool,
    answer: Answer,
    borrowed: BTreeMap<Arc<str>, Loan>,
    /// Given back, not sent yet: how many, and whether for want of use.
    returning: BTreeMap<Arc<str>, (u32, bool)>,

    /// Slots that the other end could use.
    asked: u32,
    /// Its place among those who wait here.
    ticket: u64,
    later: Later,
    lent: BTreeMap<Arc<str>, Loan>,
    /// Lent, not sent yet.
    lending: BTreeMap<Arc<str>, u32>,
    /// Called back, not sent yet.
    recalling: BTreeMap<Arc<str>, u32>,
    /// Sandboxes that the other end cannot use.
    refused: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Loan {
    count: u32,
    /// Of these, called back.
    recalled: u32,
    /// The fewest that were not in use since the last look.
    idle: u32,
}

/// What the other end said to our want.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Nothing is wanted.
    #[default]
    Idle,
    /// Nothing yet.
    Pending,
    /// That there is nothing, or nothing in time.
    Later,
}

/// What we said to the other end's want.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Later {
    #[default]
    No,
    Due,
    Sent,
}

impl Account {
    /// Nothing is lent, borrowed, wanted or left to say: the next want opens it anew.
    fn is_closed(&self) -> bool {
        let is_settled = self.borrowed.is_empty() && self.lent.is_empty();
        is_settled && self.want == 0 && self.asked == 0 && !self.is_marked && !self.has_news()
    }

    fn has_news(&self) -> bool {
        self.is_want_due
            || self.want != self.told
            || self.later == Later::Due
            || !self.returning.is_empty()
            || !self.lending.is_empty()
            || !self.recalling.is_empty()
    }
}

/// What is to be done after an update, outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Todo {
    /// Links with something to say.
    pub(crate) links: Vec<Arc<Outbox>>,
    /// Somebody was asked who had not been.
    pub(crate) is_asking: bool,
    /// Something is borrowed or wanted.
    pub(crate) is_busy: bool,
}

impl Books {
    /// Whether there is nothing that any change could move.
    pub(crate) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Slots lent and borrowed.
    pub(crate) fn totals(&self) -> (u32, u32) {
        let sum = |loans: &BTreeMap<_, Loan>| loans.values().map(|loan| loan.count).sum::<u32>();
        let mut all = self.accounts.values().map(|account| (&account.lent, &account.borrowed));
        all.by_ref().fold((0, 0), |(lent, borrowed), (ours, theirs)| {
            (lent + sum(ours), borrowed + sum(theirs))
        })
    }

    /// Whether nothing is borrowed, or on its way back.
    pub(crate) fn owes_nothing(&self) -> bool {
        let is_sent = self.accounts.values().all(|account| account.returning.is_empty());
        is_sent && self.totals().1 == 0
    }

    /// Whether a gateway has not answered yet whether it has something.
    pub(crate) fn is_asking(&self) -> bool {
        self.accounts.values().any(|account| account.answer == Answer::Pending)
    }

    /// Stops waiting for answers.
    pub(crate) fn stop_asking(&mut self) {
        for account in self.accounts.values_mut() {
            if account.answer == Answer::Pending {
                account.answer = Answer::Later;
            }
        }
    }

    pub(crate) fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// A sandbox has become usable.
    pub(crate) fn refresh(&mut self) {
        self.is_fresh = true;
    }

    // --- connections ---

    /// A link begins: what is still used of the other end's. From now on it is told everything.
    pub(crate) fn greet(
        &mut self,
        pool: &Arc<str>,
        peer: &str,
        link: &Arc<Outbox>,
        holds: &mut Vec<Hold>,
    ) {
        let Some(account) = self.accounts.get_mut(peer) else { return };
        account.disconnect();
        account.link = Some(Arc::clone(link));
        holds.extend(account.borrowed.iter().map(|(sandbox, loan)| Hold {
            pool: Arc::clone(pool),
            sandbox: Arc::clone(sandbox),
            count: loan.count,
        }));
    }

    /// The other end of a new link has said what it uses.
    pub(crate) fn greeted<M: Lendable, W>(
        &mut self,
        ledger: &mut Ledger<M, W>,
        peer: &Arc<str>,
        holds: &BTreeMap<Arc<str>, u32>,
    ) {
        if holds.is_empty() && !self.accounts.contains_key(peer) {
            return;
        }
        let account = self.accounts.entry(Arc::clone(peer)).or_default();
        for (uid, loan) in std::mem::take(&mut account.lent) {
            shift_lent(ledger, &uid, |lent| lent.saturating_sub(loan.count));
        }
        for (uid, &count) in holds {
            if shift_lent(ledger, uid, |lent| lent.saturating_add(count)) {
                account.lent.insert(Arc::clone(uid), Loan { count, ..Loan::default() });
            }
        }
    }

    /// The link is down. What is borrowed and not in use counts no more.
    pub(crate) fn disconnect(&mut self, peer: &str, link: &Arc<Outbox>) {
        let Some(account) = self.accounts.get_mut(peer) else { return };
        if account.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link)) {
            account.disconnect();
        }
    }

    /// The other gateway is no more. Returns the sandboxes that had slots lent to it.
    pub(crate) fn forget<M: Lendable, W>(
        &mut self,
        ledger: &mut Ledger<M, W>,
        peer: &str,
    ) -> Vec<Arc<str>> {
        let Some(account) = self.accounts.remove(peer) else { return Vec::new() };
        for (uid, loan) in &account.borrowed {
            shift_borrowed(ledger, uid, |borrowed| borrowed.saturating_sub(loan.count));
        }
        for (uid, loan) in &account.lent {
            shift_lent(ledger, uid, |lent| lent.saturating_sub(loan.count));
        }
        account.lent.into_keys().collect()
    }

    // --- what the other end says ---

    /// Takes in one message about this pool. `ticket`: the next place in the order of arrival.
    pub(crate) fn take<M: Lendable, W>(
        &mut self,
        ledger: &mut Ledger<M, W>,
        (peer, link): (&Arc<str>, &Arc<Outbox>),
        message: Message,
        ticket: impl FnOnce() -> u64,
    ) -> Result<(), ProtocolError> {
        let account = self.accounts.entry(Arc::clone(peer)).or_default();
        if !Arc::ptr_eq(account.link.get_or_insert_with(|| Arc::clone(link)), link) {
            return Err(ProtocolError("a newer link took its place"));
        }
        match message {
            // Belongs to all pools at once.
            Message::Hello { .. } => {}
            Message::Want { count, is_fresh, .. } => {
                if account.asked == 0 && count > 0 {
                    account.ticket = ticket();
                    account.later = Later::No;
                }
                if is_fresh {
                    account.refused.clear();
                    account.later = Later::No;
                }
                account.asked = count;
            }
            Message::Later { .. } => {
                if account.answer == Answer::Pending {
                    account.answer = Answer::Later;
                }
            }
            Message::Lent(hold) => account.borrow(ledger, &hold),
            Message::Recall(hold) => {
                if let Some(loan) = account.borrowed.get_mut(&hold.sandbox) {
                    loan.recalled = loan.recalled.saturating_add(hold.count).min(loan.count);
                }
            }
            Message::Returned { hold, is_refused } => {
                account.regain(ledger, &hold)?;
                if is_refused {
                    account.refused.insert(hold.sandbox);
                }
            }
        }
        Ok(())
    }

    /// The next message about this pool for the other end.
    pub(crate) fn next(
        &mut self,
        pool: &Arc<str>,
        peer: &str,
        link: &Arc<Outbox>,
    ) -> Option<Message> {
        let account = self.accounts.get_mut(peer)?;
        account.link.as_ref().filter(|current| Arc::ptr_eq(current, link))?;
        let hold = |(sandbox, count)| Hold { pool: Arc::clone(pool), sandbox, count };
        // A loan is told of before it is called back.
        if let Some(lent) = account.lending.pop_first() {
            return Some(Message::Lent(hold(lent)));
        }
        if let Some((sandbox, (count, is_refused))) = account.returning.pop_first() {
            return Some(Message::Returned { hold: hold((sandbox, count)), is_refused });
        }
        if let Some(recalled) = account.recalling.pop_first() {
            return Some(Message::Recall(hold(recalled)));
        }
        if account.is_want_due || account.want != account.told {
            let is_repeated = std::mem::take(&mut account.is_want_due);
            let is_fresh = is_repeated || account.told == 0;
            account.told = account.want;
            return Some(Message::Want { pool: Arc::clone(pool), count: account.want, is_fresh });
        }
        if account.later == Later::Due {
            account.later = Later::Sent;
            return Some(Message::Later { pool: Arc::clone(pool) });
        }
        account.is_marked = false;
        None
    }

    // --- after every change ---

    /// Gives back what others want back, or what is of no use here. Before anything is handed to
    /// our own waiters, so that a slot that was called back goes home.
    pub(crate) fn reclaim<M: Lendable, W>(&mut self, ledger: &mut Ledger<M, W>) {
        let is_idle = ledger.queued() == 0;
        for account in self.accounts.values_mut() {
            let is_linked = account.link.is_some();
            let mut given = Vec::new();
            for (uid, loan) in &mut account.borrowed {
                let Some(index) = find(ledger, uid) else {
                    // The sandbox is gone, and what ran there with it.
                    given.push((Arc::clone(uid), loan.count, true));
                    loan.count = 0;
                    continue;
                };
                let balance = ledger.balance(index);
                if ledger.member(index).is_retired() {
                    continue;
                }
                let is_useless = !is_linked || !balance.is_usable || self.is_leaving && is_idle;
                let due = if is_useless { loan.count } else { loan.recalled };
                let count = due.min(balance.spare).min(loan.count);
                loan.idle = loan.idle.min(balance.spare - count);
                if count > 0 {
                    loan.count -= count;
                    loan.recalled = loan.recalled.saturating_sub(count);
                    ledger.set_loans(index, balance.borrowed - count, balance.lent);
                    given.push((Arc::clone(uid), count, !balance.is_usable));
                }
            }
            account.borrowed.retain(|_, loan| loan.count > 0);
            // The next greeting says what is still used.
            for (uid, count, is_refused) in given.into_iter().filter(|_| is_linked) {
                account.give(uid, count, is_refused);
            }
        }
    }

    /// Gives back what was not in use since the last look. Whether to look again.
    pub(crate) fn tick<M: Lendable, W>(&mut self, ledger: &mut Ledger<M, W>) -> bool {
        let mut is_busy = false;
        for account in self.accounts.values_mut().filter(|account| account.link.is_some()) {
            let mut given = Vec::new();
            for (uid, loan) in &mut account.borrowed {
                let Some(index) = find(ledger, uid) else { continue };
                let balance = ledger.balance(index);
                let count = match ledger.member(index).is_retired() {
                    true => 0,
                    false => loan.idle.min(balance.spare).min(loan.count),
                };
                loan.idle = balance.spare - count;
                loan.count -= count;
                loan.recalled = loan.recalled.min(loan.count);
                ledger.set_loans(index, balance.borrowed - count, balance.lent);
                given.push((Arc::clone(uid), count));
            }
            account.borrowed.retain(|_, loan| loan.count > 0);
            for (uid, count) in given.into_iter().filter(|(_, count)| *count > 0) {
                account.give(uid, count, false);
            }
            account.is_want_due |= account.want > 0;
            if account.answer == Answer::Pending {
                account.answer = Answer::Later;
            }
            is_busy |= account.want > 0 || !account.borrowed.is_empty();
        }
        is_busy
    }

    /// Place of the other gateway that has waited longest for a slot that can be lent to it.
    pub(crate) fn head<M: Lendable, W>(&self, ledger: &Ledger<M, W>) -> Option<u64> {
        self.borrowers(ledger).map(|(ticket, ..)| ticket).min()
    }

    /// Lends that gateway one slot; `ticket` is its next place.
    pub(crate) fn lend<M: Lendable, W>(&mut self, ledger: &mut Ledger<M, W>, ticket: u64) {
        let first = self.borrowers(ledger).min_by_key(|(ticket, ..)| *ticket);
        let Some((_, peer, index)) =
            first.map(|(ticket, peer, index)| (ticket, peer.clone(), index))
        else {
            return;
        };
        let account = self.accounts.get_mut(&peer).expect("a borrower has an account");
        let uid = Arc::clone(ledger.member(index).uid());
        let balance = ledger.balance(index);
        ledger.set_loans(index, balance.borrowed, balance.lent + 1);
        account.asked -= 1;
        account.ticket = ticket;
        account.later = Later::No;
        account.lent.entry(Arc::clone(&uid)).or_default().count += 1;
        *account.lending.entry(uid).or_default() += 1;
    }

    /// Those who want a slot, each with the one it would get.
    fn borrowers<'a, M: Lendable, W>(
        &'a self,
        ledger: &'a Ledger<M, W>,
    ) -> impl Iterator<Item = (u64, &'a Arc<str>, Index)> {
        let asking = self.accounts.iter().filter(|(_, account)| account.asked > 0);
        asking.filter(|_| !self.is_leaving).filter_map(|(peer, account)| {
            account.link.as_ref()?;
            let (index, ..) = ledger.iter().find(|(index, member, ..)| {
                let balance = ledger.balance(*index);
                let Slots::Limited(granted) = balance.slots else { return false };
                // Only one's own is lent, so that every slot has one lender and one borrower.
                let is_own = balance.borrowed == 0 && balance.lent < granted;
                is_own
                    && balance.spare > 0
                    && balance.is_usable
                    && !account.refused.contains(member.uid())
            })?;
            Some((account.ticket, peer, index))
        })
    }

    /// Brings wants, answers and recalls in line with the queue, when all that is free is given.
    pub(crate) fn update<M: Lendable, W>(
        &mut self,
        ledger: &Ledger<M, W>,
        links: &[(Arc<str>, Arc<Outbox>)],
    ) -> (Todo, u32) {
        let queued = u32::try_from(ledger.queued()).unwrap_or(u32::MAX).min(WANT_MAX);
        let want = if queued > 0 && ledger.has_limited() { queued } else { 0 };
        let mut todo = Todo::default();
        if want > 0 {
            for (peer, link) in links {
                let account = self.accounts.entry(Arc::clone(peer)).or_default();
                account.link.get_or_insert_with(|| Arc::clone(link));
            }
        }
        let is_fresh = std::mem::take(&mut self.is_fresh);
        for account in self.accounts.values_mut() {
            account.lent.retain(|uid, _| find(ledger, uid).is_some());
            if account.link.is_none() {
                continue;
            }
            account.want = want;
            todo.is_busy |= want > 0 || !account.borrowed.is_empty();
            account.is_want_due |= is_fresh && want > 0;
            if want == 0 {
                account.answer = Answer::Idle;
            } else if account.answer == Answer::Idle {
                account.answer = Answer::Pending;
                todo.is_asking = true;
            }
            if account.asked > 0 && account.later == Later::No {
                account.later = Later::Due;
            }
        }
        let recalls = self.recall(ledger, queued);
        for account in self.accounts.values_mut() {
            let Some(link) = &account.link else { continue };
            if account.has_news() && !std::mem::replace(&mut account.is_marked, true) {
                todo.links.push(Arc::clone(link));
            }
        }
        // As long as there is an account, every request of the pool pays for looking after it.
        self.accounts.retain(|_, account| !account.is_closed());
        (todo, recalls)
    }

    /// Calls back as many as others wait for, and those that were never ours to lend.
    fn recall<M: Lendable, W>(&mut self, ledger: &Ledger<M, W>, queued: u32) -> u32 {
        let asked: u32 = self.accounts.values().map(|account| account.asked).sum();
        let loans = self.accounts.values().flat_map(|account| account.lent.values());
        let mut underway: u32 = loans.map(|loan| loan.recalled).sum();
        let mut recalls = 0;
        for account in self.accounts.values_mut().filter(|account| account.link.is_some()) {
            let needed = queued.saturating_add(asked - account.asked);
            for (uid, loan) in &mut account.lent {
                let Some(index) = find(ledger, uid) else { continue };
                let balance = ledger.balance(index);
                let Slots::Limited(granted) = balance.slots else { continue };
                let wanted = match self.is_leaving || balance.lent > granted {
                    true => loan.count,
                    false => needed.saturating_sub(underway),
                };
                let count = wanted.min(loan.count - loan.recalled);
                if count > 0 {
                    loan.recalled += count;
                    underway += count;
                    recalls += count;
                    *account.recalling.entry(Arc::clone(uid)).or_default() += count;
                }
            }
        }
        recalls
    }
}

impl Account {
    fn disconnect(&mut self) {
        *self = Self {
            borrowed: std::mem::take(&mut self.borrowed),
            lent: std::mem::take(&mut self.lent),
            ..Self::default()
        };
        for loan in self.borrowed.values_mut().chain(self.lent.values_mut()) {
            loan.recalled = 0;
        }
    }

    fn borrow<M: Lendable, W>(&mut self, ledger: &mut Ledger<M, W>, hold: &Hold) {
        let index = find(ledger, &hold.sandbox);
        let index = index.filter(|index| ledger.balance(*index).slots != Slots::Unlimited);
        match index {
            Some(index) => {
                let balance = ledger.balance(index);
                let borrowed = balance.borrowed.saturating_add(hold.count);
                ledger.set_loans(index, borrowed, balance.lent);
                let loan = self.borrowed.entry(Arc::clone(&hold.sandbox)).or_default();
                loan.count = loan.count.saturating_add(hold.count);
            }
            None => self.give(Arc::clone(&hold.sandbox), hold.count, true),
        }
        // What is wanted now is less; whether there is more, the other end has to say.
        self.told = self.told.saturating_sub(hold.count);
        if self.answer == Answer::Later {
            self.answer = Answer::Pending;
        }
    }

    fn regain<M: Lendable, W>(
        &mut self,
        ledger: &mut Ledger<M, W>,
        hold: &Hold,
    ) -> Result<(), ProtocolError> {
        // The sandbox may be gone here already.
        let Some(loan) = self.lent.get_mut(&hold.sandbox) else { return Ok(()) };
        let left = loan.count.checked_sub(hold.count);
        loan.count = left.ok_or(ProtocolError("more slots are returned than were lent"))?;
        loan.recalled = loan.recalled.saturating_sub(hold.count);
        if loan.count == 0 {
            self.lent.remove(&hold.sandbox);
            self.recalling.remove(&hold.sandbox);
        }
        shift_lent(ledger, &hold.sandbox, |lent| lent.saturating_sub(hold.count));
        Ok(())
    }

    fn give(&mut self, uid: Arc<str>, count: u32, is_refused: bool) {
        let returning = self.returning.entry(uid).or_default();
        *returning = (returning.0.saturating_add(count), is_refused);
    }
}

/// Pools have a few dozen sandboxes at most.
fn find<M: Lendable, W>(ledger: &Ledger<M, W>, uid: &str) -> Option<Index> {
    ledger.iter().find(|(_, member, ..)| &**member.uid() == uid).map(|(index, ..)| index)
}

/// Whether the sandbox is known.
fn shift_lent<M: Lendable, W>(
    ledger: &mut Ledger<M, W>,
    uid: &str,
    change: impl FnOnce(u32) -> u32,
) -> bool {
    let Some(index) = find(ledger, uid) else { return false };
    let balance = ledger.balance(index);
    ledger.set_loans(index, balance.borrowed, change(balance.lent));
    true
}

fn shift_borrowed<M: Lendable, W>(
    ledger: &mut Ledger<M, W>,
    uid: &str,
    change: impl FnOnce(u32) -> u32,
) {
    if let Some(index) = find(ledger, uid) {
        let balance = ledger.balance(index);
        ledger.set_loans(index, change(balance.borrowed), balance.lent);
    }
}
