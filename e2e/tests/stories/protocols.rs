//! What visitors and programs can say to each other through the gateway.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{SinkExt, StreamExt};
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use portolan_e2e::with_platform;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::Echo;
use crate::visitor::{self, Body, Reply, full, get, pieces, soon};

const MIB: usize = 1024 * 1024;

/// Runs a test on an App that answers.
async fn with_echo(
    name: &str,
    test: impl AsyncFnOnce(&Echo<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_platform(name, async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({ "scale": { "max": 1 } })).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        test(&echo).await
    })
    .await
}

#[tokio::test]
async fn one_connection_carries_many_requests_and_large_bodies_whole() -> anyhow::Result<()> {
    with_echo("http1", async |echo| {
        let host = echo.host();
        let mut sender = visitor::http1(visitor::plain(echo.space).await?).await?;
        let mut ask = async |request: Request<Body>| {
            sender.ready().await.context("the connection is kept")?;
            Reply::read(soon("an answer", sender.send_request(request)).await??).await
        };
        ensure!(ask(get(&host, "/whoami")).await?.status == 200);
        // Sixteen pieces, each unlike the others: order and loss would show.
        let upload: Vec<Bytes> = (0..16).map(|piece| vec![piece; 10 * MIB / 16].into()).collect();
        let sent: Bytes = upload.concat().into();
        let request = Request::post("/echo").header("host", &host).body(pieces(upload))?;
        let echoed = ask(request).await?;
        ensure!(echoed.status == 200 && echoed.body == sent, "{} bytes", echoed.body.len());
        let bytes = ask(get(&host, &format!("/bytes/{}", 10 * MIB))).await?;
        ensure!(bytes.body.len() == 10 * MIB && bytes.body.iter().all(|byte| *byte == b'x'));
        ensure!(ask(get(&host, "/status/418")).await?.status == 418);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn events_arrive_one_by_one_as_they_happen() -> anyhow::Result<()> {
    with_echo("events", async |echo| {
        let mut sender = visitor::http1(visitor::plain(echo.space).await?).await?;
        let request = get(&echo.host(), "/sse?ms=200&count=5");
        let mut answer = soon("the head", sender.send_request(request)).await??;
        ensure!(answer.headers()["content-type"] == "text/event-stream");
        let mut first = None;
        for number in 1..=5 {
            let event = next_piece(&mut answer).await?;
            ensure!(event == format!("id: {number}\ndata: tick {number}\n\n"), "{event:?}");
            first.get_or_insert_with(Instant::now);
        }
        let took = first.context("five events")?.elapsed();
        ensure!(took > Duration::from_millis(400), "five events within {took:?} were held back");
        ensure!(soon("the end", answer.frame()).await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_websocket_carries_text_and_binary_and_the_code_of_its_end() -> anyhow::Result<()> {
    with_echo("websocket", async |echo| {
        let stream = visitor::plain(echo.space).await?;
        let request = format!("ws://{}/ws", echo.host()).into_client_request()?;
        let handshake = tokio_tungstenite::client_async(request, stream);
        let (mut socket, answer) = soon("the handshake", handshake).await??;
        ensure!(answer.status() == 101 && answer.headers().contains_key("x-sandbox"));
        let binary: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        for message in [Message::text("grüß dich"), Message::binary(binary)] {
            socket.send(message.clone()).await?;
            let echoed = soon("the echo", socket.next()).await?.context("it is open")??;
            ensure!(echoed == message, "{} bytes came back", echoed.len());
        }
        socket.send(Message::Ping(Bytes::from_static(b"?"))).await?;
        let pong = soon("the pong", socket.next()).await?.context("it is open")??;
        ensure!(pong == Message::Pong(Bytes::from_static(b"?")), "{pong:?}");
        let end = CloseFrame { code: 4001.into(), reason: "enough".into() };
        socket.close(Some(end.clone())).await?;
        let closed =
            soon("the closing handshake", socket.next()).await?.context("it is open")??;
        let Message::Close(Some(closed)) = closed else { anyhow::bail!("{closed:?}") };
        ensure!(closed.code == end.code, "{closed:?}");
        ensure!(soon("the end", socket.next()).await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn grpc_calls_and_streams_end_with_their_trailers() -> anyhow::Result<()> {
    with_echo("grpc", async |echo| {
        let mut sender = visitor::http2(visitor::plain(echo.space).await?).await?;
        let mut call = async |method: &str, message: &[u8]| {
            let request = Request::post(format!("http://{}/{method}", echo.host()))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(full(framed(message)))?;
            soon("the head", sender.send_request(request)).await?.context("call")
        };
        // Field 1, a text of two bytes.
        let hi = b"\x0a\x02hi";
        let said = Reply::read(call("portolan.echo.v1.Echo/Say", hi).await?).await?;
        ensure!(said.body == framed(hi), "{said:?}");
        ensure!(said.trailers["grpc-status"] == "0", "{said:?}");

        // Three times, one each 200 ms.
        let mut counting =
            call("portolan.echo.v1.Echo/Count", b"\x0a\x02hi\x10\x03\x18\xc8\x01").await?;
        let began = Instant::now();
        for _ in 0..3 {
            ensure!(next_piece(&mut counting).await?.as_bytes() == framed(hi));
        }
        ensure!(began.elapsed() > Duration::from_millis(200), "the messages were held back");
        let rest = counting.into_body().collect().await?;
        let status = rest.trailers().and_then(|trailers| trailers.get("grpc-status"));
        ensure!(status.is_some_and(|status| status == "0"), "{:?}", rest.trailers());

        let refused = Reply::read(call("portolan.echo.v1.Echo/No", hi).await?).await?;
        ensure!(refused.status == 200 && refused.header("grpc-status") == "12", "{refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_program_that_speaks_http2_is_spoken_to_in_http2() -> anyhow::Result<()> {
    with_platform("h2c", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        let port = json!({ "name": "web", "port": 8080, "appProtocol": "kubernetes.io/h2c" });
        // The shorthand of the manifest gives way to a list of ports.
        let mut app = echo.manifest("1", &json!({ "ports": [port] }));
        app["spec"]["services"][0].as_object_mut().context("a service")?.remove("port");
        space.apply(&app.to_string()).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        let seen: Value = serde_json::from_slice(echo.get("/headers").await?.body())?;
        ensure!(seen["protocol"] == "HTTP/2.0", "{seen}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_program_learns_who_asks_and_nobody_can_forge_it() -> anyhow::Result<()> {
    with_echo("forwarded", async |echo| {
        let host = echo.host();
        let request = Request::get("/headers?a=b%20c")
            .header("host", &host)
            .header("x-request-id", "my-request")
            .header("x-forwarded-for", "203.0.113.7")
            .header("x-forwarded-host", "bank.example")
            .header("x-forwarded-proto", "https")
            .header("x-real-ip", "203.0.113.7")
            .header("forwarded", "for=203.0.113.7")
            .header("x-portolan-anything", "forged")
            .header("connection", "x-private")
            .header("x-private", "for one hop")
            .body(http_body_util::Full::default())?;
        let answer = echo.space.ingress().send(request).await?;
        ensure!(answer.headers()["x-request-id"] == "my-request");
        let seen: Value = serde_json::from_slice(answer.body())?;
        let header = |name: &str| {
            let headers = seen["headers"].as_array().into_iter().flatten();
            headers.filter(|pair| pair[0] == name).map(|pair| &pair[1]).collect::<Vec<_>>()
        };
        ensure!(seen["target"] == "/headers?a=b%20c", "{seen}");
        ensure!(header("host") == [host.as_str()], "{seen}");
        ensure!(header("x-forwarded-host") == [host.as_str()], "{seen}");
        ensure!(header("x-forwarded-proto") == ["http"], "{seen}");
        ensure!(header("x-request-id") == ["my-request"], "{seen}");
        let [address] = header("x-forwarded-for")[..] else { anyhow::bail!("{seen}") };
        let address = address.as_str().context("an address")?;
        ensure!(address.parse::<std::net::IpAddr>().is_ok() && address != "203.0.113.7", "{seen}");
        for gone in ["x-real-ip", "forwarded", "x-portolan-anything", "connection", "x-private"] {
            ensure!(header(gone).is_empty(), "{gone} arrived: {seen}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_the_gateway_answers_itself_is_told_as_the_visitor_wants_it() -> anyhow::Result<()> {
    with_echo("errors", async |echo| {
        let unknown = format!("unknown-{}", echo.host());
        let mut request = get(&unknown, "/");
        request.headers_mut().insert("x-request-id", "lost-1".parse()?);
        let text = ask(echo, request).await?;
        ensure!(text.status == 404 && text.header("x-portolan-error") == "no_route", "{text:?}");
        ensure!(text.header("content-type").starts_with("text/plain"), "{text:?}");
        ensure!(text.text().contains("no_route") && text.text().contains("lost-1"), "{text:?}");

        let mut request = get(&unknown, "/");
        request.headers_mut().insert("accept", "application/json".parse()?);
        let json = ask(echo, request).await?;
        let error: Value = serde_json::from_slice(&json.body)?;
        ensure!(json.status == 404 && error["error"]["code"] == "no_route", "{json:?}");
        let id = json.header("x-request-id");
        ensure!(!id.is_empty() && error["error"]["requestId"] == id, "{json:?}");

        // A label under a host that is routed could only be a preview.
        let preview = ask(echo, get(&format!("label.{}", echo.host()), "/")).await?;
        ensure!(preview.status == 404 && preview.header("x-portolan-error") == "unknown_preview");

        for path in ["/.well-known/portolan/x", "/.well-known/%70ortolan/x", "/.well-known/miren/x"]
        {
            let blocked = ask(echo, get(&echo.host(), path)).await?;
            ensure!(blocked.status == 404 && blocked.header("x-portolan-error") == "blocked");
        }
        // The program's own errors are its own.
        let own = ask(echo, get(&echo.host(), "/status/503")).await?;
        ensure!(own.status == 503 && !own.headers.contains_key("x-portolan-error"), "{own:?}");
        ensure!(own.header("x-version") == "1", "{own:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_route_limits_time_and_size() -> anyhow::Result<()> {
    with_echo("limits", async |echo| {
        let patch = r#"{"spec":{"timeouts":{"responseSeconds":1},"maxBodyBytes":10}}"#;
        echo.space.kubectl(&["patch", "route", "echo", "--type=merge", "-p", patch]).await?;
        let post = |body: Body| Request::post("/echo").header("host", echo.host()).body(body);
        echo.until("the limits to be in force", async || {
            let large = ask(echo, post(full("eleven byte"))?).await?;
            ensure!(large.status == 413 && large.header("x-portolan-error") == "too_large");
            Ok(())
        })
        .await?;
        let unannounced = ask(echo, post(pieces(vec!["eleven ".into(), "byte".into()]))?).await?;
        ensure!(unannounced.status == 413, "{unannounced:?}");
        let small = ask(echo, post(full("ten bytes."))?).await?;
        ensure!(small.status == 200 && small.body == "ten bytes.", "{small:?}");
        let slow = ask(echo, get(&echo.host(), "/slow?ms=20000")).await?;
        ensure!(slow.status == 504, "{slow:?}");
        ensure!(slow.header("x-portolan-error") == "upstream_timeout", "{slow:?}");
        let reset = ask(echo, get(&echo.host(), "/crash?code=3")).await?;
        ensure!(reset.status == 502, "{reset:?}");
        ensure!(reset.header("x-portolan-error") == "upstream_reset", "{reset:?}");
        Ok(())
    })
    .await
}

async fn ask(echo: &Echo<'_>, request: Request<Body>) -> anyhow::Result<Reply> {
    let mut sender = visitor::http1(visitor::plain(echo.space).await?).await?;
    Reply::read(soon("an answer", sender.send_request(request)).await??).await
}

/// The next piece of a body, as it came.
async fn next_piece(answer: &mut http::Response<Incoming>) -> anyhow::Result<String> {
    let frame = soon("a piece", answer.frame()).await?.context("the body goes on")??;
    let data = frame.into_data().ok().context("data, not trailers")?;
    Ok(String::from_utf8_lossy(&data).into_owned())
}

/// A message of gRPC: not compressed, its length, itself.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0], &length[..], message].concat()
}
