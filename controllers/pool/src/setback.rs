//! What stands in the way of new sandboxes, and how long they wait for it. Pure: time is an argument.
//!
//! A program that crashes the kubelet starts again, ever more rarely. A Pod that the API server
//! refuses, or that its node ends at once, nobody paces but this: after each setback new sandboxes
//! wait as long as setbacks have lasted, within bounds, whatever else wakes the pool meanwhile. A
//! quota is raised, a webhook repaired or a node freed without a change that we would see.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// First and longest wait between attempts.
const PAUSE_MIN: SignedDuration = SignedDuration::from_secs(1);
const PAUSE_MAX: SignedDuration = SignedDuration::from_secs(60);

/// How long after an attempt without another setback the last one counts as overcome. A node takes
/// some seconds to end what it does not take.
const OVERCOME_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// The latest of the setbacks in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Setback {
    /// The reason and the message of the pool's condition.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// When the first of the row was.
    first: Timestamp,
    /// When the next attempt is due.
    pub(crate) until: Timestamp,
    /// With fewer Pods than that there may be room again, and nobody waits.
    crowd: usize,
}

impl Setback {
    /// One that comes now, after `before`.
    pub(crate) fn new(
        before: Option<&Self>,
        reason: &'static str,
        message: String,
        now: Timestamp,
    ) -> Self {
        let first = before.filter(|before| !before.is_overcome(now)).map_or(now, |it| it.first);
        let pause = now.duration_since(first).clamp(PAUSE_MIN, PAUSE_MAX);
        let until = now.saturating_add(pause).unwrap_or(now);
        Self { reason, message, first, until, crowd: 0 }
    }

    /// The same, which ends when the pool has fewer Pods than `crowd`.
    pub(crate) fn of_crowd(self, crowd: usize) -> Self {
        Self { crowd, ..self }
    }

    /// Whether a pool with so many Pods waits before it makes another.
    pub(crate) fn holds(&self, pods: usize, now: Timestamp) -> bool {
        now < self.until && pods >= self.crowd
    }

    /// When it counts as overcome, unless there is another.
    pub(crate) fn overcome(&self) -> Timestamp {
        self.until.saturating_add(OVERCOME_AFTER).unwrap_or(self.until)
    }

    /// Whether it is too long ago to say anything of the next attempt.
    pub(crate) fn is_overcome(&self, now: Timestamp) -> bool {
        self.overcome() <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, seconds};

    fn setback(before: Option<&Setback>, now: Timestamp) -> Setback {
        Setback::new(before, "PodRefused", "exceeded quota".to_owned(), now)
    }

    #[test]
    fn each_wait_is_as_long_as_setbacks_have_lasted() {
        let (mut last, mut now, mut waits) = (setback(None, at(0)), at(0), Vec::new());
        for _ in 0..9 {
            waits.push(last.until.duration_since(now).as_secs());
            now = last.until;
            last = setback(Some(&last), now);
        }
        assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn it_holds_until_the_next_attempt_or_until_there_is_room() {
        let refused = setback(None, at(0)).of_crowd(3);
        for (pods, now, holds) in [(3, 0, true), (4, 0, true), (2, 0, false), (3, 1, false)] {
            assert_eq!(refused.holds(pods, at(now)), holds, "{pods} Pods after {now} s");
        }
    }

    #[test]
    fn one_that_comes_long_after_the_last_begins_a_new_row() {
        let first = setback(None, at(0));
        let later = first.overcome();
        assert!(!first.is_overcome(later - seconds(1)) && first.is_overcome(later));
        assert_eq!(setback(Some(&first), later), setback(None, later));
    }
}
