//! A link at work: messages of this end out, those of the other end in, until something breaks.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::mpsc;

use crate::peers::frame::{Messages, encode};
use crate::peers::{Broken, LinkEnd};

/// Carries messages between `link` and the connection. One message at a time waits to be sent, so
/// what is sent is what is true then.
pub(crate) async fn exchange(
    link: &mut impl LinkEnd,
    outgoing: &mpsc::Sender<Bytes>,
    incoming: &mut Incoming,
) -> Broken {
    let mut messages = Messages::new(incoming);
    loop {
        tokio::select! {
            next = next(link, outgoing) => match next {
                Some((room, message)) => room.send(encode(&message)),
                None => return Broken::Closed,
            },
            message = messages.next() => {
                let taken = match message {
                    Ok(Some(message)) => link.take(message),
                    Ok(None) => return Broken::Closed,
                    Err(broken) => return broken,
                };
                if let Err(violation) = taken {
                    return Broken::Violation(violation.0);
                }
            }
        }
    }
}

/// First the room, then the message: one that was taken from the link is sent.
async fn next<'a>(
    link: &mut impl LinkEnd,
    outgoing: &'a mpsc::Sender<Bytes>,
) -> Option<(mpsc::Permit<'a, Bytes>, Bytes)> {
    let room = outgoing.reserve().await.ok()?;
    Some((room, link.next().await))
}

/// The body of our direction. It ends when its sender is dropped.
#[derive(Debug)]
pub(crate) struct Outgoing(mpsc::Receiver<Bytes>);

impl Outgoing {
    pub(crate) fn new() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, Self(receiver))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.get_mut().0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
