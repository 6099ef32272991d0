//! Answers of our own: errors, redirects, health.

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
    RETRY_AFTER,
};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::headers::X_REQUEST_ID;
use crate::error::Code;
use crate::ingress::{Known, Shared};

const X_PORTOLAN_ERROR: HeaderName = HeaderName::from_static("x-portolan-error");

/// Why a request is answered by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: Code,
    /// More about it, in CamelCase, such as why a sandbox does not start.
    pub(super) reason: Option<std::sync::Arc<str>>,
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, reason: None }
    }
}

/// How the client wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Text,
}

impl Format {
    /// JSON for whoever asks for it by name, text for people and for whoever does not care.
    fn wanted(headers: &HeaderMap) -> Self {
        let is_json = headers
            .get_all(ACCEPT)
            .iter()
            // Every request comes by here, and hardly any of them names it.
            .filter(|value| value.as_bytes().iter().any(|byte| matches!(byte, b'j' | b'J')))
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|range| range.split(';').next())
            .filter_map(|kind| kind.trim().split_once('/'))
            .any(|(_, kind)| {
                kind.eq_ignore_ascii_case("json")
                    || kind.rsplit('+').next().is_some_and(|tail| tail.eq_ignore_ascii_case("json"))
            });
        if is_json { Self::Json } else { Self::Text }
    }
}

/// What an answer of ours depends on.
#[derive(Debug)]
pub(super) struct Asker {
    method: Method,
    version: Version,
    format: Format,
}

impl Asker {
    pub(super) fn of(parts: &Parts) -> Self {
        let method = parts.method.clone();
        Self { method, version: parts.version, format: Format::wanted(&parts.headers) }
    }
}

/// The answer to a request that failed here.
pub(super) fn failure(
    failure: &Failure,
    asker: &Asker,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let code = failure.code;
    exchange.status = Some(code.status());
    exchange.code = Some(code);
    let request_id = exchange.request_id.clone();
    let (kind, text) = match asker.format {
        Format::Json => ("application/json", json(failure, &request_id)),
        Format::Text => ("text/plain; charset=utf-8", text(failure, &request_id)),
    };
    let mut response = own(code.status(), kind, text, &asker.method, exchange);
    let headers = response.headers_mut();
    headers.insert(X_PORTOLAN_ERROR, HeaderValue::from_static(code.as_str()));
    headers.insert(X_REQUEST_ID, request_id);
    // What follows a malformed request on its connection may be a part of it.
    if code == Code::BadRequest && asker.version <= Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(seconds) = code.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// A permanent redirect that keeps method and body.
pub(super) fn redirect(
    location: HeaderValue,
    method: &Method,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    exchange.status = Some(StatusCode::PERMANENT_REDIRECT);
    let text = "This host is served over https.\n".to_owned();
    let kind = "text/plain; charset=utf-8";
    let mut response = own(StatusCode::PERMANENT_REDIRECT, kind, text, method, exchange);
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Whether this gateway can answer at all.
pub(super) fn health(
    shared: &Shared,
    method: &Method,
    mut exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let (status, state) = match (shared.is_leaving(), shared.known()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "leaving"),
        // As ready as Kubernetes is told: it serves what it knew.
        (false, Known::Snapshot | Known::All) => (StatusCode::OK, "ok"),
        (false, Known::Part) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
    };
    let synced = if shared.is_synced() { "ok" } else { "no" };
    let text = format!("{{\"status\":\"{state}\",\"checks\":{{\"synced\":\"{synced}\"}}}}\n");
    exchange.status = Some(status);
    own(status, "application/json", text, method, exchange)
}

fn own(
    status: StatusCode,
    kind: &'static str,
    text: String,
    method: &Method,
    exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let length = text.len();
    let text = if method == Method::HEAD { Bytes::new() } else { Bytes::from(text) };
    let mut response = Response::new(ResponseBody::own(text, exchange));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(failure: &Failure, request_id: &HeaderValue) -> String {
    let error = serde_json::json!({
        "code": failure.code.as_str(),
        "message": failure.code.message(),
        "reason": failure.reason.as_deref(),
        "requestId": request_id.to_str().unwrap_or_default(),
    });
    format!("{}\n", serde_json::json!({ "error": error }))
}

fn text(failure: &Failure, request_id: &HeaderValue) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{}\n\nCode: {}\n", failure.code.message(), failure.code.as_str());
    if let Some(reason) = &failure.reason {
        // Writing to a string does not fail.
        let _ = writeln!(text, "Reason: {reason}");
    }
    let _ = writeln!(text, "Request: {}", request_id.to_str().unwrap_or_default());
    text
}
