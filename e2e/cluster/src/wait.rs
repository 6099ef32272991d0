//! Waiting for a state of the world, never for a moment in time.

use std::fmt::{Debug, Display};
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a probe looks. Short against everything that is waited for, long enough to leave the
/// processor to what is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The same where a look costs little: at a cache, or at one object.
const GLANCE_INTERVAL: Duration = Duration::from_millis(20);

/// How long a test waits for what nothing but a fault keeps from coming: a sandbox, a word of a
/// controller. Long, since a machine may be busy with much else; it judges nothing, and what has a
/// time to be kept has a limit of its own.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// The same as an option of kubectl.
pub const KUBECTL_PATIENCE: &str = "--timeout=180s";

/// Asks `probe` until it answers `Ok`. Its `Err` is what was seen instead.
///
/// # Errors
/// After `limit`, saying what was awaited and what was last seen.
pub async fn until<T, E: Display>(
    awaited: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    let mut seen = "nothing".to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A probe that hangs must not outlast the limit by much; it gets at least one look.
        let look = tokio::time::timeout(left.max(LOOK_INTERVAL), probe()).await;
        match look {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(other)) => seen = format!("{other:#}"),
            Err(_) => seen.push_str("; no answer from the last look"),
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} for {awaited}; last seen: {seen}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Looks until it sees what is expected, and returns that.
///
/// # Panics
/// After [`PATIENCE`], saying what was last seen.
pub async fn until_seen<T, F>(
    awaited: &str,
    mut look: impl FnMut() -> F,
    expected: impl Fn(&T) -> bool,
) -> T
where
    T: Debug,
    F: Future<Output = T>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look().await;
        if expected(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited in vain until {awaited}; last seen: {seen:#?}");
        tokio::time::sleep(GLANCE_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timeout_says_what_was_awaited_and_what_was_seen() {
        let probe = async || Err::<(), _>("2 of 3 ready");
        let error = until("three nodes", Duration::ZERO, probe).await.unwrap_err().to_string();
        assert_eq!(error, "waited 0ns for three nodes; last seen: 2 of 3 ready");
    }

    #[tokio::test]
    async fn a_look_that_hangs_does_not_hide_what_was_seen_before() {
        let mut looks = 0;
        let probe = async || {
            looks += 1;
            if looks > 1 {
                std::future::pending::<()>().await;
            }
            Err::<(), _>("2 of 3 ready")
        };
        let limit = Duration::from_millis(300);
        let error = until("three nodes", limit, probe).await.unwrap_err().to_string();
        assert!(
            error.ends_with("last seen: 2 of 3 ready; no answer from the last look"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_level_that_comes_late_is_seen() {
        let mut looks = 0;
        let probe = async || {
            looks += 1;
            if looks < 3 { Err(looks) } else { Ok(looks) }
        };
        assert_eq!(until("the third look", Duration::from_secs(5), probe).await.unwrap(), 3);
    }
}
