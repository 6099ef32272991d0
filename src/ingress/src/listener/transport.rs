//! The bytes of one connection from outside, with a finger on its pulse.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::Client;

/// How a connection over HTTP/2 begins, as far as no HTTP/1 request can.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2";

/// Tells the client's pulse when bytes come in, and whether they go out.
#[derive(Debug)]
pub(super) struct Transport<T> {
    io: T,
    client: Arc<Client>,
    /// What of the preface has not come yet; empty: what is spoken is known.
    awaited: &'static [u8],
}

impl<T> Transport<T> {
    pub(super) const fn new(io: T, client: Arc<Client>) -> Self {
        Self { io, client, awaited: H2_PREFACE }
    }

    /// Compares what comes first with the preface. It may come byte by byte, and is one for the
    /// server all the same.
    fn recognize(&mut self, read: &[u8]) {
        let (next, later) = self.awaited.split_at(read.len().min(self.awaited.len()));
        let is_preface = read.starts_with(next);
        self.awaited = if is_preface { later } else { &[] };
        if is_preface && later.is_empty() {
            self.client.pulse.set_h2();
        }
    }

    fn note(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(_) => self.client.pulse.written(),
            Poll::Pending => self.client.pulse.blocked(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Transport<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.client.pulse.is_fickle(self.client.shared.core.settings.h2_given_up_max) {
            let text = "the client gives up more requests than it lets be answered";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, text)));
        }
        let filled = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = &buf.filled()[filled..];
        if result.is_ready() && !read.is_empty() {
            if !self.awaited.is_empty() {
                self.recognize(read);
            }
            self.client.pulse.read();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Transport<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
