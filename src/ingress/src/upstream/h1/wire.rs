//! One connection to a sandbox, driven by the request that runs on it.
//!
//! No task of its own: whoever polls for the response also moves the request's body, so a request
//! costs no wake-up but the socket's, and dropping the wire closes the socket there and then.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::WireError;
use super::alarm::Alarm;
use super::decoder::{Decoded, Decoder};
use super::head::{self, Encoding, Head};
use crate::upstream::request::RequestBody;

/// Least room for a read. Small responses fit at once.
pub(crate) const READ_SIZE: usize = 8 * 1024;
/// Most room for a read, once the sandbox has filled the smaller ones.
const READ_SIZE_MAX: usize = 128 * 1024;
/// Data up to this size is copied behind what is written before it: cheaper than another part.
const COPY_SIZE_MAX: usize = 4 * 1024;
/// How long a sandbox's kernel may leave a request without a word: four packets are lost then.
pub(in crate::upstream) const UNHEARD_MAX: Duration = Duration::from_secs(3);
/// How long one that has switched protocols may leave data without a word: as long as clients may.
const SWITCHED_UNHEARD_MAX: Duration = Duration::from_secs(60);
/// Heads before the final one, such as `100` or `103`; nobody sends this many.
const INTERIM_COUNT_MAX: u32 = 64;

