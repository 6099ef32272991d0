//! The program in a sandbox.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::gateway::until;

type Body = BoxBody<Bytes, hyper::Error>;

/// How long an answer to `/slow` takes: longer than the gateway waits for one of a program that is
/// not known to be slow.
const SLOW: Duration = Duration::from_millis(700);

/// A server that does what the path says. Stops, connections and all, when dropped.
pub(crate) struct Program {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
pub(crate) struct State {
    name: String,
    /// Requests at work.
    pub(crate) running: AtomicUsize,
    /// The most there ever were.
    pub(crate) peak: AtomicUsize,
    /// Requests begun.
    pub(crate) begun: AtomicUsize,
    pub(crate) connections: AtomicUsize,
    /// Lets requests for `/hold` end, one per permit.
    pub(crate) gate: Gate,
    /// Paths in the order in which their requests began.
    pub(crate) order: Mutex<Vec<String>>,
    ticks: Mutex<Option<mpsc::UnboundedSender<Bytes>>>,
}

pub(crate) struct Gate(pub(crate) Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Program {
    pub(crate) async fn start() -> Self {
        Self::start_at("program", "127.0.0.1:0".parse().unwrap()).await
    }

    /// `name` is sent as `X-Program`.
    pub(crate) async fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { name: name.to_owned(), ..State::default() });
        let mut tasks = JoinSet::new();
        let accepting = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&accepting)));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(crate) fn open_gate(&self, count: usize) {
        self.state.gate.0.add_permits(count);
    }

    pub(crate) fn peak(&self) -> usize {
        self.state.peak.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have begun.
    pub(crate) async fn begins(&self, count: usize) {
        until(&format!("{count} requests begun"), || {
            let begun = self.begun();
            if begun == count { Ok(()) } else { Err(begun) }
        })
        .await;
    }

    pub(crate) fn begun(&self) -> usize {
        self.state.begun.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Sends one more piece of the response to `/ticks`.
    pub(crate) fn tick(&self, text: &'static str) {
        let ticks = self.state.ticks.lock();
        ticks.as_ref().expect("somebody reads /ticks").unbounded_send(text.into()).unwrap();
    }

    /// Ends the response to `/ticks`.
    pub(crate) fn end_ticks(&self) {
        *self.state.ticks.lock() = None;
    }
}

/// An address that nobody listens on, with room for several loopback addresses.
pub(crate) async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    state.connections.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(handle(request, &state).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// Counts a request as running for as long as it is worked on.
struct Running<'a>(&'a State);

impl<'a> Running<'a> {
    fn begin(state: &'a State, path: &str) -> Self {
        state.begun.fetch_add(1, Ordering::SeqCst);
        let running = state.running.fetch_add(1, Ordering::SeqCst) + 1;
        state.peak.fetch_max(running, Ordering::SeqCst);
        state.order.lock().push(path.to_owned());
        Self(state)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn handle(request: Request<Incoming>, state: &Arc<State>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let running = Running::begin(state, &path);
    let mut response = match path.split('/').nth(1).unwrap_or_default() {
        "hold" => {
            state.gate.0.acquire().await.unwrap().forget();
            text("held")
        }
        "stubborn" => {
            // Does not notice that the client goes away, as a program that computes.
            let state = Arc::clone(state);
            drop(running);
            let path = path.clone();
            let work = tokio::spawn(async move {
                let _running = Running::begin(&state, &path);
                state.begun.fetch_sub(1, Ordering::SeqCst);
                state.gate.0.acquire().await.unwrap().forget();
            });
            work.await.unwrap();
            text("done")
        }
        "slow" => {
            tokio::time::sleep(SLOW).await;
            text("at last")
        }
        "never" => std::future::pending().await,
        "ticks" => ticks(state),
        "stream" => Response::new(request.into_body().boxed()),
        "trailers" => trailers(request).await,
        "missing-upgrade" => {
            let mut response = text("");
            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
            response
        }
        "bytes" => {
            let size = path.rsplit('/').next().unwrap().parse().unwrap();
            text(vec![b'x'; size])
        }
        "websocket" => websocket(request),
        _ => echo(request).await,
    };
    response.headers_mut().insert("x-program", HeaderValue::from_str(&state.name).unwrap());
    response
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed())
}

/// The request as text: its line, its headers in order of names, then its body.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut lines: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    let Ok(body) = body.collect().await else { return text("broken") };
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    let version = parts.version;
    let mut response =
        text(format!("{} {} {version:?}\n{}\n\n{body}", parts.method, parts.uri, lines.join("\n")));
    let headers = response.headers_mut();
    headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
    headers.insert("x-portolan-error", HeaderValue::from_static("forged"));
    response
}

fn ticks(state: &State) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded();
    *state.ticks.lock() = Some(sender);
    let frames = futures::StreamExt::map(receiver, |data| Ok(Frame::data(data)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// The request's body and, as trailers, its trailers and a status.
async fn trailers(request: Request<Incoming>) -> Response<Body> {
    let version = format!("{:?}", request.version());
    let collected = request.into_body().collect().await.unwrap();
    let mut trailers = collected.trailers().cloned().unwrap_or_else(HeaderMap::new);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let data = Ok(Frame::data(collected.to_bytes()));
    let frames = futures::stream::iter([data, Ok(Frame::trailers(trailers))]);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert("x-version", HeaderValue::from_str(&version).unwrap());
    response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status"));
    response
}

/// Accepts a WebSocket and sends every message back.
fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    use futures::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
    use tokio_tungstenite::tungstenite::protocol::Role;
    assert!(request.body().is_end_stream());
    let Some(key) = request.headers().get("sec-websocket-key") else { return text("no key") };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let (mut sink, mut stream) = socket.split();
        while let Some(Ok(message)) = stream.next().await {
            if message.is_text() || message.is_binary() {
                let _ = sink.send(message).await;
            }
        }
    });
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", accept)
        .body(text("").into_body())
        .unwrap()
}
