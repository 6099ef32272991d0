//! What to report of demand, and when. Pure: time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use portolan_api::{DrainReport, PoolReport};

use crate::demand::PoolDemand;
use crate::model::PoolName;

/// How soon a report has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// Nothing has changed that anyone needs.
    Never,
    /// At leisure.
    Soon,
    /// Somebody waits for it: a request for a sandbox, or a sandbox for its end.
    Now,
}

/// The current demand by pool, and what was last written of it.
#[derive(Debug, Default)]
pub(crate) struct Book {
    current: BTreeMap<PoolName, Entry>,
    written: BTreeMap<PoolName, PoolReport>,
}

#[derive(Debug)]
struct Entry {
    report: PoolReport,
    /// When the entry says nothing any more that the pool's own status does not.
    expires: Timestamp,
}

impl Book {
    /// Enters what the ingress says of a pool at `now`. `delay` is its scale-down delay.
    pub(crate) fn enter(
        &mut self,
        demand: &PoolDemand,
        delay: Option<Duration>,
        now: Timestamp,
    ) -> Due {
        let report = report(demand, delay, now);
        let due = due(self.written.get(&demand.pool.name), &report);
        let delay = SignedDuration::try_from(delay.unwrap_or_default()).unwrap_or_default();
        // Long enough for the pool controller to have seen and stored it.
        let keep = delay.saturating_add(SignedDuration::from_secs(60));
        let expires = now.checked_add(keep).unwrap_or(Timestamp::MAX);
        if report.last_activity.is_none() && !is_busy(&report) {
            // It never had a request: there is nothing to say of it.
            self.current.remove(&demand.pool.name);
            return due;
        }
        self.current.insert(demand.pool.name.clone(), Entry { report, expires });
        due
    }

    /// What to write now.
    pub(crate) fn entries(&mut self, now: Timestamp) -> Vec<PoolReport> {
        self.current.retain(|_, entry| is_busy(&entry.report) || entry.expires > now);
        self.current.values().map(|entry| entry.report.clone()).collect()
    }

    /// Notes what has been written.
    pub(crate) fn written(&mut self, entries: Vec<PoolReport>) {
        self.written = entries
            .into_iter()
            .map(|entry| {
                let namespace: Arc<str> = entry.namespace.as_str().into();
                (PoolName { namespace, name: entry.name.as_str().into() }, entry)
            })
            .collect();
    }
}

fn is_busy(report: &PoolReport) -> bool {
    let is_quiet = report.draining.is_empty() && report.retired.is_empty();
    report.queued > 0 || report.running > 0 || !is_quiet
}

/// Requests that wait beyond those last reported are urgent, and so is word of a sandbox that
/// drains or has to be replaced: they are waited for. Everything else only moves numbers.
fn due(written: Option<&PoolReport>, report: &PoolReport) -> Due {
    let Some(written) = written else {
        let is_awaited =
            report.queued > 0 || !report.draining.is_empty() || !report.retired.is_empty();
        return match (is_awaited, is_busy(report)) {
            (true, _) => Due::Now,
            (false, true) => Due::Soon,
            (false, false) if report.last_activity.is_some() => Due::Soon,
            (false, false) => Due::Never,
        };
    };
    let total = |report: &PoolReport| report.queued + report.running;
    let is_waiting = report.queued > 0 && total(report) > total(written);
    let ends = |report: &PoolReport| -> Vec<(String, i64, bool)> {
        let drains = report.draining.iter();
        drains.map(|drain| (drain.pod.clone(), drain.epoch, drain.running == 0)).collect()
    };
    if is_waiting || ends(report) != ends(written) || report.retired != written.retired {
        Due::Now
    } else if report != written {
        Due::Soon
    } else {
        Due::Never
    }
}

fn report(demand: &PoolDemand, delay: Option<Duration>, now: Timestamp) -> PoolReport {
    let mut draining: Vec<_> = demand
        .sandboxes
        .iter()
        .filter_map(|load| {
            Some(DrainReport {
                pod: load.id.name.to_string(),
                epoch: i64::try_from(load.draining?).unwrap_or(i64::MAX),
                running: load.running.into(),
            })
        })
        .collect();
    draining.sort_by(|a, b| a.pod.cmp(&b.pod));
    let retired = demand.sandboxes.iter().filter(|load| load.retired);
    let mut retired: Vec<_> = retired.map(|load| load.id.name.to_string()).collect();
    retired.sort();
    let is_busy = demand.queued > 0 || demand.running > 0;
    PoolReport {
        namespace: demand.pool.name.namespace.to_string(),
        name: demand.pool.name.name.to_string(),
        queued: demand.queued.into(),
        running: demand.running.into(),
        last_activity: demand
            .idle
            .filter(|_| !is_busy)
            .map(|idle| MicroTime(last_activity(idle, delay, now))),
        draining,
        retired,
    }
}

