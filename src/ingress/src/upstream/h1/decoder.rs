//! Where a body ends and what of it has come (RFC 9112 sections 6 and 7). Pure.
//!
//! Framing is where a message is smuggled behind another, so nothing is tolerated here that the
//! grammar does not know: no bare line feeds, no signs, no spaces in numbers.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

use super::WireError;

/// Longest line of a chunk's size with its extensions, which nobody uses.
const SIZE_LINE_MAX: usize = 4 * 1024;
/// Bytes of all trailers.
const TRAILERS_SIZE_MAX: usize = 16 * 1024;
/// Fields among the trailers.
const TRAILER_COUNT_MAX: usize = 64;

/// How a body is delimited, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// It has ended, or there is none.
    Ended,
    /// This many bytes are to come.
    Length(u64),
    /// In chunks.
    Chunked(Chunk),
    /// It ends with the connection.
    UntilClose,
}

/// What comes next of a body in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// What could be made of the input.
#[derive(Debug)]
pub(super) enum Decoded {
    Frame(Frame<Bytes>),
    /// The next frame has not come.
    Incomplete,
    End,
}

impl Decoder {
    /// Takes the next frame out of the input.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, WireError> {
        match self {
            Self::Ended => Ok(Decoded::End),
            Self::Length(left) => {
                let Some(data) = take(input, left) else { return Ok(Decoded::Incomplete) };
                if *left == 0 {
                    *self = Self::Ended;
                }
                Ok(Decoded::Frame(Frame::data(data)))
            }
            Self::Chunked(chunk) => {
                let decoded = chunk.decode(input)?;
                let is_last = match &decoded {
                    Decoded::End => true,
                    Decoded::Frame(frame) => frame.is_trailers(),
                    Decoded::Incomplete => false,
                };
                if is_last {
                    *self = Self::Ended;
                }
                Ok(decoded)
            }
            Self::UntilClose if input.is_empty() => Ok(Decoded::Incomplete),
            Self::UntilClose => Ok(Decoded::Frame(Frame::data(input.split().freeze()))),
        }
    }

    /// The connection has ended: whether the body was whole.
    pub(super) fn close(&mut self) -> Result<(), WireError> {
        match self {
            Self::Ended => Ok(()),
            Self::UntilClose => {
                *self = Self::Ended;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(WireError::Truncated),
        }
    }
}

impl Chunk {
    fn decode(&mut self, input: &mut BytesMut) -> Result<Decoded, WireError> {
        loop {
            match self {
                Self::Size => {
                    let Some(size) = size_line(input)? else { return Ok(Decoded::Incomplete) };
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    let Some(data) = take(input, left) else { return Ok(Decoded::Incomplete) };
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Decoded::Frame(Frame::data(data)));
                }
                Self::DataEnd => {
                    if input.len() < 2 {
                        return Ok(Decoded::Incomplete);
                    }
                    if !input.starts_with(b"\r\n") {
                        return Err(WireError::Chunk);
                    }
                    input.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => {
                    if input.starts_with(b"\r\n") {
                        input.advance(2);
                        return Ok(Decoded::End);
                    }
                    let trailers = trailers(input)?;
                    return Ok(trailers.map_or(Decoded::Incomplete, |trailers| {
                        Decoded::Frame(Frame::trailers(trailers))
                    }));
                }
            }
        }
    }
}

/// As much as there is of what is to come; `None`: nothing is there.
fn take(input: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    let size = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    if size == 0 {
        return None;
    }
    *left -= size as u64;
    Some(input.split_to(size).freeze())
}

fn size_line(input: &mut BytesMut) -> Result<Option<u64>, WireError> {
    let Some(end) = input.iter().take(SIZE_LINE_MAX).position(|byte| *byte == b'\n') else {
        let is_too_long = input.len() >= SIZE_LINE_MAX;
        return if is_too_long { Err(WireError::Chunk) } else { Ok(None) };
    };
    let line = input[..end].strip_suffix(b"\r").ok_or(WireError::Chunk)?;
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let size = hexadecimal(size.trim_ascii_end()).ok_or(WireError::Chunk)?;
    input.advance(end + 1);
    Ok(Some(size))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        // What would be shifted out is not lost in silence.
        (number >> 60 == 0).then_some(number << 4 | u64::from(digit))
    })
}

