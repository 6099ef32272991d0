//! Requests that two parsers could read differently: refused, or passed on in one plain form.

use portolan_ingress::Slots;

use crate::client::raw;
use crate::gateway::Gateway;
use crate::program::Program;

enum Expected {
    /// One answer of status 4xx, and the program saw nothing.
    Refused,
    /// One answer of 200, and the program saw one request.
    Once,
}
use Expected::{Once, Refused};

/// What each is called, what follows the first two lines, what comes of it.
const AMBIGUOUS: &[(&str, &[u8], Expected)] = &[
    ("two lengths", b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", Refused),
    ("a list of lengths", b"Content-Length: 5, 6\r\n\r\nhello", Refused),
    ("a signed length", b"Content-Length: +5\r\n\r\nhello", Refused),
    ("a negative length", b"Content-Length: -5\r\n\r\nhello", Refused),
    ("a hexadecimal length", b"Content-Length: 0x5\r\n\r\nhello", Refused),
    ("an endless length", b"Content-Length: 99999999999999999999\r\n\r\nhello", Refused),
    ("an unknown coding", b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Refused),
    ("chunked, but not last", b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", Refused),
    ("chunked behind gzip", b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused),
    (
        "chunked twice",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused,
    ),
    ("identity", b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n", Refused),
    ("a space before the colon", b"Content-Length : 5\r\n\r\nhello", Refused),
    ("a space in a name", b"X Y: 5\r\n\r\n", Refused),
    ("a folded line", b"X-Folded: a\r\n b\r\n\r\n", Refused),
    ("a name with a null", b"X\0Y: 5\r\n\r\n", Refused),
    ("a value with a null", b"X: a\0b\r\n\r\n", Refused),
    ("a value with a bare CR", b"X: a\rTransfer-Encoding: chunked\r\n\r\n", Refused),
    ("a second host", b"Host: other.example\r\n\r\n", Refused),
    ("a header without a colon", b"Nonsense\r\n\r\n", Refused),
    ("a bad chunk size", b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", Refused),
    (
        "an endless chunk size",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "a chunk that is longer than it says",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        Refused,
    ),
    ("a coding behind a vertical tab", b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", Refused),
    ("a coding and a comma", b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", Refused),
    ("a quoted coding", b"Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", Refused),
    // The length is dropped and the body read by its chunks, as RFC 9112 section 6.3 has it;
    // the program sees one framing only.
    (
        "a length behind a coding",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\nConnection: close\r\n\r\n\
              5\r\nhello\r\n0\r\n\r\n",
        Once,
    ),
    (
        "a coding behind a length",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
              5\r\nhello\r\n0\r\n\r\n",
        Once,
    ),
    (
        "the same length twice",
        b"Content-Length: 5\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        Once,
    ),
    ("bare line feeds", b"X: y\nConnection: close\n\n", Once),
    (
        "an upper-case coding",
        b"Transfer-Encoding: CHUNKED\r\nConnection: close\r\n\r\n0\r\n\r\n",
        Once,
    ),
    // HTTP/2 in plain text begins with its preface here; the offer ends at the gateway.
    (
        "an offer of HTTP/2",
        b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n\
              HTTP2-Settings: AAMAAABk\r\n\
              Content-Length: 0\r\n\r\n",
        Once,
    ),
    (
        "an expectation that nobody knows",
        b"Expect: 200-ok\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        Once,
    ),
];

#[tokio::test]
async fn ambiguous_requests_reach_the_program_at_most_once() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    for (number, (name, rest, expected)) in AMBIGUOUS.iter().enumerate() {
        let path = format!("/echo/{number}");
        let start = format!("POST {path} HTTP/1.1\r\nHost: shop.example\r\n");
        let request = [start.as_bytes(), rest].concat();
        let answer = raw(gateway.http, &request).await;
        let answers = answer.matches("HTTP/1.1 ").count();
        assert_eq!(answers, 1, "{name}: one answer in {answer}");
        let is_refused = matches!(expected, Refused);
        let status = if is_refused { "HTTP/1.1 4" } else { "HTTP/1.1 200 OK\r\n" };
        assert!(answer.starts_with(status), "{name}: {answer}");
        let framings = answer.matches("content-length: ").count();
        assert!(framings <= 2, "{name}: one framing inside, one outside: {answer}");
        let begun = program.state.order.lock().iter().filter(|begun| **begun == path).count();
        // Where a chunk is broken the head was in order, so the program may see the beginning.
        let is_body_broken = name.contains("chunk ");
        assert!(begun == usize::from(!is_refused) || is_body_broken, "{name}: begun {begun} times");
    }
    assert!(program.state.order.lock().iter().all(|path| path.starts_with("/echo/")));
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn request_lines_are_read_strictly() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let cases: &[(&str, &str)] = &[
        ("GET http://other.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", "400"),
        (
            "GET http://shop.example/ HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
            "200",
        ),
        ("GET ftp://shop.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", "400"),
        ("GET http://user@shop.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", "400"),
        ("CONNECT shop.example:80 HTTP/1.1\r\nHost: shop.example:80\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: user@shop.example\r\n\r\n", "400"),
        ("GET / HTTP/9.9\r\nHost: shop.example\r\n\r\n", "400"),
        ("GET  / HTTP/1.1\r\nHost: shop.example\r\n\r\n", "400"),
        ("GET / HTTP/1.1 \r\nHost: shop.example\r\n\r\n", "400"),
        ("GET /\r\n\r\n", "400"),
        // RFC 9112 section 6.1: a coding in HTTP/1.0 is faulty framing.
        (
            "POST / HTTP/1.0\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("OPTIONS * HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n", "200"),
    ];
    for (request, status) in cases {
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        let answer = raw(gateway.http, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
    }
}
