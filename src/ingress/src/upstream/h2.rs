//! HTTP/2 in plain text with prior knowledge: one connection for all requests to a sandbox.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;

use super::{ConnectError, RequestBody, dial};
use crate::core::Core;

/// The widest window there is (RFC 9113 section 6.9.1): what is held is bounded by the streams.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// A handle on the connection; clones share it.
pub(crate) type Sender = SendRequest<RequestBody>;

/// The connection, once it is made. Whoever comes while it is being made waits for it.
#[derive(Debug)]
pub(super) struct Shared(Mutex<Option<Sender>>);

impl Shared {
    pub(super) const fn new() -> Self {
        Self(Mutex::const_new(None))
    }

    pub(super) async fn sender(
        &self,
        address: SocketAddr,
        core: &Arc<Core>,
    ) -> Result<Sender, ConnectError> {
        let mut current = self.0.lock().await;
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let sender = open(address, core).await?;
        *current = Some(sender.clone());
        Ok(sender)
    }
}

async fn open(address: SocketAddr, core: &Arc<Core>) -> Result<Sender, ConnectError> {
    let stream = dial(address, core).await?;
    let settings = &core.settings;
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(settings.h2_upstream_window)
        .initial_connection_window_size(WINDOW_MAX)
        .max_header_list_size(u32::try_from(settings.header_size_max).unwrap_or(u32::MAX))
        // A sandbox whose node is gone says nothing; without a ping its requests would hang until
        // their own timeouts, and new ones would be sent after them.
        .keep_alive_interval(settings.h2_ping_interval)
        .keep_alive_timeout(settings.h2_ping_interval)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(ConnectError::Handshake)?;
    let metrics = Arc::clone(&core.metrics);
    metrics.upstream_connections.inc();
    let open = Open(metrics);
    core.spawn(async move {
        let _open = open;
        // Errors reach the requests that ran.
        let _ = driver.await;
    });
    Ok(sender)
}

struct Open(Arc<crate::metrics::Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.upstream_connections.dec();
    }
}
