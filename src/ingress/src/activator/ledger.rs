//! The arithmetic of slots: who has how many, who waits, who is next.
//!
//! Pure and synchronous. The pool wraps one in its lock and calls [`Ledger::next`] until it is
//! empty after every change; between calls a waiting queue therefore means that no slot is free,
//! which is why [`Ledger::take`] never overtakes anyone.

use std::collections::BTreeMap;

use crate::model::Slots;

/// Place of a member. Valid as long as the member is known or holds a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Index(usize);

/// Members `M` with slots, waiters `W` in order of their tickets.
#[derive(Debug)]
pub(crate) struct Ledger<M, W> {
    entries: Vec<Option<Entry<M>>>,
    /// Entries with a free slot. Full, unusable and gone ones are not in it, so that a choice
    /// never looks at them.
    open: Vec<usize>,
    queue: BTreeMap<u64, W>,
    running: u32,
}

#[derive(Debug)]
struct Entry<M> {
    member: M,
    slots: Slots,
    /// Slots that other gateways let us use on top.
    borrowed: u32,
    /// Slots of ours that others use.
    lent: u32,
    used: u32,
    usable: bool,
    /// Forgotten by the feed, kept for the slots still in use.
    gone: bool,
    /// Position in `open`.
    open_at: Option<usize>,
}

/// The slots of a member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Balance {
    pub(crate) slots: Slots,
    pub(crate) borrowed: u32,
    pub(crate) lent: u32,
    /// Not in use, of those counted.
    pub(crate) spare: u32,
    pub(crate) is_usable: bool,
}

impl<M> Entry<M> {
    fn has_free_slot(&self) -> bool {
        let free = match self.slots {
            Slots::Limited(_) => self.spare() > 0,
            Slots::Unlimited => true,
        };
        free && self.usable && !self.gone
    }

    /// Slots not in use, of those counted.
    const fn spare(&self) -> u32 {
        let Slots::Limited(granted) = self.slots else { return 0 };
        granted.saturating_add(self.borrowed).saturating_sub(self.lent).saturating_sub(self.used)
    }
}

