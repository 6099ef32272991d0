//! HTTP/1.1 to sandboxes: one request at a time on a connection, kept on a stack in between.
//!
//! Written by hand because it is where most of a request's time in this process would go: the
//! ready-made client runs each connection as a task of its own, and every request would be handed
//! to that task and back. Here the request drives its connection ([`wire`]); [`head`] and
//! [`decoder`] are the grammar, pure.

mod alarm;
mod decoder;
mod head;
mod idle;
mod wire;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use self::wire::Wire;
use super::request::RequestBody;
use super::{ConnectError, Upstream, dial};
use crate::core::Core;

pub(super) use idle::Idle;
pub(crate) use wire::READ_SIZE;
pub(crate) use wire::Switched;
pub(super) use wire::UNHEARD_MAX;

/// What went wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("connection broke")]
    Io(#[source] io::Error),
    #[error("connection was closed instead of an answer")]
    Closed,
    #[error("response ended before its end")]
    Truncated,
    #[error("head of the response is not HTTP")]
    Head(#[source] httparse::Error),
    #[error("head of the response is too large")]
    HeadSize,
    #[error("status of the response is not one")]
    Status,
    #[error("field of the response is malformed")]
    Field,
    #[error("length of the response is ambiguous")]
    Framing,
    #[error("chunk of the response is malformed")]
    Chunk,
    #[error("trailers of the response are malformed")]
    Trailers,
    #[error("request body ended before its end")]
    Upload,
}

impl WireError {
    /// Whether the sandbox is out of reach, which says nothing of what it does.
    pub(super) fn is_out_of_reach(&self) -> bool {
        matches!(self, Self::Io(error) if is_out_of_reach(error))
    }

    /// Whether the sandbox answered, and not in HTTP.
    pub(super) const fn is_protocol(&self) -> bool {
        !matches!(self, Self::Io(_) | Self::Closed | Self::Truncated | Self::Upload)
    }

    /// Whether it is our request that was not whole.
    pub(super) const fn is_upload(&self) -> bool {
        matches!(self, Self::Upload)
    }
}

/// Whether nothing of the other side arrives any more, which says nothing of what it does.
pub(crate) fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}

/// A connection that runs no request, or the one it was taken for. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Box<Wire>,
    _counted: Counted,
}

impl Connection {
    /// Connects to a sandbox.
    pub(super) async fn open(home: &Upstream, core: &Core) -> Result<Self, ConnectError> {
        let stream = dial(home.address, core).await?;
        let wire = Box::new(Wire::new(stream, core.settings.header_size_max));
        let counted = Counted::new(&core.metrics.upstream_connections);
        Ok(Self { wire, _counted: counted })
    }

    /// Begins an exchange. Nothing of it is sent before somebody waits for the response.
    pub(super) fn begin(&mut self, request: &mut Request<RequestBody>) {
        self.wire.begin(request);
    }

    /// As [`Self::head`], until a moment; `None`: it has come first. Such a wait sets no timer of
    /// its own, so it costs next to nothing.
    ///
    /// # Cancel safety
    ///
    /// The next call goes on.
    pub(super) async fn head_before(
        &mut self,
        end: Instant,
        request: &mut Request<RequestBody>,
    ) -> Option<Result<Response<()>, WireError>> {
        self.wire.head_before(end, request).await
    }

    /// Sends what is left of that request and waits for the head of its response.
    ///
    /// # Cancel safety
    ///
    /// The next call goes on.
    pub(super) async fn head(
        &mut self,
        request: &mut Request<RequestBody>,
    ) -> Result<Response<()>, WireError> {
        self.wire.head(request).await
    }

    /// Whether the connection shall break if the sandbox's kernel does not acknowledge a request
    /// that has no body, within [`UNHEARD_MAX`].
    pub(super) fn expect_word(&mut self, expects: bool) {
        self.wire.expect_word(expects);
    }

    /// Whether nothing of the request has left, so that it may be sent elsewhere.
    pub(super) const fn is_untouched(&self) -> bool {
        self.wire.is_untouched()
    }

    /// The next frame of the response's body. `upload` is what is left of the request.
    pub(super) fn poll_frame(
        &mut self,
        upload: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        self.wire.poll_frame(upload, cx)
    }

    /// Most room for a read from now on.
    pub(super) fn limit_reads(&mut self, size_max: usize) {
        self.wire.limit_reads(size_max);
    }

    /// Whether there is more of what was read together with the head.
    pub(super) fn came_with_head(&self) -> bool {
        self.wire.came_with_head()
    }

    /// The memory that the last frame lies in: its number on this connection, and its size.
    pub(super) const fn block(&self) -> (u32, usize) {
        self.wire.block()
    }

    /// Whether the response has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.wire.has_ended()
    }

    /// Bytes of the response to come, if that is known.
    pub(super) fn length(&self) -> Option<u64> {
        self.wire.length()
    }

    /// Puts the connection on the stack of its sandbox, if it may carry another request.
    pub(super) fn put_back(mut self, home: &Arc<Upstream>, core: &Core) {
        if self.wire.is_reusable() {
            self.wire.rest();
            home.idle.put(self, home, core);
        }
    }

    /// The bare connection, after it has switched protocols.
    pub(crate) fn into_switched(self) -> Switched {
        (*self.wire).into_switched()
    }
}

/// One up in a gauge for as long as it lives.
#[derive(Debug)]
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
