//! Messages in a stream of bytes: each is its length, four bytes big-endian, and that many bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

use crate::peers::Broken;

/// Largest message in bytes. The longest lists the slots of a gateway's whole memory of sandboxes,
/// some 60 bytes each; this is room for ten thousand of them.
pub(crate) const MESSAGE_SIZE_MAX: usize = 1 << 20;

const LENGTH_SIZE: usize = 4;

/// # Panics
///
/// If the message is larger than [`MESSAGE_SIZE_MAX`], which its maker has to see to.
pub(crate) fn encode(message: &[u8]) -> Bytes {
    assert!(message.len() <= MESSAGE_SIZE_MAX, "messages are bounded where they are made");
    let length = u32::try_from(message.len()).expect("below the largest size");
    let mut frame = BytesMut::with_capacity(LENGTH_SIZE + message.len());
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

/// The messages of a body, in order.
#[derive(Debug)]
pub(crate) struct Messages<B> {
    body: B,
    /// What has come of the next ones: less than one message and one chunk.
    buffer: BytesMut,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    pub(crate) fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next message; `None` at an orderly end.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            if let Some(message) = self.split()? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                // Trailers mean nothing here.
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        self.buffer.extend_from_slice(&chunk);
                    }
                }
                Some(Err(error)) => return Err(Broken::Connection(error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Broken::Violation("the stream ends within a message")),
            }
        }
    }

    fn split(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        let length = usize::try_from(length).ok().filter(|length| *length <= MESSAGE_SIZE_MAX);
        let Some(length) = length else {
            return Err(Broken::Violation("a message is longer than any may be"));
        };
        if self.buffer.len() < LENGTH_SIZE + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_SIZE);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    async fn read(chunks: Vec<Vec<u8>>) -> (Vec<Bytes>, Option<Broken>) {
        let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        let body = StreamBody::new(stream::iter(frames));
        let body = body.map_err(|never: Infallible| match never {});
        let mut messages = Messages::new(body);
        let mut read = Vec::new();
        loop {
            match messages.next().await {
                Ok(Some(message)) => read.push(message),
                Ok(None) => return (read, None),
                Err(broken) => return (read, Some(broken)),
            }
        }
    }

    #[tokio::test]
    async fn messages_come_out_however_they_are_cut() {
        let all = [&b"one"[..], b"", &[7; 3000]].map(Bytes::copy_from_slice);
        let bytes: Vec<u8> = all.iter().flat_map(|message| encode(message)).collect();
        for size in [1, 2, 3, 5, 7, 1000, bytes.len()] {
            let (read, end) = read(bytes.chunks(size).map(<[u8]>::to_vec).collect()).await;
            assert_eq!(read, all, "in chunks of {size}");
            assert!(end.is_none(), "in chunks of {size}: {end:?}");
        }
    }

    #[tokio::test]
    async fn hostile_frames_are_refused_without_being_gathered() {
        let length = u32::try_from(MESSAGE_SIZE_MAX + 1).unwrap().to_be_bytes().to_vec();
        for hostile in [length, vec![0xff; 4], vec![0, 0, 0, 9, 1], vec![0, 0]] {
            let (read, end) = read(vec![encode(b"good").to_vec(), hostile.clone()]).await;
            assert_eq!(read, [Bytes::from_static(b"good")]);
            assert!(matches!(end, Some(Broken::Violation(_))), "{hostile:?}: {end:?}");
        }
    }
}
