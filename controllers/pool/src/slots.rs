//! How the concurrency slots of sandboxes are divided among gateways. Pure.
//!
//! A gateway dispatches only to slots that it was granted, so the sum of grants on a sandbox is
//! what `requestsPerInstance` promises. New sandboxes are divided evenly; what does not divide
//! goes to those that hold the fewest. Later:
//!
//! - `Soft`: the grants follow the gateways. When one comes or goes its share is divided again at
//!   once, and slots that one gateway does not use move to another that has requests waiting.
//!   Between the write and the moment at which the giver reads it, both may use a slot that moved.
//! - `Strict`: a grant is only ever given once. A sandbox with slots of a lost gateway is replaced;
//!   only slots that nobody holds are given out.

use std::collections::BTreeMap;

use portolan_api::{Concurrency, PoolScale};

/// Slots by gateway.
pub(crate) type Grants = BTreeMap<String, i32>;

/// A live gateway and its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) name: String,
    /// Requests queued or running.
    pub(crate) demand: i64,
}

/// The annotation's value.
pub(crate) fn render(grants: &Grants) -> String {
    let pairs: Vec<_> = grants.iter().map(|(name, count)| format!("{name}={count}")).collect();
    pairs.join(",")
}

/// Reads the annotation as gateways do: what is unreadable grants nothing.
pub(crate) fn read(text: &str) -> Grants {
    parse(text).unwrap_or_default()
}

/// Reads the annotation; `None` when somebody made it unreadable.
fn parse(text: &str) -> Option<Grants> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (name, count) = pair.split_once('=')?;
        let count: i32 = count.parse().ok().filter(|count| *count >= 0)?;
        Some((name.to_owned(), count))
    });
    pairs.collect()
}

/// Whether a sandbox can no longer keep the promise of `Strict`: its slots cannot be proven free.
/// While no gateway lives, nobody else could use them, so nothing is lost yet.
pub(crate) fn is_broken(text: Option<&str>, scale: &PoolScale, holders: &[Holder]) -> bool {
    let (Some(limit), Concurrency::Strict) = (scale.requests_per_instance, scale.concurrency)
    else {
        return false;
    };
    let Some(grants) = text.and_then(parse) else { return true };
    let lost = |name: &String| holders.iter().all(|holder| holder.name != *name);
    let total: i64 = grants.values().map(|count| i64::from(*count)).sum();
    let unaccounted = grants.iter().any(|(name, count)| *count > 0 && lost(name));
    total > limit.into() || (!holders.is_empty() && unaccounted)
}

/// What sandboxes that stay (`held`, in order) and `new` ones to be created, in that order, shall
/// be annotated with. `None`: no annotation, slots are not counted.
pub(crate) fn divide(
    scale: &PoolScale,
    held: &[Option<Grants>],
    new: usize,
    holders: &[Holder],
) -> Vec<Option<Grants>> {
    let Some(limit) = scale.requests_per_instance else {
        // An annotation from before the limit was lifted cannot be taken back: it was sent when
        // the Pod was created, not applied. It is made to limit nothing.
        let boundless = || holders.iter().map(|holder| (holder.name.clone(), i32::MAX)).collect();
        let stay = held.iter().map(|grants| grants.as_ref().map(|_| boundless()));
        return stay.chain((0..new).map(|_| None)).collect();
    };
    if holders.is_empty() {
        let stay = held.iter().map(|grants| Some(grants.clone().unwrap_or_default()));
        return stay.chain((0..new).map(|_| Some(Grants::new()))).collect();
    }
    let mut division = Division { limit, holders, totals: Grants::new(), done: Vec::new() };
    match scale.concurrency {
        Concurrency::Soft => {
            for grants in held {
                division.keep_or_divide(grants.as_ref());
            }
        }
        Concurrency::Strict => {
            for grants in held {
                division.top_up(grants.clone().unwrap_or_default());
            }
        }
    }
    for _ in 0..new {
        division.top_up(Grants::new());
    }
    if scale.concurrency == Concurrency::Soft {
        division.follow_demand();
    }
    division.done.into_iter().map(Some).collect()
}

struct Division<'a> {
    limit: i32,
    holders: &'a [Holder],
    /// Slots by gateway over all sandboxes so far.
    totals: Grants,
    done: Vec<Grants>,
}

impl Division<'_> {
    fn take(&mut self, grants: Grants) {
        for (name, count) in &grants {
            *self.totals.entry(name.clone()).or_default() += count;
        }
        self.done.push(grants);
    }

    /// Keeps a division among exactly the live gateways, whatever the shares.
    fn keep_or_divide(&mut self, grants: Option<&Grants>) {
        let fits = |grants: &&Grants| {
            let total: i64 = grants.values().map(|count| i64::from(*count)).sum();
            total == i64::from(self.limit)
                && grants.len() == self.holders.len()
                && self.holders.iter().all(|holder| grants.contains_key(&holder.name))
        };
        match grants.filter(fits) {
            Some(grants) => self.take(grants.clone()),
            None => self.top_up(Grants::new()),
        }
    }

    /// Gives what nobody holds: evenly, the rest to those that hold the fewest so far.
    fn top_up(&mut self, mut grants: Grants) {
        let free = (self.limit - grants.values().sum::<i32>()).max(0);
        let count = i32::try_from(self.holders.len()).unwrap_or(i32::MAX);
        let held = |name: &str| {
            let count = |grants: &Grants| grants.get(name).copied().unwrap_or_default();
            count(&self.totals) + count(&grants)
        };
        let mut order: Vec<&Holder> = self.holders.iter().collect();
        order.sort_by_key(|holder| (held(&holder.name), holder.name.as_str()));
        for (place, holder) in (0..).zip(order) {
            let share = free / count + i32::from(place < free % count);
            *grants.entry(holder.name.clone()).or_default() += share;
        }
        self.take(grants);
    }

    /// Moves slots from gateways that do not use theirs to those that have more requests than
    /// slots. At least half of what is unused moves, so a growing demand takes few writes.
    fn follow_demand(&mut self) {
        let balance = |division: &Self, holder: &Holder| {
            let held = division.totals.get(&holder.name).copied().unwrap_or_default();
            i64::from(held) - holder.demand
        };
        for taker in self.holders {
            for giver in self.holders {
                let (short, spare) = (-balance(self, taker), balance(self, giver));
                if short > 0 && spare > 0 {
                    let amount = spare.min(short.max(spare / 2 + spare % 2));
                    self.shift(giver, taker, i32::try_from(amount).unwrap_or(i32::MAX));
                }
            }
        }
    }

    /// On the newest sandboxes first: those that are about to be created cost no extra write.
    fn shift(&mut self, giver: &Holder, taker: &Holder, mut amount: i32) {
        for grants in self.done.iter_mut().rev() {
            let Some(had) = grants.get_mut(&giver.name) else { continue };
            let moved = amount.min(*had);
            *had -= moved;
            *grants.entry(taker.name.clone()).or_default() += moved;
            *self.totals.entry(giver.name.clone()).or_default() -= moved;
            *self.totals.entry(taker.name.clone()).or_default() += moved;
            amount -= moved;
        }
    }
}

#[cfg(test)]
mod tests;
