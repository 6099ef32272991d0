//! Where the time of a waiting request went.

use std::time::Duration;

use tokio::time::Instant;

/// When this gateway saw a sandbox reach each stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stages {
    pub(crate) seen: Instant,
    pub(crate) scheduled: Option<Instant>,
    pub(crate) ready: Option<Instant>,
}

/// The wait of one request, split by what it waited for. The parts add up to the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wake {
    /// For a slot while the sandbox was ready already.
    pub(crate) queue: Duration,
    /// For the sandbox to exist.
    pub(crate) create: Duration,
    /// For a node.
    pub(crate) schedule: Duration,
    /// For the program to answer.
    pub(crate) start: Duration,
}

impl Wake {
    /// Splits the time from `since` to `now` by the stages of the sandbox that ended the wait.
    pub(crate) fn split(since: Instant, now: Instant, stages: &Stages) -> Self {
        // A stage that was over before the request came counts nothing; one that was not seen, as
        // when the feed's first word is an address, ends with the next.
        let clip = |instant: Instant| instant.clamp(since, now);
        let ready = clip(stages.ready.unwrap_or(now));
        let scheduled = clip(stages.scheduled.unwrap_or(ready)).min(ready);
        let seen = clip(stages.seen).min(scheduled);
        Self {
            queue: now - ready,
            create: seen - since,
            schedule: scheduled - seen,
            start: ready - scheduled,
        }
    }

    /// The whole wait.
    pub(crate) fn total(&self) -> Duration {
        self.queue + self.create + self.schedule + self.start
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Stages, Wake};

    #[track_caller]
    fn check(since: u64, stages: (u64, Option<u64>, Option<u64>), now: u64, expected: [u64; 4]) {
        let base = Instant::now();
        let at = |ms| base + Duration::from_millis(ms);
        let stages =
            Stages { seen: at(stages.0), scheduled: stages.1.map(at), ready: stages.2.map(at) };
        let wake = Wake::split(at(since), at(now), &stages);
        let [create, schedule, start, queue] = expected.map(Duration::from_millis);
        assert_eq!(wake, Wake { queue, create, schedule, start });
        assert_eq!(wake.total(), Duration::from_millis(now - since), "parts add up");
    }

    #[test]
    fn a_wait_is_split_by_the_stages_it_saw() {
        check(100, (110, Some(115), Some(190)), 200, [10, 5, 75, 10]);
        // The request came while the sandbox was starting.
        check(150, (110, Some(115), Some(190)), 190, [0, 0, 40, 0]);
        // It was ready all along, only full.
        check(300, (110, Some(115), Some(190)), 330, [0, 0, 0, 30]);
        // Scheduling was never seen on its own.
        check(100, (110, None, Some(190)), 190, [10, 80, 0, 0]);
    }
}
