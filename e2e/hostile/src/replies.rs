//! What the other end says before it has enough, read off as it comes.

use crate::frames::{GOAWAY, HEAD};

/// How an HTTP/1 answer begins; the status follows.
const HTTP1: &[u8] = b"HTTP/1.1 ";
/// Bytes of a status in decimal.
const STATUS: usize = 3;
/// Where a GOAWAY's payload has its code (RFC 9113 section 6.8), and how long that is.
const CODE: std::ops::Range<usize> = 4..8;

/// Finds the last words of a connection in what is read from it, in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// What was read of something that is not whole yet.
    rest: Vec<u8>,
    /// How much of a payload is still to come, of no interest.
    skip: usize,
    is_http1: bool,
    last: Option<String>,
}

impl Replies {
    /// The last status over HTTP/1, `431`, or the last code of a GOAWAY, `goaway 11`.
    pub(crate) fn last(self) -> Option<String> {
        self.last
    }

    /// Takes what was read.
    pub(crate) fn take(&mut self, mut piece: &[u8]) {
        if self.is_http1 {
            return;
        }
        let skipped = self.skip.min(piece.len());
        self.skip -= skipped;
        piece = &piece[skipped..];
        self.rest.extend(piece);
        while self.skip == 0 && self.next().is_some() {}
    }

    /// Takes one frame, or the status line, from the front; `None` when it is not whole yet.
    fn next(&mut self) -> Option<()> {
        if self.rest.starts_with(HTTP1) {
            let status = self.rest.get(HTTP1.len()..HTTP1.len() + STATUS)?;
            self.last = Some(String::from_utf8_lossy(status).into_owned());
            // One status is enough: where the next answer begins, its framing would tell.
            self.is_http1 = true;
            self.rest.clear();
            return None;
        }
        let head = self.rest.get(..HEAD)?;
        let size = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if head[3] == GOAWAY {
            let payload = self.rest.get(HEAD..HEAD + size)?;
            let code = payload.get(CODE).and_then(|code| code.try_into().ok());
            let code = code.map(u32::from_be_bytes).unwrap_or_default();
            self.last = Some(format!("goaway {code}"));
        }
        let whole = (HEAD + size).min(self.rest.len());
        self.skip = HEAD + size - whole;
        self.rest.drain(..whole);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{DATA, PING, frame};

    #[track_caller]
    fn check(said: &[u8], expected: Option<&str>) {
        for size in [1, 2, 7, said.len().max(1)] {
            let mut replies = Replies::default();
            said.chunks(size).for_each(|piece| replies.take(piece));
            assert_eq!(replies.last().as_deref(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_status_is_found() {
        check(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\nHTTP/1.1 200 ", Some("431"));
    }

    #[test]
    fn the_last_goaway_is_found_between_other_frames() {
        let ping = frame(PING, 1, 0, &[0; 8]);
        let data = frame(DATA, 0, 1, &[GOAWAY; 300]);
        let (first, last) = ([0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 11]);
        let (first, last) = (frame(GOAWAY, 0, 0, &first), frame(GOAWAY, 0, 0, &last));
        check(&[ping, first, data, last].concat(), Some("goaway 11"));
    }

    #[test]
    fn silence_says_nothing() {
        check(b"", None);
        check(&frame(PING, 1, 0, &[0; 8]), None);
    }
}
