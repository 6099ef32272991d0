//! What both ends of a connection between gateways agree on.

use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};

/// The one request that is answered.
pub(crate) const PATH: &str = "/.well-known/portolan/peers/link";
/// Names the instance that asks; its Lease has to show the certificate of the connection.
pub(crate) const INSTANCE: &str = "x-portolan-instance";

/// From the first packet to the answer. Gateways are in one cluster.
pub(crate) const ESTABLISH: Duration = Duration::from_secs(3);
/// Pause between pings, and the wait for the answer to one: a peer that is gone without a word is
/// noticed within two seconds, and one that only stutters is not given up.
pub(crate) const PING_INTERVAL: Duration = Duration::from_millis(500);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Receive window in bytes: messages are small, and a longer one comes in parts.
pub(crate) const WINDOW: u32 = 64 * 1024;
/// Bytes of a head; ours has a few hundred.
pub(crate) const HEADER_SIZE_MAX: u32 = 8 * 1024;

/// Runs what hyper runs on the side, no longer than the connection is held.
#[derive(Debug, Clone)]
pub(crate) struct Side(CancellationToken);

impl Side {
    /// Everything ends when the guard is dropped.
    pub(crate) fn new() -> (Self, DropGuard) {
        let end = CancellationToken::new();
        (Self(end.clone()), end.drop_guard())
    }
}

impl<F> hyper::rt::Executor<F> for Side
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let end = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = task => {}
                () = end.cancelled() => {}
            }
        });
    }
}
