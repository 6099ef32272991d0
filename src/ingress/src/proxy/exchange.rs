//! The record of one request: what it was, how it ended.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, StatusCode, Uri};
use tokio::time::Instant;

use super::client::Client;
use crate::error::Code;
use crate::settings::AccessLog;

/// Bytes of a path that are logged. A copy of so much is kept, and not the head it came in, which
/// would be held as long as the response lasts.
const PATH_SIZE_MAX: usize = 2048;

/// Logged for a request whose client went away before the response began (nginx's number).
const CLIENT_GONE: u16 = 499;

/// One request, from its head to the last byte of the response. Counts and logs when dropped.
#[derive(Debug)]
pub(super) struct Exchange {
    client: Arc<Client>,
    began: Instant,
    pub(super) request_id: HeaderValue,
    pub(super) host: Option<HeaderValue>,
    /// Kept only if it is going to be logged.
    line: Option<(Method, Box<str>)>,
    pub(super) status: Option<StatusCode>,
    pub(super) code: Option<Code>,
    pub(super) bytes: u64,
}

impl Exchange {
    /// Boxed, because it is handed on many times until the response has ended.
    pub(super) fn begin<B>(client: &Arc<Client>, request: &Request<B>) -> Box<Self> {
        client.pulse.request_began();
        let core = &client.shared.core;
        core.metrics.in_flight.inc();
        let is_logged = core.settings.access_log == AccessLog::On
            && tracing::enabled!(target: "access", tracing::Level::INFO);
        Box::new(Self {
            client: Arc::clone(client),
            began: Instant::now(),
            request_id: HeaderValue::from_static(""),
            host: None,
            line: is_logged.then(|| (request.method().clone(), logged(request.uri()))),
            status: None,
            code: None,
            bytes: 0,
        })
    }

    pub(super) const fn client(&self) -> &Arc<Client> {
        &self.client
    }

    fn log(&self, now: Instant, method: &Method, path: &str) {
        // Queries carry secrets and addresses are personal: neither is logged.
        tracing::info!(
            target: "access",
            method = method.as_str(),
            host = self.host.as_ref().and_then(|host| host.to_str().ok()),
            path,
            status = self.status.map_or(CLIENT_GONE, |status| status.as_u16()),
            code = self.code.map(Code::as_str),
            bytes = self.bytes,
            duration_ms = (now - self.began).as_secs_f64() * 1000.0,
            request_id = self.request_id.to_str().ok(),
            "Request"
        );
        tracing::debug!(
            target: "access",
            client = self.client.address.to_str().ok(),
            request_id = self.request_id.to_str().ok(),
            "Client"
        );
    }
}

fn logged(uri: &Uri) -> Box<str> {
    let path = uri.path();
    path[..path.floor_char_boundary(PATH_SIZE_MAX)].into()
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        self.client.pulse.request_ended(now, self.status.is_some());
        let metrics = &self.client.shared.core.metrics;
        metrics.in_flight.dec();
        match self.status {
            Some(status) => metrics.answered(self.client.audience, status),
            None => {
                metrics.cancelled.inc();
            }
        }
        if let Some(code) = self.code {
            metrics.failed(code);
        }
        if let Some((method, path)) = &self.line {
            self.log(now, method, path);
        }
    }
}
