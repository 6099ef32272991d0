//! What is held for clients that do not read, all together.

use std::net::SocketAddr;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portolan_ingress::{AppProtocol, SandboxPhase, Settings, Slots};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Body, empty, get, h1_over, h2, h2_over};
use crate::frames::{
    END_HEADERS, END_STREAM, HEADERS, PREFACE, RESET, SETTINGS, WINDOW_UPDATE, block, frame,
};
use crate::gateway::{App, Gateway, soon, until};
use crate::program::Program;
use crate::upgrades::connect_h2;

const HELD: &str = "response_buffers_bytes";
/// What is read at once for a client over HTTP/2, with what describes it.
const READ_SIZE: u64 = 33 * 1024;

async fn mk_gateway(change: impl FnOnce(&mut Settings)) -> (Program, Gateway, App) {
    let program = Program::start().await;
    let gateway = Gateway::start_with(change);
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    (program, gateway, app)
}

/// Connects from an address of its own, which makes another client of it.
async fn connect_from(client: [u8; 4], gateway: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((client, 0).into()).unwrap();
    // Or it would tell of room 40 ms late.
    socket.set_nodelay(true).unwrap();
    socket.connect(gateway).await.unwrap()
}

/// As [`connect_from`], to read nothing.
async fn stall_from(client: [u8; 4], gateway: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((client, 0).into()).unwrap();
    // What the kernel keeps for us is not what the gateway keeps.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(gateway).await.unwrap()
}

fn ask(path: &str) -> Vec<u8> {
    block(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", path.as_bytes()),
        (b":authority", b"shop.example"),
    ])
}

/// Asks for the same on so many streams, with the widest windows there are, and reads nothing.
async fn flood(stream: &mut TcpStream, path: &str, count: u32) {
    let widest = 0x7fff_ffff_u32;
    let of_each = frame(SETTINGS, 0, 0, &[&[0_u8, 4][..], &widest.to_be_bytes()].concat());
    let of_all = frame(WINDOW_UPDATE, 0, 0, &(widest - 0xffff).to_be_bytes());
    let mut bytes = [PREFACE, &of_each, &of_all].concat();
    for stream_id in (1..2 * count).step_by(2) {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream_id, &ask(path)));
    }
    stream.write_all(&bytes).await.unwrap();
}

async fn holds(gateway: &Gateway, what: &str, is_so: impl Fn(f64) -> bool) {
    until(what, || {
        let held = gateway.metric(HELD);
        if is_so(held) { Ok(()) } else { Err(held) }
    })
    .await;
}

