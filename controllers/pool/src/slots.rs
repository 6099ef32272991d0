//! How the concurrency slots of sandboxes are divided among gateways. Pure.
//!
//! Slots are granted to a gateway's process, which dispatches only to what it was granted or what
//! others lend it, so the sum of grants on a sandbox is what `requestsPerInstance` promises. New
//! sandboxes are divided evenly among those that serve; what does not divide goes to those that
//! hold the fewest. Living gateways lend each other slots, so no grant ever moves between them.
//! What a gateway had that is gone:
//!
//! - in order, by its own word: nothing of it runs, and others get its slots at once.
//! - lost: under `Soft` others get them at once too; what it had on its way may still run. Under
//!   `Strict` such a slot cannot be proven free, and the sandbox is replaced.

use std::collections::BTreeMap;

use jiff::Timestamp;
use portolan_api::{Concurrency, GatewayPhase, PoolScale};

use crate::gateway::Gateway;

/// Slots by the instance of a gateway; none of zero.
pub(crate) type Grants = BTreeMap<String, i32>;

/// What became of a gateway's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Serves,
    /// It keeps what it has and gets nothing new.
    Leaves,
    Left,
    Lost,
    /// It has no Lease, and that may be because not all Leases were seen.
    Unseen,
}

/// The gateways, as far as slots are concerned.
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    fates: BTreeMap<String, Fate>,
    /// The fate of those that have no Lease.
    others: Fate,
}

impl Roster {
    /// From the gateways that have Leases; `all_seen` is when one without is lost.
    pub(crate) fn of(gateways: &[Gateway], all_seen: Timestamp, now: Timestamp) -> Self {
        let fate = |gateway: &Gateway| match gateway.phase {
            GatewayPhase::Left => Fate::Left,
            _ if !gateway.is_live(now) => Fate::Lost,
            GatewayPhase::Leaving => Fate::Leaves,
            GatewayPhase::Serving => Fate::Serves,
        };
        let fates = gateways.iter().map(|gateway| (gateway.instance.clone(), fate(gateway)));
        let others = if all_seen > now { Fate::Unseen } else { Fate::Lost };
        Self { fates: fates.collect(), others }
    }

    fn fate(&self, instance: &str) -> Fate {
        self.fates.get(instance).copied().unwrap_or(self.others)
    }

    /// Whether the gateway's slots stay its own.
    fn keeps(&self, instance: &str) -> bool {
        matches!(self.fate(instance), Fate::Serves | Fate::Leaves | Fate::Unseen)
    }

    fn with(&self, fate: Fate) -> Vec<&String> {
        self.fates.iter().filter(|(_, own)| **own == fate).map(|(instance, _)| instance).collect()
    }

    /// Who gets slots. While nobody serves, those that leave do: requests wait in them.
    fn takers(&self) -> Vec<&String> {
        let serving = self.with(Fate::Serves);
        if serving.is_empty() { self.with(Fate::Leaves) } else { serving }
    }

    /// Whether the annotation grants slots to a gateway of which time will tell.
    pub(crate) fn expects(&self, text: &str) -> bool {
        read(text).keys().any(|instance| self.fate(instance) == Fate::Unseen)
    }
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
    let grants: Option<Grants> = pairs.collect();
    grants.map(|grants| grants.into_iter().filter(|(_, count)| *count > 0).collect())
}

/// Whether a sandbox can no longer keep the promise of `Strict`: its slots cannot be proven free.
/// While no gateway lives, nobody else could use them, so nothing is lost yet.
pub(crate) fn is_broken(text: Option<&str>, scale: &PoolScale, roster: &Roster) -> bool {
    let (Some(limit), Concurrency::Strict) = (scale.requests_per_instance, scale.concurrency)
    else {
        return false;
    };
    let Some(grants) = text.and_then(parse) else { return true };
    let lost = grants.keys().any(|instance| roster.fate(instance) == Fate::Lost);
    sum(&grants) > limit.into() || (lost && !roster.takers().is_empty())
}

fn sum(grants: &Grants) -> i64 {
    grants.values().map(|count| i64::from(*count)).sum()
}

/// What sandboxes that stay (`held`, in order) and `new` ones to be created, in that order, shall
/// be annotated with. `None`: no annotation, slots are not counted.
pub(crate) fn divide(
    scale: &PoolScale,
    held: &[Option<Grants>],
    new: usize,
    roster: &Roster,
) -> Vec<Option<Grants>> {
    let takers = roster.takers();
    let Some(limit) = scale.requests_per_instance else {
        // An annotation from before the limit was lifted cannot be taken back: it was sent when
        // the Pod was created, not applied. It is made to limit nothing.
        let living = roster.with(Fate::Serves).into_iter().chain(roster.with(Fate::Leaves));
        let boundless: Grants = living.map(|instance| (instance.clone(), i32::MAX)).collect();
        let stay = held.iter().map(|grants| grants.as_ref().map(|_| boundless.clone()));
        return stay.chain((0..new).map(|_| None)).collect();
    };
    if takers.is_empty() {
        let stay = held.iter().map(|grants| Some(grants.clone().unwrap_or_default()));
        return stay.chain((0..new).map(|_| Some(Grants::new()))).collect();
    }
    let mut division = Division { limit, takers, totals: Grants::new(), done: Vec::new() };
    for grants in held {
        let mut grants = grants.clone().unwrap_or_default();
        // A wrong sum was edited, or made for another limit. `Strict` gives no slot twice, so
        // there only what nobody holds is given out.
        if scale.concurrency == Concurrency::Soft && sum(&grants) != i64::from(limit) {
            grants.clear();
        }
        grants.retain(|instance, _| roster.keeps(instance));
        division.fill(grants);
    }
    for _ in 0..new {
        division.fill(Grants::new());
    }
    division.done.into_iter().map(Some).collect()
}

struct Division<'a> {
    limit: i32,
    /// Who gets slots; at least one.
    takers: Vec<&'a String>,
    /// Slots by gateway over all sandboxes so far.
    totals: Grants,
    done: Vec<Grants>,
}

impl Division<'_> {
    /// Gives what nobody holds, one slot after the other to the gateway with the fewest on this
    /// sandbox, and of these to the one with the fewest on all.
    fn fill(&mut self, mut grants: Grants) {
        let count = |of: &Grants, instance: &str| of.get(instance).copied().unwrap_or_default();
        for _ in grants.values().sum()..self.limit {
            let poorest = self.takers.iter().min_by_key(|instance| {
                let own = count(&grants, instance);
                (own, i64::from(count(&self.totals, instance)) + i64::from(own))
            });
            if let Some(instance) = poorest {
                *grants.entry((*instance).clone()).or_default() += 1;
            }
        }
        for (instance, count) in &grants {
            let total = self.totals.entry(instance.clone()).or_default();
            *total = total.saturating_add(*count);
        }
        self.done.push(grants);
    }
}

#[cfg(test)]
mod tests;
