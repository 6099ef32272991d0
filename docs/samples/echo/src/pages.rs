//! What the HTTP port answers.
//!
//! | page | answer |
//! |---|---|
//! | `/` | a greeting with version and sandbox |
//! | `/health` | 200; not counted |
//! | `/whoami` | version, sandbox and seconds since the start, as JSON |
//! | `/headers` | method, target, protocol and headers as they arrived, as JSON |
//! | `/echo` | the request's body, as it comes, with its trailers |
//! | `/slow?ms=N` | after N milliseconds |
//! | `/work?ms=N` | the same, and counted to its end although nobody waits for it any more |
//! | `/status/NNN` | this status |
//! | `/bytes/N` | N bytes |
//! | `/sse?ms=N&count=M` | M server-sent events (0: no end), one per N milliseconds |
//! | `/ws` | WebSocket echo |
//! | `/env`, `/env/NAME` | the names of all variables; the value of one |
//! | `/concurrency` | requests served at once: now, at most, and in all, as JSON; not counted |
//! | `/crash?code=N` | no answer: the program ends with this code |
//!
//! Requests with the content type `application/grpc` go to the services of `echo.proto`.
//! Every answer has `X-Version` and `X-Sandbox`.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::concurrency::Concurrency;
use crate::{grpc, websocket};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Pieces that `/bytes/N` is sent in.
const CHUNK: &[u8] = &[b'x'; 16 * 1024];

/// The state behind the pages.
#[derive(Debug)]
pub(crate) struct Pages {
    version: HeaderValue,
    sandbox: HeaderValue,
    started: Instant,
    concurrency: Arc<Concurrency>,
    crash: watch::Sender<Option<u8>>,
}

impl Pages {
    pub(crate) fn new(version: &str, sandbox: &str) -> Self {
        let header = |text| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("?"));
        Self {
            version: header(version),
            sandbox: header(sandbox),
            started: Instant::now(),
            concurrency: Arc::default(),
            crash: watch::Sender::new(None),
        }
    }

    /// Returns the exit code when a visitor has asked for a crash.
    pub(crate) async fn crashed(&self) -> u8 {
        let mut asked = self.crash.subscribe();
        let code = asked.wait_for(Option::is_some).await.expect("the sender is in self");
        code.expect("waited for some")
    }

    /// Answers one request. What serves a WebSocket after its handshake is given to `upgraded`.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        stop: CancellationToken,
        upgraded: impl FnOnce(BoxFuture<'static, ()>),
    ) -> Response<Body> {
        let mut response = match request.uri().path() {
            "/health" => text(StatusCode::OK, "ok\n"),
            "/concurrency" => self.counts(),
            "/ws" => {
                let running = self.concurrency.enter();
                let (response, serving) = websocket::accept(request, stop);
                if let Some(serving) = serving {
                    upgraded(Box::pin(async move {
                        serving.await;
                        drop(running);
                    }));
                }
                response
            }
            "/work" => self.work(&request).await,
            _ => self.counted(request).await,
        };
        response.headers_mut().insert("x-version", self.version.clone());
        response.headers_mut().insert("x-sandbox", self.sandbox.clone());
        response
    }

    /// As a program does that begins something and cannot be stopped.
    async fn work(&self, request: &Request<Incoming>) -> Response<Body> {
        let query = Query(request.uri().query().unwrap_or_default().to_owned());
        let time = Duration::from_millis(query.number("ms", 1_000));
        let running = self.concurrency.enter();
        let work = tokio::spawn(async move {
            tokio::time::sleep(time).await;
            drop(running);
        });
        match work.await {
            Ok(()) => text(StatusCode::OK, "done\n"),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the work was stopped\n"),
        }
    }

    /// An answer that counts as running until its last byte is taken, or nobody wants it.
    async fn counted(&self, request: Request<Incoming>) -> Response<Body> {
        let running = self.concurrency.enter();
        let response = match grpc::is_call(&request) {
            true => grpc::call(request).await,
            false => self.page(request).await,
        };
        response.map(|body| running.until_end_of(body).boxed_unsync())
    }

    async fn page(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let query = Query(request.uri().query().unwrap_or_default().to_owned());
        match path.as_str() {
            "/" => self.greeting(),
            "/whoami" => self.whoami(),
            "/headers" => headers(&request),
            "/echo" => Response::new(request.into_body().map_err(Into::into).boxed_unsync()),
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(query.number("ms", 1_000))).await;
                text(StatusCode::OK, "done\n")
            }
            "/sse" => events(query.number("ms", 1_000), query.number("count", 0)),
            "/env" => variables(),
            "/crash" => {
                self.crash.send_replace(Some(u8::try_from(query.number("code", 1)).unwrap_or(1)));
                std::future::pending().await
            }
            _ => parametric(&path).unwrap_or_else(|| text(StatusCode::NOT_FOUND, "no such page\n")),
        }
    }

    fn greeting(&self) -> Response<Body> {
        let (version, sandbox) = (self.version.to_str(), self.sandbox.to_str());
        let (version, sandbox) = (version.unwrap_or("?"), sandbox.unwrap_or("?"));
        text(StatusCode::OK, format!("Hello from version {version} in sandbox {sandbox}.\n"))
    }

    fn whoami(&self) -> Response<Body> {
        json(&json!({
            "version": self.version.to_str().unwrap_or("?"),
            "sandbox": self.sandbox.to_str().unwrap_or("?"),
            "uptimeSeconds": self.started.elapsed().as_secs(),
        }))
    }

    fn counts(&self) -> Response<Body> {
        let counts = self.concurrency.counts();
        json(&json!({ "now": counts.now, "max": counts.max, "total": counts.total }))
    }
}

