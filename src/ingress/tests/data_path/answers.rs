//! What programs may answer over HTTP/1.1, byte by byte: read whole, or refused.

use std::time::Duration;

use portolan_ingress::Slots;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::client::{Reply, fetch, get, post, read_until};
use crate::gateway::{Gateway, soon};

/// Answers one request with `answer`, in pieces, and then one more on the next connection, or on
/// the same one if the gateway uses it again. Returns the reply and how many connections there were.
async fn answered(answer: &str, pieces: usize) -> (Reply, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gateway, app) = Gateway::serving(address, Slots::Unlimited);
    let answer = answer.replace('\n', "\r\n").into_bytes();
    let program = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        read_until(&mut first, "\r\n\r\n").await;
        for piece in answer.chunks(answer.len().div_ceil(pieces)) {
            first.write_all(piece).await.unwrap();
            // What is sent apart is to be read apart.
            sleep(Duration::from_millis(if pieces > 1 { 2 } else { 0 })).await;
        }
        if String::from_utf8_lossy(&answer).contains("connection: close") {
            drop(first);
        } else if second_answer(&mut first).await {
            return 1;
        }
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(second_answer(&mut second).await, "the second connection was closed");
        2
    });
    let reply = fetch(gateway.http, get("/")).await;
    let next = fetch(gateway.http, get("/")).await;
    assert_eq!((next.status.as_u16(), &*next.body), (200, "second"), "the request after it");
    app.reaches(0, 0).await;
    (reply, soon("the program", program).await.unwrap())
}

/// Reads a request and answers it; `false`: the connection was closed instead.
async fn second_answer(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
            return false;
        }
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond";
    stream.write_all(answer).await.is_ok()
}

#[track_caller]
fn check(reply: &Reply, expected: (u16, &str)) {
    assert_eq!((reply.status.as_u16(), &*reply.body), expected, "{reply:?}");
}

#[tokio::test]
async fn an_answer_is_read_however_it_is_cut() {
    let chunked = "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n5;x=y\nhello\n1\n!\n0\n\n";
    let interim =
        "HTTP/1.1 103 Early Hints\nlink: </a.css>\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nok";
    for pieces in [1, 7, 40] {
        let (reply, connections) = answered(chunked, pieces).await;
        check(&reply, (200, "hello!"));
        assert_eq!(connections, 1, "the connection is used again");
        let (reply, connections) = answered(interim, pieces).await;
        check(&reply, (200, "ok"));
        assert_eq!(connections, 1, "the connection is used again");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole() {
    let (reply, connections) = answered("HTTP/1.0 200 OK\nconnection: close\n\nold", 3).await;
    check(&reply, (200, "old"));
    assert_eq!(connections, 2);
}

#[tokio::test]
async fn what_follows_an_answer_is_nobody_s() {
    let two = "HTTP/1.1 200 OK\ncontent-length: 2\n\nokHTTP/1.1 200 OK\ncontent-length: 4\n\nevil";
    let (reply, connections) = answered(two, 1).await;
    check(&reply, (200, "ok"));
    assert_eq!(connections, 2, "the connection is not used again");
}

#[tokio::test]
async fn an_ambiguous_answer_is_refused() {
    for head in [
        "content-length: 5\ntransfer-encoding: chunked",
        "content-length: 5\ncontent-length: 6",
        "content-length: 0x5",
        "transfer-encoding: chunked, identity",
    ] {
        let answer = format!("HTTP/1.1 200 OK\n{head}\n\n0\n\n");
        let (reply, connections) = answered(&answer, 1).await;
        reply.assert_error(502, "upstream_protocol");
        assert_eq!(connections, 2, "{head}");
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_passed_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gateway, app) = Gateway::serving(address, Slots::Unlimited);
    let program = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
        stream.write_all(answer).await.unwrap();
        // Closed without having read: what is still sent there is refused.
        drop(stream);
    });
    let reply = fetch(gateway.http, post("/", vec![b'x'; 300_000])).await;
    check(&reply, (413, "no"));
    soon("the program", program).await.unwrap();
    app.reaches(0, 0).await;
}
