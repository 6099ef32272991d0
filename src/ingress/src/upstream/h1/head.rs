//! Heads on the wire: ours written, the sandbox's read (RFC 9112 sections 3 to 6). Pure.

use std::fmt::Write;
use std::mem::{self, MaybeUninit};

use bytes::{BufMut, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderName, Method, Request, Response, StatusCode, Version};
use http_body::Body;

use super::WireError;
use super::decoder::{Chunk, Decoder};

/// Fields in the head of a response.
const HEADER_COUNT_MAX: usize = 128;

/// How a request's body goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// There is none, or it is all out.
    Done,
    /// This many bytes are to go.
    Length(u64),
    Chunked,
}

/// The head of a response, and what follows from it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) decoder: Decoder,
    /// The connection may carry another request.
    pub(super) is_persistent: bool,
}

/// Writes the head of a request; says how its body has to follow. Framing is ours: whatever the
/// headers say of it is not passed on.
pub(super) fn encode<B: Body>(request: &Request<B>, output: &mut BytesMut) -> Encoding {
    let headers = request.headers();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    output.reserve(32 + path.len() + headers.len() * 48);
    output.put_slice(request.method().as_str().as_bytes());
    output.put_u8(b' ');
    output.put_slice(path.as_bytes());
    output.put_slice(b" HTTP/1.1\r\n");
    let mut has_length = false;
    for (name, value) in headers {
        if *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING {
            has_length = true;
            continue;
        }
        output.put_slice(name.as_str().as_bytes());
        output.put_slice(b": ");
        output.put_slice(value.as_bytes());
        output.put_slice(b"\r\n");
    }
    let encoding = encoding_of(request.body());
    match encoding {
        Encoding::Done if has_length || expects_content(request.method()) => {
            output.put_slice(b"content-length: 0\r\n");
        }
        Encoding::Done => {}
        Encoding::Length(size) => {
            write!(output, "content-length: {size}\r\n").expect("a buffer in memory grows");
        }
        Encoding::Chunked => output.put_slice(b"transfer-encoding: chunked\r\n"),
    }
    output.put_slice(b"\r\n");
    encoding
}

fn encoding_of(body: &impl Body) -> Encoding {
    match body.size_hint().exact() {
        _ if body.is_end_stream() => Encoding::Done,
        Some(0) => Encoding::Done,
        Some(size) => Encoding::Length(size),
        None => Encoding::Chunked,
    }
}

/// Without a length, some programs wait for the body that these methods usually have.
fn expects_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// Takes the head of a response out of the input; `None`: it has not come whole. `room`, of what
/// is no longer needed, is taken for its headers.
pub(super) fn parse(
    input: &mut BytesMut,
    method: &Method,
    room: &mut HeaderMap,
) -> Result<Option<Head>, WireError> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, input, &mut fields);
    let httparse::Status::Complete(size) = status.map_err(WireError::Head)? else {
        return Ok(None);
    };
    let version = match parsed.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(WireError::Status)?;
    // The fields borrow the input; their places do not.
    let start = input.as_ptr() as usize;
    let places = parsed.headers.iter().map(|field| {
        let (name, value) = (field.name.as_ptr() as usize, field.value.as_ptr() as usize);
        [name - start, field.name.len(), value - start, field.value.len()]
    });
    let places: Vec<[usize; 4]> = places.collect();
    let text = input.split_to(size).freeze();
    let mut headers = mem::take(room);
    headers.clear();
    // Room for what is added on the way to the client.
    headers.reserve(places.len() + 2);
    for [name, name_size, value, value_size] in places {
        let name = HeaderName::from_bytes(&text[name..name + name_size]);
        let value = HeaderValue::from_maybe_shared(text.slice(value..value + value_size));
        headers.append(name.map_err(|_| WireError::Field)?, value.map_err(|_| WireError::Field)?);
    }
    let decoder = decoder_of(method, status, version, &headers)?;
    let is_persistent = decoder != Decoder::UntilClose && is_persistent(version, &headers);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    Ok(Some(Head { response, decoder, is_persistent }))
}

/// RFC 9112 section 6.3. Where two ways to read a response exist, it is refused: the other one may
/// be how somebody else reads it.
fn decoder_of(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
) -> Result<Decoder, WireError> {
    let length = content_length(headers)?;
    let encoding = headers.contains_key(TRANSFER_ENCODING);
    if encoding && (length.is_some() || version == Version::HTTP_10) {
        return Err(WireError::Framing);
    }
    let has_none = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has_none || *method == Method::HEAD {
        return Ok(Decoder::Ended);
    }
    if encoding {
        return match is_chunked(headers)? {
            true => Ok(Decoder::Chunked(Chunk::Size)),
            false => Ok(Decoder::UntilClose),
        };
    }
    Ok(match length {
        Some(0) => Decoder::Ended,
        Some(length) => Decoder::Length(length),
        None => Decoder::UntilClose,
    })
}