fn trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, WireError> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILER_COUNT_MAX];
    let (size, map) = match httparse::parse_headers(input, &mut fields) {
        Ok(httparse::Status::Complete((size, fields))) => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                map.append(
                    name.map_err(|_| WireError::Trailers)?,
                    value.map_err(|_| WireError::Trailers)?,
                );
            }
            (size, map)
        }
        Ok(httparse::Status::Partial) if input.len() < TRAILERS_SIZE_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => return Err(WireError::Trailers),
    };
    input.advance(size);
    Ok(Some(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What became of an input.
    #[derive(Debug)]
    struct Read {
        data: Vec<u8>,
        trailers: Option<HeaderMap>,
        state: Decoder,
        rest: Vec<u8>,
    }

    /// Feeds the input in pieces of `step` bytes.
    fn decode(mut decoder: Decoder, input: &[u8], step: usize) -> Result<Read, WireError> {
        let (mut data, mut trailers, mut buffer) = (Vec::new(), None, BytesMut::new());
        let mut pieces = input.chunks(step);
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Frame(frame) => match frame.into_data() {
                    Ok(bytes) => data.extend_from_slice(&bytes),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                Decoded::Incomplete => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => break,
                },
                Decoded::End => {
                    pieces.for_each(|piece| buffer.extend_from_slice(piece));
                    break;
                }
            }
        }
        Ok(Read { data, trailers, state: decoder, rest: buffer.to_vec() })
    }

    const CHUNKED: Decoder = Decoder::Chunked(Chunk::Size);

    #[track_caller]
    fn check(decoder: Decoder, input: &str, data: &str, end: Decoder, rest: &str) {
        for step in 1..=input.len().max(1) {
            let read = decode(decoder, input.as_bytes(), step).unwrap();
            let expected = (data.as_bytes(), end, rest.as_bytes());
            assert_eq!((&*read.data, read.state, &*read.rest), expected, "in pieces of {step}");
        }
    }

    #[track_caller]
    fn check_refused(input: &str) {
        for step in 1..=input.len() {
            let result = decode(CHUNKED, input.as_bytes(), step);
            assert!(result.is_err(), "{input:?} in pieces of {step} was read: {result:?}");
        }
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        check(Decoder::Length(5), "helloHTTP/1.1", "hello", Decoder::Ended, "HTTP/1.1");
        check(Decoder::Length(5), "hel", "hel", Decoder::Length(2), "");
        check(Decoder::UntilClose, "hello", "hello", Decoder::UntilClose, "");
        check(Decoder::Ended, "more", "", Decoder::Ended, "more");
    }

    #[test]
    fn chunks_are_joined() {
        check(CHUNKED, "5\r\nhello\r\n0\r\n\r\nrest", "hello", Decoder::Ended, "rest");
        check(
            CHUNKED,
            "1;a=\"b\"\r\nx\r\n0A \r\n0123456789\r\n0\r\n\r\n",
            "x0123456789",
            Decoder::Ended,
            "",
        );
        check(CHUNKED, "3\r\nab", "ab", Decoder::Chunked(Chunk::Data(1)), "");
    }

    #[test]
    fn trailers_are_read() {
        let input = b"1\r\nx\r\n0\r\ngrpc-status: 0\r\nx-sum: 9\r\n\r\nrest";
        for step in 1..input.len() {
            let read = decode(CHUNKED, input, step).unwrap();
            let expected = (&b"x"[..], Decoder::Ended, &b"rest"[..]);
            assert_eq!((&*read.data, read.state, &*read.rest), expected);
            let trailers = read.trailers.unwrap();
            assert_eq!((trailers.len(), &trailers["grpc-status"]), (2, &"0".parse().unwrap()));
        }
    }

    #[test]
    fn what_the_grammar_does_not_know_is_refused() {
        for input in [
            "\r\nx\r\n",
            "+1\r\nx\r\n",
            "0x1\r\nx\r\n",
            " 1\r\nx\r\n",
            "1 1\r\nx\r\n",
            "1\nx\r\n",
            "g\r\n",
            "-1\r\n",
            "10000000000000000\r\n",
            "1\r\nxy\r\n",
            "1\r\nx\n\r0\r\n",
            "0\r\nbad header\r\n\r\n",
        ] {
            check_refused(input);
        }
        check_refused(&format!("1;{}\r\n", "e".repeat(SIZE_LINE_MAX)));
        check_refused(&format!("0\r\na: {}", "b".repeat(TRAILERS_SIZE_MAX)));
    }

    #[test]
    fn a_body_cut_short_is_not_whole() {
        assert!(Decoder::Length(1).close().is_err());
        assert!({ CHUNKED }.close().is_err());
        assert!(Decoder::Ended.close().is_ok());
        assert!(Decoder::UntilClose.close().is_ok());
    }
}
