//! Header hygiene: what must not pass a proxy, and what it must say about the client.

use bytes::Bytes;
use http::header::{
    CONNECTION, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Our own headers: clients and sandboxes never speak in our name.
const OWN_PREFIX: &str = "x-portolan-";
/// Longest request id taken over from a client.
const REQUEST_ID_SIZE_MAX: usize = 128;

/// What the hop-by-hop headers of a request asked for, before they were removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Hop {
    /// The protocol to switch to, if the connection is to be upgraded.
    pub(super) upgrade: Option<HeaderValue>,
    /// The client takes trailers.
    pub(super) trailers: bool,
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1), and what is said in our
/// name. `Err`: the message cannot be passed on as it stands.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) -> Hop {
    let seen = Seen::of(headers);
    let mut hop = Hop::default();
    if seen.te {
        hop.trailers = has_token(headers, &TE, "trailers");
        headers.remove(TE);
    }
    if seen.connection {
        if seen.upgrade && has_token(headers, &CONNECTION, "upgrade") {
            hop.upgrade = headers.get(UPGRADE).cloned();
        }
        for name in listed(headers) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if seen.upgrade {
        headers.remove(UPGRADE);
    }
    if seen.transfer_encoding {
        headers.remove(TRANSFER_ENCODING);
    }
    if seen.rare {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS] {
            headers.remove(name);
        }
        headers.remove(PROXY_AUTHORIZATION);
        headers.remove(PROXY_AUTHENTICATE);
        headers.remove(EXPECT);
    }
    for name in seen.own {
        headers.remove(name);
    }
    hop
}

/// One pass over the headers, so that absent ones cost no look-up.
#[derive(Debug, Default)]
struct Seen {
    connection: bool,
    upgrade: bool,
    te: bool,
    transfer_encoding: bool,
    rare: bool,
    own: Vec<HeaderName>,
}

impl Seen {
    fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => seen.connection = true,
                "upgrade" => seen.upgrade = true,
                "te" => seen.te = true,
                "transfer-encoding" => seen.transfer_encoding = true,
                "keep-alive"
                | "proxy-connection"
                | "http2-settings"
                | "proxy-authorization"
                | "proxy-authenticate"
                | "expect" => seen.rare = true,
                other if other.starts_with(OWN_PREFIX) => seen.own.push(name.clone()),
                _ => {}
            }
        }
        seen
    }
}

/// The headers that `Connection` lists. `Host` and the body's framing are never among them: taking
/// those away is a known way to make two parties read one message differently.
fn listed(headers: &HeaderMap) -> Vec<HeaderName> {
    tokens(headers, &CONNECTION)
        .filter(|token| {
            !token.eq_ignore_ascii_case("close") && !token.eq_ignore_ascii_case("keep-alive")
        })
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| name != HOST && name != http::header::CONTENT_LENGTH)
        .filter(|name| !name.as_str().starts_with("x-forwarded-"))
        .collect()
}

/// Whether a comma-separated header holds a token, in any case.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    // A parameter after the token, as in `trailers;q=1`, does not change its meaning here.
    tokens(headers, name).any(|token| {
        token.split(';').next().is_some_and(|token| token.trim().eq_ignore_ascii_case(wanted))
    })
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// What is said about the client.
#[derive(Debug)]
pub(super) struct Forwarded<'a> {
    /// The peer may speak for others.
    pub(super) is_trusted: bool,
    /// The address of whoever is at the other end of the connection.
    pub(super) client: &'a HeaderValue,
    /// The host as the client sent it.
    pub(super) host: &'a HeaderValue,
    /// What this connection speaks.
    pub(super) scheme: &'static str,
}

impl Forwarded<'_> {
    /// Appends to what a trusted peer says, replaces what any other does.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        if self.is_trusted {
            match append(headers, self.client) {
                Some(list) => headers.insert(X_FORWARDED_FOR, list),
                None => headers.insert(X_FORWARDED_FOR, self.client.clone()),
            };
            if !headers.contains_key(X_FORWARDED_HOST) {
                headers.insert(X_FORWARDED_HOST, self.host.clone());
            }
            if !headers.contains_key(X_FORWARDED_PROTO) {
                headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(self.scheme));
            }
            return;
        }
        headers.insert(X_FORWARDED_FOR, self.client.clone());
        headers.insert(X_FORWARDED_HOST, self.host.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(self.scheme));
        // Other ways to say the same, which nobody vouches for.
        headers.remove(FORWARDED);
        headers.remove(X_REAL_IP);
        headers.remove(X_FORWARDED_PORT);
    }
}

/// The list with the client at its end; `None`: there is none yet.
fn append(headers: &HeaderMap, client: &HeaderValue) -> Option<HeaderValue> {
    let mut list = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    if list.is_empty() {
        return None;
    }
    list.extend_from_slice(client.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(list)).ok()
}

/// The client's request id if it is harmless in logs, else a new one. The header is set to it.
pub(super) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(X_REQUEST_ID).filter(|id| is_sane_id(id.as_bytes())) {
        return id.clone();
    }
    let id = new_request_id();
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

fn is_sane_id(id: &[u8]) -> bool {
    let is_sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    !id.is_empty() && id.len() <= REQUEST_ID_SIZE_MAX && id.iter().all(is_sane)
}

/// 128 random bits in hexadecimal. An id is to tell requests apart, not to be secret.
fn new_request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let random = fastrand::u128(..).to_be_bytes();
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(random) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
    // Counted from the start, since it is copied into two messages and a record.
    let text = Bytes::from_owner(text);
    HeaderValue::from_maybe_shared(text).expect("hexadecimal digits are a header value")
}

#[cfg(test)]
mod tests;
