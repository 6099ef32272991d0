//! Whether a gateway's process has ended. Pure.

use portolan_api::GatewayPhase;
use portolan_reconcile::Target;

use crate::observe::{HeldLease, Process};

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
        Process { pod: Some("uid-of-pod".into()), ended: ended.map(at), dead: vec![] }
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
