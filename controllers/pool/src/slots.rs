//! How the concurrency slots of sandboxes are divided among gateways. Pure.
//!
//! A gateway dispatches only to slots that it was granted, so the sum of grants on a sandbox is
//! what `requestsPerInstance` promises. New sandboxes are divided evenly; what does not divide
//! goes to those that hold the fewest. Later:
//!
//! - `Soft`: the grants follow the gateways. What one that went had is given to the others at once;
//!   one that came gets its share as far as others do not use it; and slots that one gateway does
//!   not use move to another that has requests waiting. Between the write and the moment at which
//!   the giver reads it, both may use a slot that moved.
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
    let (joined, done) = (Vec::new(), Vec::new());
    let mut division = Division { limit, holders, totals: Grants::new(), joined, done };
    match scale.concurrency {
        Concurrency::Soft => {
            for grants in held {
                division.keep(grants.as_ref());
            }
        }
        Concurrency::Strict => {
            for grants in held {
                division.fill(grants.clone().unwrap_or_default());
            }
        }
    }
    for _ in 0..new {
        division.fill(Grants::new());
    }
    if scale.concurrency == Concurrency::Soft {
        division.level();
        division.follow_demand();
    }
    division.done.into_iter().map(Some).collect()
}

struct Division<'a> {
    limit: i32,
    holders: &'a [Holder],
    /// Slots by gateway over all sandboxes so far.
    totals: Grants,
    /// Gateways that a sandbox has never heard of, by its place in `done`.
    joined: Vec<(usize, &'a Holder)>,
    done: Vec<Grants>,
}

impl<'a> Division<'a> {
    /// Keeps a division whatever the shares, but for gateways that came or went. One whose sum is
    /// wrong was edited, or made for another limit, and is made anew.
    fn keep(&mut self, grants: Option<&Grants>) {
        let holders: &'a [Holder] = self.holders;
        let total = |grants: &Grants| grants.values().map(|count| i64::from(*count)).sum::<i64>();
        let Some(grants) = grants.filter(|grants| total(grants) == i64::from(self.limit)) else {
            return self.fill(Grants::new());
        };
        let joined = holders.iter().filter(|holder| !grants.contains_key(&holder.name));
        self.joined.extend(joined.map(|holder| (self.done.len(), holder)));
        let mut grants = grants.clone();
        grants.retain(|name, _| holders.iter().any(|holder| holder.name == *name));
        self.fill(grants);
    }

    /// Gives what nobody holds, one slot after the other to the gateway with the fewest on this
    /// sandbox, and of these to the one with the fewest on all.
    fn fill(&mut self, mut grants: Grants) {
        for holder in self.holders {
            grants.entry(holder.name.clone()).or_default();
        }
        let total = |name: &str| self.totals.get(name).copied().unwrap_or_default();
        for _ in grants.values().sum()..self.limit {
            let poorest = grants.iter_mut().min_by_key(|(name, own)| (**own, total(name) + **own));
            if let Some((_, own)) = poorest {
                *own += 1;
            }
        }
        for (name, count) in &grants {
            *self.totals.entry(name.clone()).or_default() += count;
        }
        self.done.push(grants);
    }

    /// Slots of a gateway over all sandboxes that it has no request for; negative: it lacks some.
    fn spare(&self, holder: &Holder) -> i64 {
        i64::from(self.totals.get(&holder.name).copied().unwrap_or_default()) - holder.demand
    }

    /// Gives gateways that joined their even share, as far as others do not use it.
    fn level(&mut self) {
        let even = i32::try_from(self.holders.len()).map_or(0, |count| self.limit / count);
        for (place, joined) in std::mem::take(&mut self.joined) {
            for giver in self.holders {
                let own = |holder: &Holder| self.done[place].get(&holder.name).copied();
                let over = own(giver).unwrap_or_default() - even;
                let lacks = even - own(joined).unwrap_or_default();
                let spare = i32::try_from(self.spare(giver)).unwrap_or(i32::MAX);
                let amount = over.min(lacks).min(spare).max(0);
                self.shift(place, giver, joined, amount);
            }
        }
    }

    /// Moves slots from gateways that do not use theirs to those that have more requests than
    /// slots. At least half of what is unused moves, so a growing demand takes few writes.
    fn follow_demand(&mut self) {
        for taker in self.holders {
            for giver in self.holders {
                let (short, spare) = (-self.spare(taker), self.spare(giver));
                if short > 0 && spare > 0 {
                    let amount = spare.min(short.max(spare / 2 + spare % 2));
                    self.shift_newest(giver, taker, i32::try_from(amount).unwrap_or(i32::MAX));
                }
            }
        }
    }

    /// On the newest sandboxes first: those that are about to be created cost no extra write.
    fn shift_newest(&mut self, giver: &Holder, taker: &Holder, mut amount: i32) {
        for place in (0..self.done.len()).rev() {
            let had = self.done[place].get(&giver.name).copied().unwrap_or_default();
            self.shift(place, giver, taker, amount.min(had));
            amount -= amount.min(had);
        }
    }

    fn shift(&mut self, place: usize, giver: &Holder, taker: &Holder, amount: i32) {
        for grants in [&mut self.done[place], &mut self.totals] {
            *grants.entry(giver.name.clone()).or_default() -= amount;
            *grants.entry(taker.name.clone()).or_default() += amount;
        }
    }
}

#[cfg(test)]
mod tests;
