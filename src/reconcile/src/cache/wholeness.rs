//! Whether a cache has seen every change, and since when.

use std::time::Instant;

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

/// What a cache knows of its watch; as a gauge, 1 while the watch is interrupted.
#[derive(Debug)]
pub(crate) struct Wholeness {
    state: Mutex<State>,
    gauge: Gauge,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Not everything has been listed yet.
    Unlisted,
    /// Every change since then has been seen, or is on its way. The instant is the same time, where
    /// a clock that is set must not matter.
    Whole(Timestamp, Instant),
    /// Changes since then may have been missed.
    Interrupted(Timestamp),
}

impl Wholeness {
    pub(crate) fn new(gauge: Gauge) -> Self {
        gauge.set(1);
        Self { state: Mutex::new(State::Unlisted), gauge }
    }

    /// The watch follows the API server; `now` counts only if it did not before.
    pub(crate) fn begin(&self, now: Timestamp, instant: Instant) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Whole(..)) {
            *state = State::Whole(now, instant);
            self.gauge.set(0);
        }
    }

    /// The watch no longer does; `now` counts only if it did before.
    pub(crate) fn end(&self, now: Timestamp) {
        let mut state = self.state.lock();
        if matches!(*state, State::Whole(..)) {
            *state = State::Interrupted(now);
            self.gauge.set(1);
        }
    }

    pub(crate) fn unbroken_since(&self) -> Option<Timestamp> {
        match *self.state.lock() {
            State::Whole(since, _) => Some(since),
            State::Unlisted | State::Interrupted(_) => None,
        }
    }

    pub(crate) fn unbroken_instant(&self) -> Option<Instant> {
        match *self.state.lock() {
            State::Whole(_, since) => Some(since),
            State::Unlisted | State::Interrupted(_) => None,
        }
    }

    pub(crate) fn interrupted_since(&self) -> Option<Timestamp> {
        match *self.state.lock() {
            State::Interrupted(since) => Some(since),
            State::Unlisted | State::Whole(..) => None,
        }
    }
}
