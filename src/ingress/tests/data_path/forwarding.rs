//! What a sandbox sees of a request, and a client of a response.

use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portolan_ingress::{AppProtocol, HostPattern, RouteTimeouts, SandboxPhase, Slots};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{empty, fetch, get, h2, post, raw, read_until, send};
use crate::gateway::{App, Gateway, soon, until};
use crate::program::Program;

#[tokio::test]
async fn the_sandbox_sees_the_request_and_who_asks() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let request = Request::get("/a/b?c=d%20e")
        .header("host", "Shop.example:1234")
        .header("x-request-id", "my-id")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-portolan-anything", "forged")
        .header("connection", "x-private")
        .header("x-private", "secret")
        .header("te", "gzip")
        .header("accept", "text/html")
        .body(empty())
        .unwrap();
    let reply = fetch(gateway.http, request).await;
    assert_eq!(
        reply.body,
        "GET /a/b?c=d%20e HTTP/1.1\n\
         accept: text/html\n\
         host: Shop.example:1234\n\
         x-forwarded-for: 127.0.0.1\n\
         x-forwarded-host: Shop.example:1234\n\
         x-forwarded-proto: http\n\
         x-request-id: my-id\n\n"
    );
    assert_eq!(reply.header("x-request-id"), Some("my-id"));
    assert_eq!(reply.header("keep-alive"), None);
    assert_eq!(reply.header("x-portolan-error"), None, "a program does not speak in our name");
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| {
        settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let answer = raw(
        gateway.http,
        b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\
          X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n",
    )
    .await;
    assert!(answer.contains("x-forwarded-for: 203.0.113.7, 127.0.0.1\n"), "{answer}");
    assert!(answer.contains("x-forwarded-proto: https\n"), "{answer}");
}

