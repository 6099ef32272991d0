//! A timer for many short waits, one after the other.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// Is set by the first wait, and left as it is by those that end before it rings: setting a timer
/// and taking it back costs two locks, which all requests would meet in.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready once `end` has passed. It may wake whoever waited last when nobody waits any more.
    pub(super) fn poll_after(&mut self, end: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= end {
                return Poll::Ready(());
            }
            // It rang for a wait that is over.
            timer.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    /// Whether the wait is over, and what the timer is set for.
    async fn check(alarm: &mut Alarm, end: Instant) -> (bool, Option<Instant>) {
        let is_over = poll_fn(|cx| Poll::Ready(alarm.poll_after(end, cx).is_ready())).await;
        (is_over, alarm.timer.as_ref().map(|timer| timer.deadline()))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_that_end_early_set_no_timer() {
        let (mut alarm, began) = (Alarm::default(), Instant::now());
        let at = |milliseconds| began + Duration::from_millis(milliseconds);
        assert_eq!(check(&mut alarm, at(1000)).await, (false, Some(at(1000))));
        advance(Duration::from_millis(900)).await;
        assert_eq!(check(&mut alarm, at(1900)).await, (false, Some(at(1000))), "left as it was");
        advance(Duration::from_millis(200)).await;
        assert_eq!(check(&mut alarm, at(1900)).await, (false, Some(at(1900))), "it rang too early");
        assert_eq!(check(&mut alarm, at(1500)).await, (false, Some(at(1500))), "a shorter wait");
        poll_fn(|cx| alarm.poll_after(at(1500), cx)).await;
        assert_eq!(Instant::now(), at(1500));
        assert_eq!(check(&mut alarm, at(1200)).await, (true, Some(at(1200))), "it is past");
    }
}
