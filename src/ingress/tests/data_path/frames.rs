//! HTTP/2 frames by hand: what no well-behaved client library would send.

use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![size[1], size[2], size[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The preface and no settings of our own.
pub(crate) fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A header block: every field a literal with a literal name, as it stands.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte says the length");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(*text);
        }
    }
    block
}

/// How the gateway answered a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The first byte of its header block: `0x88` is 200, `0x8c` is 400 (RFC 7541 appendix A).
    Answered(u8),
    /// The code of its RST_STREAM.
    Reset(u32),
    /// The code of a GOAWAY other than `NO_ERROR`.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

/// Reads frames until a stream is answered or the connection fails.
pub(crate) async fn outcome(stream: &mut (impl AsyncRead + Unpin), stream_id: u32) -> Outcome {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Outcome::Closed;
        }
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(size).unwrap()];
        if stream.read_exact(&mut payload).await.is_err() {
            return Outcome::Closed;
        }
        let word = |place: usize| {
            u32::from_be_bytes(payload[place..place + 4].try_into().expect("four bytes"))
        };
        let is_ours = head[5..] == stream_id.to_be_bytes();
        match head[3] {
            HEADERS if is_ours => return Outcome::Answered(payload[0]),
            RESET if is_ours => return Outcome::Reset(word(0)),
            GOAWAY if word(4) != 0 => return Outcome::GoAway(word(4)),
            _ => {}
        }
    }
}
