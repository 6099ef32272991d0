//! One request: checked, routed, given a slot, forwarded, answered.
//!
//! - [`target`]: what it is for, and whether it may be forwarded.
//! - [`headers`]: what must not pass, and what is said about the client.
//! - [`forward`]: the way to a sandbox and back.
//! - [`upgrade`]: connections that switch protocols.
//! - [`reply`]: answers of our own.
//! - [`client`], [`exchange`], [`body`]: the connection, the record, the response's body.
//! - [`stall`]: bodies that wait for their client, and what is held of them.

mod body;
mod client;
mod exchange;
mod forward;
mod headers;
mod reply;
mod stall;
mod target;
mod upgrade;

use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;

use crate::buffers::{self, Need, NoRoom};
use crate::error::Code;
use crate::host::service_name;
use crate::ingress::Known;
use crate::model::PlainHttp;
use crate::table::{Found, Route};
use crate::upstream::READ_SIZE;

pub(crate) use body::ResponseBody;
pub(crate) use client::{Audience, Client, Security, Vitality};
use exchange::Exchange;
use reply::{Asker, Failure};
use target::Reserved;

/// Answers one request of a client.
///
/// # Cancel safety
///
/// A client that goes away leaves the queue, or gives its request up at the sandbox.
///
/// # Errors
///
/// The client takes nothing of what is held for it. Over HTTP/2 only.
pub(crate) async fn handle(
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, NoRoom> {
    let mut exchange = Exchange::begin(&client, &request);
    let (mut parts, incoming) = request.into_parts();
    exchange.request_id = headers::request_id(&mut parts.headers);
    let is_h1 = parts.version <= Version::HTTP_11;
    let (is_last, has_body) = (client.shared.is_leaving() && is_h1, !incoming.is_end_stream());
    if !is_h1 && has_body {
        // What it sends is held for a sandbox that may not take it.
        client.streams.account.room(Need::First).await?;
    }
    let mut response = match decide(&client, &parts, &mut exchange) {
        Ok(Decision::Forward(route)) => {
            forward::forward(&client, &route, parts, incoming, exchange).await
        }
        Ok(Decision::Redirect(location)) => reply::redirect(location, &parts.method, exchange),
        Ok(Decision::Health) => reply::health(&client.shared, &parts.method, exchange),
        Err(code) => reply::failure(&Failure::from(code), &Asker::of(&parts), exchange),
    };
    // Nobody has read that body. The parser would go on behind it, and answer request after request
    // into a buffer without end, whether or not the client takes any of it.
    let is_unread = is_h1 && has_body && response.body().is_own();
    if (is_last || is_unread) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !is_h1 {
        hold_head(&client, &mut response).await?;
    }
    Ok(response)
}

/// Waits until there is room for the head of a response, and counts it. Over HTTP/2 a head is sent
/// whatever the stream's window, so only a client that reads nothing at all lets heads wait; but
/// then as many as it has streams, each with the read that it came in.
async fn hold_head(client: &Client, response: &mut Response<ResponseBody>) -> Result<(), NoRoom> {
    let account = &client.streams.account;
    account.room(Need::Head).await?;
    let is_own = response.body().is_own();
    let size = buffers::size_of(response.headers());
    if let Some(id) = response.headers_mut().get_mut(headers::X_REQUEST_ID) {
        let size = if is_own { size } else { READ_SIZE.max(2 * size) };
        *id = buffers::counting(id, account.charge_head(size));
    }
    Ok(())
}

/// What to do with a request.
#[derive(Debug)]
enum Decision {
    Forward(Arc<Route>),
    Redirect(HeaderValue),
    Health,
}

fn decide(client: &Client, parts: &Parts, exchange: &mut Exchange) -> Result<Decision, Code> {
    target::check_form(parts)?;
    let host = target::host_of(parts)?;
    exchange.host = Some(host.clone());
    match target::reserved(&parts.uri) {
        Some(Reserved::Health) => return Ok(Decision::Health),
        Some(Reserved::Blocked) => return Err(Code::Blocked),
        None => {}
    }
    let name = target::normalized(&host)?;
    check_direction(client, &name)?;
    let route = find(client, &name)?;
    if let Some(location) = redirect(client, &route, parts, &name) {
        return Ok(Decision::Redirect(location));
    }
    check_size(client, &route, parts)?;
    Ok(Decision::Forward(route))
}

fn find(client: &Client, name: &str) -> Result<Arc<Route>, Code> {
    let shared = &client.shared;
    // First: what is fed meanwhile is no reason to deny.
    let known = shared.known();
    let found = match client.audience {
        Audience::Public => shared.table.find(name),
        Audience::Internal => {
            shared.names.find(service_name(name, &shared.core.settings.cluster_domain))
        }
    };
    match (found, known) {
        (Found::Exact(route), _) => Ok(route),
        // A route of this very host may exist and not have been read. A snapshot had it, unless it
        // is newer; then the pattern answers, as it did before.
        (Found::Pattern(route), Known::Snapshot | Known::All) => Ok(route),
        (_, Known::Part | Known::Snapshot) => Err(Code::NotSynced),
        (Found::UnknownPreview, Known::All) => Err(Code::UnknownPreview),
        (Found::Nothing, Known::All) => Err(Code::NoRoute),
    }
}

/// Refuses a host that the certificate shown on this connection was not chosen for. Browsers join
/// hosts on one connection when its certificate covers them; those whose certificate is another
/// must come on their own connection (RFC 9110 section 7.4).
fn check_direction(client: &Client, name: &str) -> Result<(), Code> {
    let Security::Tls { certificate: Some(shown) } = &client.security else { return Ok(()) };
    // Decided by entry, not by certificate, so that a renewal disturbs nobody.
    if client.shared.certificates.is_key_of(name, shown) { Ok(()) } else { Err(Code::Misdirected) }
}

fn redirect(client: &Client, route: &Route, parts: &Parts, name: &str) -> Option<HeaderValue> {
    let Security::Plain { https_port: Some(port) } = client.security else { return None };
    if route.plain_http == PlainHttp::Serve || !client.shared.certificates.covers(name) {
        return None;
    }
    let is_secure_before_us = client.is_trusted
        && parts
            .headers
            .get(headers::X_FORWARDED_PROTO)
            .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    // An authority that issues certificates asks in plain text, and must not depend on the old one.
    if is_secure_before_us || parts.uri.path().starts_with("/.well-known/acme-challenge/") {
        return None;
    }
    let path = path_of(&parts.uri);
    let location = match port {
        443 => format!("https://{name}{path}"),
        port => format!("https://{name}:{port}{path}"),
    };
    HeaderValue::from_str(&location).ok()
}

fn path_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |path| path.as_str())
}

/// Refuses a body that announces itself as too large before anything waits for it.
fn check_size(client: &Client, route: &Route, parts: &Parts) -> Result<(), Code> {
    let Some(length) = parts.headers.get(CONTENT_LENGTH) else { return Ok(()) };
    let length: u64 =
        length.to_str().ok().and_then(|text| text.parse().ok()).ok_or(Code::BadRequest)?;
    match body_size_max(client, route) {
        Some(limit) if length > limit => Err(Code::TooLarge),
        _ => Ok(()),
    }
}

fn body_size_max(client: &Client, route: &Route) -> Option<u64> {
    route.request_body_max.or(client.shared.core.settings.request_body_max)
}