/// The parameters of a request, of which this program has only numbers.
struct Query(String);

impl Query {
    fn number(&self, name: &str, default: u64) -> u64 {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(key, value)| value.parse().ok().filter(|_| key == name)).unwrap_or(default)
    }
}

/// Pages whose last part is an argument; `None` where there is no such page.
fn parametric(path: &str) -> Option<Response<Body>> {
    if let Some(status) = path.strip_prefix("/status/") {
        let status = status.parse().ok().and_then(|code: u16| StatusCode::from_u16(code).ok());
        // 1xx is no final answer.
        let status = status.filter(|status| !status.is_informational())?;
        return Some(text(status, format!("{status}\n")));
    }
    if let Some(size) = path.strip_prefix("/bytes/") {
        return Some(bytes(size.parse().ok()?));
    }
    let name = path.strip_prefix("/env/")?;
    Some(text(StatusCode::OK, format!("{}\n", env::var(name).ok()?)))
}

fn headers(request: &Request<Incoming>) -> Response<Body> {
    let pairs = request.headers().iter();
    let pairs = pairs.map(|(name, value)| json!([name.as_str(), text_of(value)]));
    json(&json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "protocol": format!("{:?}", request.version()),
        "headers": pairs.collect::<Vec<_>>(),
    }))
}

fn text_of(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Names only: values may be secrets, so one has to be asked for by its name.
fn variables() -> Response<Body> {
    let mut names: Vec<String> =
        env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    names.sort();
    json(&json!(names))
}

fn bytes(size: u64) -> Response<Body> {
    let chunks = stream::unfold(size, |left| async move {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK.len());
        let next = left - size as u64;
        (size > 0).then(|| (Ok(Frame::data(Bytes::from_static(&CHUNK[..size]))), next))
    });
    let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    response
}

fn events(interval_ms: u64, count: u64) -> Response<Body> {
    let last = if count == 0 { u64::MAX } else { count };
    let events = stream::iter(1..=last).then(move |number| async move {
        if number > 1 {
            tokio::time::sleep(Duration::from_millis(interval_ms)).await;
        }
        Ok(Frame::data(Bytes::from(format!("id: {number}\ndata: tick {number}\n\n"))))
    });
    let mut response = Response::new(StreamBody::new(events).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(value: &Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, format!("{value}\n"));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

pub(crate) fn text(status: StatusCode, content: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(content.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
