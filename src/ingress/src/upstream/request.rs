//! A request on its way to the sandbox.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::gap::Gap;
use crate::buffers::{Account, Charge};
use crate::moved::Moved;

/// A request that may be sent, with what the sender watches while it is.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Boxed, because it is handed on many times before it is sent.
    pub(crate) request: Box<Request<RequestBody>>,
    /// `None`: it has no body.
    pub(crate) upload: Option<Arc<Upload>>,
}

/// How the body of a request fares, and with it the exchange: silence counts once neither direction
/// has said anything.
#[derive(Debug)]
pub(crate) struct Upload {
    /// A byte, of the response too while there is more of the request to come.
    moved: Moved,
    state: AtomicU8,
}

/// Where a body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UploadState {
    Flowing = 0,
    Complete = 1,
    /// Over the limit.
    TooLarge = 2,
    /// The client stopped sending.
    Stalled = 3,
    /// The client's connection or stream broke.
    Broken = 4,
}

impl Upload {
    fn new() -> Self {
        Self { moved: Moved::new(), state: AtomicU8::new(0) }
    }

    pub(crate) fn state(&self) -> UploadState {
        match self.state.load(Ordering::Acquire) {
            0 => UploadState::Flowing,
            1 => UploadState::Complete,
            2 => UploadState::TooLarge,
            3 => UploadState::Stalled,
            _ => UploadState::Broken,
        }
    }

    /// When the last byte moved.
    pub(crate) fn moved(&self) -> Instant {
        self.moved.last()
    }

    /// Something of the response has come. Matters, and costs, only while the request is not over.
    pub(super) fn answered(&self) {
        if self.state() == UploadState::Flowing {
            self.moved.note();
        }
    }

    fn set(&self, state: UploadState) {
        self.moved.note();
        self.state.store(state as u8, Ordering::Release);
    }
}

/// Why a request body ended before its end. The sandbox sees a broken request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("request body is too large")]
    TooLarge,
    #[error("request body stopped flowing")]
    Stalled,
    #[error("client broke the request body off")]
    Broken(#[source] hyper::Error),
}

/// The client's body, counted and timed on its way through.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// `None`: there is no body.
    flow: Option<Flow>,
}

#[derive(Debug)]
struct Flow {
    incoming: Incoming,
    upload: Arc<Upload>,
    bytes_left: u64,
    gap: Gap,
    inflow: Option<Inflow>,
}

/// A body that comes over HTTP/2, as much as its window allows whether or not anybody reads it.
#[derive(Debug)]
struct Inflow {
    account: Arc<Account>,
    window: u64,
    /// What may have come, until it turns out that nothing has.
    held: Option<Charge>,
}

impl Inflow {
    fn hold(&mut self, left: u64) {
        if self.held.is_some() {
            return self.account.note();
        }
        let size = usize::try_from(left.min(self.window)).unwrap_or(usize::MAX);
        self.held = Some(self.account.charge(size));
    }
}

impl RequestBody {
    /// No body.
    #[cfg(test)]
    pub(crate) const fn none() -> Self {
        Self { flow: None }
    }

    /// Wraps a body of at most `size_max` bytes that never pauses longer than `idle` while there is
    /// no response that goes on.
    pub(crate) fn new(
        incoming: Incoming,
        size_max: Option<u64>,
        idle: Duration,
    ) -> (Self, Option<Arc<Upload>>) {
        if incoming.is_end_stream() {
            return (Self { flow: None }, None);
        }
        let upload = Arc::new(Upload::new());
        let flow = Flow {
            incoming,
            upload: Arc::clone(&upload),
            bytes_left: size_max.unwrap_or(u64::MAX),
            gap: Gap::new(idle),
            inflow: None,
        };
        (Self { flow: Some(flow) }, Some(upload))
    }

    /// Counts what comes for whoever sends it, at most so many bytes at a time.
    pub(crate) fn count(&mut self, account: &Arc<Account>, window: u32) {
        let Some(flow) = &mut self.flow else { return };
        let (account, window) = (Arc::clone(account), window.into());
        flow.inflow = Some(Inflow { account, window, held: None });
        flow.hold();
    }
}

impl Flow {
    fn hold(&mut self) {
        let left = self.incoming.size_hint().upper().unwrap_or(u64::MAX);
        if let Some(inflow) = &mut self.inflow {
            inflow.hold(left);
        }
    }

    fn emptied(&mut self) {
        if let Some(inflow) = &mut self.inflow {
            inflow.held = None;
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(flow) = &mut self.flow else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut flow.incoming).poll_frame(cx) else {
            flow.emptied();
            ready!(flow.gap.poll_expired(cx, || Some(flow.upload.moved())));
            flow.upload.set(UploadState::Stalled);
            return Poll::Ready(Some(Err(UploadError::Stalled)));
        };
        flow.gap.moved();
        Poll::Ready(match frame {
            None => {
                flow.upload.set(UploadState::Complete);
                None
            }
            Some(Err(error)) => {
                flow.upload.set(UploadState::Broken);
                Some(Err(UploadError::Broken(error)))
            }
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(bytes_left) = flow.bytes_left.checked_sub(size) else {
                    flow.upload.set(UploadState::TooLarge);
                    return Poll::Ready(Some(Err(UploadError::TooLarge)));
                };
                flow.bytes_left = bytes_left;
                let is_complete = flow.incoming.is_end_stream();
                if is_complete {
                    flow.emptied();
                } else {
                    flow.hold();
                }
                flow.upload.set(match is_complete {
                    true => UploadState::Complete,
                    false => UploadState::Flowing,
                });
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.flow.as_ref().is_none_or(|flow| flow.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.flow.as_ref().map_or_else(|| SizeHint::with_exact(0), |flow| flow.incoming.size_hint())
    }
}
