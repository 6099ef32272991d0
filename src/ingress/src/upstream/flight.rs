//! One request on its connection: from the first byte sent to the end of the response, however
//! that comes, with the slot that it runs on.
//!
//! The slot is freed when the response has ended, or when the connection is closed. Under
//! `Strict` the program has to end it: a response that the client gave up is read to its end, and
//! where a request was not sent whole, the program is waited for to hang up; both for a while only.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{self, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::gap::Gap;
use super::h1::WireError;
use super::request::{Outgoing, RequestBody, Upload, UploadState};
use super::{Connection, ExchangeError, Switched, h1, h2};
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
    Reset(#[source] ExchangeError),
    #[error("response is not HTTP")]
    Protocol(#[source] ExchangeError),
    #[error("no response in time")]
    Timeout,
    #[error("request body ended before its end")]
    Upload(UploadState),
}

/// Why a response's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("connection to the sandbox broke")]
    Reset(#[source] ExchangeError),
    #[error("response body stopped flowing")]
    Stalled,
    #[error("client does not take the response")]
    NotTaken,
}

/// A request under way. Dropped before its end, it takes its connection with it.
#[derive(Debug)]
pub(crate) struct Flight {
    timeouts: RouteTimeouts,
    upload: Option<Arc<Upload>>,
    /// `None` only once it has ended.
    load: Option<(Slot, Connection)>,
}

impl Flight {
    pub(crate) const fn new(timeouts: RouteTimeouts, slot: Slot, connection: Connection) -> Self {
        Self { timeouts, upload: None, load: Some((slot, connection)) }
    }

    /// Sends the request and waits for the head of the response.
    ///
    /// # Cancel safety
    ///
    /// The request is given up: see [`Concurrency`] for what happens to the slot.
    pub(crate) async fn send(
        self,
        outgoing: Outgoing,
    ) -> Result<Response<Box<UpstreamBody>>, SendError> {
        let Some(core) = self.core_if_strict() else { return self.run(outgoing).await };
        // Runs on its own, so that it survives a client that goes away.
        let (sender, result) = oneshot::channel();
        core.spawn(async move {
            // If nobody listens any more the body is dropped here, which reads it to its end.
            let _ = sender.send(self.run(outgoing).await);
        });
        result.await.unwrap_or(Err(SendError::Timeout))
    }

    /// `None` unless the program's slot is `Strict`, and once the flight has ended.
    fn core_if_strict(&self) -> Option<Arc<Core>> {
        let (slot, _) = self.load.as_ref()?;
        (slot.concurrency() == Concurrency::Strict).then(|| Arc::clone(slot.core()))
    }

    async fn run(mut self, outgoing: Outgoing) -> Result<Response<Box<UpstreamBody>>, SendError> {
        self.upload.clone_from(&outgoing.upload);
        match self.load.as_mut() {
            Some((_, Connection::H1(_))) => self.run_h1(outgoing.request).await,
            Some((_, Connection::H2(sender))) => {
                let sender = sender.clone();
                self.run_h2(sender, outgoing.request).await
            }
            None => unreachable!("a flight ends after it was sent"),
        }
    }

    async fn run_h1(
        mut self,
        mut request: Box<Request<RequestBody>>,
    ) -> Result<Response<Box<UpstreamBody>>, SendError> {
        let (timeouts, upload) = (self.timeouts, self.upload.clone());
        let began = Instant::now();
        let connection = self.h1();
        connection.begin(&mut request);
        let at = |time: Duration| began + time.min(timeouts.response_header);
        let mut response = connection.head_before(at(SOON), &mut request).await;
        if response.is_none() {
            connection.expect_word(true);
            response = connection.head_before(at(HEARD), &mut request).await;
            connection.expect_word(false);
        }
        if response.is_none() {
            let head = connection.head(&mut request);
            response = await_head(head, began, upload.as_deref(), &timeouts).await;
        }
        let error = match response {
            Some(Ok(head)) => return Ok(self.land(head, Source::H1(request.into_body()))),
            Some(Err(error)) => error,
            None => return Err(SendError::Timeout),
        };
        let is_untouched = self.h1().is_untouched() && !matches!(error, WireError::Upload);
        if !is_untouched {
            return Err(self.failed(error.into()));
        }
        let (slot, _) = self.load.take().expect("a flight ends after it was sent");
        Err(SendError::Unsent(Box::new((slot, Outgoing { request, upload }))))
    }

    async fn run_h2(
        mut self,
        mut sender: h2::Sender,
        request: Box<Request<RequestBody>>,
    ) -> Result<Response<Box<UpstreamBody>>, SendError> {
        let (timeouts, upload) = (self.timeouts, self.upload.clone());
        let response = sender.try_send_request(*request);
        let response = await_head(response, Instant::now(), upload.as_deref(), &timeouts);
        let mut failure = match response.await {
            Some(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                let head = Response::from_parts(head, ());
                return Ok(self.land(head, Source::H2(incoming)));
            }
            Some(Err(failure)) => failure,
            None => return Err(SendError::Timeout),
        };
        if let Some(request) = failure.take_message() {
            let request = Box::new(request);
            let (slot, _) = self.load.take().expect("a flight ends after it was sent");
            return Err(SendError::Unsent(Box::new((slot, Outgoing { request, upload }))));
        }
        Err(self.failed(failure.into_error().into()))
    }

    /// The connection of a flight that is under way over HTTP/1.1.
    fn h1(&mut self) -> &mut h1::Connection {
        match &mut self.load {
            Some((_, Connection::H1(connection))) => connection,
            _ => unreachable!("the protocol of a flight does not change, and it has not ended"),
        }
    }

    fn backing(&self) -> Backing {
        match &self.load {
            Some((_, Connection::H1(connection))) => {
                let (number, size) = connection.block();
                Backing::Read { number, size }
            }
            Some((slot, Connection::H2(_))) => {
                Backing::Window(slot.core().settings.h2_upstream_window as usize)
            }
            None => unreachable!("nothing comes of a flight that has ended"),
        }
    }

    fn failed(self, error: ExchangeError) -> SendError {
        match self.upload.as_ref().map(|upload| upload.state()) {
            // We broke it off.
            Some(state @ (UploadState::TooLarge | UploadState::Stalled | UploadState::Broken)) => {
                self.break_off();
                SendError::Upload(state)
            }
            _ => {
                self.broke(&error);
                match error.is_protocol() {
                    true => SendError::Protocol(error),
                    false => SendError::Reset(error),
                }
            }
        }
    }

    fn land(self, head: Response<()>, source: Source) -> Response<Box<UpstreamBody>> {
        let is_upgrade = head.status() == StatusCode::SWITCHING_PROTOCOLS;
        let gap = Gap::new(self.timeouts.idle);
        if let Some(upload) = &self.upload {
            upload.answered();
        }
        head.map(|()| {
            let backing = self.backing();
            let (source, flight) = (Some(source), Some(self));
            let mut body = Box::new(UpstreamBody { source, flight, failure: None, gap, backing });
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
            Connection::H1(connection) if is_sent => {
                connection.put_back(slot.upstream(), slot.core());
            }
            // The program answered without reading the whole request.
            Connection::H1(connection) => drop(connection),
            Connection::H2(_) => {}
        }
        drop(slot);
    }

    /// The connection is useless: close it, then free the slot.
    fn close(&mut self) {
        let Some((slot, connection)) = self.load.take() else { return };
        // Over HTTP/2 the stream is reset as its halves are dropped.
        drop(connection);
        drop(slot);
    }

    /// The connection broke. From a sandbox that is out of reach others stay away until it answers
    /// again; under `Strict` for good, which is the drop's business: it may still be at work. So
    /// may one that does not speak HTTP.
    fn broke(mut self, error: &ExchangeError) {
        if error.is_upload() {
            return self.break_off();
        }
        if error.is_out_of_reach() {
            let is_soft = |(slot, _): &(Slot, Connection)| slot.concurrency() == Concurrency::Soft;
            if let Some((slot, connection)) = self.load.take_if(|load| is_soft(load)) {
                drop(connection);
                slot.give_back_dead();
            }
        } else if !error.is_protocol() {
            // The program hung up.
            self.close();
        }
    }

    /// The rest of the request will never come.
    fn break_off(mut self) {
        let is_told = |(slot, connection): &(Slot, Connection)| {
            slot.concurrency() == Concurrency::Strict && matches!(connection, Connection::H1(_))
        };
        if let Some((slot, Connection::H1(connection))) = self.load.take_if(|load| is_told(load)) {
            let (core, connection) = (Arc::clone(slot.core()), connection.into_switched());
            core.spawn(hang_up(slot, connection));
        }
    }

    /// Lets go of slot and connection, which have become part of the client's. `None`: there is no
    /// connection of its own.
    pub(crate) fn into_switched(mut self) -> Option<(Slot, Switched)> {
        let is_own = |(_, connection): &(Slot, Connection)| matches!(connection, Connection::H1(_));
        match self.load.take_if(|load| is_own(load))? {
            (slot, Connection::H1(connection)) => Some((slot, connection.into_switched())),
            (_, Connection::H2(_)) => None,
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some((slot, connection)) = self.load.take() {
            drop(connection);
            leave(slot);
        }
    }
}

/// Gives back the slot of a program that may still be at work on what we no longer listen to, and
/// nobody can say for how long: under `Strict` its sandbox gets no more requests.
pub(crate) fn leave(slot: Slot) {
    if slot.concurrency() == Concurrency::Strict {
        slot.core().metrics.retired.inc();
        slot.give_back_retired();
    }
}

/// Tells a program that no more will come. The slot is free when it has hung up in turn, for which
/// it has some time under `Strict`, and at once otherwise.
pub(crate) async fn hang_up(slot: Slot, mut connection: Switched) {
    if slot.concurrency() == Concurrency::Soft {
        drop(connection);
        return drop(slot);
    }
    let ended = timeout(slot.core().settings.strict_wait, async {
        connection.shutdown().await?;
        io::copy(&mut connection, &mut io::sink()).await
    });
    let has_hung_up = ended.await.is_ok_and(|ended| !ended.is_err_and(|e| h1::is_out_of_reach(&e)));
    drop(connection);
    match has_hung_up {
        true => drop(slot),
        false => leave(slot),
    }
}

/// After this long without a response it is looked after whether anybody is there at all.
const SOON: Duration = Duration::from_secs(1);
/// And after this long that is known.
const HEARD: Duration = h1::UNHEARD_MAX.saturating_add(Duration::from_secs(3));

/// Waits for a head. The limit counts from the end of the request; while its body is on the way,
/// pauses are the body's business, and this is for a sandbox that does not take it. `None`: too
/// late.
async fn await_head<F: Future>(
    response: F,
    began: Instant,
    upload: Option<&Upload>,
    timeouts: &RouteTimeouts,
) -> Option<F::Output> {
    let mut response = pin!(response);
    let limit_of = |upload: &Upload| match upload.state() {
        UploadState::Flowing => upload.moved() + timeouts.response_header + timeouts.idle,
        _ => upload.moved() + timeouts.response_header,
    };
    let mut deadline = began + timeouts.response_header;
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
    source: Option<Source>,
    /// `None` once the response has ended.
    flight: Option<Flight>,
    /// How it ended, until that has been told.
    failure: Option<ExchangeError>,
    gap: Gap,
    backing: Backing,
}

/// The memory that a frame lies in, which is held as long as it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A read, which may have filled several frames. Numbers are one connection's.
    Read { number: u32, size: usize },
    /// Its own, and behind it as much as may come unasked.
    Window(usize),
}

impl Backing {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Read { number, .. } => number,
            Self::Window(_) => 0,
        }
    }

    /// Bytes.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::Read { size, .. } | Self::Window(size) => size,
        }
    }
}

