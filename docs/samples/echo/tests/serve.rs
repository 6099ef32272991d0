//! The sample over loopback: what users and the end-to-end tests rely on.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portolan_sample_echo::{Ended, Listen, Server, client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn every_answer_says_who_gave_it() {
    let sample = Sample::start().await;
    let response = sample.get("/").await;
    assert_eq!(response.headers()["x-version"], "v7");
    assert_eq!(response.headers()["x-sandbox"], "shop-web-0-1");
    assert_eq!(response.headers()["content-length"], "47");
    assert_eq!(text(response).await, "Hello from version v7 in sandbox shop-web-0-1.\n");
}

#[tokio::test]
async fn a_page_answers_with_the_status_asked_for() {
    let sample = Sample::start().await;
    for (path, status) in [
        ("/health", 200),
        ("/status/204", 204),
        ("/status/503", 503),
        ("/status/101", 404),
        ("/status/abc", 404),
        ("/nothing", 404),
        ("/env/NO_SUCH_VARIABLE", 404),
        ("/ws", 426),
    ] {
        assert_eq!(sample.get(path).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn bodies_come_back_with_their_trailers() {
    let sample = Sample::start().await;
    let (mut requests, _connection) = sample.http2().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    let body =
        Full::new(Bytes::from("hello")).with_trailers(async { Some(Ok(trailers)) }).boxed_unsync();
    let request = Request::post(sample.url("/echo")).body(body).unwrap();
    let echoed = requests.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(echoed.trailers().unwrap()["x-sum"], "42");
    assert_eq!(echoed.to_bytes(), "hello");
}

#[tokio::test]
async fn bytes_are_as_many_as_asked_for() {
    let sample = Sample::start().await;
    for size in [0, 1, 16_384, 100_000] {
        let response = sample.get(&format!("/bytes/{size}")).await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), size);
    }
}

#[tokio::test]
async fn events_come_one_by_one() {
    let sample = Sample::start().await;
    let mut body = sample.get("/sse?ms=1&count=3").await.into_body();
    for number in 1..=3 {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, format!("id: {number}\ndata: tick {number}\n\n"));
    }
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn requests_are_counted_while_they_run() {
    let sample = Sample::start().await;
    let streams = [sample.get("/sse?ms=60000").await, sample.get("/sse?ms=60000").await];
    assert_eq!(sample.json("/concurrency").await, json!({ "now": 2, "max": 2, "total": 2 }));
    drop(streams);
    sample.get("/").await.into_body().collect().await.unwrap();
    let counts = sample.until("/concurrency", |counts| counts["now"] == 0).await;
    assert_eq!(counts, json!({ "now": 0, "max": 2, "total": 3 }));
}

#[tokio::test]
async fn a_websocket_echoes_and_is_told_when_the_program_ends() {
    let sample = Sample::start().await;
    let (mut socket, response) =
        tokio_tungstenite::connect_async(format!("ws://{}/ws", sample.http)).await.unwrap();
    assert_eq!(response.headers()["x-version"], "v7");
    for message in [Message::text("hello"), Message::binary(vec![0; 70_000])] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.send(Message::Ping("x".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("x".into()));
    sample.stop.cancel();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(Some(_))))));
    assert!(socket.next().await.is_none());
    assert_eq!(sample.serving.await.unwrap(), Ended::Drained);
}

#[tokio::test]
async fn a_websocket_opens_over_http2() {
    let sample = Sample::start().await;
    let (mut requests, _connection) = sample.http2().await;
    let mut request = Request::connect(sample.url("/ws")).body(Full::default()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let response: Response<Incoming> = requests.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(io, role, None).await;
    socket.send(Message::text("over h2")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("over h2"));
}

#[tokio::test]
async fn grpc_says_counts_and_is_healthy() {
    let sample = Sample::start().await;
    let hello = b"\x0a\x05hello";
    let say = sample.grpc("/portolan.echo.v1.Echo/Say", hello).await;
    assert_eq!(say, (vec![hello.to_vec()], "0".into()));
    let count = sample.grpc("/portolan.echo.v1.Echo/Count", b"\x0a\x05hello\x10\x03\x18\x01").await;
    assert_eq!(count, (vec![hello.to_vec(); 3], "0".into()));
    let check = sample.grpc("/grpc.health.v1.Health/Check", b"").await;
    assert_eq!(check, (vec![b"\x08\x01".to_vec()], "0".into()));
}

#[tokio::test]
async fn grpc_errors_are_statuses() {
    let sample = Sample::start().await;
    for (method, message, status) in [
        ("/portolan.echo.v1.Echo/Nothing", &b""[..], "12"),
        ("/portolan.echo.v1.Echo/Say", b"\x0a\xff", "3"),
        ("/portolan.echo.v1.Echo/Say", b"\x0a\x01\xff", "3"),
    ] {
        assert_eq!(sample.grpc(method, message).await, (vec![], status.into()), "{method}");
    }
}

#[tokio::test]
async fn tcp_and_udp_come_back() {
    let sample = Sample::start().await;
    let mut stream = TcpStream::connect(sample.tcp).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, b"hello");

    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(sample.udp).await.unwrap();
    socket.send(b"hello").await.unwrap();
    let mut datagram = [0; 16];
    let size = socket.recv(&mut datagram).await.unwrap();
    assert_eq!(&datagram[..size], b"hello");

    for url in [format!("tcp://{}", sample.tcp), format!("udp://{}", sample.udp)] {
        let answer = client::send(&url.parse().unwrap(), b"hello").await.unwrap();
        assert_eq!(answer, b"hello", "{url}");
        let nobody = url.replace(&sample.tcp.port().to_string(), "1");
        let nobody = nobody.replace(&sample.udp.port().to_string(), "1");
        client::send(&nobody.parse().unwrap(), b"hello").await.unwrap_err();
    }
}

