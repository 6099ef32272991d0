//! Which other gateways are there no more, from all that tells: Leases, and links. Pure.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use portolan_api::Gateway;

use crate::lending::PeerEnd;
use crate::peers::roster::Roster;

/// How many that were lost are remembered: what was granted to one is granted to others soon.
const ENDED_MAX: usize = 32;

/// Which other gateways are there no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absent {
    /// By instance: those that were lost lately, and those whose link broke and where nobody
    /// listens.
    pub instances: BTreeSet<Arc<str>>,
    /// How many others are there.
    pub others: u32,
}

/// Those that were lost, the latest last.
#[derive(Debug, Default)]
pub(super) struct Ended(VecDeque<Arc<str>>);

impl Ended {
    /// Notes how one ended, by all Leases and by the links.
    ///
    /// One that left in order is no matter of this: its slots are nobody's until they are granted
    /// anew, so that no sandbox ever has too many requests for that. Nor is one whose Lease lapsed
    /// and names it still: that proves little to one that may have stood still itself.
    pub(super) fn note(
        &mut self,
        peer: Arc<str>,
        end: PeerEnd,
        leases: &[Arc<Gateway>],
        unheard: &BTreeSet<Arc<str>>,
    ) {
        let has_lease = leases.iter().any(|gateway| *gateway.instance == *peer);
        if end == PeerEnd::Left || (has_lease && !unheard.contains(&peer)) {
            return;
        }
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
    use jiff::{SignedDuration, Timestamp};
    use portolan_api::GatewayPhase;

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

    fn lease(instance: &str) -> Arc<Gateway> {
        Arc::new(Gateway {
            name: "b".into(),
            instance: instance.into(),
            phase: GatewayPhase::Serving,
            renewed: Timestamp::UNIX_EPOCH,
            duration: SignedDuration::from_secs(15),
            peer: None,
        })
    }

    fn names(absent: &Absent) -> Vec<&str> {
        absent.instances.iter().map(|name| &**name).collect()
    }

    /// What is thought of `b.1` when it has ended.
    #[track_caller]
    fn check(end: PeerEnd, lease_of: Option<&str>, is_unheard: bool, is_absent: bool) {
        let mut ended = Ended::default();
        let leases: Vec<_> = lease_of.map(lease).into_iter().collect();
        let unheard: BTreeSet<Arc<str>> = is_unheard.then(|| "b.1".into()).into_iter().collect();
        ended.note("b.1".into(), end, &leases, &unheard);
        let absent = ended.absent(&roster(&["c.1"]), &BTreeSet::new());
        assert_eq!(names(&absent), if is_absent { vec!["b.1"] } else { vec![] });
        assert_eq!(absent.others, 1);
    }

    #[test]
    fn who_was_lost_is_absent_if_something_proves_it() {
        check(PeerEnd::Lost, Some("b.2"), false, true);
        check(PeerEnd::Lost, None, false, true);
        check(PeerEnd::Lost, Some("b.1"), false, false);
        check(PeerEnd::Lost, Some("b.1"), true, true);
        check(PeerEnd::Left, Some("b.1"), false, false);
        check(PeerEnd::Left, Some("b.1"), true, false);
    }

    #[test]
    fn who_is_not_heard_is_absent_while_its_lease_lives_and_until_it_is_back() {
        let mut ended = Ended::default();
        let unheard = BTreeSet::from([Arc::from("b.1")]);
        let absent = ended.absent(&roster(&["b.1", "c.1"]), &unheard);
        assert_eq!((names(&absent), absent.others), (vec!["b.1"], 1), "its Lease lives");
        ended.note("b.1".into(), PeerEnd::Lost, &[lease("b.1")], &unheard);
        let absent = ended.absent(&roster(&["b.2", "c.1"]), &BTreeSet::new());
        assert_eq!((names(&absent), absent.others), (vec!["b.1"], 2), "another process of it");
        let absent = ended.absent(&roster(&["b.1", "c.1"]), &BTreeSet::new());
        assert_eq!((names(&absent), absent.others), (vec![], 2), "it was silent for a while");
    }

    #[test]
    fn so_many_are_remembered() {
        let mut ended = Ended::default();
        for number in 0..100 {
            ended.note(format!("b.{number:02}").into(), PeerEnd::Lost, &[], &BTreeSet::new());
        }
        let absent = ended.absent(&roster(&[]), &BTreeSet::new());
        assert_eq!((absent.instances.len(), absent.others), (ENDED_MAX, 0));
        assert_eq!(absent.instances.last().map(|name| &**name), Some("b.99"));
    }
}
