//! Whether a gateway's process has ended, for whom. Pure.

use std::sync::Arc;

use portolan_api::GatewayPhase;
use portolan_reconcile::Target;

use crate::observe::{HeldLease, Process, Witness};

/// Whether visitors are to be sent to a gateway: unless another one, of which nobody says the same,
/// says that nobody listens there. Of two who say so of each other, both may be wrong.
///
/// Without its Lease nobody knows which process a gateway is, and nothing changes.
pub(crate) fn takes_visitors(
    name: &str,
    process: &Process,
    leases: &[Arc<HeldLease>],
    witnesses: &[Arc<Witness>],
) -> bool {
    let lease_of = |name: &str| leases.iter().find(|lease| lease.gateway.name == name);
    let is_missed = |lease: &HeldLease, by: &Witness| by.unheard.contains(&lease.gateway.instance);
    let is_believed = |witness: &Witness| {
        let lease = lease_of(&witness.gateway);
        lease.is_some_and(|lease| !witnesses.iter().any(|by| is_missed(lease, by)))
    };
    match lease_of(name).filter(|lease| lease.pod == process.pod) {
        Some(lease) => !witnesses.iter().any(|by| is_missed(lease, by) && is_believed(by)),
        None => process.takes_visitors,
    }
}

/// The Lease to take away.
///
/// The kubelet puts the termination message of a container that ended into the status of its Pod,
/// and a gateway's says which instance it was.
///
/// Should it say nothing, times do: the Pod says when its last process ended, and the name in the
/// Lease when that process began, both by one node's clock. A process that began before another of
/// its Pod ended is that one, since only one of them runs at a time. Kubernetes rounds the end down
/// to a second, so a process that lived for less than that goes unproven then, and its Lease
/// lapses.
pub(crate) fn plan(lease: Option<&HeldLease>, process: Option<&Process>) -> Option<Target> {
    let (lease, process) = (lease?, process?);
    let is_its_pod = lease.pod.is_some() && lease.pod == process.pod;
    // That it left in order is more than that it ended: what it was lent is known to be free.
    let is_held = lease.gateway.phase != GatewayPhase::Left;
    let has_ended = process.dead.contains(&lease.gateway.instance)
        || process.ended.zip(lease.gateway.started()).is_some_and(|(ended, began)| ended >= began);
    (is_its_pod && is_held && has_ended).then(|| lease.target.clone())
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use portolan_api::{Gateway, gateway};
    use portolan_reconcile::ObjectKey;

    use super::*;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    fn lease(started: i64) -> HeldLease {
        HeldLease {
            gateway: Gateway {
                name: "gw-1".into(),
                instance: gateway::instance("gw-1", at(started)),
                phase: GatewayPhase::Serving,
                renewed: at(started),
                duration: SignedDuration::from_secs(15),
                peer: None,
            },
            pod: Some("uid-of-pod".into()),
            target: Target {
                key: ObjectKey::new("system", "gw-1"),
                uid: "uid-of-lease".into(),
                resource_version: Some("7".into()),
            },
        }
    }

    fn process(ended: Option<i64>) -> Process {
        Process {
            pod: Some("uid-of-pod".into()),
            target: Target {
                key: ObjectKey::new("system", "gw-1"),
                uid: "uid-of-pod".into(),
                resource_version: None,
            },
            takes_visitors: true,
            ended: ended.map(at),
            dead: vec![],
        }
    }

    /// Whether visitors are sent to `gw-1`, after who says what of whom, by numbers.
    #[track_caller]
    fn check_visitors(said: &[(u8, u8)], expected: bool) {
        let named = |number: &u8| format!("gw-{number}");
        let leases = [1, 2, 3].map(|number| {
            let mut held = lease(5_400);
            held.gateway.name = named(&number);
            held.gateway.instance = gateway::instance(&held.gateway.name, at(5_400));
            Arc::new(held)
        });
        let witness = |(by, of): &(u8, u8)| {
            let unheard = vec![gateway::instance(&named(of), at(5_400))];
            Arc::new(Witness { gateway: named(by), unheard })
        };
        let witnesses: Vec<_> = said.iter().map(witness).collect();
        assert_eq!(
            takes_visitors("gw-1", &process(None), &leases, &witnesses),
            expected,
            "{said:?}"
        );
    }

    #[test]
    fn visitors_are_sent_elsewhere_on_the_word_of_one_that_is_heard_itself() {
        check_visitors(&[], true);
        check_visitors(&[(2, 1)], false);
        check_visitors(&[(2, 3)], true);
        // Of two who say it of each other, either may be cut off.
        check_visitors(&[(2, 1), (1, 2)], true);
        check_visitors(&[(2, 1), (3, 2)], true);
        check_visitors(&[(2, 1), (3, 1), (1, 2)], false);
        // Nobody knows who says so.
        check_visitors(&[(4, 1)], true);
    }

    #[test]
    fn the_next_process_takes_visitors_again() {
        let (was, is) = (lease(5_400), lease(9_000));
        let word = Witness { gateway: "gw-2".into(), unheard: vec![was.gateway.instance.clone()] };
        let mut other = lease(5_400);
        other.gateway.name = "gw-2".into();
        other.gateway.instance = "gw-2.1".into();
        let (other, words) = (Arc::new(other), [Arc::new(word)]);
        let before = Process { takes_visitors: false, ..process(None) };
        let now = |leases: &[Arc<HeldLease>]| takes_visitors("gw-1", &before, leases, &words);
        assert!(!now(&[Arc::new(was), Arc::clone(&other)]));
        assert!(!now(&[Arc::clone(&other)]), "until its Lease tells which process it is");
        assert!(now(&[Arc::new(is.clone()), Arc::clone(&other)]));
        let foreign = HeldLease { pod: Some("uid-of-another".into()), ..is };
        assert!(!now(&[Arc::new(foreign), other]), "the Lease of another Pod");
    }

    #[test]
    fn what_left_its_name_is_dead_however_short_it_lived_and_whatever_came_after() {
        let lease = lease(5_400);
        for ended in [None, Some(5_000)] {
            let said = vec!["gw-1.other".into(), lease.gateway.instance.clone()];
            let process = Process { dead: said, ..process(ended) };
            assert_eq!(plan(Some(&lease), Some(&process)), Some(lease.target.clone()));
        }
    }

    #[test]
    fn what_ended_after_it_began_is_dead() {
        let lease = lease(5_400);
        for (ended, is_dead) in
            [(None, false), (Some(5_000), false), (Some(6_000), true), (Some(90_000), true)]
        {
            let target = is_dead.then(|| lease.target.clone());
            assert_eq!(plan(Some(&lease), Some(&process(ended))), target, "ended at {ended:?}");
        }
    }

    #[test]
    fn a_process_that_came_after_lives() {
        assert_eq!(plan(Some(&lease(6_001)), Some(&process(Some(6_000)))), None);
    }

    #[test]
    fn one_that_left_in_order_keeps_its_word() {
        let mut left = lease(5_400);
        left.gateway.phase = GatewayPhase::Left;
        assert_eq!(plan(Some(&left), Some(&process(Some(9_000)))), None);
        left.gateway.phase = GatewayPhase::Leaving;
        assert!(plan(Some(&left), Some(&process(Some(9_000)))).is_some());
    }

    #[test]
    fn another_pod_proves_nothing() {
        let ended = process(Some(9_000));
        let mut other = lease(5_400);
        other.pod = Some("uid-of-another".into());
        assert_eq!(plan(Some(&other), Some(&ended)), None);
        other.pod = None;
        assert_eq!(plan(Some(&other), Some(&Process { pod: None, ..ended })), None);
        assert_eq!(plan(Some(&other), None), None);
        assert_eq!(plan(None, Some(&process(Some(9_000)))), None);
    }

    #[test]
    fn a_name_that_tells_no_time_proves_nothing() {
        let mut strange = lease(5_400);
        strange.gateway.instance = "gw-1".into();
        assert_eq!(plan(Some(&strange), Some(&process(Some(9_000)))), None);
    }
}