#[tokio::test]
async fn bodies_flow_both_ways_at_once() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let (sender, receiver) = mpsc::unbounded::<Bytes>();
    let frames = futures::StreamExt::map(receiver, |data| Ok(Frame::data(data)));
    let request = Request::post("/stream")
        .header("host", "shop.example")
        .body(BodyExt::boxed(StreamBody::new(frames)))
        .unwrap();
    let mut response = send(gateway.http, request).await;
    for text in ["one", "two", "three"] {
        sender.unbounded_send(text.into()).unwrap();
        let frame = soon("the piece comes back", response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    drop(sender);
    assert!(soon("the end", response.frame()).await.is_none());
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    let mut response = send(gateway.http, get("/ticks")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for text in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
        program.tick(text);
        let frame = soon("the event", response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    app.reaches(0, 1).await;
    program.end_ticks();
    assert!(soon("the end", response.frame()).await.is_none());
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn large_bodies_pass_whole() {
    const SIZE: usize = 20_000_000;
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let reply = fetch(gateway.http, get(&format!("/bytes/{SIZE}"))).await;
    assert_eq!(reply.body.len(), SIZE);
    let reply = fetch(gateway.http, post("/stream", vec![b'y'; SIZE])).await;
    assert_eq!(reply.body.len(), SIZE);
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    let head = |host: &str| {
        format!("HEAD /bytes/5 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let answer = raw(gateway.http, &head("shop.example")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-length: 5\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = raw(gateway.http, &head("nobody.example")).await;
    assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
    assert!(answer.contains("x-portolan-error: no_route\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "an error has no body either: {answer}");
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_client_is_told_to_continue_when_its_turn_has_come() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(0));
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\
                Expect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    app.reaches(1, 0).await;
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    read_until(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
    stream.write_all(b"hello").await.unwrap();
    let answer = read_until(&mut stream, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("expect:"), "{answer}");
}

#[tokio::test]
async fn old_clients_get_old_answers() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let answer = raw(gateway.http, b"GET /trailers HTTP/1.0\r\nHost: shop.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn trailers_pass_over_http1() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let answer = raw(
        gateway.http,
        b"GET /trailers HTTP/1.1\r\nHost: shop.example\r\nTE: trailers\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.contains("grpc-status: 0\r\n"), "{answer}");
}

#[tokio::test]
async fn silence_has_its_limits() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    app.route(|route| {
        route.timeouts = RouteTimeouts {
            response_header: Duration::from_millis(200),
            idle: Duration::from_millis(400),
            upgrade_idle: Duration::from_secs(1),
        };
    });
    fetch(gateway.http, get("/never")).await.assert_error(504, "upstream_timeout");

    let mut response = send(gateway.http, get("/ticks")).await;
    // A stream that says something now and then lives longer than its limit.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        program.tick("tick");
        assert!(soon("a tick", response.frame()).await.unwrap().is_ok());
    }
    assert!(soon("the cut", response.frame()).await.unwrap().is_err());

    // A client that stops sending its body.
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nab";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.contains("x-portolan-error: request_timeout"), "{answer}");
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_slow_upload_is_no_silence() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    app.route(|route| route.timeouts.response_header = Duration::from_millis(300));
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for byte in b"hello" {
        tokio::time::sleep(Duration::from_millis(150)).await;
        stream.write_all(&[*byte]).await.unwrap();
    }
    let answer = read_until(&mut stream, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[tokio::test]
async fn a_broken_connection_is_no_retry() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gateway, app) = Gateway::serving(address, Slots::Unlimited);
    let program = tokio::spawn(async move {
        let mut requests = 0;
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", "SSH-2.0-x\r\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await;
            requests += 1;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    });
    fetch(gateway.http, post("/", "body")).await.assert_error(502, "upstream_reset");
    let response = send(gateway.http, get("/")).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err(), "a cut body is seen as cut");
    fetch(gateway.http, get("/")).await.assert_error(502, "upstream_protocol");
    assert_eq!(soon("the program", program).await.unwrap(), 3);
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    app.route(|route| route.request_body_max = Some(10));
    assert_eq!(fetch(gateway.http, post("/echo", "0123456789")).await.status, 200);
    fetch(gateway.http, post("/echo", "0123456789a")).await.assert_error(413, "too_large");
    assert_eq!(program.begun(), 1, "an announced size is refused before anything else");
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let chunked = "POST /echo HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\
                   \r\n8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n";
    stream.write_all(chunked.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.contains("x-portolan-error: too_large"), "{answer}");
}

#[tokio::test]
async fn what_is_not_known_is_not_denied_before_all_was_read() {
    let program = Program::start().await;
    let gateway = Gateway::unsynced();
    let ask = async |host: &str| {
        let mut request = get("/echo");
        request.headers_mut().insert("host", host.parse().unwrap());
        fetch(gateway.http, request).await
    };
    ask("shop.example").await.assert_error(503, "not_synced");
    let health = fetch(gateway.http, get("/.well-known/portolan/health")).await;
    assert_eq!(health.status, 503);

    // The route was read, its app was not.
    let app = App::new(&gateway, "shop");
    app.route(|_| {});
    ask("shop.example").await.assert_error(503, "not_synced");
    app.configure(&app.pool, program.address.port(), |_| {});
    app.activate(1, &app.pool);
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(ask("shop.example").await.status, 200);
    // A default is no answer while the host's own route may be missing.
    let other = App::new(&gateway, "other");
    other.route(|route| route.host = HostPattern::Default);
    ask("unread.example").await.assert_error(503, "not_synced");
    ask("pr-1.shop.example").await.assert_error(503, "not_synced");

    gateway.ingress.mark_synced();
    ask("pr-1.shop.example").await.assert_error(404, "unknown_preview");
    ask("unread.example").await.assert_error(503, "no_version");
}

#[tokio::test]
async fn reserved_paths_stay_inside() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    for path in ["/.well-known/portolan/x", "/.well-known/miren/admin", "/%2ewell-known/miren/x"] {
        fetch(gateway.http, get(path)).await.assert_error(404, "blocked");
    }
    let health = fetch(gateway.http, get("/.well-known/portolan/health")).await;
    assert_eq!(health.status, 200);
    assert!(health.body.contains("\"status\":\"ok\""), "{}", health.body);
    assert_eq!(program.begun(), 0);
}

#[tokio::test]
async fn hosts_find_their_routes() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let other = Program::start_at("wild", "127.0.0.1:0".parse().unwrap()).await;
    let wild = App::new(&gateway, "wild");
    wild.route(|route| route.host = HostPattern::parse("*.wild.example").unwrap());
    wild.configure(&wild.pool, other.address.port(), |_| {});
    wild.activate(1, &wild.pool);
    wild.sandbox("w", other.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let ask = async |host: &str| {
        let mut request = get("/echo");
        request.headers_mut().insert("host", host.parse().unwrap());
        fetch(gateway.http, request).await
    };
    assert_eq!(ask("SHOP.example.:80").await.header("x-program"), Some("program"));
    assert_eq!(ask("a.wild.example").await.header("x-program"), Some("wild"));
    ask("a.b.wild.example").await.assert_error(404, "no_route");
    ask("pr-1.shop.example").await.assert_error(404, "unknown_preview");
    ask("a..b").await.assert_error(400, "bad_request");
    gateway.ingress.remove_route(&portolan_ingress::RouteId {
        namespace: "team-a".into(),
        name: "shop".into(),
    });
    ask("shop.example").await.assert_error(404, "no_route");
}

#[tokio::test]
async fn http2_outside_http1_inside() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(3));
    let mut sender = h2(gateway.http).await;
    let request = Request::get("http://shop.example/echo?x=1")
        .header("cookie", "a=b")
        .header("cookie", "c=d")
        .body(empty())
        .unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    let reply = crate::client::Reply::read(response).await;
    let expected = "GET /echo?x=1 HTTP/1.1\ncookie: a=b; c=d\nhost: shop.example\n";
    assert!(reply.body.starts_with(expected), "{reply:?}");
    let requests: Vec<_> = (0..6)
        .map(|_| {
            let request = Request::get("http://shop.example/hold").body(empty()).unwrap();
            tokio::spawn(sender.send_request(request))
        })
        .collect();
    app.reaches(3, 3).await;
    program.begins(4).await;
    program.open_gate(6);
    for request in requests {
        assert_eq!(soon("an answer", request).await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(program.peak(), 3);
}

#[tokio::test]
async fn a_reset_stream_gives_its_slot_back() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let mut sender = h2(gateway.http).await;
    let request = Request::get("http://shop.example/never").body(empty()).unwrap();
    let response = tokio::spawn(sender.send_request(request));
    app.reaches(0, 1).await;
    response.abort();
    app.reaches(0, 0).await;
    until("the program notices", || {
        let running = program.state.running.load(std::sync::atomic::Ordering::SeqCst);
        if running == 0 { Ok(()) } else { Err(running) }
    })
    .await;
}

#[tokio::test]
async fn pools_that_speak_h2c_are_spoken_to_so() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    app.configure(&app.pool, program.address.port(), |config| {
        config.protocol = AppProtocol::H2c;
    });
    for _ in 0..3 {
        let reply = fetch(gateway.http, get("/echo")).await;
        assert!(reply.body.starts_with("GET http://shop.example/echo HTTP/2.0\n"), "{reply:?}");
    }
    assert_eq!(program.connections(), 1);
    let mut rest = TcpStream::connect(gateway.http).await.unwrap();
    rest.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    soon("an empty connection ends", rest.read_to_end(&mut nothing)).await.unwrap();
}
