//! A question to another program.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// An address that nobody has any more answers nothing at all.
const CONNECT: Duration = Duration::from_secs(2);

/// The body of a page of another program, over HTTP/1.1 in plain text.
///
/// # Errors
/// When its name is not known, nobody answers, or the answer is not 2xx.
pub async fn get(page: &Uri) -> anyhow::Result<Bytes> {
    let authority = page.authority().context("the address names no host")?;
    let host = authority.host().trim_matches(['[', ']']);
    let target = (host, authority.port_u16().unwrap_or(80));
    let stream = timeout(CONNECT, TcpStream::connect(target)).await;
    let stream = stream.context("no connection in time")?;
    let stream = stream.with_context(|| format!("reach {authority}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = page.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(header::HOST, authority.as_str());
    let request = request.body(Empty::<Bytes>::new())?;
    let asked = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    };
    // The connection ends after the answer at the latest, as the sender is dropped.
    let (body, _) = tokio::join!(asked, connection);
    body
}
