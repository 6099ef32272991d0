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
use crate::buffers::{Account, Charge, Need};
use crate::core::Core;
use crate::metrics::Cut;
use crate::upstream::{Switched, UpstreamBody, hang_up, is_out_of_reach, leave};

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
        // Dropped, it takes its connection with it, which speaks nobody knows what.
        let flight = body.into_flight()?;
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
        let (slot, sandbox) = flight.into_switched()?;
        let tunnel = Tunnel { client: self.client, form: self.form, sandbox, slot };
        Some((Response::from_parts(response, ()), tunnel))
    }
}

/// Two sides about to be connected.
#[derive(Debug)]
pub(super) struct Tunnel {
    client: OnUpgrade,
    form: Form,
    sandbox: Switched,
    slot: Slot,
}

impl Tunnel {
    /// Copies until either side has had enough, on a task of its own: the connection's task ends
    /// with the switch.
    pub(super) fn start(self, core: &Arc<Core>, idle: Duration, exchange: Box<Exchange>) {
        let Self { client, form, mut sandbox, slot } = self;
        core.metrics.upgrades.inc();
        let settings = &core.settings;
        let limits = Limits {
            idle,
            stall: settings.write_stall,
            account: Arc::clone(&exchange.client().streams.account),
            held: match form {
                // Two sockets and two small buffers, whatever either side does.
                Form::Header => (0, 0),
                Form::Connect => {
                    (settings.h2_send_buffer + HANDED_SIZE, settings.h2_stream_window as usize)
                }
            },
        };
        let mut record = Record { core: Arc::clone(core), exchange };
        core.spawn_stream(async move {
            let mut is_lost = false;
            if let Ok(client) = client.await {
                let copied = copy(TokioIo::new(client), &mut sandbox, &limits).await;
                (record.exchange.bytes, is_lost) = (copied.bytes, copied.is_lost);
            }
            if is_lost {
                drop(sandbox);
                leave(slot);
            } else {
                hang_up(slot, sandbox).await;
            }
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

/// What the HTTP library has been handed of a stream beside its send buffer: pieces of our copy's
/// size.
const HANDED_SIZE: usize = 32 * 1024;
/// Looks at a side that takes nothing, until that is too long.
const LOOKS: u32 = 4;

/// What a connection that has switched protocols may do.
struct Limits {
    /// Neither side sends anything.
    idle: Duration,
    /// The client takes nothing.
    stall: Duration,
    account: Arc<Account>,
    /// Bytes that are held for a client that takes nothing, and of one whose sandbox takes nothing.
    held: (usize, usize),
}

impl Limits {
    /// How long the client may take nothing now.
    fn patience(&self) -> Duration {
        if self.account.has_room(Need::First) { self.stall } else { self.account.patience() }
    }
}

/// What became of a connection that switched protocols.
struct Copied {
    /// Bytes that went to the client.
    bytes: u64,
    /// The sandbox is out of reach.
    is_lost: bool,
}

/// Copies until both sides have ended, one broke, neither has sent anything for too long, or the
/// client takes nothing. Hangs up on the client.
async fn copy<A, B>(client: A, sandbox: B, limits: &Limits) -> Copied
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let began = Instant::now();
    let at = |moment: &AtomicU64| began + Duration::from_millis(moment.load(Ordering::Relaxed));
    let (moved, hung_up) = (AtomicU64::new(0), Notify::new());
    let blocked = [AtomicU64::new(0), AtomicU64::new(0)];
    let (for_client, for_sandbox) = limits.held;
    let side = |place: usize, size| Brake {
        since: &blocked[place],
        account: &limits.account,
        size,
        held: None,
    };
    let mut client = Watched::new(client, began, &moved, side(0, for_client));
    let mut sandbox = Watched::new(sandbox, began, &moved, side(1, for_sandbox));
    sandbox.hung_up = Some(&hung_up);
    {
        let mut copying = std::pin::pin!(copy_bidirectional(&mut client, &mut sandbox));
        let mut idle = limits.idle;
        loop {
            let deadline = (at(&moved) + idle).min(Instant::now() + limits.stall / LOOKS);
            tokio::select! {
                biased;
                // How it ended is the business of the two sides.
                _ = &mut copying => break,
                () = hung_up.notified() => idle = idle.min(HANG_UP),
                () = sleep_until(deadline) => {
                    let now = Instant::now();
                    if at(&moved) + idle <= now {
                        break;
                    }
                    let is_blocked = blocked[0].load(Ordering::Relaxed) > 0;
                    if is_blocked && at(&blocked[0]) + limits.patience() <= now {
                        limits.account.cut(Cut::Tunnel);
                        break;
                    }
                }
            }
        }
    }
    Copied { bytes: client.written, is_lost: sandbox.is_lost }
}

/// Notes when bytes move.
struct Watched<'a, T> {
    io: T,
    began: Instant,
    moved: &'a AtomicU64,
    /// Told once the side has no more to send.
    hung_up: Option<&'a Notify>,
    brake: Brake<'a>,
    written: u64,
    is_lost: bool,
}

/// A side that takes nothing.
struct Brake<'a> {
    /// Milliseconds after the beginning, plus one; zero: it takes what it gets.
    since: &'a AtomicU64,
    account: &'a Arc<Account>,
    /// Bytes held meanwhile.
    size: usize,
    held: Option<Charge>,
}

impl Brake<'_> {
    fn note(&mut self, is_blocked: bool, now: u64) {
        if !is_blocked {
            if self.since.load(Ordering::Relaxed) > 0 {
                self.since.store(0, Ordering::Relaxed);
                self.held = None;
            }
        } else if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(now + 1, Ordering::Relaxed);
            self.held = (self.size > 0).then(|| self.account.charge(self.size));
        }
    }
}

impl<'a, T> Watched<'a, T> {
    const fn new(io: T, began: Instant, moved: &'a AtomicU64, brake: Brake<'a>) -> Self {
        Self { io, began, moved, hung_up: None, brake, written: 0, is_lost: false }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self) {
        self.moved.store(self.now(), Ordering::Relaxed);
    }

    fn note_end<R>(&mut self, result: &Poll<io::Result<R>>) {
        if let Poll::Ready(Err(error)) = result {
            self.is_lost |= is_out_of_reach(error);
        }
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
        self.note_end(&result);
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
        self.note_end(&result);
        if let Poll::Ready(Ok(size)) = &result {
            self.written += *size as u64;
            self.note();
        }
        let now = self.now();
        self.brake.note(result.is_pending(), now);
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
