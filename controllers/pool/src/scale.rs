//! How many sandboxes a pool wants. Pure: time is an argument, and what happened before is a value.
//!
//! Up at once; down only when a whole scale-down delay has passed since the greater number was
//! last needed; to the least number only when the pool has been without a request for longer than
//! the delay; and never on the word of reports that may be old. The sandboxes that a delay keeps
//! are known from [`History`]. It is lost with the process; then the number that was wanted last is
//! taken as needed up to the last activity, which is reported and stored, so a restart neither
//! stops a sandbox early nor keeps one late.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use portolan_api::{PoolRole, PoolScale};
use serde::Serialize;

/// The limit of the schema.
const REPLICAS_MAX: i32 = 1000;
/// "Strictly later than": the least step of the clock that timers resolve.
const TICK: SignedDuration = SignedDuration::from_millis(1);

/// What the decision follows from.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a> {
    pub(crate) role: PoolRole,
    pub(crate) scale: &'a PoolScale,
    /// Sandboxes to keep whatever the demand.
    pub(crate) floor: i32,
    /// How many were wanted last: what `spec.replicas` says, or shall say soon.
    pub(crate) replicas: i32,
    /// Sandboxes that stand although `replicas` says zero.
    pub(crate) woken: i32,
    /// Requests queued or running, for each live gateway.
    pub(crate) demand: &'a [i64],
    /// Whether any of them is queued.
    pub(crate) waits: bool,
    /// Reports may be of a time long ago: what they do not speak of may still be needed.
    pub(crate) is_stale: bool,
    /// The latest activity that live gateways report.
    pub(crate) reported: Option<Timestamp>,
    /// `status.lastActivity`.
    pub(crate) stored: Option<Timestamp>,
    /// What this process remembers; `None` after a restart, and of a pool that slept.
    pub(crate) history: Option<&'a History>,
}

/// How many sandboxes, and what follows from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Decision {
    /// 0 to 1 000.
    pub(crate) wanted: i32,
    /// What `status.lastActivity` shall say: whole seconds, `None` unless the role is Active.
    pub(crate) last_activity: Option<Timestamp>,
    /// What to remember; `None` when there is nothing.
    pub(crate) history: Option<History>,
    /// When time alone will change the decision.
    pub(crate) next: Option<Timestamp>,
}

/// What was needed up to now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct History {
    /// Needed since the last decision.
    current: i32,
    /// Greater counts that were needed before: strictly descending, each with the time at which it
    /// was last needed, ascending. So there are never more than there are possible counts.
    peaks: VecDeque<(i32, Timestamp)>,
    last_activity: Timestamp,
}

/// Decides.
pub(crate) fn decide(input: &Input<'_>, now: Timestamp) -> Decision {
    let max = input.scale.max.clamp(0, REPLICAS_MAX);
    let fixed = |wanted: i32| Decision { wanted: wanted.clamp(0, max), ..Decision::default() };
    match input.role {
        PoolRole::Active => active(input, now),
        PoolRole::Candidate => fixed(input.floor.max(1)),
        PoolRole::Retired => fixed(0),
    }
}

fn active(input: &Input<'_>, now: Timestamp) -> Decision {
    let scale = input.scale;
    let max = scale.max.clamp(0, REPLICAS_MAX);
    let least = scale.min.max(input.floor).clamp(0, max);
    let needed = needed(input).min(max);
    let Some(delay) = scale.scale_down_delay_seconds else {
        let wanted = if scale.min == scale.max { least } else { least.max(input.replicas) };
        return Decision {
            wanted: wanted.max(needed).min(max),
            last_activity: Some(input.stored.unwrap_or(whole_seconds(now))),
            ..Decision::default()
        };
    };
    let delay = SignedDuration::from_secs(delay.max(0).into());
    let mut history = History::resume(input, needed, now);
    history.forget(now, delay);
    // An activity keeps awake what is awake. It never wakes: a request that needs a sandbox is
    // queued, and a gateway that was just started reports every pool as active just now.
    let is_awake = input.replicas > 0 || input.woken > 0 || input.history.is_some();
    let is_recent = now.duration_since(history.last_activity) <= delay;
    let awake = i32::from(is_awake && is_recent);
    let held = if input.is_stale { input.replicas.max(input.woken) } else { 0 };
    let kept = history.peak().max(needed).max(awake).max(held).min(max);
    Decision {
        wanted: kept.max(least),
        last_activity: Some(history.stored(input.stored, delay, now)),
        next: (kept > least).then(|| history.next(awake > 0, delay)).flatten(),
        history: (kept > 0).then_some(history),
    }
}