/// When the pool was last busy, rounded up to a quarter of its delay: it changes seldom, and
/// never puts a pool to sleep early.
fn last_activity(idle: Duration, delay: Option<Duration>, now: Timestamp) -> Timestamp {
    let idle = SignedDuration::try_from(idle).unwrap_or(SignedDuration::MAX);
    let then = now.checked_sub(idle).unwrap_or(Timestamp::MIN).as_microsecond();
    let quarter = delay.unwrap_or(Duration::from_secs(60)).as_micros() / 4;
    let quarter = i64::try_from(quarter).unwrap_or(i64::MAX).max(1);
    let rounded =
        then.checked_add(quarter - 1).map_or(then, |then| then - then.rem_euclid(quarter));
    Timestamp::from_microsecond(rounded).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::SandboxLoad;
    use crate::model::{PoolId, SandboxId, Slots};

    const DELAY: Option<Duration> = Some(Duration::from_secs(400));

    fn now() -> Timestamp {
        Timestamp::from_second(1_000_030).expect("a time")
    }

    fn demand(queued: u32, running: u32, draining: &[(&str, u64, u32)]) -> PoolDemand {
        let sandboxes = draining.iter().map(|(name, epoch, running)| SandboxLoad {
            id: SandboxId { name: (*name).into(), uid: (*name).into() },
            running: *running,
            slots: Slots::Unlimited,
            draining: Some(*epoch),
            retired: false,
        });
        let name = PoolName { namespace: "team".into(), name: "shop-web".into() };
        PoolDemand {
            pool: PoolId { name, uid: "uid".into() },
            queued,
            running,
            idle: Some(Duration::ZERO),
            sandboxes: sandboxes.collect(),
        }
    }

    #[track_caller]
    fn check(before: Option<PoolDemand>, after: PoolDemand, expected: Due) {
        let mut book = Book::default();
        if let Some(before) = before {
            book.enter(&before, DELAY, now());
            let entries = book.entries(now());
            book.written(entries);
        }
        assert_eq!(book.enter(&after, DELAY, now()), expected);
    }

    #[test]
    fn what_waits_is_urgent_and_what_moves_is_not() {
        check(None, demand(1, 0, &[]), Due::Now);
        check(Some(demand(1, 0, &[])), demand(1, 0, &[]), Due::Never);
        check(Some(demand(1, 0, &[])), demand(2, 0, &[]), Due::Now);
        check(Some(demand(1, 0, &[])), demand(0, 1, &[]), Due::Soon);
        check(Some(demand(0, 1, &[])), demand(0, 9, &[]), Due::Soon);
        check(Some(demand(0, 10, &[])), demand(1, 10, &[]), Due::Now);
        check(Some(demand(0, 10, &[])), demand(0, 0, &[]), Due::Soon);
        check(None, demand(0, 0, &[]), Due::Soon);
    }

    #[test]
    fn a_pool_that_never_had_a_request_is_not_reported() {
        let never = PoolDemand { idle: None, ..demand(0, 0, &[]) };
        check(None, never.clone(), Due::Never);
        let mut book = Book::default();
        book.enter(&never, DELAY, now());
        assert_eq!(book.entries(now()), []);
    }

    #[test]
    fn a_drain_that_begins_or_ends_is_urgent() {
        check(Some(demand(0, 2, &[])), demand(0, 2, &[("a", 7, 2)]), Due::Now);
        check(Some(demand(0, 2, &[("a", 7, 2)])), demand(0, 1, &[("a", 7, 1)]), Due::Soon);
        check(Some(demand(0, 1, &[("a", 7, 1)])), demand(0, 0, &[("a", 7, 0)]), Due::Now);
    }

    #[test]
    fn a_sandbox_that_has_to_be_replaced_is_urgent() {
        let mut lost = demand(0, 2, &[("a", 7, 2)]);
        lost.sandboxes[0].draining = None;
        let before = lost.clone();
        lost.sandboxes[0].retired = true;
        check(Some(before), lost, Due::Now);
    }

    #[test]
    fn activity_is_rounded_up_to_a_quarter_of_the_delay() {
        let rounded = last_activity(Duration::from_secs(1), DELAY, now());
        assert_eq!(rounded.as_second(), 1_000_100);
        let exact = last_activity(Duration::from_secs(30), DELAY, now());
        assert_eq!(exact.as_second(), 1_000_000);
    }

    #[test]
    fn an_entry_goes_when_it_says_nothing_any_more() {
        let mut book = Book::default();
        book.enter(&demand(0, 0, &[]), DELAY, now());
        let later = |seconds| now() + SignedDuration::from_secs(seconds);
        assert_eq!(book.entries(later(459)).len(), 1);
        assert_eq!(book.entries(later(460)).len(), 0);
        book.enter(&demand(0, 1, &[]), DELAY, now());
        assert_eq!(book.entries(later(10_000)).len(), 1);
    }
}
