use http::header::{HeaderMap, HeaderName, HeaderValue};
use portolan_instructions::Hot;

use super::{Forwarded, Hop, X_REQUEST_ID, is_sane_id, request_id, strip_hop_by_hop};

fn mk_headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        })
        .collect()
}

#[track_caller]
fn check_strip(lines: &[(&str, &str)], left: &[(&str, &str)], hop: &Hop) {
    let mut headers = mk_headers(lines);
    assert_eq!(strip_hop_by_hop(&mut headers), *hop, "{lines:?}");
    assert_eq!(headers, mk_headers(left), "{lines:?}");
}

#[test]
fn what_concerns_one_connection_does_not_pass() {
    let none = Hop::default();
    check_strip(&[("accept", "*/*")], &[("accept", "*/*")], &none);
    check_strip(
        &[
            ("connection", "close, X-Private"),
            ("connection", "x-other"),
            ("x-private", "1"),
            ("x-other", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("trailer", "x-sum"),
            ("accept", "*/*"),
        ],
        &[("trailer", "x-sum"), ("accept", "*/*")],
        &none,
    );
    check_strip(
        &[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")],
        &[("host", "a"), ("content-length", "3")],
        &none,
    );
    check_strip(&[("te", "gzip, Trailers;q=1")], &[], &Hop { trailers: true, ..Hop::default() });
    let websocket = Hop { upgrade: Some(HeaderValue::from_static("websocket")), ..Hop::default() };
    check_strip(
        &[("connection", "keep-alive, UPGRADE"), ("upgrade", "websocket")],
        &[],
        &websocket,
    );
    check_strip(&[("upgrade", "websocket")], &[], &none);
    check_strip(&[("x-portolan-error", "x"), ("x-portolan-y", "z")], &[], &none);
}

#[track_caller]
fn check_forwarded(is_trusted: bool, lines: &[(&str, &str)], expected: &[(&str, &str)]) {
    let mut headers = mk_headers(lines);
    let forwarded = Forwarded {
        is_trusted,
        client: &HeaderValue::from_static("192.0.2.9"),
        host: &HeaderValue::from_static("a.example:81"),
        scheme: "http",
    };
    forwarded.apply(&mut headers);
    assert_eq!(headers, mk_headers(expected), "trusted: {is_trusted}, {lines:?}");
}

#[test]
fn only_trusted_peers_speak_for_others() {
    let claims = [
        ("x-forwarded-for", "203.0.113.1"),
        ("x-forwarded-for", "203.0.113.2"),
        ("x-forwarded-host", "b.example"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=203.0.113.1"),
        ("x-real-ip", "203.0.113.1"),
        ("x-forwarded-port", "443"),
    ];
    check_forwarded(
        false,
        &claims,
        &[
            ("x-forwarded-for", "192.0.2.9"),
            ("x-forwarded-host", "a.example:81"),
            ("x-forwarded-proto", "http"),
        ],
    );
    check_forwarded(
        true,
        &claims,
        &[
            ("x-forwarded-for", "203.0.113.1, 203.0.113.2, 192.0.2.9"),
            ("x-forwarded-host", "b.example"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=203.0.113.1"),
            ("x-real-ip", "203.0.113.1"),
            ("x-forwarded-port", "443"),
        ],
    );
    check_forwarded(
        true,
        &[],
        &[
            ("x-forwarded-for", "192.0.2.9"),
            ("x-forwarded-host", "a.example:81"),
            ("x-forwarded-proto", "http"),
        ],
    );
}

#[test]
fn sane_request_ids_are_kept() {
    let mut headers = mk_headers(&[("x-request-id", "abc-123")]);
    assert_eq!(request_id(&mut headers), "abc-123");

    let mut headers = mk_headers(&[("x-request-id", "a b\"c")]);
    let id = request_id(&mut headers);
    assert_eq!(id.len(), 32);
    assert_eq!(headers.get_all(X_REQUEST_ID).iter().collect::<Vec<_>>(), [&id]);

    assert!(!is_sane_id(b""));
    assert!(!is_sane_id(&[b'a'; 129]));
}

#[test]
fn the_headers_of_a_request_cost_what_is_committed() {
    const ROUNDS: u32 = 1_000;
    let hot = Hot {
        row: "gateway: word the 12 headers of a browser's request anew",
        module: module_path!(),
        test: "the_headers_of_a_request_cost_what_is_committed",
        rounds: ROUNDS,
    };
    let sent = [
        ("host", "shop.example.com"),
        ("connection", "keep-alive"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", "https://shop.example.com/"),
        ("cookie", "session=5f3k9q2m5f3k9q2m5f3k9q2m"),
        ("upgrade-insecure-requests", "1"),
        ("sec-fetch-dest", "document"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-site", "same-origin"),
    ];
    let (client, host) = (HeaderValue::from_static("192.0.2.9"), HeaderValue::from_static("a"));
    let forwarded = Forwarded { is_trusted: false, client: &client, host: &host, scheme: "https" };
    hot.check(
        || (0..ROUNDS).map(|_| mk_headers(&sent)).collect::<Vec<_>>(),
        |requests, round| {
            let headers = &mut requests[round as usize];
            let hop = strip_hop_by_hop(headers);
            forwarded.apply(headers);
            (hop, request_id(headers))
        },
    );
}