impl<M, W> Ledger<M, W> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), open: Vec::new(), queue: BTreeMap::new(), running: 0 }
    }

    /// Slots in use, those on forgotten members included.
    pub(crate) const fn running(&self) -> u32 {
        self.running
    }

    /// Waiters.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Adds a member that is not usable yet.
    pub(crate) fn insert(&mut self, member: M, slots: Slots) -> Index {
        let entry = Entry {
            member,
            slots,
            borrowed: 0,
            lent: 0,
            used: 0,
            usable: false,
            gone: false,
            open_at: None,
        };
        let place = self.entries.iter().position(Option::is_none).unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[place] = Some(entry);
        Index(place)
    }

    /// The known members with their use, without those forgotten.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Index, &M, Slots, u32)> {
        self.entries.iter().enumerate().filter_map(|(place, entry)| {
            let entry = entry.as_ref().filter(|entry| !entry.gone)?;
            Some((Index(place), &entry.member, entry.slots, entry.used))
        })
    }

    pub(crate) fn member(&self, index: Index) -> &M {
        &self.entry(index).member
    }

    pub(crate) fn member_mut(&mut self, index: Index) -> &mut M {
        &mut self.entry_mut(index).member
    }

    /// Changes the limit. Slots in use beyond it run out; none is given until enough have.
    pub(crate) fn set_slots(&mut self, index: Index, slots: Slots) {
        self.entry_mut(index).slots = slots;
        self.settle(index);
    }

    /// Says whether new requests may go there.
    pub(crate) fn set_usable(&mut self, index: Index, usable: bool) {
        self.entry_mut(index).usable = usable;
        self.settle(index);
    }

    /// Forgets a member. Its slots in use stay counted until they are released.
    pub(crate) fn remove(&mut self, index: Index) {
        self.entry_mut(index).gone = true;
        self.settle(index);
    }

    /// Takes a slot of the less loaded of two members drawn at random: close to the least loaded
    /// at a constant cost, and without the herd that a strict minimum draws to a new member.
    pub(crate) fn take(&mut self, rng: &mut fastrand::Rng) -> Option<Index> {
        let chosen = match self.open.len() {
            0 => return None,
            1 => self.open[0],
            count => {
                let first = rng.usize(..count);
                let second = (first + rng.usize(1..count)) % count;
                let (first, second) = (self.open[first], self.open[second]);
                if self.used(first) <= self.used(second) { first } else { second }
            }
        };
        let index = Index(chosen);
        self.entry_mut(index).used += 1;
        self.running += 1;
        self.settle(index);
        Some(index)
    }

    /// Gives a slot back.
    pub(crate) fn release(&mut self, index: Index) {
        let entry = self.entry_mut(index);
        entry.used = entry.used.checked_sub(1).expect("a released slot was taken before");
        self.running = self.running.checked_sub(1).expect("a released slot was counted");
        self.settle(index);
    }

    /// What was granted, and what is on loan.
    pub(crate) fn balance(&self, index: Index) -> Balance {
        let entry = self.entry(index);
        Balance {
            slots: entry.slots,
            borrowed: entry.borrowed,
            lent: entry.lent,
            spare: entry.spare(),
            is_usable: entry.usable,
        }
    }

    /// Changes what is on loan.
    pub(crate) fn set_loans(&mut self, index: Index, borrowed: u32, lent: u32) {
        let entry = self.entry_mut(index);
        (entry.borrowed, entry.lent) = (borrowed, lent);
        self.settle(index);
    }

    /// Whether a usable member counts its slots.
    pub(crate) fn has_limited(&self) -> bool {
        let mut known = self.entries.iter().flatten();
        known.any(|entry| entry.usable && !entry.gone && entry.slots != Slots::Unlimited)
    }

    /// Whether any slot is free.
    pub(crate) const fn has_free_slot(&self) -> bool {
        !self.open.is_empty()
    }

    /// Ticket of the waiter at the head.
    pub(crate) fn head(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(ticket, _)| *ticket)
    }

    /// Adds a waiter. Tickets are unique and say the order.
    pub(crate) fn enqueue(&mut self, ticket: u64, waiter: W) {
        let previous = self.queue.insert(ticket, waiter);
        debug_assert!(previous.is_none(), "a ticket waits in one place only");
    }

    /// Removes a waiter that gave up; `None`: it has been served already.
    pub(crate) fn cancel(&mut self, ticket: u64) -> Option<W> {
        self.queue.remove(&ticket)
    }

    /// The waiter at the head together with the slot it gets, if there is one of each.
    pub(crate) fn next(&mut self, rng: &mut fastrand::Rng) -> Option<(W, Index)> {
        if self.queue.is_empty() {
            return None;
        }
        let index = self.take(rng)?;
        let (_, waiter) = self.queue.pop_first().expect("the queue was seen not empty");
        Some((waiter, index))
    }

    /// Empties the queue, in order.
    pub(crate) fn drain_queue(&mut self) -> impl Iterator<Item = W> + use<M, W> {
        std::mem::take(&mut self.queue).into_values()
    }

    fn used(&self, place: usize) -> u32 {
        self.entries[place].as_ref().map_or(0, |entry| entry.used)
    }

    fn entry(&self, index: Index) -> &Entry<M> {
        self.entries[index.0].as_ref().expect("an index lives as long as its entry")
    }

    fn entry_mut(&mut self, index: Index) -> &mut Entry<M> {
        self.entries[index.0].as_mut().expect("an index lives as long as its entry")
    }

    /// Brings `open` and the entry's life in line with what changed.
    fn settle(&mut self, index: Index) {
        let entry = self.entry(index);
        let (is_open, has_free_slot) = (entry.open_at, entry.has_free_slot());
        match (is_open, has_free_slot) {
            (None, true) => {
                self.entry_mut(index).open_at = Some(self.open.len());
                self.open.push(index.0);
            }
            (Some(position), false) => {
                self.entry_mut(index).open_at = None;
                self.open.swap_remove(position);
                if let Some(&moved) = self.open.get(position) {
                    self.entry_mut(Index(moved)).open_at = Some(position);
                }
            }
            _ => {}
        }
        let entry = self.entry(index);
        if entry.gone && entry.used == 0 {
            self.entries[index.0] = None;
        }
    }
}

#[cfg(test)]
mod tests;
