//! gRPC: HTTP/2 all the way, trailers both ways.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use portolan_ingress::Slots;

use crate::client::{Body, Reply, h2};
use crate::gateway::{App, Gateway, soon};
use crate::program::Program;

#[tokio::test]
async fn grpc_keeps_its_trailers_both_ways() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let mut sender = h2(gateway.http).await;
    for _ in 0..3 {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        let frames = futures::stream::iter([
            Ok(Frame::data(Bytes::from_static(b"message"))),
            Ok(Frame::trailers(trailers)),
        ]);
        let request = Request::post("http://shop.example/trailers")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(BodyExt::boxed(StreamBody::new(frames)))
            .unwrap();
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        let reply = Reply::read(response).await;
        assert_eq!(reply.body, "message");
        assert_eq!(reply.header("x-version"), Some("HTTP/2.0"));
        assert_eq!(reply.trailers["grpc-status"], "0");
        assert_eq!(reply.trailers["x-sum"], "7");
    }
    assert_eq!(program.connections(), 1, "one connection for all");
    app.reaches(0, 0).await;
}

/// A call that goes on in both directions, where silence lasts 300 ms at most.
struct Call {
    app: App,
    program: Program,
    messages: mpsc::UnboundedSender<Bytes>,
    response: Response<Incoming>,
    _sender: http2::SendRequest<Body>,
}

impl Call {
    async fn begin() -> Self {
        let program = Program::start().await;
        let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
        app.route(|route| route.timeouts.idle = Duration::from_millis(300));
        let (messages, receiver) = mpsc::unbounded::<Bytes>();
        let frames = receiver.map(|message| Ok(Frame::data(message)));
        let request = Request::post("http://shop.example/ticks")
            .header("content-type", "application/grpc")
            .body(BodyExt::boxed(StreamBody::new(frames)))
            .unwrap();
        let mut sender = h2(gateway.http).await;
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        Self { app, program, messages, response, _sender: sender }
    }

    async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = soon("a frame", self.response.frame()).await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }
}

#[tokio::test]
async fn a_client_that_listens_is_not_silent() {
    let mut call = Call::begin().await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        call.program.tick("news");
        assert_eq!(call.next().await.unwrap().unwrap(), "news");
    }
    // Now nobody says anything.
    assert!(call.next().await.unwrap().is_err(), "it is cut");
    call.app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_program_that_listens_is_not_silent() {
    let mut call = Call::begin().await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        call.messages.unbounded_send("news".into()).unwrap();
    }
    call.program.tick("heard");
    assert_eq!(call.next().await.unwrap().unwrap(), "heard");
}