/// A socket with what has been read of it and what is to be written.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    input: BytesMut,
    read_size: usize,
    read_size_max: usize,
    /// The memory that is read into: how many there were, and how large it is.
    block: (u32, usize),
    /// Nothing was read since the head of the response.
    is_fresh: bool,
    head_size_max: usize,
    output: Output,
    encoding: Encoding,
    decoder: Decoder,
    interim_count: u32,
    is_persistent: bool,
    /// The request has no body.
    is_bare: bool,
    alarm: Alarm,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, head_size_max: usize) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            read_size: READ_SIZE,
            read_size_max: READ_SIZE_MAX,
            block: (0, 0),
            is_fresh: false,
            head_size_max,
            output: Output::default(),
            encoding: Encoding::Done,
            decoder: Decoder::Ended,
            interim_count: 0,
            is_persistent: true,
            is_bare: false,
            alarm: Alarm::default(),
        }
    }

    /// Whether another request may be sent: the last one and its response are whole, and the
    /// sandbox has neither closed the connection nor said anything unasked.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_persistent
            && self.encoding == Encoding::Done
            && self.decoder == Decoder::Ended
            && self.output.is_empty()
            && self.input.is_empty()
            && self.is_quiet()
    }

    fn is_quiet(&self) -> bool {
        let unasked = self.stream.try_read(&mut [0; 1]);
        matches!(unasked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether nothing of the request has left yet, so that it may be sent elsewhere.
    pub(super) const fn is_untouched(&self) -> bool {
        !self.output.has_moved
    }

    /// Begins an exchange. Nothing of it is sent before somebody waits for the response.
    pub(super) fn begin(&mut self, request: &mut Request<RequestBody>) {
        self.encoding = head::encode(request, &mut self.output.copied);
        self.is_bare = self.encoding == Encoding::Done;
        (self.output.has_moved, self.interim_count) = (false, 0);
        // What is taken for the request's response must not have been there before it.
        self.input.clear();
    }

    /// Sends what is left of the request of [`Self::begin`] and waits for the head of the response.
    ///
    /// # Cancel safety
    ///
    /// The next call goes on.
    pub(super) async fn head(
        &mut self,
        request: &mut Request<RequestBody>,
    ) -> Result<Response<()>, WireError> {
        poll_fn(|cx| self.poll_head(request, cx)).await
    }

    /// As [`Self::head`], until a moment; `None`: it has come first.
    ///
    /// # Cancel safety
    ///
    /// The next call goes on.
    pub(super) async fn head_before(
        &mut self,
        end: Instant,
        request: &mut Request<RequestBody>,
    ) -> Option<Result<Response<()>, WireError>> {
        let wait = |cx: &mut Context<'_>| match self.poll_head(request, cx) {
            Poll::Ready(head) => Poll::Ready(Some(head)),
            Poll::Pending => self.alarm.poll_after(end, cx).map(|()| None),
        };
        poll_fn(wait).await
    }

    /// Whether the connection shall break if the sandbox's kernel does not acknowledge the request,
    /// which a program that is busy, stopped or hung does not keep it from.
    ///
    /// Only of a request without a body: a program that does not read one lets data wait here. And
    /// not for longer than that takes: it would make one lost keepalive the end of a connection.
    pub(super) fn expect_word(&mut self, expects: bool) {
        if self.is_bare && self.output.is_empty() {
            self.break_off_after(expects.then_some(UNHEARD_MAX));
        }
    }

    fn break_off_after(&self, limit: Option<Duration>) {
        // What fails here fails only on a socket that is gone, which the next read says.
        let _ = SockRef::from(&self.stream).set_tcp_user_timeout(limit);
    }

    fn poll_head(
        &mut self,
        request: &mut Request<RequestBody>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, WireError>> {
        self.poll_upload(request.body_mut(), cx)?;
        loop {
            if let Some(head) = self.take_head(request)? {
                return Poll::Ready(Ok(head));
            }
            if ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(Err(WireError::Closed));
            }
        }
    }

    /// The head of the response, if it is there. It gets the room of the request's headers, which
    /// nobody reads any more, unless the request may have to be sent again.
    fn take_head(
        &mut self,
        request: &mut Request<RequestBody>,
    ) -> Result<Option<Response<()>>, WireError> {
        let method = request.method().clone();
        let mut unused = HeaderMap::new();
        let room = if self.is_untouched() { &mut unused } else { request.headers_mut() };
        while !self.input.is_empty() {
            let Some(head) = head::parse(&mut self.input, &method, room)? else {
                let is_too_large = self.input.len() > self.head_size_max;
                return if is_too_large { Err(WireError::HeadSize) } else { Ok(None) };
            };
            let Head { response, decoder, is_persistent } = head;
            let status = response.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                self.interim_count += 1;
                if self.interim_count > INTERIM_COUNT_MAX {
                    return Err(WireError::Status);
                }
                continue;
            }
            self.is_fresh = true;
            self.decoder = decoder;
            self.is_persistent = is_persistent && status != StatusCode::SWITCHING_PROTOCOLS;
            return Ok(Some(response));
        }
        Ok(None)
    }

    /// The next frame of the response's body. `upload` is what is left of the request.
    pub(super) fn poll_frame(
        &mut self,
        upload: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        if let Err(error) = self.poll_upload(upload, cx) {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.decoder.decode(&mut self.input) {
                Ok(Decoded::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::Incomplete) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) => {
                    self.is_persistent = false;
                    if let Err(error) = self.decoder.close() {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Most room for a read from now on, and at most what it is by itself.
    pub(super) fn limit_reads(&mut self, size_max: usize) {
        self.read_size_max = size_max.min(READ_SIZE_MAX);
    }

    /// Whether there is more of what was read together with the head.
    pub(super) fn came_with_head(&self) -> bool {
        self.is_fresh && !self.input.is_empty()
    }

    /// The memory that was read into last: its number, and its size.
    pub(super) const fn block(&self) -> (u32, usize) {
        self.block
    }

    /// Whether the response has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.decoder == Decoder::Ended
    }

    /// Bytes to come, if that is known.
    pub(super) const fn length(&self) -> Option<u64> {
        match self.decoder {
            Decoder::Ended => Some(0),
            Decoder::Length(left) => Some(left),
            Decoder::Chunked(_) | Decoder::UntilClose => None,
        }
    }

    /// Moves what can be moved of the request. A sandbox that takes no more may have answered
    /// already, so that is no error here.
    fn poll_upload(
        &mut self,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Result<(), WireError> {
        loop {
            match self.output.poll_flush(&mut self.stream, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return self.give_up_upload(error),
                Poll::Pending => return Ok(()),
            }
            if self.encoding == Encoding::Length(0) && body.is_end_stream() {
                self.encoding = Encoding::Done;
            }
            if self.encoding == Encoding::Done {
                return Ok(());
            }
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.push(frame)?,
                Poll::Ready(Some(Err(_))) => return Err(WireError::Upload),
                Poll::Ready(None) => self.end_upload(None)?,
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn give_up_upload(&mut self, error: io::Error) -> Result<(), WireError> {
        if self.is_untouched() {
            return Err(WireError::Io(error));
        }
        self.output = Output { has_moved: true, ..Output::default() };
        self.encoding = Encoding::Done;
        self.is_persistent = false;
        Ok(())
    }

    fn push(&mut self, frame: Frame<Bytes>) -> Result<(), WireError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return self.end_upload(frame.into_trailers().ok()),
        };
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.encoding {
            Encoding::Done => {}
            Encoding::Length(left) => {
                // More than was announced would be read as the next request.
                *left = left.checked_sub(data.len() as u64).ok_or(WireError::Upload)?;
                self.output.push(data, b"");
            }
            Encoding::Chunked => {
                self.output.push_size(data.len());
                self.output.push(data, b"\r\n");
            }
        }
        Ok(())
    }

    fn end_upload(&mut self, trailers: Option<HeaderMap>) -> Result<(), WireError> {
        match self.encoding {
            Encoding::Done | Encoding::Length(0) => {}
            Encoding::Length(_) => return Err(WireError::Upload),
            Encoding::Chunked => self.output.push_end(trailers.as_ref()),
        }
        self.encoding = Encoding::Done;
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, WireError>> {
        if self.input.capacity() - self.input.len() < self.read_size / 2 {
            let before = self.input.as_ptr();
            self.input.reserve(self.read_size);
            if self.input.as_ptr() != before {
                self.block = (self.block.0.wrapping_add(1), self.input.capacity());
            }
        }
        self.is_fresh = false;
        let room = self.input.capacity() - self.input.len();
        let size = ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input))
            .map_err(WireError::Io)?;
        if size == room {
            self.read_size = (self.read_size * 2).min(self.read_size_max);
        }
        Poll::Ready(Ok(size))
    }

    /// Lets go of what a large exchange left behind.
    pub(super) fn rest(&mut self) {
        self.read_size = READ_SIZE;
        if self.input.capacity() > READ_SIZE {
            self.input = BytesMut::new();
        }
        self.output.rest();
    }

    /// The bare connection, after it has switched protocols.
    pub(super) fn into_switched(self) -> Switched {
        // Either side may be slow to read; so slow that it counts as gone is the same for both.
        self.break_off_after(Some(SWITCHED_UNHEARD_MAX));
        Switched { stream: self.stream, read: self.input.freeze() }
    }
}

/// What is to be written: bytes of ours and copies of little, then data as it came, then its end.
#[derive(Debug, Default)]
struct Output {
    copied: BytesMut,
    data: Bytes,
    tail: &'static [u8],
    /// Something of this request has left.
    has_moved: bool,
}

impl Output {
    fn is_empty(&self) -> bool {
        self.copied.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Only after what is there has been flushed, or while it holds copies only.
    fn push(&mut self, data: Bytes, tail: &'static [u8]) {
        if data.len() <= COPY_SIZE_MAX {
            self.copied.put_slice(&data);
            self.copied.put_slice(tail);
        } else {
            (self.data, self.tail) = (data, tail);
        }
    }

    fn push_size(&mut self, size: usize) {
        use std::fmt::Write;
        write!(self.copied, "{size:x}\r\n").expect("a buffer in memory grows");
    }

    fn push_end(&mut self, trailers: Option<&HeaderMap>) {
        self.copied.put_slice(b"0\r\n");
        for (name, value) in trailers.into_iter().flatten() {
            self.copied.put_slice(name.as_str().as_bytes());
            self.copied.put_slice(b": ");
            self.copied.put_slice(value.as_bytes());
            self.copied.put_slice(b"\r\n");
        }
        self.copied.put_slice(b"\r\n");
    }

    /// Ready when all is written.
    fn poll_flush(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = ready!(self.poll_write(stream, cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.has_moved = true;
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(stream);
        if self.data.is_empty() && self.tail.is_empty() {
            return stream.poll_write(cx, &self.copied);
        }
        let parts = [&self.copied[..], &self.data[..], self.tail].map(IoSlice::new);
        stream.poll_write_vectored(cx, &parts)
    }

    fn advance(&mut self, mut count: usize) {
        let copied = count.min(self.copied.len());
        self.copied.advance(copied);
        count -= copied;
        let data = count.min(self.data.len());
        self.data.advance(data);
        count -= data;
        self.tail = &self.tail[count..];
    }

    fn rest(&mut self) {
        if self.copied.capacity() > READ_SIZE {
            self.copied = BytesMut::new();
        }
    }
}

/// A connection that has switched protocols, from its first byte after the switch.
#[derive(Debug)]
pub(crate) struct Switched {
    stream: TcpStream,
    /// What came together with the head of the response.
    read: Bytes,
}

impl AsyncRead for Switched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let size = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..size]);
        self.read.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Switched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn request() -> Request<RequestBody> {
        Request::new(RequestBody::none())
    }

    fn limit(wire: &Wire) -> Option<Duration> {
        SockRef::from(&wire.stream).tcp_user_timeout().expect("an option")
    }

    /// A wire, and the sandbox's side of it.
    async fn connected() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (sandbox, _) = listener.accept().await.expect("a connection");
        (Wire::new(stream, 1 << 16), sandbox)
    }

    #[tokio::test]
    async fn only_a_request_that_waits_for_long_has_to_be_acknowledged() {
        let (mut wire, _sandbox) = connected().await;
        let mut request = request();
        wire.begin(&mut request);
        wire.expect_word(true);
        assert_eq!(limit(&wire), None, "nothing was sent");
        let head = poll_fn(|cx| Poll::Ready(wire.poll_head(&mut request, cx).is_ready())).await;
        assert!(!head, "nobody answers");
        assert_eq!(limit(&wire), None, "it did not wait for long");
        wire.expect_word(true);
        assert_eq!(limit(&wire), Some(UNHEARD_MAX));
        wire.expect_word(false);
        assert_eq!(limit(&wire), None, "the program may take its time");
    }
}
