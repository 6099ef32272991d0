//! What must change, as a value. Pure.

use std::collections::BTreeMap;

use crate::element::{Data, Element, Set};

/// Elements with what they lead to.
pub type Elements = BTreeMap<Element, Data>;

/// What the kernel does at once: all of it, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Elements that go; each is in the kernel.
    pub delete: Vec<Element>,
    /// Elements that come, after those went: an element in both lists is replaced.
    pub add: Vec<(Element, Data)>,
}

/// Batches that go to the kernel one after the other.
///
/// A batch is atomic for whoever asks the kernel, and not for a packet under way: each of its
/// look-ups sees what is current at that moment. So what leads somewhere new is made before what
/// leads to the old place is broken: `make` adds and replaces, and removes ports that lead
/// nowhere any more; `divert` takes away gates of services that stay behind another gate;
/// `discard` takes away the rest. Between two of them packets under way must come to their end.
/// Whatever gets lost in between, the next difference finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// First.
    pub make: Batch,
    /// Second.
    pub divert: Batch,
    /// Last.
    pub discard: Batch,
}

impl Batch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }

    /// How many elements it touches; one that is replaced counts once for each list.
    pub fn len(&self) -> usize {
        self.delete.len() + self.add.len()
    }

    /// In the order in which the kernel gets them: set by set.
    pub(crate) fn sort(&mut self) {
        self.delete.sort_unstable();
        self.add.sort_unstable_by_key(|(element, _)| *element);
    }
}

impl Transaction {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.batches().next().is_none()
    }

    /// What is to be sent, in this order; no batch is empty.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        [&self.make, &self.divert, &self.discard].into_iter().filter(|batch| !batch.is_empty())
    }
}

/// As many elements of a set as a new table gets at first.
const FIRST: usize = 256;
/// How many times as many it gets next.
const GROWTH: usize = 4;

/// The elements of a new table, which are in order, in portions, each of them for a batch.
///
/// The kernel's hash tables begin with few buckets and grow between batches only: within one, an
/// insertion looks through each of the tables that it has made room in meanwhile. So a portion is
/// in proportion to what is there. What leads packets somewhere comes after where it leads to.
pub(crate) fn portions(elements: &[(Element, Data)]) -> Vec<Vec<&(Element, Data)>> {
    if elements.len() <= FIRST {
        return vec![elements.iter().collect()];
    }
    let mut portions = Vec::new();
    for stage in [Stage::Slots, Stage::Gates, Stage::Addresses] {
        let sets = elements.chunk_by(|(one, _), (other, _)| one.set == other.set);
        let mut left: Vec<_> = sets.filter(|set| Stage::of(set[0].0.set) == stage).collect();
        let mut size = FIRST;
        while left.iter().any(|set| !set.is_empty()) {
            let mut portion = Vec::new();
            for set in &mut left {
                // An interval must not lack its end.
                let is_whole = set.first().is_some_and(|(element, _)| element.set.is_interval());
                let count = if is_whole { set.len() } else { size.min(set.len()) };
                let (now, later) = set.split_at(count);
                portion.extend(now);
                *set = later;
            }
            portions.push(portion);
            size *= GROWTH;
        }
    }
    portions
}

/// When an element of a new table comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Where packets are led, and what becomes of them.
    Slots,
    /// What leads them there.
    Gates,
    /// What refuses those that no gate knows.
    Addresses,
}

impl Stage {
    fn of(set: Set) -> Self {
        match set {
            Set::Virtual(_) => Self::Addresses,
            _ if set.is_gate() => Self::Gates,
            _ => Self::Slots,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Class;
    use crate::value::{Family, Protocol, ServicePort};

    fn elements(count: u32) -> Vec<(Element, Data)> {
        let mut elements = Vec::new();
        for address in (0..count).map(|number| number.to_be_bytes().into()) {
            let gate = ServicePort { address, protocol: Protocol::Tcp, port: 80 };
            let gate = Element::service(Set::Services(Family::V4), gate);
            let class = Class::all().next().expect("the least class");
            let slot = Element::slot(Set::Slots(Family::V4, class), gate, 0);
            let address = Element::address(Set::Virtual(Family::V4), address);
            elements.extend([gate, slot, address].map(|element| (element, Data::EMPTY)));
        }
        elements.sort_unstable();
        elements
    }

    #[test]
    fn a_small_table_is_made_at_once() {
        for elements in [Vec::new(), elements(80)] {
            assert_eq!(portions(&elements), [elements.iter().collect::<Vec<_>>()]);
        }
    }

    #[test]
    fn a_large_table_grows_in_portions_and_leads_nobody_astray() {
        let elements = elements(10_000);
        let portions = portions(&elements);
        let sizes: Vec<_> = portions.iter().map(Vec::len).collect();
        assert_eq!(sizes, [256, 1_024, 4_096, 4_624].repeat(3));
        let sent: Vec<_> = portions.into_iter().flatten().copied().collect();
        let mut in_order = sent.clone();
        in_order.sort_unstable();
        assert_eq!(in_order, elements);
        let last_of = |is_it: fn(Set) -> bool| sent.iter().rposition(|(e, _)| is_it(e.set));
        let first_of = |is_it: fn(Set) -> bool| sent.iter().position(|(e, _)| is_it(e.set));
        let [slot, gate, address]: [fn(Set) -> bool; 3] = [
            |set| matches!(set, Set::Slots(..)),
            Set::is_gate,
            |set| matches!(set, Set::Virtual(_)),
        ];
        assert!(last_of(slot) < first_of(gate) && last_of(gate) < first_of(address));
    }

    #[test]
    fn intervals_stay_whole() {
        let mut elements = elements(300);
        for border in 0..2_000 {
            let border = Element::border(Family::V4, border, border % 2 == 1);
            elements.push((border, Data::EMPTY));
        }
        elements.sort_unstable();
        let borders = |portion: &Vec<&(Element, Data)>| {
            portion.iter().filter(|(element, _)| element.set.is_interval()).count()
        };
        let counts: Vec<_> = portions(&elements).iter().map(borders).collect();
        assert_eq!((counts[0], counts.iter().sum::<usize>()), (2_000, 2_000));
    }
}