/// How long a neighbour takes for as many bytes over either protocol.
async fn neighbour(gateway: &Gateway, size: u64) -> Duration {
    let began = Instant::now();
    let path = format!("http://shop.example/bytes/{size}");
    let request = || Request::get(&path).header("host", "shop.example").body(empty()).unwrap();
    let address = [127, 0, 0, 9];
    let mut h1 = h1_over(connect_from(address, gateway.http).await).await;
    let mut h2 = h2_over(connect_from(address, gateway.http).await).await;
    let over_h1 = async { h1.send_request(request()).await.unwrap().into_body().collect().await };
    let over_h2 = async { h2.send_request(request()).await.unwrap().into_body().collect().await };
    let both = soon("both answers", async { tokio::join!(over_h1, over_h2) }).await;
    for body in [both.0, both.1] {
        assert_eq!(body.unwrap().to_bytes().len() as u64, size);
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_stays_within_a_bound_and_neighbours_are_served() {
    const MAX: u64 = 16 << 20;
    const SIZE: u64 = 4 << 20;
    const CLIENTS: u8 = 24;
    const STREAMS: u32 = 100;
    let (program, gateway, app) = mk_gateway(|settings| settings.response_buffers_max = MAX).await;
    let alone = neighbour(&gateway, SIZE).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut stream = stall_from([127, 0, 1, number / 3], gateway.http).await;
        flood(&mut stream, "/bytes/300000", STREAMS).await;
        clients.push(stream);
    }
    program.begins(2 + usize::from(CLIENTS) * STREAMS as usize).await;
    holds(&gateway, "much is held", |held| held > MAX as f64 / 3.0).await;
    for _ in 0..5 {
        let beside = neighbour(&gateway, SIZE).await;
        let limit = alone * 4 + Duration::from_millis(300);
        assert!(beside < limit, "{beside:?} beside others that do not read, {alone:?} alone");
        let held = gateway.metric(HELD);
        let bound = MAX + 4 * READ_SIZE;
        assert!(held <= bound as f64, "{held} bytes are held of {bound}");
    }
    drop(clients);
    app.reaches(0, 0).await;
    holds(&gateway, "nothing is held", |held| held == 0.0).await;
}

#[tokio::test]
async fn whatever_ends_a_response_leaves_nothing_behind() {
    let (_program, gateway, app) =
        mk_gateway(|settings| settings.response_buffers_max = 1 << 20).await;
    let mut stream = stall_from([127, 0, 0, 1], gateway.http).await;
    flood(&mut stream, "/bytes/300000", 20).await;
    holds(&gateway, "something is held", |held| held > 0.0).await;
    for stream_id in (1..40).step_by(2) {
        let reset = frame(RESET, 0, stream_id, &8_u32.to_be_bytes());
        stream.write_all(&reset).await.unwrap();
    }
    app.reaches(0, 0).await;
    // What was reset goes as soon as the connection looks at it.
    let mut read = vec![0; 1 << 16];
    until("nothing is held", || {
        let _ = stream.try_read(&mut read);
        let held = gateway.metric(HELD);
        if held == 0.0 { Ok(()) } else { Err(held) }
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing_behind() {
    let (program, gateway, app) = mk_gateway(|_| {}).await;
    let mut sender = h2(gateway.http).await;
    let body = crate::client::full(vec![0; 30_000_000]);
    let request = Request::post("http://shop.example/never").body(body).unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    program.begins(1).await;
    holds(&gateway, "what the program does not read is held", |held| held > 0.0).await;
    asked.abort();
    app.reaches(0, 0).await;
    holds(&gateway, "nothing is held", |held| held == 0.0).await;
}

#[tokio::test]
async fn answers_that_were_taken_leave_nothing_behind_while_their_connection_lasts() {
    let (_program, gateway, _app) = mk_gateway(|_| {}).await;
    let mut sender = h2(gateway.http).await;
    for path in ["bytes/10", "bytes/5000", "bytes/200000", "trailers", "echo"] {
        let request = Request::get(format!("http://shop.example/{path}")).body(empty()).unwrap();
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        assert!(response.headers().contains_key("x-request-id"));
        response.into_body().collect().await.unwrap();
        holds(&gateway, "nothing is held", |held| held == 0.0).await;
    }
    let mut h1 = crate::client::h1(gateway.http).await;
    let response = h1.send_request(get("/bytes/3000000")).await.unwrap();
    response.into_body().collect().await.unwrap();
    holds(&gateway, "nothing is held", |held| held == 0.0).await;
}

/// Reads a little now and then, to the end.
async fn sip(mut body: Incoming, pause: Duration) -> usize {
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        size += frame.expect("it goes on").into_data().map_or(0, |data| data.len());
        sleep(pause).await;
    }
    size
}

#[tokio::test]
async fn who_reads_slowly_is_not_cut() {
    const SIZE: usize = 1_000_000;
    let (_program, gateway, _app) = mk_gateway(|settings| {
        settings.response_buffers_max = 2 << 20;
        settings.write_stall = Duration::from_secs(4);
        settings.header_timeout = Duration::from_millis(100);
    })
    .await;
    let mut others = Vec::new();
    for number in 0..8 {
        let mut stream = stall_from([127, 0, 1, number], gateway.http).await;
        flood(&mut stream, "/bytes/300000", 50).await;
        others.push(stream);
    }
    let stream = connect_from([127, 0, 0, 9], gateway.http).await;
    let mut sender = h2_over(stream).await;
    let mut readers = JoinSet::new();
    for _ in 0..3 {
        let request = Request::get(format!("http://shop.example/bytes/{SIZE}"));
        let response = sender.send_request(request.body(empty()).unwrap()).await.unwrap();
        readers.spawn(sip(response.into_body(), Duration::from_millis(40)));
    }
    while let Some(size) = readers.join_next().await {
        assert_eq!(size.unwrap(), SIZE);
    }
}

#[tokio::test]
async fn who_reads_again_is_served_at_once() {
    const COUNT: usize = 40;
    const SIZE: usize = 200_000;
    // So little that nearly all of them wait for room most of the time.
    let (_program, gateway, _app) =
        mk_gateway(|settings| settings.response_buffers_max = 4 << 20).await;
    let mut sender: http2::SendRequest<Body> = h2(gateway.http).await;
    let requests = (0..COUNT).map(|_| {
        let request = Request::get(format!("http://shop.example/bytes/{SIZE}"));
        sender.send_request(request.body(empty()).unwrap())
    });
    let responses = futures::future::join_all(requests.collect::<Vec<_>>()).await;
    // For as long as nobody reads, what fits is held.
    holds(&gateway, "something is held", |held| held > 0.0).await;
    let began = Instant::now();
    let bodies = responses.into_iter().map(|response| response.unwrap().into_body().collect());
    for body in soon("all of them", futures::future::join_all(bodies)).await {
        assert_eq!(body.unwrap().to_bytes().len(), SIZE);
    }
    // Each would look twice a second by itself, for one read.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_reads_one_answer_after_the_other_gets_all() {
    const COUNT: usize = 100;
    const SIZE: usize = 200_000;
    let (_program, gateway, _app) =
        mk_gateway(|settings| settings.response_buffers_max = 64 << 20).await;
    let stream = TokioIo::new(connect_from([127, 0, 0, 1], gateway.http).await);
    let (mut sender, driver) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        // Or streams that are not read would stop the others in the client itself.
        .initial_connection_window_size(1 << 30)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(driver);
    let requests = (0..COUNT).map(|_| {
        let request = Request::get(format!("http://shop.example/bytes/{SIZE}"));
        sender.send_request(request.body(empty()).unwrap())
    });
    let requests = futures::future::join_all(requests.collect::<Vec<_>>());
    let responses = soon("all heads", requests).await;
    let began = Instant::now();
    for response in responses.into_iter().rev() {
        let body = soon("the next", response.unwrap().into_body().collect()).await;
        assert_eq!(body.unwrap().to_bytes().len(), SIZE);
    }
    // Each would look twice a second by itself.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_whose_client_holds_all_it_may_is_closed() {
    let (_program, gateway, app) = mk_gateway(|settings| {
        settings.response_buffers_max = 1 << 20;
        settings.write_stall = Duration::from_millis(300);
        settings.header_timeout = Duration::from_millis(300);
    })
    .await;
    let mut stream = stall_from([127, 0, 0, 1], gateway.http).await;
    // What ends within the gateway's buffers cannot be taken away from its stream.
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let mut bytes = [PREFACE, &no_window].concat();
    for stream_id in (1..240).step_by(2) {
        let head = ask("/bytes/4000");
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream_id, &head));
    }
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("it is closed", stream.read_to_end(&mut answer)).await;
    app.reaches(0, 0).await;
    holds(&gateway, "nothing is held", |held| held == 0.0).await;
    assert!(gateway.metric("responses_cut_total{what=\"connection\"}") >= 1.0);
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_stop_a_sandbox_over_http2() {
    let (program, gateway, app) = mk_gateway(|_| {}).await;
    app.configure(&app.pool, program.address.port(), |pool| pool.protocol = AppProtocol::H2c);
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let mut bytes = [PREFACE, &no_window].concat();
    for stream_id in (1..100).step_by(2) {
        let head = ask("/bytes/5000000");
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream_id, &head));
    }
    stream.write_all(&bytes).await.unwrap();
    program.begins(50).await;
    for _ in 0..3 {
        let mut sender = h2_over(connect_from([127, 0, 0, 9], gateway.http).await).await;
        let request = Request::get("http://shop.example/bytes/3000000").body(empty()).unwrap();
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        let body = soon("all of it", response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes().len(), 3_000_000);
    }
    assert_eq!(program.connections(), 1, "all of them came over one connection");
}

#[tokio::test]
async fn a_tunnel_whose_client_reads_nothing_is_counted_and_cut() {
    let (_program, gateway, app) =
        mk_gateway(|settings| settings.write_stall = Duration::from_millis(500)).await;
    let (_connection, socket) = connect_h2(&gateway).await;
    let (mut sink, _unread) = socket.split();
    let sending =
        tokio::spawn(
            async move { while sink.send(Message::binary(vec![0; 100_000])).await.is_ok() {} },
        );
    holds(&gateway, "something is held", |held| held >= 64.0 * 1024.0).await;
    app.reaches(0, 0).await;
    holds(&gateway, "nothing is held", |held| held == 0.0).await;
    assert!(gateway.metric("responses_cut_total{what=\"tunnel\"}") == 1.0);
    sending.abort();
}
