//! The longest pause of a stream.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Expires when nothing has moved for a while, here or elsewhere. Costs nothing as long as nothing
/// pauses.
#[derive(Debug)]
pub(crate) struct Gap {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Something moved since the timer was set.
    is_stale: bool,
}

impl Gap {
    pub(crate) const fn new(limit: Duration) -> Self {
        Self { limit, timer: None, is_stale: false }
    }

    /// Something moved: the pause, if there was one, is over.
    pub(crate) const fn moved(&mut self) {
        self.is_stale = true;
    }

    /// To be polled while nothing moves; ready when that has lasted too long. `moved` says when
    /// something moved elsewhere that counts as well, and is asked only where it decides.
    pub(crate) fn poll_expired(
        &mut self,
        cx: &mut Context<'_>,
        moved: impl Fn() -> Option<Instant>,
    ) -> Poll<()> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if std::mem::take(&mut self.is_stale) {
            timer.as_mut().reset(Instant::now() + limit);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let end = moved().map(|moved| moved + limit);
            match end.filter(|end| *end > Instant::now()) {
                Some(end) => timer.as_mut().reset(end),
                None => return Poll::Ready(()),
            }
        }
    }
}
