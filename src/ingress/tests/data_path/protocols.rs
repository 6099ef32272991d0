//! gRPC: HTTP/2 all the way, trailers both ways.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portolan_ingress::Slots;

use crate::client::{Reply, h2};
use crate::gateway::{Gateway, soon};
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
