//! One look at one key: what a controller implements and what it is given.

use std::{error::Error, future::Future, time::Duration};

use jiff::Timestamp;
use kube::Resource;
use tracing::Span;

use crate::{ObjectKey, Queue, cache::Origin};

/// When to look at a key again, if nothing changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Only when something changes, or at the next full pass.
    Settled,
    /// At that time.
    At(Timestamp),
    /// After that long.
    After(Duration),
}

impl Next {
    /// The earlier of two wishes, seen from `now`.
    pub fn earliest(self, other: Self, now: Timestamp) -> Self {
        match (self.delay(now), other.delay(now)) {
            (None, _) => other,
            (Some(_), None) => self,
            (Some(mine), Some(others)) if mine <= others => self,
            (Some(_), Some(_)) => other,
        }
    }

    /// How long from `now`; `None` when settled, zero for a time that has passed.
    pub(crate) fn delay(self, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Settled => None,
            Self::After(delay) => Some(delay),
            Self::At(due) => Some(Duration::try_from(due.duration_since(now)).unwrap_or_default()),
        }
    }
}

/// What to do after a failed pass. The error decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Try again after a delay that grows with each failure of the key.
    Backoff,
    /// Trying again changes nothing before somebody changes something; a change or the next full
    /// pass brings the key back. Logged as a warning.
    WaitForChange,
    /// A defect of ours or of the installation. As [`Retry::WaitForChange`], but logged as an
    /// error: somebody must act.
    Never,
}

/// What the framework asks of a controller's error.
pub trait ReconcileError: Error + Send + Sync + 'static {
    /// A word from a small closed set: the metric label, and the reason of an Event.
    fn category(&self) -> &'static str;

    /// What to do next.
    fn retry(&self) -> Retry;
}

/// What a controller does with a key.
pub trait Reconciler: Send + Sync + 'static {
    /// Why a pass can fail.
    type Error: ReconcileError;

    /// Observes, plans, applies and reports, once. Called for every key that may have changed,
    /// also for objects that are gone; never twice at once for one key.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when it takes too long and when leadership is lost. What it has
    /// written stays; the next pass starts from there.
    fn reconcile(&self, pass: &Pass) -> impl Future<Output = Result<Next, Self::Error>> + Send;
}

/// One call of [`Reconciler::reconcile`].
#[derive(Debug)]
pub struct Pass {
    key: ObjectKey,
    now: Timestamp,
    attempt: u32,
    queue: Queue,
    span: Span,
}

impl Pass {
    pub(crate) fn new(queue: Queue, key: ObjectKey, attempt: u32, now: Timestamp) -> Self {
        Self { key, now, attempt, queue, span: Span::none() }
    }

    pub(crate) fn within(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// The object to look at.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The time of this pass, read once.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Failures of this key in a row before this pass.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Writes the object's UID and generation into the pass's span.
    pub fn identify(&self, object: &impl Resource) {
        let meta = object.meta();
        if let Some(uid) = &meta.uid {
            self.span.record("uid", uid.as_str());
        }
        if let Some(generation) = meta.generation {
            self.span.record("generation", generation);
        }
    }

    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { queue: &self.queue, key: &self.key }
    }
}

/// A pass of a controller that does not run.
#[cfg(test)]
pub(crate) fn mk_pass() -> Pass {
    let (_, client) = crate::testing::Wire::scripted([]);
    let queue = crate::Controller::new(&crate::testing::context(client), "demo").queue();
    Pass::new(queue, ObjectKey::new("team-a", "key"), 0, Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const SECOND: Duration = Duration::from_secs(1);

    #[track_caller]
    fn check(one: Next, other: Next, expected: Next) {
        assert_eq!(one.earliest(other, NOW), expected);
        assert_eq!(other.earliest(one, NOW), expected);
    }

    #[test]
    fn the_earliest_wish_counts() {
        check(Next::Settled, Next::Settled, Next::Settled);
        check(Next::Settled, Next::After(SECOND), Next::After(SECOND));
        check(Next::After(SECOND), Next::After(2 * SECOND), Next::After(SECOND));
        check(Next::At(NOW + SECOND), Next::After(2 * SECOND), Next::At(NOW + SECOND));
    }

    #[test]
    fn a_time_that_has_passed_is_now() {
        assert_eq!(Next::At(NOW - SECOND).delay(NOW), Some(Duration::ZERO));
    }
}
