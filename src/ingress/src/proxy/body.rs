//! The body of a response to the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::exchange::Exchange;
use super::stall::Hold;
use crate::error::Code;
use crate::upstream::{DownloadError, UpstreamBody};

/// A sandbox's body on its way, or one of ours. Holds the record of the request to its end.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    content: Content,
    /// `None`: the request goes on elsewhere, as an upgraded connection.
    exchange: Option<Box<Exchange>>,
}

#[derive(Debug)]
enum Content {
    /// What came together with its head, for a client over HTTP/1.1: it is not counted, because
    /// its connection has nothing else to send.
    Upstream(Box<UpstreamBody>),
    /// What may wait for its client.
    Held(Hold),
    /// `None`: sent, or empty from the start.
    Own(Option<Bytes>),
}

impl ResponseBody {
    pub(super) fn upstream(body: Box<UpstreamBody>, exchange: Box<Exchange>) -> Self {
        let client = exchange.client();
        let content = if client.pulse.is_h2() && !body.is_end_stream() {
            Content::Held(client.streams.hold(body))
        } else {
            Content::Upstream(body)
        };
        Self { content, exchange: Some(exchange) }
    }

    pub(super) fn own(text: Bytes, exchange: Box<Exchange>) -> Self {
        let text = Some(text).filter(|text| !text.is_empty());
        Self { content: Content::Own(text), exchange: Some(exchange) }
    }

    /// Counts from now on what the client has not taken.
    fn hold(&mut self) {
        let Some(exchange) = &self.exchange else { return };
        let streams = &exchange.client().streams;
        self.content = match std::mem::replace(&mut self.content, Content::Own(None)) {
            Content::Upstream(body) => Content::Held(streams.hold(body)),
            content => content,
        };
    }

    /// Whether this gateway wrote it.
    pub(super) const fn is_own(&self) -> bool {
        matches!(self.content, Content::Own(_))
    }

    pub(super) const fn switched() -> Self {
        Self { content: Content::Own(None), exchange: None }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let this = &mut *self;
        if matches!(&this.content, Content::Upstream(body) if !body.came_with_head()) {
            this.hold();
        }
        let frame = match &mut this.content {
            Content::Own(text) => text.take().map(|text| Ok(Frame::data(text))),
            Content::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
            Content::Held(body) => ready!(body.poll_frame(cx)),
        };
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => {
                    exchange.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Some(Err(DownloadError::Reset(_))) => exchange.code = Some(Code::UpstreamReset),
                Some(Err(DownloadError::Stalled)) => exchange.code = Some(Code::UpstreamTimeout),
                Some(Err(DownloadError::NotTaken)) | None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Own(text) => text.is_none(),
            Content::Upstream(body) => body.is_end_stream(),
            Content::Held(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Own(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Content::Upstream(body) => body.size_hint(),
            Content::Held(body) => body.size_hint(),
        }
    }
}
