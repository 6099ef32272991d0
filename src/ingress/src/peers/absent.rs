//! Which other gateways are there no more, from all that tells: Leases, and links.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::peers::roster::Roster;

/// How many that were lost are remembered: what was granted to one is granted to others soon.
const ENDED_MAX: usize = 32;

/// Which other gateways are there no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absent {
    /// By instance: those that were lost lately, and those whose link broke and where nobody listens.
    pub instances: BTreeSet<Arc<str>>,
    /// How many others are there.
    pub others: u32,
}

/// Those that were lost, the latest last.
#[derive(Debug, Default)]
pub(super) struct Ended(VecDeque<Arc<str>>);

impl Ended {
    pub(super) fn add(&mut self, peer: Arc<str>) {
        self.0.push_back(peer);
        if self.0.len() > ENDED_MAX {
            self.0.pop_front();
        }
    }

    /// Who is absent now.
    pub(super) fn absent(&mut self, roster: &Roster, unheard: &BTreeSet<Arc<str>>) -> Absent {
        // One that could not renew its Lease for a while may do so again.
        self.0.retain(|peer| roster.get(peer).is_none());
        let others = roster.iter().filter(|(peer, _)| !unheard.contains(*peer)).count();
        Absent {
            instances: self.0.iter().chain(unheard).cloned().collect(),
            others: u32::try_from(others).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::roster::Peer;

    fn roster(names: &[&str]) -> Roster {
        let peer = || Peer {
            address: "10.0.0.7:8444".parse().unwrap(),
            certificates: Vec::new(),
            serves: true,
        };
        Roster::of(names.iter().map(|name| ((*name).into(), peer())))
    }

    fn names(absent: &Absent) -> Vec<&str> {
        absent.instances.iter().map(|name| &**name).collect()
    }

    #[test]
    fn who_ended_is_absent_until_it_is_back() {
        let mut ended = Ended::default();
        let unheard = BTreeSet::from([Arc::from("b.1")]);
        let absent = ended.absent(&roster(&["b.1", "c.1"]), &unheard);
        assert_eq!((names(&absent), absent.others), (vec!["b.1"], 1), "its Lease lives");
        ended.add("b.1".into());
        let absent = ended.absent(&roster(&["b.2", "c.1"]), &BTreeSet::new());
        assert_eq!((names(&absent), absent.others), (vec!["b.1"], 2), "another process of it");
        let absent = ended.absent(&roster(&["b.1", "c.1"]), &BTreeSet::new());
        assert_eq!((names(&absent), absent.others), (vec![], 2), "it was silent for a while");
    }

    #[test]
    fn so_many_are_remembered() {
        let mut ended = Ended::default();
        (0..100).for_each(|number| ended.add(format!("b.{number:02}").into()));
        let absent = ended.absent(&roster(&[]), &BTreeSet::new());
        assert_eq!((absent.instances.len(), absent.others), (ENDED_MAX, 0));
        assert_eq!(absent.instances.last().map(|name| &**name), Some("b.99"));
    }
}
