//! The way of a request to a sandbox, and of its response back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, TE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::ResponseBody;
use super::body_size_max;
use super::client::{Client, Security};
use super::exchange::Exchange;
use super::headers::{self, Forwarded, X_REQUEST_ID};
use super::reply::{self, Asker, Failure};
use super::upgrade::Upgrade;
use crate::activator::{Refusal, Slot, Turn, Wake};
use crate::core::Core;
use crate::error::Code;
use crate::ingress::Shared;
use crate::metrics::Stage;
use crate::model::AppProtocol;
use crate::table::Route;
use crate::upstream::{Flight, Outgoing, RequestBody, SendError, UploadState, UpstreamBody};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Most that is read at once for a client over HTTP/2: two frames, which is all that one stream
/// sends before another's turn, and what each of many streams may make us hold.
const H2_READ_SIZE_MAX: usize = 32 * 1024;

/// Connections from the stack that may turn out closed before a sandbox counts as dead. They are
/// noticed when they are taken from there; only a race gets here.
const STALE_CONNECTIONS_MAX: u32 = 8;

/// Forwards a request and returns the answer, the sandbox's or ours.
pub(super) async fn forward(
    client: &Arc<Client>,
    route: &Route,
    mut parts: Parts,
    incoming: Incoming,
    exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let core = &client.shared.core;
    let asker = Asker::of(&parts);
    let is_h2 = parts.version == Version::HTTP_2;
    let host = exchange.host.clone().unwrap_or_else(|| HeaderValue::from_static(""));
    let upgrade = prepare(client, &host, &mut parts);
    let protocol = protocol_for(&parts, upgrade.is_some());
    let size_max = body_size_max(client, route);
    let (mut body, upload) = RequestBody::new(incoming, size_max, route.timeouts.idle);
    if is_h2 {
        body.count(&client.streams.account, core.settings.h2_stream_window);
    }
    let request = Box::new(Request::from_parts(parts, body));
    let outgoing = Outgoing { request, upload };
    let read_size_max = if is_h2 { H2_READ_SIZE_MAX } else { usize::MAX };
    let errand = Errand { shared: &client.shared, core, route, host, protocol, read_size_max };
    match errand.run(outgoing).await {
        Ok(answer) => pass_on(answer, upgrade, core, route, exchange, &asker),
        Err(failure) => reply::failure(&failure, &asker, exchange),
    }
}

/// Makes the headers those of our own request, and takes a wish to switch protocols out of them.
fn prepare(client: &Client, host: &HeaderValue, parts: &mut Parts) -> Option<Upgrade> {
    let hop = headers::strip_hop_by_hop(&mut parts.headers);
    let forwarded = Forwarded {
        is_trusted: client.is_trusted,
        client: &client.address,
        host,
        scheme: match client.security {
            Security::Plain { .. } => "http",
            Security::Tls { .. } => "https",
        },
    };
    forwarded.apply(&mut parts.headers);
    let upgrade = Upgrade::take(parts, &hop);
    if hop.trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    parts.extensions.clear();
    upgrade
}

/// The protocol this request needs; `None`: whatever the pool speaks.
fn protocol_for(parts: &Parts, is_upgrade: bool) -> Option<AppProtocol> {
    if is_upgrade {
        return Some(AppProtocol::Http1);
    }
    let is_grpc = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    // gRPC exists over HTTP/2 only, so a port that serves it speaks that, whatever was declared.
    // gRPC-Web is made for HTTP/1.1.
    let is_web = parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc-web"));
    (is_grpc && !is_web).then_some(AppProtocol::H2c)
}

/// One request's way to a response.
struct Errand<'a> {
    shared: &'a Shared,
    core: &'a Arc<Core>,
    route: &'a Route,
    host: HeaderValue,
    protocol: Option<AppProtocol>,
    read_size_max: usize,
}

/// What came back, and how long a wait before it took.
struct Answer {
    response: Response<Box<UpstreamBody>>,
    timing: Option<Timing>,
}

/// The wait of a request that was woken for.
#[derive(Debug, Clone, Copy)]
struct Timing {
    wake: Wake,
    connect: Duration,
}

/// How a try at one sandbox failed.
enum TryError {
    /// No connection: the request is untouched.
    Dead(Box<Outgoing>),
    Failed(Code),
}

