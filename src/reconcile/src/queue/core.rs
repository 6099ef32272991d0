//! The queue's decisions, without clock, lock or task: time and randomness are arguments.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::ObjectKey;

/// Room for so many keys is kept when none waits.
const KEPT: usize = 64;

/// How long to wait after repeated failures of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure.
    pub min: Duration,
    /// The longest wait ever.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (at least 1), for a `jitter` from 0 up to 1.
    ///
    /// Doubles with each failure up to `max`, and is spread over the upper half of that, so that
    /// keys that failed together do not come back together.
    pub fn delay(self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// What came of a key that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It waits for a worker.
    Queued,
    /// It was waiting already, or is being worked on and will be worked on once more.
    Merged,
    /// The queue is full; a full pass over all keys is due once there is room.
    Refused,
}

/// A key handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) key: ObjectKey,
    /// Failures in a row before this attempt.
    pub(crate) failures: u32,
    /// How long the key was ready and no worker took it.
    pub(crate) waited: Duration,
}

/// How the work on a key ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Finish {
    /// Nothing to do before the next change.
    Settled,
    /// To be looked at again at that instant.
    At(Instant),
    /// Failed; to be tried again after a delay.
    Failed {
        /// From 0 up to 1.
        jitter: f64,
    },
}

/// Keys that are waiting, being worked on, or due later. A key is in work at most once at a time.
#[derive(Debug)]
pub(crate) struct Core {
    backoff: Backoff,
    capacity: usize,
    ready: VecDeque<(ObjectKey, Instant)>,
    queued: HashSet<ObjectKey>,
    /// Keys in work, and whether each must run once more.
    working: HashMap<ObjectKey, bool>,
    timers: BTreeSet<(Instant, ObjectKey)>,
    timer_of: HashMap<ObjectKey, Instant>,
    failures: HashMap<ObjectKey, u32>,
    overflowed: bool,
}

impl Core {
    /// An empty queue that holds at most `capacity` distinct keys.
    pub(crate) fn new(backoff: Backoff, capacity: usize) -> Self {
        Self {
            backoff,
            capacity,
            ready: VecDeque::new(),
            queued: HashSet::new(),
            working: HashMap::new(),
            timers: BTreeSet::new(),
            timer_of: HashMap::new(),
            failures: HashMap::new(),
            overflowed: false,
        }
    }

    /// Asks for a key to be worked on as soon as possible.
    pub(crate) fn add(&mut self, key: ObjectKey, now: Instant) -> Added {
        if let Some(again) = self.working.get_mut(&key) {
            *again = true;
            return Added::Merged;
        }
        if self.queued.contains(&key) {
            return Added::Merged;
        }
        if !self.timer_of.contains_key(&key) && !self.has_room() {
            self.overflowed = true;
            return Added::Refused;
        }
        self.queued.insert(key.clone());
        self.ready.push_back((key, now));
        Added::Queued
    }

    /// Asks for a key to be worked on at `due`; the earliest of several such wishes counts.
    pub(crate) fn add_at(&mut self, key: ObjectKey, due: Instant) -> Added {
        match self.timer_of.get(&key) {
            Some(known) if *known <= due => return Added::Merged,
            Some(_) => {}
            None if !self.has_room() && !self.is_known(&key) => {
                self.overflowed = true;
                return Added::Refused;
            }
            None => {}
        }
        self.set_timer(key, due);
        Added::Queued
    }

    /// Hands out the key that has been ready longest, if any is ready.
    ///
    /// The key's timer is cleared: the work that begins now will say when to look again.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Taken> {
        self.promote(now);
        let (key, since) = self.ready.pop_front()?;
        self.queued.remove(&key);
        if self.ready.is_empty() {
            // Everything there is was queued at the start, and will hardly be again.
            self.ready.shrink_to(KEPT);
            self.queued.shrink_to(KEPT);
        }
        self.clear_timer(&key);
        self.working.insert(key.clone(), false);
        let failures = self.failures.get(&key).copied().unwrap_or(0);
        Some(Taken { key, failures, waited: now.saturating_duration_since(since) })
    }

    /// Takes back a key that was handed out. Returns the delay when it failed.
    pub(crate) fn finish(
        &mut self,
        key: &ObjectKey,
        how: Finish,
        now: Instant,
    ) -> Option<Duration> {
        let again = self.working.remove(key).unwrap_or(false);
        let delay = match how {
            Finish::Settled => {
                self.failures.remove(key);
                None
            }
            Finish::At(due) => {
                self.failures.remove(key);
                self.add_at(key.clone(), due);
                None
            }
            Finish::Failed { jitter } => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let delay = self.backoff.delay(*failures, jitter);
                self.set_timer(key.clone(), now + delay);
                Some(delay)
            }
        };
        if again {
            self.add(key.clone(), now);
        }
        delay
    }

    /// When a key becomes ready by itself, if nothing is ready yet.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Keys that are ready and wait for a worker.
    pub(crate) fn depth(&self) -> usize {
        self.ready.len()
    }

    /// Keys that are due later.
    pub(crate) fn scheduled(&self) -> usize {
        self.timers.len()
    }

    /// Whether keys were refused and there is room again; asked once, answered once.
    pub(crate) fn take_overflow(&mut self) -> bool {
        let due = self.overflowed && self.held() <= self.capacity / 2;
        self.overflowed &= !due;
        due
    }

    /// Moves the keys whose time has come behind those that are ready.
    fn promote(&mut self, now: Instant) {
        while let Some((due, key)) = self.timers.pop_first() {
            if due > now {
                self.timers.insert((due, key));
                return;
            }
            self.timer_of.remove(&key);
            if let Some(again) = self.working.get_mut(&key) {
                *again = true;
            } else if self.queued.insert(key.clone()) {
                self.ready.push_back((key, due));
            }
        }
    }

    fn set_timer(&mut self, key: ObjectKey, due: Instant) {
        self.clear_timer(&key);
        self.timer_of.insert(key.clone(), due);
        self.timers.insert((due, key));
    }

    fn clear_timer(&mut self, key: &ObjectKey) {
        if let Some(due) = self.timer_of.remove(key) {
            self.timers.remove(&(due, key.clone()));
        }
    }

    fn is_known(&self, key: &ObjectKey) -> bool {
        self.queued.contains(key) || self.working.contains_key(key)
    }

    /// Whether a key that is not known yet would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.held() < self.capacity
    }

    /// An upper bound of the distinct keys held: one may be ready and scheduled at once.
    pub(super) fn held(&self) -> usize {
        self.ready.len() + self.timers.len() + self.working.len()
    }
}