/// Where the frames of a response come from.
#[derive(Debug)]
enum Source {
    /// The flight's connection. What is left of the request goes out while the response comes in.
    H1(RequestBody),
    H2(Incoming),
}

impl Source {
    fn poll_frame(
        &mut self,
        flight: &mut Flight,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self {
            Self::H1(upload) => flight.h1().poll_frame(upload, cx).map_err(ExchangeError::from),
            Self::H2(incoming) => Pin::new(incoming).poll_frame(cx).map_err(ExchangeError::from),
        }
    }
}

impl UpstreamBody {
    fn finish(&mut self) {
        if let Some(flight) = self.flight.take() {
            flight.finish();
        }
    }

    /// Whether the next frame was read together with the head, if any of it was.
    pub(crate) fn came_with_head(&self) -> bool {
        match (&self.source, &self.flight) {
            (Some(Source::H1(_)), Some(Flight { load: Some((_, connection)), .. })) => {
                connection.came_with_head()
            }
            _ => false,
        }
    }

    /// The memory that the last frame lies in.
    pub(crate) const fn backing(&self) -> Backing {
        self.backing
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
        let this = &mut *self;
        let Some((source, flight)) = this.source.as_mut().zip(this.flight.as_mut()) else {
            let failure = this.failure.take();
            return Poll::Ready(failure.map(|error| Err(DownloadError::Reset(error))));
        };
        let Poll::Ready(frame) = source.poll_frame(flight, cx) else {
            let upload = flight.upload.as_deref();
            ready!(this.gap.poll_expired(cx, || upload.map(Upload::moved)));
            this.flight = None;
            return Poll::Ready(Some(Err(DownloadError::Stalled)));
        };
        this.gap.moved();
        this.backing = flight.backing();
        if let Some(upload) = &flight.upload {
            upload.answered();
        }
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if this.is_end_stream() {
                    this.finish();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                if let Some(flight) = this.flight.take() {
                    flight.broke(&error);
                }
                // What came before is sent first: an error ends the client's connection at once.
                this.failure = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => {
                this.finish();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match (&self.source, &self.flight) {
            (Some(Source::H1(_)), Some(Flight { load: Some((_, connection)), .. })) => {
                connection.has_ended()
            }
            (Some(Source::H2(incoming)), Some(_)) => incoming.is_end_stream(),
            _ => self.failure.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, &self.flight) {
            (Some(Source::H1(_)), Some(Flight { load: Some((_, connection)), .. })) => {
                connection.length().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            (Some(Source::H2(incoming)), Some(_)) => incoming.size_hint(),
            _ if self.failure.is_some() => SizeHint::default(),
            _ => SizeHint::with_exact(0),
        }
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        if let Some((core, source)) = flight.core_if_strict().zip(self.source.take()) {
            let limit = core.settings.strict_wait;
            core.spawn(drain(source, flight, limit));
        }
    }
}

/// Reads a response nobody wants to its end. Too late, the flight's drop retires the sandbox.
async fn drain(mut source: Source, mut flight: Flight, limit: Duration) {
    let read = async {
        while let Some(frame) = poll_fn(|cx| source.poll_frame(&mut flight, cx)).await {
            frame?;
        }
        Ok(())
    };
    let read = timeout(limit, read).await;
    match read {
        Ok(Ok(())) => flight.finish(),
        Ok(Err(error)) => flight.broke(&error),
        Err(_) => drop(flight),
    }
}