impl Errand<'_> {
    async fn run(&self, mut outgoing: Outgoing) -> Result<Answer, Failure> {
        let mut turn = Turn::default();
        let mut has_retried = false;
        loop {
            let slot = self.route.service.acquire(self.core, &mut turn).await;
            let slot = slot.map_err(|refusal| self.refused(refusal))?;
            match self.attempt(slot, outgoing).await {
                Ok(answer) => return Ok(answer),
                Err(TryError::Failed(code)) => return Err(Failure::from(code)),
                Err(TryError::Dead(_)) if has_retried => {
                    return Err(Failure::from(Code::UpstreamConnect));
                }
                Err(TryError::Dead(untouched)) => {
                    has_retried = true;
                    self.core.metrics.retries.inc();
                    outgoing = *untouched;
                }
            }
        }
    }

    fn refused(&self, refusal: Refusal) -> Failure {
        let code = match refusal.code() {
            // A version may be active and not have been read.
            Code::NoVersion if !self.shared.is_synced() => Code::NotSynced,
            code => code,
        };
        let reason = match refusal {
            Refusal::Failed(failure) => Some(failure.reason),
            _ => None,
        };
        Failure { code, reason }
    }

    /// Sends the request to the sandbox of one slot.
    async fn attempt(&self, mut slot: Slot, mut outgoing: Outgoing) -> Result<Answer, TryError> {
        let wake = slot.wake().copied();
        let (sandbox, protocol) = (slot.upstream().address(), slot.upstream().protocol());
        let protocol = self.protocol.unwrap_or(protocol);
        address(&mut outgoing.request, protocol, &self.host);
        for _ in 0..STALE_CONNECTIONS_MAX {
            let began = wake.is_some().then(Instant::now);
            let mut connection = match slot.upstream().connect(self.core, protocol).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(address = %sandbox, ?error, "Sandbox is dead");
                    break;
                }
            };
            let timing = wake.zip(began).map(|(wake, began)| {
                let timing = Timing { wake, connect: began.elapsed() };
                timing.observe(self.core);
                timing
            });
            connection.limit_reads(self.read_size_max);
            let timeouts = self.route.timeouts;
            let flight = Flight::new(timeouts, slot, connection);
            match flight.send(outgoing).await {
                Ok(response) => return Ok(Answer { response, timing }),
                Err(SendError::Unsent(untouched)) => (slot, outgoing) = *untouched,
                Err(error) => {
                    tracing::debug!(address = %sandbox, ?error, "Request failed");
                    return Err(TryError::Failed(code_of(&error)));
                }
            }
        }
        slot.give_back_dead();
        Err(TryError::Dead(Box::new(outgoing)))
    }
}

fn code_of(error: &SendError) -> Code {
    match error {
        SendError::Unsent(_) => Code::UpstreamConnect,
        SendError::Reset(_) => Code::UpstreamReset,
        SendError::Protocol(_) => Code::UpstreamProtocol,
        SendError::Timeout => Code::UpstreamTimeout,
        SendError::Upload(UploadState::TooLarge) => Code::TooLarge,
        SendError::Upload(UploadState::Stalled) => Code::RequestTimeout,
        SendError::Upload(_) => Code::BadRequest,
    }
}

impl Timing {
    fn observe(&self, core: &Core) {
        let Self { wake, connect } = self;
        core.metrics.wait.observe(wake.total().as_secs_f64());
        for (stage, time) in [
            (Stage::Queue, wake.queue),
            (Stage::Create, wake.create),
            (Stage::Schedule, wake.schedule),
            (Stage::Start, wake.start),
            (Stage::Connect, *connect),
        ] {
            core.metrics.waited(stage, time);
        }
    }

    /// As a `Server-Timing` header; durations are in milliseconds by its definition.
    fn header(&self) -> Option<HeaderValue> {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let Self { wake, connect } = self;
        let text = format!(
            "queue;dur={:.1}, create;dur={:.1}, schedule;dur={:.1}, start;dur={:.1}, \
             connect;dur={:.1}",
            ms(wake.queue),
            ms(wake.create),
            ms(wake.schedule),
            ms(wake.start),
            ms(*connect),
        );
        HeaderValue::from_str(&text).ok()
    }
}

/// Words a request for the protocol it goes out in. May be done again for another one.
fn address(request: &mut Request<RequestBody>, protocol: AppProtocol, host: &HeaderValue) {
    match protocol {
        AppProtocol::Http1 => {
            if request.version() == Version::HTTP_2 {
                join_cookies(request.headers_mut());
            }
            *request.version_mut() = Version::HTTP_11;
            // Over HTTP/1.1 the wish for trailers counts for one connection and must be listed.
            if request.headers().contains_key(TE) && !request.headers().contains_key(CONNECTION) {
                request.headers_mut().insert(CONNECTION, HeaderValue::from_static("te"));
            }
            if request.uri().authority().is_some() {
                *request.uri_mut() = Uri::from(path_of(request.uri()));
            }
            if request.headers().get(HOST) != Some(host) {
                request.headers_mut().insert(HOST, host.clone());
            }
        }
        AppProtocol::H2c => {
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
            request.headers_mut().remove(CONNECTION);
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority =
                Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok();
            uri.path_and_query = Some(path_of(request.uri()));
            if let Ok(uri) = Uri::from_parts(uri) {
                *request.uri_mut() = uri;
            }
        }
    }
}

/// HTTP/2 may split cookies over several fields; outside it they are one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    let Some(first) = cookies.next() else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in cookies {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(COOKIE, joined);
    }
}

fn path_of(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

/// Turns a sandbox's response into ours.
fn pass_on(
    answer: Answer,
    upgrade: Option<Upgrade>,
    core: &Arc<Core>,
    route: &Route,
    mut exchange: Box<Exchange>,
    asker: &Asker,
) -> Response<ResponseBody> {
    let Answer { response, timing } = answer;
    let (mut parts, body) = response.into_parts();
    let hop = headers::strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    parts.headers.entry(X_REQUEST_ID).or_insert_with(|| exchange.request_id.clone());
    if let Some(timing) = timing.and_then(|timing| timing.header()) {
        parts.headers.append(SERVER_TIMING, timing);
    }
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        exchange.status = Some(parts.status);
        return Response::from_parts(parts, ResponseBody::upstream(body, exchange));
    }
    let switched = match upgrade {
        Some(upgrade) => upgrade.meet(parts, body, hop.upgrade),
        // Nobody asked, and the connection speaks nobody knows what.
        None => {
            drop(body.into_flight());
            None
        }
    };
    match switched {
        Some((response, tunnel)) => {
            exchange.status = Some(response.status());
            tunnel.start(core, route.timeouts.upgrade_idle, exchange);
            response.map(|()| ResponseBody::switched())
        }
        None => reply::failure(&Failure::from(Code::UpstreamProtocol), asker, exchange),
    }
}
