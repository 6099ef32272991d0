//! The samples do what they say, as they stand in docs/samples, but for namespace and hosts.

use std::fs;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portolan_cluster::paths::Paths;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The node port of the IRC sample.
pub(crate) const IRC: u16 = 26_697;
/// The node port of the DNS sample.
pub(crate) const DNS: u16 = 25_300;

#[tokio::test]
async fn nginx_answers() -> anyhow::Result<()> {
    with_platform("sample-nginx", async |space| {
        apply(space, "01-nginx.yaml").await?;
        ready(space, &["app/hello", "route/hello"]).await?;
        let answer = space.ingress().get(&host(space, "hello"), "/").await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let page = String::from_utf8_lossy(answer.body());
        ensure!(page.contains("<html"), "nginx shows a page: {page}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn every_service_of_the_multi_port_app_answers() -> anyhow::Result<()> {
    with_platform("sample-echo", async |space| {
        apply(space, "02-echo.yaml").await?;
        ready(space, &["app/echo", "route/echo", "route/wire"]).await?;
        for service in ["echo", "wire"] {
            let answer = space.ingress().get(&host(space, service), "/whoami").await?;
            ensure!(answer.status() == 200, "{service}: {}", answer.status());
            ensure!(answer.headers()["x-version"] == "1", "{service}: {:?}", answer.headers());
        }
        let conditions = "jsonpath={.status.conditions[?(@.type=='Sleepable')].reason}";
        let sleepable = space.kubectl(&["get", "app", "echo", "-o", conditions]).await?;
        // `wire` is Fixed, so it would not sleep without its ports either.
        ensure!(sleepable.is_empty(), "{sleepable}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn websocket_and_grpc_answer() -> anyhow::Result<()> {
    with_platform("sample-live", async |space| {
        apply(space, "03-websocket-grpc.yaml").await?;
        ready(space, &["app/live", "route/ws", "route/grpc"]).await?;
        websocket(space).await.context("WebSocket")?;
        grpc(space).await.context("gRPC")
    })
    .await
}

async fn websocket(space: &Space) -> anyhow::Result<()> {
    let mut stream = connect(space).await?;
    let handshake = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        host(space, "ws")
    );
    stream.write_all(handshake.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 101 "), "{head}");
    // The answer to the key of RFC 6455's own example, in lower case as the rest.
    ensure!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    // A text frame with a mask of zeros, and the same without mask in return.
    stream.write_all(b"\x81\x85\0\0\0\0hello").await?;
    let mut frame = [0; 7];
    stream.read_exact(&mut frame).await?;
    ensure!(&frame == b"\x81\x05hello", "{frame:?}");
    Ok(())
}

async fn grpc(space: &Space) -> anyhow::Result<()> {
    let io = TokioIo::new(connect(space).await?);
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    let call = async move {
        let request =
            Request::post(format!("http://{}/portolan.echo.v1.Echo/Say", host(space, "grpc")))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(Bytes::from_static(b"\0\0\0\0\x07\x0a\x05hello")))?;
        let answer = requests.send_request(request).await?;
        let collected = answer.into_body().collect().await?;
        let trailers = collected.trailers().context("a gRPC answer has trailers")?;
        ensure!(trailers["grpc-status"] == "0", "{trailers:?}");
        let message = collected.to_bytes();
        ensure!(&message[..] == b"\0\0\0\0\x07\x0a\x05hello", "{message:?}");
        Ok(())
    };
    tokio::select! {
        result = call => result,
        ended = connection => Err(anyhow::anyhow!("the connection ended: {ended:?}")),
    }
}

async fn connect(space: &Space) -> anyhow::Result<TcpStream> {
    let port = space.ingress().ports().http;
    TcpStream::connect(("127.0.0.1", port)).await.context("connect to the ingress")
}

/// Applies a sample in this test's namespace, with hosts and node ports that only this test has.
pub(crate) async fn apply(space: &Space, file: &str) -> anyhow::Result<()> {
    let path = Paths::discover().repository.join("docs/samples").join(file);
    let sample = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let sample = sample
        .replace("namespace: portolan-samples", &format!("namespace: {}", space.namespace()))
        .replace("nodePort: 6697", &format!("nodePort: {IRC}"))
        .replace("nodePort: 5300", &format!("nodePort: {DNS}"))
        .replace(".portolan.test", &format!(".{}.portolan.test", space.namespace()));
    space.apply(&sample).await
}

fn host(space: &Space, name: &str) -> String {
    format!("{name}.{}.portolan.test", space.namespace())
}

pub(crate) async fn ready(space: &Space, objects: &[&str]) -> anyhow::Result<()> {
    let wait = ["wait", "--for=condition=Ready", "--timeout=90s"];
    space.kubectl(&[&wait, objects].concat()).await.map(drop)
}
