//! The end of a gateway.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use portolan_ingress::{SandboxPhase, Slots};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Reply, empty, fetch, get, h1, h2, send};
use crate::gateway::{Gateway, soon, until};
use crate::program::Program;

#[tokio::test]
async fn what_runs_ends_and_nothing_new_begins() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    let mut idle = h1(gateway.http).await;
    idle.ready().await.unwrap();
    let mut over_h2 = h2(gateway.http).await;
    let request = Request::get("http://shop.example/hold").body(empty()).unwrap();
    let held_h2 = tokio::spawn(over_h2.send_request(request));
    let held = tokio::spawn(fetch(gateway.http, get("/hold")));
    app.reaches(0, 2).await;
    gateway.shut_down();
    until("nobody listens", || {
        std::net::TcpStream::connect(gateway.http).map_or(Ok(()), |_| Err("connected"))
    })
    .await;
    soon("idle connections are closed", async {
        while !idle.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    program.open_gate(2);
    let reply = soon("the running request", held).await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("connection"), Some("close"));
    let response = soon("the running stream", held_h2).await.unwrap().unwrap();
    assert_eq!(Reply::read(response).await.body, "held");
    gateway.ended().await;
}

#[tokio::test]
async fn streams_are_cut_at_the_limit() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| settings.drain = Duration::from_millis(300));
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let stream = TcpStream::connect(gateway.http).await.unwrap();
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://shop.example/websocket", stream).await.unwrap();
    let mut events = send(gateway.http, get("/ticks")).await;
    gateway.shut_down();
    socket.send(Message::text("still here")).await.unwrap();
    soon("sockets live on until then", socket.next()).await.unwrap().unwrap();
    program.tick("still here");
    soon("events too", events.frame()).await.unwrap().unwrap();
    gateway.ended().await;
    while let Some(Ok(_)) = soon("the end", socket.next()).await {}
    assert!(soon("the end", events.frame()).await.is_none_or(|frame| frame.is_err()));
}

#[tokio::test]
async fn clients_are_asked_to_leave_before_they_are_shown_the_door() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| settings.lame_duck = Duration::from_secs(1));
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let mut used = h1(gateway.http).await;
    let unused = h1(gateway.http).await;
    let mut over_h2 = h2(gateway.http).await;
    let ask_h2 = || Request::get("http://shop.example/echo").body(empty()).unwrap();
    soon("a response", over_h2.send_request(ask_h2())).await.unwrap();
    gateway.shut_down();
    soon("HTTP/2 is told to go away", async {
        while over_h2.send_request(ask_h2()).await.is_ok() {}
    })
    .await;
    let reply = Reply::read(used.send_request(get("/echo")).await.unwrap()).await;
    assert_eq!((reply.status.as_u16(), reply.header("connection")), (200, Some("close")));
    let health = fetch(gateway.http, get("/.well-known/portolan/health")).await;
    assert_eq!(health.status, 503, "still accepting, but not ready");
    assert!(health.body.contains("leaving"), "{}", health.body);
    assert!(!unused.is_closed(), "it may be about to send a request");
    gateway.ended().await;
    soon("it is closed in the end", async {
        while !unused.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
