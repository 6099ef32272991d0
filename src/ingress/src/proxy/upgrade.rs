//! Connections that switch protocols: bytes are copied both ways and never looked at.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::response::Parts;
use http::{Method, Response, StatusCode, request};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::exchange::Exchange;
use super::headers::Hop;
use crate::activator::Slot;
use crate::core::Core;
use crate::upstream::{Connection, Switched, UpstreamBody};

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// A switch the client asked for.
#[derive(Debug)]
pub(super) struct Upgrade {
    client: OnUpgrade,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `Upgrade` over HTTP/1.1.
    Header,
    /// `CONNECT` with `:protocol` over HTTP/2 (RFC 8441).
    Connect,
}

impl Upgrade {
    /// Takes the request for a switch out of a request and words it for HTTP/1.1.
    pub(super) fn take(parts: &mut request::Parts, hop: &Hop) -> Option<Self> {
        if let Some(protocol) = parts.extensions.remove::<Protocol>() {
            return Self::from_connect(parts, &protocol);
        }
        let protocol = hop.upgrade.as_ref()?;
        // A sandbox that switched to HTTP/2 would take further requests that we never see.
        let is_http = protocol.as_bytes().to_ascii_lowercase();
        if is_http.starts_with(b"h2") || is_http.starts_with(b"http/") {
            return None;
        }
        let client = parts.extensions.remove::<OnUpgrade>()?;
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(UPGRADE, protocol.clone());
        Some(Self { client, form: Form::Header })
    }

    fn from_connect(parts: &mut request::Parts, protocol: &Protocol) -> Option<Self> {
        let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
        let client = parts.extensions.remove::<OnUpgrade>()?;
        parts.method = Method::GET;
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if protocol == "websocket" {
            parts.headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
        }
        parts.headers.insert(UPGRADE, protocol);
        Some(Self { client, form: Form::Connect })
    }

    /// Joins the client's side with the sandbox's; `None`: the sandbox did not really switch.
    pub(super) fn meet(
        self,
        mut response: Parts,
        body: Box<UpstreamBody>,
        protocol: Option<HeaderValue>,
    ) -> Option<(Response<()>, Tunnel)> {
        let (slot, connection) = body.into_flight()?.into_load()?;
        let Connection::H1(connection) = connection else { return None };
        let sandbox = connection.into_switched();
        match self.form {
            Form::Header => {
                response.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                response.headers.insert(UPGRADE, protocol?);
            }
            Form::Connect => {
                response.headers.remove(SEC_WEBSOCKET_ACCEPT);
                response.status = StatusCode::OK;
            }
        }
        let tunnel = Tunnel { client: self.client, sandbox, slot };
        Some((Response::from_parts(response, ()), tunnel))
    }
}

/// Two sides about to be connected.
#[derive(Debug)]
pub(super) struct Tunnel {
    client: OnUpgrade,
    sandbox: Switched,
    slot: Slot,
}

impl Tunnel {
    /// Copies until either side has had enough, on a task of its own: the connection's task ends
    /// with the switch.
    pub(super) fn start(self, core: &Arc<Core>, idle: Duration, exchange: Box<Exchange>) {
        let Self { client, sandbox, slot } = self;
        core.metrics.upgrades.inc();
        let mut record = Record { core: Arc::clone(core), exchange };
        core.spawn_stream(async move {
            match client.await {
                Ok(client) => {
                    record.exchange.bytes = copy(TokioIo::new(client), sandbox, idle).await;
                }
                Err(_) => drop(sandbox),
            }
            // After both sockets, which the copy has dropped.
            drop(slot);
            drop(record);
        });
    }
}

/// Ends the record of an upgraded connection.
struct Record {
    core: Arc<Core>,
    exchange: Box<Exchange>,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.core.metrics.upgrades.dec();
    }
}

/// How long a client may take to hang up after the sandbox has, unless bytes still move: until then
/// the slot of a program that is done is not free.
const HANG_UP: Duration = Duration::from_secs(2);

/// Copies until both sides have ended, one broke, or neither has sent anything for `idle`. Returns
/// the bytes that went to the client.
async fn copy<A, B>(client: A, sandbox: B, idle: Duration) -> u64
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let began = Instant::now();
    let moved = AtomicU64::new(0);
    let hung_up = Notify::new();
    let mut client = Watched { io: client, began, moved: &moved, hung_up: None, written: 0 };
    let mut sandbox =
        Watched { io: sandbox, began, moved: &moved, hung_up: Some(&hung_up), written: 0 };
    {
        let mut copying = std::pin::pin!(copy_bidirectional(&mut client, &mut sandbox));
        let mut limit = idle;
        loop {
            let deadline = began + Duration::from_millis(moved.load(Ordering::Relaxed)) + limit;
            tokio::select! {
                biased;
                // How it ended is the business of the two sides.
                _ = &mut copying => break,
                () = hung_up.notified() => limit = limit.min(HANG_UP),
                () = sleep_until(deadline) => {
                    let moved = began + Duration::from_millis(moved.load(Ordering::Relaxed));
                    if moved + limit <= Instant::now() {
                        break;
                    }
                }
            }
        }
    }
    client.written
}

/// Notes when bytes move.
struct Watched<'a, T> {
    io: T,
    began: Instant,
    moved: &'a AtomicU64,
    /// Told once the side has no more to send.
    hung_up: Option<&'a Notify>,
    written: u64,
}

impl<T> Watched<'_, T> {
    fn note(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if result.is_ready() {
            self.note();
            if let Some(hung_up) = self.hung_up.filter(|_| buf.filled().len() == filled) {
                hung_up.notify_one();
            }
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(size)) = &result {
            self.written += *size as u64;
            self.note();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Sixteen random bytes in base64 (RFC 6455 section 4.1): 22 digits, the last of which carries two
/// bits.
fn websocket_key() -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key = *b"0000000000000000000000==";
    for digit in &mut key[..21] {
        *digit = DIGITS[fastrand::usize(..64)];
    }
    key[21] = b"AQgw"[fastrand::usize(..4)];
    HeaderValue::from_bytes(&key).expect("base64 is a header value")
}