/// The sandboxes that the demand fills.
fn needed(input: &Input<'_>) -> i32 {
    let sum = input.demand.iter().fold(0_i64, |sum, one| sum.saturating_add(*one));
    let slots = input.scale.requests_per_instance.map(|slots| i64::from(slots.max(1)));
    let Some(slots) = slots else { return i32::from(sum > 0) };
    // Gateways lend each other slots, so that no slot is free where another gateway lacks one.
    let filled = i32::try_from(filled(sum, slots)).unwrap_or(i32::MAX);
    // So one that lacks a slot says so, and reports are not of one moment: visitors who went from
    // one gateway to another are in the sum twice for a while.
    if input.waits { filled } else { filled.min(input.replicas.max(1)) }
}

/// How many sandboxes with that many slots so many requests fill; neither is negative.
fn filled(requests: i64, slots: i64) -> i64 {
    requests / slots + i64::from(requests % slots > 0)
}

/// Status times have whole seconds; rounded up, so that nothing sleeps early.
fn whole_seconds(time: Timestamp) -> Timestamp {
    let up = i64::from(time.subsec_nanosecond() > 0);
    Timestamp::from_second(time.as_second().saturating_add(up)).unwrap_or(time)
}

impl History {
    fn resume(input: &Input<'_>, needed: i32, now: Timestamp) -> Self {
        let known = input.reported.max(input.stored);
        let Some(before) = input.history else {
            // A pool without a stored time was told to serve just now, and what its verification
            // has started is about to get the traffic; reports speak of the time before.
            let told = input.stored.is_none();
            let last_activity = known.filter(|_| needed == 0 && !told).unwrap_or(now);
            let wanted = input.replicas.max(input.woken);
            let kept = (wanted > needed).then_some((wanted, last_activity));
            return Self { current: needed, peaks: kept.into_iter().collect(), last_activity };
        };
        let mut history = before.clone();
        let busy = needed > 0 || before.current > 0;
        let last_activity = history.last_activity.max(known.unwrap_or(history.last_activity));
        history.last_activity = if busy { last_activity.max(now) } else { last_activity };
        history.set(needed, now);
        history
    }

    fn set(&mut self, needed: i32, now: Timestamp) {
        if needed < self.current {
            while self.peaks.back().is_some_and(|(count, _)| *count <= self.current) {
                self.peaks.pop_back();
            }
            self.peaks.push_back((self.current, now));
        }
        while self.peaks.back().is_some_and(|(count, _)| *count <= needed) {
            self.peaks.pop_back();
        }
        self.current = needed;
    }

    /// Drops what was last needed longer ago than the delay.
    fn forget(&mut self, now: Timestamp, delay: SignedDuration) {
        while self.peaks.front().is_some_and(|(_, last)| now.duration_since(*last) > delay) {
            self.peaks.pop_front();
        }
    }

    fn peak(&self) -> i32 {
        self.peaks.front().map_or(self.current, |(count, _)| *count)
    }

    /// What `status.lastActivity` shall say. It moves only when it would be more than half of
    /// the delay late, and not while there are requests: what is younger, gateways report.
    fn stored(
        &self,
        stored: Option<Timestamp>,
        delay: SignedDuration,
        now: Timestamp,
    ) -> Timestamp {
        // A gateway rounds up; the user is not told of a time to come.
        let actual = self.last_activity.min(now);
        let keeps =
            |stored: &Timestamp| self.current > 0 || actual.duration_since(*stored) <= delay / 2;
        stored.filter(keeps).unwrap_or_else(|| whole_seconds(actual))
    }

    /// When the oldest peak, or else the last activity, is longer ago than the delay.
    fn next(&self, awake: bool, delay: SignedDuration) -> Option<Timestamp> {
        let idle = (awake && self.current == 0).then_some(self.last_activity);
        let since = self.peaks.front().map(|(_, last)| *last).or(idle)?;
        since.checked_add(delay + TICK).ok()
    }
}

#[cfg(test)]
mod tests;
