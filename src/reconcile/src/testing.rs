//! Support for the tests of controllers; never compiled into a program.
//!
//! [`Crash`] stops a client at its Nth write, before or after the write took place, so that a test
//! can show that a crash between any two writes settles to the same state as none. [`Recorder`]
//! keeps what was written, so that a test can say what a thing costs. [`Wire`] is a
//! client that records what is sent and answers as the test says, for tests of request shapes; it
//! is no API server and proves nothing about one.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use portolan_process::{Metrics, Readiness};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use crate::{Clock, Context, ContextParts, Settings};

mod recorder;

pub use recorder::{Recorder, Write};

/// When a crash strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The write is not sent.
    Before,
    /// The write takes place, but its answer is lost.
    After,
}

/// A crash at one write of a client.
///
/// Writes to Leases and Events do not count: they are no part of what settles. From the strike on
/// every request of the client hangs, as if the process were gone; the test waits for
/// [`Crash::struck`], drops what used the client, and starts again with another one.
#[derive(Clone, Debug)]
pub struct Crash {
    at: usize,
    strike: Strike,
    writes: Arc<AtomicUsize>,
    struck: CancellationToken,
}

impl Crash {
    /// Strikes at the `nth` write, counted from 1.
    pub fn at(nth: usize, strike: Strike) -> Self {
        let (writes, struck) = (Arc::default(), CancellationToken::new());
        Self { at: nth, strike, writes, struck }
    }

    /// Never strikes; counts the writes of a run without a crash.
    pub fn never() -> Self {
        Self::at(usize::MAX, Strike::Before)
    }

    /// A client through which all requests go until the crash.
    pub fn client(&self, client: Client) -> Client {
        let crash = self.clone();
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request| {
            let (crash, client) = (crash.clone(), client.clone());
            async move { crash.send(&client, request).await }
        });
        Client::new(service, namespace)
    }

    /// How many writes there were.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// Resolves when the crash has struck.
    pub async fn struck(&self) {
        self.struck.cancelled().await;
    }

    async fn send(
        &self,
        client: &Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        if self.struck.is_cancelled() {
            return pending().await;
        }
        let strikes = is_counted(&request) && {
            let before = self.writes.fetch_add(1, Ordering::SeqCst);
            before + 1 == self.at
        };
        if strikes && self.strike == Strike::Before {
            self.struck.cancel();
            return pending().await;
        }
        let response = client.send(request).await?;
        if strikes {
            self.struck.cancel();
        }
        if self.struck.is_cancelled() {
            return pending().await;
        }
        Ok(response)
    }
}

fn is_counted(request: &Request<Body>) -> bool {
    let path = request.uri().path();
    request.method() != Method::GET
        && !path.contains("/coordination.k8s.io/")
        && !path.contains("/events.k8s.io/")
}

/// One request as a [`Wire`] saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// The method.
    pub method: Method,
    /// The path, without query.
    pub path: String,
    /// The query, as it was sent.
    pub query: String,
    /// The content type; empty when there was none.
    pub content_type: String,
    /// What was accepted; empty when nothing was said.
    pub accept: String,
    /// The body; null when there was none or it was no JSON.
    pub body: Value,
}

/// What a [`Wire`] answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// One object.
    Json(u16, Value),
    /// Watch events, then silence.
    Watch(Vec<Value>),
    /// Watch events, then the end of the stream.
    WatchThenEnd(Vec<Value>),
    /// Nothing, ever.
    Silence,
}

impl Answer {
    /// A failure as the API server words it.
    pub fn failure(code: u16, reason: &str, message: &str) -> Self {
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": reason, "message": message,
        });
        Self::Json(code, body)
    }
}

/// The bookmark that ends the initial events of a watch.
pub fn initial_events_end(kind: &str, version: u64) -> Value {
    json!({"type": "BOOKMARK", "object": {
        "kind": kind, "apiVersion": "v1",
        "metadata": {
            "resourceVersion": version.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"},
        },
    }})
}

/// A client that records what is sent.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Wire {
    /// A wire whose requests are answered by a function.
    pub fn answering(answer: impl Fn(&Sent) -> Answer + Send + Sync + 'static) -> (Self, Client) {
        let wire = Self::default();
        let (recording, answer) = (wire.clone(), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (wire, answer) = (recording.clone(), answer.clone());
            async move {
                let sent = record(request).await?;
                wire.sent.lock().push(sent.clone());
                respond(answer(&sent)).await
            }
        });
        (wire, Client::new(service, "default"))
    }

    /// A wire that gives these answers in turn, then none.
    pub fn scripted(answers: impl IntoIterator<Item = Answer>) -> (Self, Client) {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        Self::answering(move |_| answers.lock().pop_front().unwrap_or(Answer::Silence))
    }

    /// Everything that was sent, in order.
    pub fn sent(&self) -> Vec<Sent> {
        self.sent.lock().clone()
    }
}

/// A context of its own for one test, without election.
pub fn context(client: Client) -> Context {
    context_with(client, Settings::standard("test"))
}

/// A context of its own for one test, with these settings.
pub fn context_with(client: Client, settings: Settings) -> Context {
    let parts = ContextParts {
        metrics: Metrics::new("test"),
        readiness: Readiness::new(),
        shutdown: CancellationToken::new(),
        settings,
        clock: paused_clock(),
    };
    Context::new(client, parts)
}

/// Goes on as Tokio's does, so that a time that a pass asks for comes also where Tokio's is paused.
fn paused_clock() -> Clock {
    let (began, at) = (Instant::now(), Timestamp::now());
    Arc::new(move || at.saturating_add(began.elapsed()).unwrap_or(at))
}

async fn record(request: Request<Body>) -> Result<Sent, BoxError> {
    let (head, body) = request.into_parts();
    let header = |name| {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let body = body.collect().await?.to_bytes();
    Ok(Sent {
        method: head.method.clone(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        content_type: header(header::CONTENT_TYPE),
        accept: header(header::ACCEPT),
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
    })
}

type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// One line. The API server writes a watch event's type before its object; our map sorts them.
fn in_order(event: &Value) -> String {
    match (event.get("type"), event.get("object")) {
        (Some(type_), Some(object)) => format!("{{\"type\":{type_},\"object\":{object}}}\n"),
        _ => format!("{event}\n"),
    }
}

async fn respond(answer: Answer) -> Result<Response<ResponseBody>, BoxError> {
    let (code, events, ends) = match answer {
        Answer::Json(code, body) => (code, vec![body], true),
        Answer::Watch(events) => (200, events, false),
        Answer::WatchThenEnd(events) => (200, events, true),
        Answer::Silence => return pending().await,
    };
    let line = |event: Value| Ok(Frame::data(Bytes::from(in_order(&event))));
    let lines = stream::iter(events.into_iter().map(line));
    let body: ResponseBody = if ends {
        StreamBody::new(lines).boxed_unsync()
    } else {
        StreamBody::new(lines.chain(stream::pending())).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code)?;
    Ok(response)
}
