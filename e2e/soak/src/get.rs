//! One request on a connection of its own.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Asks for a page; the whole of it, if the answer is 200.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("begin")?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())
        .context("form a request")?;
    let exchange = async {
        let answer = sender.send_request(request).await.context("ask")?;
        ensure!(answer.status() == 200, "answered {}", answer.status());
        Ok(answer.into_body().collect().await.context("read")?.to_bytes())
    };
    tokio::select! {
        answer = exchange => answer,
        ended = driver => anyhow::bail!("the connection ended: {ended:?}"),
    }
}
