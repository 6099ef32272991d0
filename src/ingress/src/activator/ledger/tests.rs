use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Index, Ledger};
use crate::model::Slots;

#[derive(Debug, Clone)]
enum Step {
    Enter,
    Cancel(usize),
    Release(usize),
    Insert(Slots),
    SetSlots(usize, Slots),
    SetUsable(usize, bool),
    Remove(usize),
    Switch,
}

fn slots() -> impl Strategy<Value = Slots> {
    prop_oneof![4 => (0_u32..4).prop_map(Slots::Limited), 1 => Just(Slots::Unlimited)]
}

fn step() -> impl Strategy<Value = Step> {
    let place = any::<usize>;
    prop_oneof![
        6 => Just(Step::Enter),
        2 => place().prop_map(Step::Cancel),
        4 => place().prop_map(Step::Release),
        2 => slots().prop_map(Step::Insert),
        1 => (place(), slots()).prop_map(|(place, slots)| Step::SetSlots(place, slots)),
        3 => (place(), any::<bool>()).prop_map(|(place, usable)| Step::SetUsable(place, usable)),
        1 => place().prop_map(Step::Remove),
        1 => Just(Step::Switch),
    ]
}

/// What the ledger should hold, kept the simple way.
#[derive(Default)]
struct Model {
    members: BTreeMap<u32, (Index, Slots, bool)>,
    waiting: BTreeSet<u64>,
    running: Vec<(u32, Index)>,
    next: u64,
}

impl Model {
    fn used(&self, member: u32) -> u32 {
        let used = self.running.iter().filter(|(other, _)| *other == member).count();
        u32::try_from(used).unwrap()
    }

    fn has_free_slot(&self) -> bool {
        self.members.iter().any(|(&member, &(_, slots, usable))| {
            usable
                && match slots {
                    Slots::Limited(limit) => self.used(member) < limit,
                    Slots::Unlimited => true,
                }
        })
    }

    fn may_take(&self, member: u32) -> bool {
        let Some(&(_, slots, usable)) = self.members.get(&member) else { return false };
        usable
            && match slots {
                Slots::Limited(limit) => self.used(member) < limit,
                Slots::Unlimited => true,
            }
    }

    fn pick(&self, place: usize) -> Option<u32> {
        let count = self.members.len();
        (count > 0).then(|| *self.members.keys().nth(place % count).unwrap())
    }
}

struct Run {
    ledger: Ledger<u32, u64>,
    model: Model,
    rng: fastrand::Rng,
}

impl Run {
    fn grant(&mut self, index: Index) {
        let member = *self.ledger.member(index);
        assert!(self.model.may_take(member), "never more than the granted slots");
        self.model.running.push((member, index));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Enter => {
                self.model.next += 1;
                if let Some(index) = self.ledger.take(&mut self.rng) {
                    assert!(self.model.waiting.is_empty(), "nobody overtakes a queue");
                    self.grant(index);
                } else {
                    self.ledger.enqueue(self.model.next, self.model.next);
                    self.model.waiting.insert(self.model.next);
                }
            }
            Step::Cancel(place) => {
                let count = self.model.waiting.len();
                if count > 0 {
                    let ticket = *self.model.waiting.iter().nth(place % count).unwrap();
                    assert_eq!(self.ledger.cancel(ticket), Some(ticket));
                    self.model.waiting.remove(&ticket);
                }
            }
            Step::Release(place) => {
                let count = self.model.running.len();
                if count > 0 {
                    let (_, index) = self.model.running.swap_remove(place % count);
                    self.ledger.release(index);
                }
            }
            Step::Insert(slots) => {
                self.model.next += 1;
                let member = u32::try_from(self.model.next).unwrap();
                let index = self.ledger.insert(member, slots);
                self.model.members.insert(member, (index, slots, false));
            }
            Step::Switch => {
                let order: Vec<_> = self.ledger.drain_queue().collect();
                let expected: Vec<_> =
                    std::mem::take(&mut self.model.waiting).into_iter().collect();
                assert_eq!(order, expected, "all leave, in order");
            }
            other => self.change_member(&other),
        }
        while let Some((ticket, index)) = self.ledger.next(&mut self.rng) {
            assert_eq!(self.model.waiting.pop_first(), Some(ticket), "first come, first served");
            self.grant(index);
        }
        self.check();
    }

    fn change_member(&mut self, step: &Step) {
        let (Step::SetSlots(place, _) | Step::SetUsable(place, _) | Step::Remove(place)) = *step
        else {
            unreachable!("every other step was handled");
        };
        let Some(member) = self.model.pick(place) else { return };
        let entry = self.model.members.get_mut(&member).unwrap();
        match *step {
            Step::SetSlots(_, slots) => {
                entry.1 = slots;
                self.ledger.set_slots(entry.0, slots);
            }
            Step::SetUsable(_, usable) => {
                entry.2 = usable;
                self.ledger.set_usable(entry.0, usable);
            }
            _ => {
                self.ledger.remove(entry.0);
                self.model.members.remove(&member);
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.ledger.running() as usize, self.model.running.len(), "no slot leaks");
        assert_eq!(self.ledger.queued(), self.model.waiting.len(), "no waiter is lost");
        assert!(
            self.model.waiting.is_empty() || !self.model.has_free_slot(),
            "nobody waits beside a free slot"
        );
        let known: Vec<_> =
            self.ledger.iter().map(|(_, &member, slots, used)| (member, slots, used)).collect();
        let mut known_sorted = known;
        known_sorted.sort_by_key(|entry| entry.0);
        let expected: Vec<_> = self
            .model
            .members
            .iter()
            .map(|(&member, &(_, slots, _))| (member, slots, self.model.used(member)))
            .collect();
        assert_eq!(known_sorted, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slots_are_counted_exactly(steps in vec(step(), 1..200), seed in any::<u64>()) {
        let mut run = Run {
            ledger: Ledger::new(),
            model: Model::default(),
            rng: fastrand::Rng::with_seed(seed),
        };
        for step in steps {
            run.step(step);
        }
        // Everything ends: no slot stays taken, no forgotten member stays in memory.
        while let Some((_, index)) = run.model.running.pop() {
            run.ledger.release(index);
        }
        prop_assert_eq!(run.ledger.entries.iter().flatten().count(), run.model.members.len());
    }
}

#[test]
fn load_spreads_over_members() {
    let mut ledger = Ledger::<u32, ()>::new();
    let mut rng = fastrand::Rng::with_seed(7);
    for member in 0..4 {
        let index = ledger.insert(member, Slots::Unlimited);
        ledger.set_usable(index, true);
    }
    for _ in 0..400 {
        ledger.take(&mut rng).unwrap();
    }
    for (_, _, _, used) in ledger.iter() {
        assert!((80..=120).contains(&used), "{used} of 400 on one of four");
    }
}