/// The same length said several times is one length.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, WireError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    if lengths.any(|other| other != first) {
        return Err(WireError::Framing);
    }
    let text = first.as_bytes();
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(WireError::Framing);
    }
    let length = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or(WireError::Framing)
}

/// Whether `chunked` is the last coding. Anywhere else it is an error.
fn is_chunked(headers: &HeaderMap) -> Result<bool, WireError> {
    let mut is_last = false;
    for value in headers.get_all(TRANSFER_ENCODING) {
        for coding in value.as_bytes().split(|byte| *byte == b',') {
            if is_last {
                return Err(WireError::Framing);
            }
            is_last = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
        }
    }
    Ok(is_last)
}

fn is_persistent(version: Version, headers: &HeaderMap) -> bool {
    let has = |wanted: &[u8]| {
        headers.get_all(CONNECTION).iter().any(|value| {
            let mut tokens = value.as_bytes().split(|byte| *byte == b',');
            tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted))
        })
    };
    match version {
        Version::HTTP_11 => !headers.contains_key(CONNECTION) || !has(b"close"),
        _ => has(b"keep-alive") && !has(b"close"),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};
    use portolan_instructions::Hot;

    use super::*;

    #[track_caller]
    fn check_encoded<B: Body>(request: Request<B>, text: &str, expected: Encoding) {
        let mut output = BytesMut::new();
        let encoding = encode(&request, &mut output);
        assert_eq!((std::str::from_utf8(&output).unwrap(), encoding), (text, expected));
    }

    fn request(method: Method) -> http::request::Builder {
        Request::builder().method(method).uri("/a?b=c").header("host", "shop.test")
    }

    #[test]
    fn a_request_is_written_with_framing_of_ours() {
        let empty = Empty::<bytes::Bytes>::new;
        let full = || Full::new(bytes::Bytes::from_static(b"hello"));
        check_encoded(
            request(Method::GET).body(empty()).unwrap(),
            "GET /a?b=c HTTP/1.1\r\nhost: shop.test\r\n\r\n",
            Encoding::Done,
        );
        check_encoded(
            request(Method::POST).body(empty()).unwrap(),
            "POST /a?b=c HTTP/1.1\r\nhost: shop.test\r\ncontent-length: 0\r\n\r\n",
            Encoding::Done,
        );
        check_encoded(
            request(Method::PUT).header("content-length", "999").body(full()).unwrap(),
            "PUT /a?b=c HTTP/1.1\r\nhost: shop.test\r\ncontent-length: 5\r\n\r\n",
            Encoding::Length(5),
        );
        let stream = http_body_util::StreamBody::new(futures::stream::pending::<
            Result<http_body::Frame<bytes::Bytes>, std::io::Error>,
        >());
        check_encoded(
            request(Method::PUT).body(stream).unwrap(),
            "PUT /a?b=c HTTP/1.1\r\nhost: shop.test\r\ntransfer-encoding: chunked\r\n\r\n",
            Encoding::Chunked,
        );
    }

    /// The headers of a request that was sent.
    fn used() -> HeaderMap {
        HeaderMap::from_iter([(http::header::HOST, HeaderValue::from_static("shop.test"))])
    }

    #[track_caller]
    fn check(method: Method, head: &str, decoder: Decoder, is_persistent: bool) {
        let text = format!("{}\r\n\r\nrest", head.replace('\n', "\r\n"));
        let mut input = BytesMut::from(&*text);
        let head = parse(&mut input, &method, &mut used()).unwrap().expect("the head is whole");
        assert!(!head.response.headers().contains_key("host"), "{text}");
        assert_eq!((head.decoder, head.is_persistent), (decoder, is_persistent), "{text}");
        assert_eq!(&input[..], b"rest", "{text}");
        for end in 0..text.len() - 4 {
            let mut part = BytesMut::from(&text[..end]);
            let mut room = used();
            let part = parse(&mut part, &method, &mut room).unwrap();
            assert!(part.is_none() && room == used(), "{:?}", &text[..end]);
        }
    }

    #[track_caller]
    fn check_refused(head: &str) {
        let mut input = BytesMut::from(&*format!("{}\r\n\r\n", head.replace('\n', "\r\n")));
        let result = parse(&mut input, &Method::GET, &mut used());
        assert!(result.is_err(), "{head:?} was read: {result:?}");
    }

    #[test]
    fn a_response_says_where_it_ends() {
        let chunked = Decoder::Chunked(Chunk::Size);
        let get = Method::GET;
        check(get.clone(), "HTTP/1.1 200 OK\ncontent-length: 5", Decoder::Length(5), true);
        check(get.clone(), "HTTP/1.1 200\ncontent-length: 0", Decoder::Ended, true);
        check(get.clone(), "HTTP/1.1 200 OK", Decoder::UntilClose, false);
        check(get.clone(), "HTTP/1.1 200 OK\ntransfer-encoding: Chunked", chunked, true);
        check(get.clone(), "HTTP/1.1 200 OK\ntransfer-encoding: gzip, chunked", chunked, true);
        check(get.clone(), "HTTP/1.1 200 OK\ntransfer-encoding: gzip", Decoder::UntilClose, false);
        check(Method::HEAD, "HTTP/1.1 200 OK\ncontent-length: 5", Decoder::Ended, true);
        check(get.clone(), "HTTP/1.1 204 No Content", Decoder::Ended, true);
        check(get.clone(), "HTTP/1.1 304 -\ncontent-length: 5", Decoder::Ended, true);
        check(
            get.clone(),
            "HTTP/1.1 200 OK\ncontent-length: 5\ncontent-length: 5",
            Decoder::Length(5),
            true,
        );
    }

    #[test]
    fn a_response_says_whether_another_may_follow() {
        let (get, five) = (Method::GET, Decoder::Length(5));
        check(get.clone(), "HTTP/1.1 200 OK\ncontent-length: 5\nconnection: x, Close", five, false);
        check(get.clone(), "HTTP/1.0 200 OK\ncontent-length: 5", five, false);
        check(
            get.clone(),
            "HTTP/1.0 200 OK\ncontent-length: 5\nconnection: keep-alive",
            five,
            true,
        );
    }

    #[test]
    fn a_response_that_can_be_read_in_two_ways_is_refused() {
        check_refused("HTTP/1.1 200 OK\ncontent-length: 5\ntransfer-encoding: chunked");
        check_refused("HTTP/1.1 200 OK\ncontent-length: 5\ncontent-length: 6");
        check_refused("HTTP/1.1 200 OK\ncontent-length: 5, 5");
        check_refused("HTTP/1.1 200 OK\ncontent-length: +5");
        check_refused("HTTP/1.1 200 OK\ncontent-length: -1");
        check_refused("HTTP/1.1 200 OK\ncontent-length:");
        check_refused("HTTP/1.1 200 OK\ncontent-length: 99999999999999999999");
        check_refused("HTTP/1.1 200 OK\ntransfer-encoding: chunked, gzip");
        check_refused("HTTP/1.1 200 OK\ntransfer-encoding: chunked, chunked");
        check_refused("HTTP/1.0 200 OK\ntransfer-encoding: chunked");
        check_refused("HTTP/1.1 200 OK\nbad name: x");
        check_refused("HTTP/2 200 OK");
        check_refused("SSH-2.0-OpenSSH_9.2");
    }

    #[test]
    fn writing_a_head_costs_what_is_committed() {
        let hot = Hot {
            row: "gateway: write the head of a request with 12 fields",
            module: module_path!(),
            test: "writing_a_head_costs_what_is_committed",
            rounds: 1_000,
        };
        let prepare = || {
            let mut builder = request(Method::GET);
            for number in 0..11 {
                builder = builder.header(format!("x-field-{number}"), "a value of some bytes");
            }
            (builder.body(Empty::<bytes::Bytes>::new()).unwrap(), BytesMut::new())
        };
        hot.check(prepare, |(request, output), _| {
            // What was written before is gone, as when a connection is used again.
            output.clear();
            encode(request, output)
        });
    }

    #[test]
    fn reading_a_head_costs_what_is_committed() {
        const ROUNDS: u32 = 1_000;
        const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\n\
            content-length: 13\r\ndate: Tue, 15 Nov 2033 08:12:31 GMT\r\nserver: shop\r\n\
            cache-control: no-cache\r\netag: \"5f3k9q2m\"\r\nvary: accept-encoding\r\n\
            set-cookie: session=5f3k9q2m; Path=/; HttpOnly\r\n\r\nHello, world!";
        let hot = Hot {
            row: "gateway: read the head of a response with 8 fields",
            module: module_path!(),
            test: "reading_a_head_costs_what_is_committed",
            rounds: ROUNDS,
        };
        let prepare = || {
            let inputs: Vec<_> = (0..=ROUNDS).map(|_| BytesMut::from(HEAD)).collect();
            // That of a request, as one comes with every response.
            (inputs, HeaderMap::with_capacity(12))
        };
        hot.check(prepare, |(inputs, room), _| {
            let mut input = inputs.pop().expect("one for each round, and one before");
            let head = parse(&mut input, &Method::GET, room).unwrap().expect("the head is whole");
            *room = head.response.into_parts().0.headers;
        });
    }
}
