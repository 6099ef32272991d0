//! One request on its connection: from the first byte sent to the end of the response, however
//! that comes, with the slot that it runs on.
//!
//! The slot is freed when the response has ended, or when the connection is closed. Under
//! `Strict` a request that the client gave up is read to its end instead, for a while.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::Connection;
use super::gap::Gap;
use super::request::{Outgoing, Upload, UploadState};
use crate::activator::Slot;
use crate::core::Core;
use crate::model::{Concurrency, RouteTimeouts};

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Slot and request are as they were.
    #[error("connection was closed before anything was sent")]
    Unsent(Box<(Slot, Outgoing)>),
    #[error("connection broke before the response")]
    Reset(#[source] hyper::Error),
    #[error("response is not HTTP")]
    Protocol(#[source] hyper::Error),
    #[error("no response in time")]
    Timeout,
    #[error("request body ended before its end")]
    Upload(UploadState),
}

/// Why a response's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("connection to the sandbox broke")]
    Reset(#[source] hyper::Error),
    #[error("response body stopped flowing")]
    Stalled,
    #[error("client does not take the response")]
    NotTaken,
}

/// A request under way. Dropped before its end, it takes its connection with it.
#[derive(Debug)]
pub(crate) struct Flight {
    core: Arc<Core>,
    timeouts: RouteTimeouts,
    upload: Option<Arc<Upload>>,
    /// `None` only once it has ended.
    load: Option<(Slot, Connection)>,
}

impl Flight {
    pub(crate) const fn new(
        core: Arc<Core>,
        timeouts: RouteTimeouts,
        slot: Slot,
        connection: Connection,
    ) -> Self {
        Self { core, timeouts, upload: None, load: Some((slot, connection)) }
    }

    /// Sends the request and waits for the head of the response.
    ///
    /// # Cancel safety
    ///
    /// The request is given up: see [`Concurrency`] for what happens to the slot.
    pub(crate) async fn send(
        self,
        outgoing: Outgoing,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let is_strict =
            self.load.as_ref().is_some_and(|(slot, _)| slot.concurrency() == Concurrency::Strict);
        if !is_strict {
            return self.run(outgoing).await;
        }
        // Runs on its own, so that it survives a client that goes away.
        let core = Arc::clone(&self.core);
        let (sender, result) = oneshot::channel();
        core.spawn(async move {
            // If nobody listens any more the body is dropped here, which reads it to its end.
            let _ = sender.send(self.run(outgoing).await);
        });
        result.await.unwrap_or(Err(SendError::Timeout))
    }

    async fn run(mut self, outgoing: Outgoing) -> Result<Response<UpstreamBody>, SendError> {
        let Outgoing { request, upload } = outgoing;
        self.upload.clone_from(&upload);
        let timeouts = self.timeouts;
        let (_, connection) = self.load.as_mut().expect("a flight ends after it was sent");
        let result = match connection {
            Connection::H1(connection) => {
                let response = connection.sender.try_send_request(request);
                await_head(response, upload.as_deref(), &timeouts).await
            }
            Connection::H2(sender) => {
                let response = sender.try_send_request(request);
                await_head(response, upload.as_deref(), &timeouts).await
            }
        };
        let Some(result) = result else { return Err(SendError::Timeout) };
        let mut failure = match result {
            Ok(response) => return Ok(self.land(response)),
            Err(failure) => failure,
        };
        if let Some(request) = failure.take_message() {
            let (slot, _) = self.load.take().expect("a flight ends after it was sent");
            return Err(SendError::Unsent(Box::new((slot, Outgoing { request, upload }))));
        }
        Err(self.failed(failure.into_error()))
    }

    fn failed(mut self, error: hyper::Error) -> SendError {
        match self.upload.as_ref().map(|upload| upload.state()) {
            // We broke it off. The drop knows what to do.
            Some(state @ (UploadState::TooLarge | UploadState::Stalled | UploadState::Broken)) => {
                SendError::Upload(state)
            }
            _ => {
                self.close();
                if error.is_parse() { SendError::Protocol(error) } else { SendError::Reset(error) }
            }
        }
    }

    fn land(self, response: Response<Incoming>) -> Response<UpstreamBody> {
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        response.map(|incoming| {
            let gap = Gap::new(self.timeouts.idle);
            let mut body = UpstreamBody { incoming: Some(incoming), flight: Some(self), gap };
            if !is_upgrade && body.is_end_stream() {
                body.finish();
            }
            body
        })
    }

    /// The response has ended: the connection is free for the next request, and then the slot.
    fn finish(mut self) {
        let Some((slot, connection)) = self.load.take() else { return };
        let is_sent =
            self.upload.as_ref().is_none_or(|upload| upload.state() == UploadState::Complete);
        match connection {
            Connection::H1(connection) if is_sent => connection.put_back(&self.core),
            // The program answered without reading the whole request.
            Connection::H1(connection) => return connection.close(slot),
            Connection::H2(_) => {}
        }
        drop(slot);
    }

    /// The connection is useless: close it, then free the slot.
    fn close(&mut self) {
        match self.load.take() {
            Some((slot, Connection::H1(connection))) => connection.close(slot),
            // The stream is reset as its halves are dropped.
            Some((slot, Connection::H2(_))) => drop(slot),
            None => {}
        }
    }

    /// Lets go of slot and connection, which have become part of the client's.
    pub(crate) fn into_load(mut self) -> Option<(Slot, Connection)> {
        self.load.take()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let is_strict =
            self.load.as_ref().is_some_and(|(slot, _)| slot.concurrency() == Concurrency::Strict);
        if !is_strict {
            return self.close();
        }
        // The program may still be at work on what we no longer listen to, and nobody can say for
        // how long.
        if let Some((slot, connection)) = self.load.take() {
            self.core.metrics.retired.inc();
            drop(connection);
            slot.give_back_retired();
        }
    }
}

/// Waits for a head. The limit counts from the end of the request; while its body is on the way,
/// pauses are the body's business, and this is for a sandbox that does not take it. `None`: too
/// late.
async fn await_head<F: Future>(
    response: F,
    upload: Option<&Upload>,
    timeouts: &RouteTimeouts,
) -> Option<F::Output> {
    let mut response = pin!(response);
    let limit_of = |upload: &Upload| match upload.state() {
        UploadState::Flowing => upload.moved() + timeouts.response_header + timeouts.idle,
        _ => upload.moved() + timeouts.response_header,
    };
    let mut deadline = Instant::now() + timeouts.response_header;
    loop {
        if let Ok(response) = timeout_at(deadline, &mut response).await {
            return Some(response);
        }
        deadline = upload.map(limit_of).filter(|new| *new > deadline)?;
    }
}

/// The response on its way to the client.
#[derive(Debug)]
pub(crate) struct UpstreamBody {
    /// `None` only while being dropped.
    incoming: Option<Incoming>,
    /// `None` once the response has ended.
    flight: Option<Flight>,
    gap: Gap,
}

impl UpstreamBody {
    fn finish(&mut self) {
        if let Some(flight) = self.flight.take() {
            flight.finish();
        }
    }

    /// The flight of a response that switched protocols.
    pub(crate) fn into_flight(mut self) -> Option<Flight> {
        self.flight.take()
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) else {
            ready!(self.gap.poll_expired(cx));
            self.flight = None;
            return Poll::Ready(Some(Err(DownloadError::Stalled)));
        };
        self.gap.moved();
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if self.is_end_stream() {
                    self.finish();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                if let Some(mut flight) = self.flight.take() {
                    flight.close();
                }
                Some(Err(DownloadError::Reset(error)))
            }
            None => {
                self.finish();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        let is_strict =
            flight.load.as_ref().is_some_and(|(slot, _)| slot.concurrency() == Concurrency::Strict);
        if let Some(incoming) = self.incoming.take().filter(|_| is_strict) {
            let core = Arc::clone(&flight.core);
            core.spawn(drain(incoming, flight));
        }
    }
}

/// Reads a response nobody wants to its end. Too late, the flight's drop retires the sandbox.
async fn drain(mut incoming: Incoming, flight: Flight) {
    let limit = flight.core.settings.strict_wait;
    let read = async {
        while let Some(frame) = incoming.frame().await {
            if frame.is_err() {
                return false;
            }
        }
        true
    };
    match timeout(limit, read).await {
        Ok(true) => flight.finish(),
        Ok(false) => {
            let mut flight = flight;
            flight.close();
        }
        Err(_) => drop(flight),
    }
}
