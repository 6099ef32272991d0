//! Under `Strict` a program that may still be at work gets no other request.

use std::net::SocketAddr;
use std::time::Duration;

use portolan_ingress::{Concurrency, SandboxPhase, Slots};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{fetch, get, read_until, send};
use crate::gateway::{App, Gateway, soon, until};
use crate::program::Program;

const ASKS: &str = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";
const ASKS_FOR_A_SWITCH: &str =
    "GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: upgrade\r\nupgrade: tap\r\n\r\n";
const SWITCHES: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: tap\r\n\r\n";
const HALF_A_REQUEST: &str =
    "POST / HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 100\r\n\r\nhalf";

/// A gateway with one slot at the program, which it waits for so long.
fn mk_gateway(program: SocketAddr, strict_wait: Duration) -> (Gateway, App) {
    let gateway = Gateway::start_with(|settings| settings.strict_wait = strict_wait);
    let app = gateway.app("shop", program.port());
    app.configure(&app.pool, program.port(), |config| config.concurrency = Concurrency::Strict);
    app.sandbox("one", program.ip(), SandboxPhase::Ready, Slots::Limited(1));
    (gateway, app)
}

/// One exchange whose program does as the test says, word for word.
struct Exchange {
    gateway: Gateway,
    app: App,
    client: TcpStream,
    program: TcpStream,
}

impl Exchange {
    /// The client has said this, and the program has seen the head of it.
    async fn begin(request: &str, strict_wait: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (gateway, app) = mk_gateway(listener.local_addr().unwrap(), strict_wait);
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut program, _) = soon("the request", listener.accept()).await.unwrap();
        read_until(&mut program, "\r\n\r\n").await;
        Self { gateway, app, client, program }
    }

    async fn answer(&mut self, answer: &str) {
        self.program.write_all(answer.as_bytes()).await.unwrap();
        read_until(&mut self.client, "\r\n\r\n").await;
    }

    /// The client is gone; the program is told and hangs up.
    async fn ends(self) {
        let Self { gateway, app, client, mut program } = self;
        drop(client);
        soon("its end", program.read_to_end(&mut Vec::new())).await.unwrap();
        drop(program);
        app.reaches(0, 0).await;
        assert!(gateway.metric("retired_total") == 0.0);
    }

    /// The client is gone, and nobody ever knows whether the program is done.
    async fn retires(self) {
        let Self { gateway, app, client, program: _program } = self;
        drop(client);
        is_retired(&gateway, &app).await;
    }
}

async fn is_retired(gateway: &Gateway, app: &App) {
    until("the sandbox is retired", || {
        let demand = app.demand();
        if demand.sandboxes[0].retired && demand.running == 0 { Ok(()) } else { Err(demand) }
    })
    .await;
    assert!(gateway.metric("retired_total") == 1.0);
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_switched_connection_has_ended_when_the_program_has_hung_up() {
    let mut exchange = Exchange::begin(ASKS_FOR_A_SWITCH, LONG).await;
    exchange.answer(SWITCHES).await;
    exchange.ends().await;
}

#[tokio::test]
async fn a_program_that_does_not_hang_up_on_a_switched_connection_is_retired() {
    let mut exchange = Exchange::begin(ASKS_FOR_A_SWITCH, SHORT).await;
    exchange.answer(SWITCHES).await;
    // It breaks off: after an orderly end the program would have as long as the Route allows.
    SockRef::from(&exchange.client).set_linger(Some(Duration::ZERO)).unwrap();
    exchange.retires().await;
}

#[tokio::test]
async fn one_that_hangs_up_first_is_not() {
    let mut exchange = Exchange::begin(ASKS_FOR_A_SWITCH, SHORT).await;
    exchange.answer(SWITCHES).await;
    exchange.program.shutdown().await.unwrap();
    exchange.ends().await;
}

#[tokio::test]
async fn half_a_switch_retires() {
    for asks in [ASKS_FOR_A_SWITCH, ASKS] {
        let mut exchange = Exchange::begin(asks, LONG).await;
        exchange.answer("HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
        exchange.retires().await;
    }
}

#[tokio::test]
async fn half_a_request_has_ended_when_the_program_has_hung_up() {
    Exchange::begin(HALF_A_REQUEST, LONG).await.ends().await;
}

#[tokio::test]
async fn a_program_that_does_not_hang_up_on_half_a_request_is_retired() {
    Exchange::begin(HALF_A_REQUEST, SHORT).await.retires().await;
}

#[tokio::test]
async fn half_a_request_that_is_answered_already_is_no_different() {
    let mut exchange = Exchange::begin(HALF_A_REQUEST, SHORT).await;
    exchange.answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
    exchange.retires().await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_retires() {
    let no_chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n";
    for answer in [no_chunk, "hello\r\n\r\n"] {
        let mut exchange = Exchange::begin(ASKS, LONG).await;
        exchange.answer(answer).await;
        exchange.retires().await;
    }
}

#[tokio::test]
async fn a_connection_that_the_program_closed_does_not() {
    let mut exchange = Exchange::begin(ASKS, LONG).await;
    exchange.program.shutdown().await.unwrap();
    exchange.ends().await;
}

#[tokio::test]
async fn the_end_of_what_nobody_wants_is_waited_for() {
    let program = Program::start().await;
    let (gateway, app) = mk_gateway(program.address, LONG);
    let request = tokio::spawn(send(gateway.http, get("/stubborn")));
    program.begins(1).await;
    request.abort();
    let next = tokio::spawn(fetch(gateway.http, get("/stubborn")));
    app.reaches(1, 1).await;
    assert_eq!(program.begun(), 1, "the next one has not begun");
    program.open_gate(2);
    assert_eq!(soon("an answer", next).await.unwrap().status, 200);
    assert_eq!(program.peak(), 1, "never two at once");
    assert!(!app.demand().sandboxes[0].retired);
}

#[tokio::test]
async fn a_sandbox_that_does_not_end_is_retired() {
    let program = Program::start().await;
    let (gateway, app) = mk_gateway(program.address, SHORT);
    let response = send(gateway.http, get("/ticks")).await;
    drop(response);
    is_retired(&gateway, &app).await;
    let request = tokio::spawn(send(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    request.abort();
}
