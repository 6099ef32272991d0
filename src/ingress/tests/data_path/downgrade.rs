//! HTTP/2 requests that would be something else over HTTP/1: refused, or one plain request.

use portolan_ingress::Slots;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::{fetch, get};
use crate::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, block, frame, hello, outcome,
};
use crate::gateway::{Gateway, soon};
use crate::program::Program;

type Field<'a> = (&'a [u8], &'a [u8]);

const METHOD: Field = (b":method", b"POST");
const SCHEME: Field = (b":scheme", b"http");
const PATH: Field = (b":path", b"/echo");
const AUTHORITY: Field = (b":authority", b"shop.example");
const START: [Field; 4] = [METHOD, SCHEME, PATH, AUTHORITY];

/// Status 200, from the static table.
const OK: Outcome = Outcome::Answered(0x88);

const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n";

/// Sends one request on a connection of its own.
async fn ask(gateway: &Gateway, fields: &[Field<'_>], body: &[u8]) -> Outcome {
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let mut bytes = hello();
    bytes.extend(frame(HEADERS, END_HEADERS, 1, &block(fields)));
    bytes.extend(frame(DATA, END_STREAM, 1, body));
    stream.write_all(&bytes).await.unwrap();
    soon("an outcome", outcome(&mut stream, 1)).await
}

/// Neither what was smuggled nor its remains reach the program, now or with the next request.
async fn assert_nothing_slipped_in(gateway: &Gateway, program: &Program, name: &str) {
    for _ in 0..3 {
        let reply = fetch(gateway.http, get("/next")).await;
        assert_eq!(reply.status, 200, "{name}");
        assert!(reply.body.starts_with("GET /next "), "{name}: {}", reply.body);
    }
    let order = std::mem::take(&mut *program.state.order.lock());
    assert!(order.iter().all(|path| path == "/echo" || path == "/next"), "{name}: {order:?}");
    assert!(order.iter().filter(|path| *path == "/echo").count() <= 1, "{name}: {order:?}");
}

#[tokio::test]
async fn fields_that_would_be_framing_are_refused() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let cases: &[(&str, Field, &[u8])] = &[
        ("a length below the body", (b"content-length", b"0"), SMUGGLED),
        ("a length above the body", (b"content-length", b"500"), SMUGGLED),
        ("a length that is none", (b"content-length", b"+1"), b"x"),
        (
            "a coding",
            (b"transfer-encoding", b"chunked"),
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        ),
        ("connection", (b"connection", b"x-forwarded-for"), b""),
        ("keep-alive", (b"keep-alive", b"timeout=5"), b""),
        ("proxy-connection", (b"proxy-connection", b"close"), b""),
        ("upgrade", (b"upgrade", b"websocket"), b""),
        ("te that is not trailers", (b"te", b"chunked"), b""),
        ("a line break in a value", (b"x", b"y\r\ntransfer-encoding: chunked"), b""),
        ("a line feed in a value", (b"x", b"y\nz: chunked"), b""),
        ("a null in a value", (b"x", b"y\0z"), b""),
        ("a line break in a name", (b"x: y\r\nz", b"y"), b""),
        ("a colon in a name", (b"x:y", b"z"), b""),
        ("a space in a name", (b"x y", b"z"), b""),
        ("an empty name", (b"", b"z"), b""),
        ("an upper-case name", (b"X-Y", b"z"), b""),
        ("an upper-case coding", (b"Transfer-Encoding", b"chunked"), b""),
        ("a late pseudo header twice", (b":path", b"/smuggled"), b""),
        ("an unknown pseudo header", (b":what", b"z"), b""),
        ("a pseudo header of responses", (b":status", b"200"), b""),
        ("another host", (b"host", b"other.example"), b""),
    ];
    for (name, field, body) in cases {
        let fields: Vec<_> = START.into_iter().chain([*field]).collect();
        let answer = ask(&gateway, &fields, body).await;
        assert_ne!(answer, OK, "{name}");
        assert_nothing_slipped_in(&gateway, &program, name).await;
    }
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn pseudo_headers_are_read_strictly() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let path = |path| [METHOD, SCHEME, (b":path".as_slice(), path), AUTHORITY].to_vec();
    let method = |method| [(b":method".as_slice(), method), SCHEME, PATH, AUTHORITY].to_vec();
    let authority =
        |authority| [METHOD, SCHEME, PATH, (b":authority".as_slice(), authority)].to_vec();
    let cases: Vec<(&str, Vec<Field>)> = vec![
        ("a path with a request in it", path(b"/echo HTTP/1.1\r\nX: y")),
        ("a path with a space", path(b"/echo HTTP/1.1")),
        ("a path with a null", path(b"/echo\0")),
        ("an empty path", path(b"")),
        ("a path without a slash", path(b"echo")),
        ("a method with a request in it", method(b"GET /smuggled HTTP/1.1\r\nX: y\r\n\r\nPOST")),
        ("a method with a space", method(b"GET /smuggled")),
        ("an empty method", method(b"")),
        ("an authority with a line break", authority(b"shop.example\r\nX: y")),
        ("an authority with a user", authority(b"user@shop.example")),
        ("an authority with a space", authority(b"shop.example x")),
        ("an empty authority", authority(b"")),
        ("no method", vec![SCHEME, PATH, AUTHORITY]),
        ("no path", vec![METHOD, SCHEME, AUTHORITY]),
        ("no authority", vec![METHOD, SCHEME, PATH]),
        ("two methods", vec![METHOD, METHOD, SCHEME, PATH, AUTHORITY]),
        ("two authorities", vec![METHOD, SCHEME, PATH, AUTHORITY, AUTHORITY]),
        ("a pseudo header behind a field", vec![METHOD, SCHEME, PATH, (b"x", b"y"), AUTHORITY]),
    ];
    for (name, fields) in cases {
        let answer = ask(&gateway, &fields, b"").await;
        assert_ne!(answer, OK, "{name}");
        assert_nothing_slipped_in(&gateway, &program, name).await;
    }
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn what_means_one_thing_is_passed_on_once() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let cases: &[(&str, &[Field], &[u8])] = &[
        ("a body that looks like a request", &[], SMUGGLED),
        ("the length that it has", &[(b"content-length", b"5")], b"hello"),
        ("the same host", &[(b"host", b"shop.example")], b""),
        ("te: trailers", &[(b"te", b"trailers")], b""),
        ("cookies in pieces", &[(b"cookie", b"a=b"), (b"cookie", b"c=d")], b""),
    ];
    for (name, more, body) in cases {
        let answer = ask(&gateway, &[&START, *more].concat(), body).await;
        assert_eq!(answer, OK, "{name}");
        assert_nothing_slipped_in(&gateway, &program, name).await;
    }
    app.reaches(0, 0).await;
}
