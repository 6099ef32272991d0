//! Questions to other programs.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::uri::Authority;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// An address that nobody has any more answers nothing at all.
const CONNECT: Duration = Duration::from_secs(2);

/// How long an answer may be awaited, and after how much silence it is complete.
const FIRST: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);

/// The most of an answer that is read, in bytes: the greatest datagram.
const ANSWER_MAX: usize = 64 << 10;

/// The body of a page of another program, over HTTP/1.1 in plain text.
///
/// # Errors
/// When its name is not known, nobody answers, or the answer is not 2xx.
pub async fn get(page: &Uri) -> anyhow::Result<Bytes> {
    let authority = page.authority().context("the address names no host")?;
    let stream = connect(authority, 80).await?;
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

/// What another program answers to some bytes, over TCP or UDP: `tcp://host:port`, `udp://host:port`.
/// The answer ends with the connection or after half a second of silence.
///
/// # Errors
/// When its name is not known or nobody answers.
pub async fn send(to: &Uri, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let authority = to.authority().context("the address names no host")?;
    let mut answer = Vec::new();
    match to.scheme_str() {
        Some("tcp") => {
            let mut stream = connect(authority, 7).await?;
            stream.write_all(bytes).await?;
            let mut patience = FIRST;
            // The connection's end, an error and silence end what there is.
            while answer.len() < ANSWER_MAX
                && let Ok(Ok(1..)) = timeout(patience, stream.read_buf(&mut answer)).await
            {
                patience = SILENCE;
            }
        }
        Some("udp") => {
            let target = target(authority, 7);
            let mut found = tokio::net::lookup_host(target).await?;
            let peer = found.next().context("the name has no address")?;
            let any = if peer.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(peer).await?;
            socket.send(bytes).await?;
            answer.reserve(ANSWER_MAX);
            timeout(FIRST, socket.recv_buf(&mut answer)).await.context("no answer in time")??;
        }
        _ => bail!("{to} is neither tcp://host:port nor udp://host:port"),
    }
    ensure!(!answer.is_empty(), "{to} answered nothing");
    Ok(answer)
}

async fn connect(authority: &Authority, port: u16) -> anyhow::Result<TcpStream> {
    let stream = timeout(CONNECT, TcpStream::connect(target(authority, port))).await;
    let stream = stream.context("no connection in time")?;
    stream.with_context(|| format!("reach {authority}"))
}

fn target(authority: &Authority, port: u16) -> (&str, u16) {
    (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(port))
}
