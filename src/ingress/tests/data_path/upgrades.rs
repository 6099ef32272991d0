//! Connections that switch protocols.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::{Method, Request};
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use portolan_ingress::Slots;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::client::{Body, empty, get, h2, raw, send};
use crate::gateway::{Gateway, soon};
use crate::program::Program;

pub(crate) async fn connect(gateway: &Gateway) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(gateway.http).await.unwrap();
    let handshake = tokio_tungstenite::client_async("ws://shop.example/websocket", stream);
    let (socket, response) = soon("the handshake", handshake).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

/// The same as a stream of HTTP/2, with its connection.
pub(crate) async fn connect_h2(
    gateway: &Gateway,
) -> (http2::SendRequest<Body>, WebSocketStream<TokioIo<Upgraded>>) {
    let mut sender = h2(gateway.http).await;
    // The gateway's settings, which allow it, arrive with the first answer.
    let request = Request::get("http://shop.example/echo").body(empty()).unwrap();
    soon("a response", sender.send_request(request)).await.unwrap();
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://shop.example/websocket")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(empty())
        .unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let upgraded = soon("the stream", hyper::upgrade::on(response)).await.unwrap();
    let io = TokioIo::new(upgraded);
    (sender, WebSocketStream::from_raw_socket(io, Role::Client, None).await)
}

#[tokio::test]
async fn messages_pass_both_ways() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let mut socket = connect(&gateway).await;
    app.reaches(0, 1).await;
    for size in [0, 1, 125, 126, 65_536, 1_000_000] {
        let message = Message::binary(vec![b'x'; size]);
        socket.send(message.clone()).await.unwrap();
        let answer = soon("the echo", socket.next()).await.unwrap().unwrap();
        assert_eq!(answer, message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    app.reaches(0, 0).await;
    assert!(gateway.metric("upgrades") == 0.0);
}

#[tokio::test]
async fn a_client_that_vanishes_frees_the_slot() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let socket = connect(&gateway).await;
    app.reaches(0, 1).await;
    drop(socket);
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn silence_ends_it_at_its_own_limit() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    app.route(|route| {
        route.timeouts.idle = Duration::from_millis(100);
        route.timeouts.upgrade_idle = Duration::from_millis(500);
    });
    let mut socket = connect(&gateway).await;
    // Longer in all than either limit, never silent for the second.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        socket.send(Message::text("still here")).await.unwrap();
        soon("the echo", socket.next()).await.unwrap().unwrap();
    }
    while let Some(Ok(_)) = soon("the cut", socket.next()).await {}
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn websockets_come_over_http2_too() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let (_connection, mut socket) = connect_h2(&gateway).await;
    socket.send(Message::text("hello")).await.unwrap();
    let answer = soon("the echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(answer, Message::text("hello"));
    drop(socket);
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn nobody_switches_unasked() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let reply = crate::client::Reply::read(send(gateway.http, get("/missing-upgrade")).await).await;
    reply.assert_error(502, "upstream_protocol");
    app.reaches(0, 0).await;

    let answer = raw(
        gateway.http,
        b"GET /echo HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
          Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("upgrade") && !answer.contains("http2-settings"), "{answer}");
}