#[tokio::test]
async fn work_is_counted_to_its_end_whoever_leaves() {
    let sample = Sample::start().await;
    let left = tokio::time::timeout(Duration::from_millis(50), sample.get("/work?ms=300")).await;
    assert!(left.is_err(), "nobody waits for it");
    let counts = async || -> serde_json::Value {
        serde_json::from_str(&text(sample.get("/concurrency").await).await).unwrap()
    };
    assert_eq!(counts().await["now"], 1);
    assert_eq!(text(sample.get("/work?ms=300").await).await, "done\n");
    assert_eq!(counts().await["now"], 0);
    assert_eq!(counts().await["max"], 2);
}

#[tokio::test]
async fn a_request_that_runs_ends_before_the_program() {
    let sample = Sample::start().await;
    let slow = sample.get("/sse?ms=20&count=3").await;
    sample.stop.cancel();
    assert!(text(slow).await.ends_with("data: tick 3\n\n"));
    assert_eq!(sample.serving.await.unwrap(), Ended::Drained);
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_at_the_limit() {
    let sample = Sample::start_with(Duration::from_millis(20)).await;
    let mut endless = sample.get("/sse?ms=60000").await.into_body();
    endless.frame().await.unwrap().unwrap();
    sample.stop.cancel();
    assert_eq!(sample.serving.await.unwrap(), Ended::Cut);
    assert!(endless.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_crash_gives_no_answer_and_the_code_asked_for() {
    let sample = Sample::start().await;
    let (mut requests, _connection) = sample.http2().await;
    let request = Request::get(sample.url("/crash?code=3")).body(Full::default()).unwrap();
    assert!(requests.send_request(request).await.is_err());
    assert_eq!(sample.serving.await.unwrap(), Ended::Crashed(3));
}

struct Sample {
    http: SocketAddr,
    tcp: SocketAddr,
    udp: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<Ended>,
}

impl Sample {
    async fn start() -> Self {
        Self::start_with(Duration::from_secs(10)).await
    }

    async fn start_with(drain: Duration) -> Self {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let listen = Listen { address, http: 0, tcp: Some(0), udp: Some(0) };
        let server = Server::bind(listen, "v7", "shop-web-0-1").await.unwrap();
        let (http, tcp, udp) = server.addresses().unwrap();
        let stop = CancellationToken::new();
        let told = stop.clone();
        let serving = tokio::spawn(async move { server.serve(told, drain).await.unwrap() });
        Self { http, tcp: tcp.unwrap(), udp: udp.unwrap(), stop, serving }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Over HTTP/1.1 and a connection of its own.
    async fn get(&self, path: &str) -> Response<Incoming> {
        let io = TokioIo::new(TcpStream::connect(self.http).await.unwrap());
        let (mut requests, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "echo").body(Full::<Bytes>::default());
        requests.send_request(request.unwrap()).await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&text(self.get(path).await).await).unwrap()
    }

    /// The first answer that fulfils the condition; the test's own timeout is the limit.
    async fn until(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..1_000 {
            let value = self.json(path).await;
            if condition(&value) {
                return value;
            }
            tokio::task::yield_now().await;
        }
        panic!("{path} does not fulfil the condition: {}", self.json(path).await);
    }

    async fn http2<B>(&self) -> (hyper::client::conn::http2::SendRequest<B>, JoinHandle<()>)
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let io = TokioIo::new(TcpStream::connect(self.http).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (requests, connection) = handshake.await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        (requests, connection)
    }

    /// The messages of the answer, and its status from trailers or headers.
    async fn grpc(&self, method: &str, message: &[u8]) -> (Vec<Vec<u8>>, String) {
        let (mut requests, _connection) = self.http2().await;
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let request = Request::post(self.url(method)).header("content-type", "application/grpc");
        let request = request.body(Full::new(Bytes::from(frame))).unwrap();
        let response = requests.send_request(request).await.unwrap();
        let headers = response.headers().clone();
        let collected = response.into_body().collect().await.unwrap();
        let status = collected.trailers().unwrap_or(&headers)["grpc-status"].to_str().unwrap();
        let status = status.to_owned();
        let mut frames = collected.to_bytes();
        let mut messages = Vec::new();
        while frames.has_remaining() {
            assert_eq!(frames.get_u8(), 0, "not compressed");
            let size = frames.get_u32() as usize;
            messages.push(frames.split_to(size).to_vec());
        }
        (messages, status)
    }
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
