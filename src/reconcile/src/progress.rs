//! Word of progress that waits a moment, because the next moment mostly makes it untrue.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::ObjectKey;

/// Remembers since when word of progress on an object waits to be written.
///
/// A sandbox that starts is soon ready, and a version whose pools are verified soon serves. To
/// write both steps costs twice, and nobody acts on the first. So a controller may let such a word
/// wait for a bounded time, after which it is written whatever comes. Never to be used for what
/// fails, for what somebody waits for, or for the first word on an object that a user has made:
/// tools take an object without status for one that is done.
///
/// Holds what began to wait within twice the limit: what was not taken up since belongs to objects
/// that are gone. Lost with the process: the wait then begins anew, once.
#[derive(Debug)]
pub struct Progress {
    limit: SignedDuration,
    waiting: Mutex<HashMap<ObjectKey, Timestamp>>,
}

impl Progress {
    /// Words wait for `limit` at most.
    pub fn new(limit: SignedDuration) -> Self {
        Self { limit, waiting: Mutex::default() }
    }

    /// Until when word of progress on an object may wait; `None` when it is to be written now.
    pub fn wait(&self, key: &ObjectKey, now: Timestamp) -> Option<Timestamp> {
        let mut waiting = self.waiting.lock();
        if !waiting.contains_key(key) {
            waiting.retain(|_, since| now.duration_since(*since) <= self.limit + self.limit);
            waiting.insert(key.clone(), now);
        }
        let since = waiting[key];
        // A clock that was set back must not make it wait for longer.
        let until = since.min(now).checked_add(self.limit).unwrap_or(now);
        (until > now).then_some(until)
    }

    /// Nothing of this object waits: it was written, or there is nothing to be said.
    pub fn done(&self, key: &ObjectKey) {
        self.waiting.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_waits_once_and_not_for_longer_than_the_limit() {
        let progress = Progress::new(SignedDuration::from_secs(2));
        let key = ObjectKey::new("team", "shop");
        let at = |second: i64| Timestamp::from_second(1_000 + second).expect("a time");
        assert_eq!(progress.wait(&key, at(0)), Some(at(2)));
        assert_eq!(progress.wait(&key, at(1)), Some(at(2)));
        assert_eq!(progress.wait(&ObjectKey::new("team", "other"), at(1)), Some(at(3)));
        assert_eq!(progress.wait(&key, at(2)), None);
        progress.done(&key);
        assert_eq!(progress.wait(&key, at(5)), Some(at(7)));
        assert_eq!(progress.waiting.lock().len(), 2);
        progress.wait(&ObjectKey::new("team", "third"), at(8));
        assert_eq!(progress.waiting.lock().len(), 2, "the other object is gone");
    }
}
