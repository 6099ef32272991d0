//! How endpoints are spread over slots. Pure.
//!
//! A rule picks a slot by a random number or by a hash of the client, modulo a constant: so the
//! kernel knows only a fixed list of sizes, the classes, and a service lives in one of them.
//! Slots are assigned stably: who survives keeps its slots, so an update touches only what
//! changed, and with affinity only the clients that must move do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::value::Affinity;

/// A number of slots for which there are rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u16);

/// Most endpoints behind one port and family.
pub const ENDPOINTS_MAX: usize = 256;

/// Up to here each number of endpoints has a class of its own, so that all get the same share.
const EXACT: u16 = 16;
/// Classes beyond; at the worst an endpoint gets half the share of another.
const POWERS: [u16; 4] = [32, 64, 128, 256];
/// Classes of services with affinity. Few and large: the share of clients that move when an
/// endpoint comes is one in (endpoints), and only a change of class moves all of them.
const STICKY: [u16; 2] = [128, 256];

impl Class {
    /// How many there are.
    pub(crate) const COUNT: u8 = EXACT as u8 + POWERS.len() as u8;

    /// Its place among all of them.
    pub(crate) fn number(self) -> u8 {
        let after = POWERS.iter().position(|power| *power == self.0);
        after.map_or_else(|| self.0 as u8 - 1, |after| EXACT as u8 + after as u8)
    }

    /// All classes, smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=EXACT).chain(POWERS).map(Self)
    }

    /// The classes in which clients are found by their source.
    pub fn sticky() -> impl Iterator<Item = Self> {
        STICKY.into_iter().map(Self)
    }

    /// The class for a number of endpoints; `None` if there are none.
    pub fn of(count: usize, affinity: Affinity) -> Option<Self> {
        let count = u16::try_from(count.min(ENDPOINTS_MAX)).unwrap_or(POWERS[3]);
        let mut classes: Box<dyn Iterator<Item = Self>> = match affinity {
            Affinity::None => Box::new(Self::all()),
            Affinity::Source => Box::new(Self::sticky()),
        };
        if count == 0 { None } else { classes.find(|class| class.0 >= count) }
    }

    /// How many slots it has, 1 to 256.
    pub fn size(self) -> usize {
        usize::from(self.0)
    }

    /// The same as the modulus of a rule.
    pub(crate) fn modulus(self) -> u32 {
        u32::from(self.0)
    }
}

/// Where a slot leads: address and port of an endpoint.
pub type Target = (IpAddr, u16);

/// Assigns each slot of a class a target, every target its fair share.
///
/// `targets` holds at most as many as the class has slots, without repetition; `previous` is the
/// last known assignment of this class, empty if there is none. The result has one target for
/// each slot, or is empty if there are none.
pub(crate) fn assign(
    class: Class,
    targets: &[Target],
    previous: &BTreeMap<usize, Target>,
) -> Vec<Target> {
    if targets.is_empty() {
        return Vec::new();
    }
    let share = class.size() / targets.len();
    // How many targets may have one slot more than the others.
    let mut larger = class.size() % targets.len();
    let mut held: BTreeMap<Target, usize> = targets.iter().map(|target| (*target, 0)).collect();
    let mut slots: Vec<Option<Target>> = (0..class.size())
        .map(|slot| {
            let target = previous.get(&slot)?;
            let count = held.get_mut(target)?;
            if *count == share && larger > 0 {
                larger -= 1;
            } else if *count >= share {
                return None;
            }
            *count += 1;
            Some(*target)
        })
        .collect();
    // Round after round, those with the fewest slots first, so that a first assignment depends on
    // nothing but the targets and is the same on every node.
    let mut round = 0;
    let mut hungry = Vec::new();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        while hungry.is_empty() {
            hungry = held.iter().filter(|(_, n)| **n == round).map(|(end, _)| *end).collect();
            hungry.reverse();
            round += 1;
        }
        let next = hungry.pop();
        if let Some(count) = next.and_then(|target| held.get_mut(&target)) {
            *count += 1;
        }
        *slot = next;
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_endpoints_has_the_least_class_that_holds_it() {
        let sizes = [(0, None), (1, Some(1)), (16, Some(16)), (17, Some(32)), (33, Some(64))];
        let sizes = sizes.into_iter().chain([(256, Some(256)), (300, Some(256))]);
        for (count, size) in sizes {
            assert_eq!(Class::of(count, Affinity::None).map(Class::size), size, "{count}");
        }
        assert_eq!(Class::of(1, Affinity::Source).map(Class::size), Some(128));
        assert_eq!(Class::of(129, Affinity::Source).map(Class::size), Some(256));
    }

    #[test]
    fn every_target_gets_its_share() {
        for count in [1, 2, 17, 31, 100, 256] {
            let class = Class::of(count, Affinity::None).expect("endpoints");
            let counts = counted(&assign(class, &targets(1, count), &BTreeMap::new()));
            assert_eq!(counts.len(), count, "each of {count}");
            let (least, most) = (counts.values().min(), counts.values().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{count}: {least:?} to {most:?}");
        }
    }

    #[test]
    fn who_survives_keeps_its_slots() {
        let class = Class(128);
        let before = assign(class, &targets(1, 8), &BTreeMap::new());
        let known = before.iter().copied().enumerate().collect();
        let more = assign(class, &targets(1, 9), &known);
        let moved = before.iter().zip(&more).filter(|(old, new)| old != new).count();
        assert!(moved <= 128 / 8, "one comes, at most its share moves: {moved}");
        let fewer = assign(class, &targets(2, 7), &known);
        let kept = before.iter().zip(&fewer).filter(|(old, _)| **old != targets(1, 1)[0]);
        assert!(kept.clone().all(|(old, new)| old == new), "one goes, only its slots move");
        assert_eq!(assign(class, &targets(1, 8), &known), before, "nothing changes nothing");
    }

    fn targets(first: u8, count: usize) -> Vec<Target> {
        (usize::from(first)..)
            .take(count)
            .map(|n| ([10, 0, (n >> 8) as u8, n as u8].into(), 80))
            .collect()
    }

    fn counted(slots: &[Target]) -> BTreeMap<Target, usize> {
        slots.iter().fold(BTreeMap::new(), |mut counts, target| {
            *counts.entry(*target).or_default() += 1;
            counts
        })
    }
}
