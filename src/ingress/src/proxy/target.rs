//! What a request is for, and whether it may be forwarded at all.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Uri, Version};
use hyper::ext::Protocol;

use crate::error::Code;
use crate::host::normalize;

/// Finds the host a request names, as the client wrote it.
///
/// Every ambiguity is refused rather than resolved, because the next party may resolve it
/// differently: two hosts, a host that differs from the authority, none at all.
pub(super) fn host_of(parts: &Parts) -> Result<HeaderValue, Code> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Code::BadRequest);
    }
    let Some(authority) = parts.uri.authority() else {
        return header.cloned().ok_or(Code::BadRequest);
    };
    if let Some(header) = header {
        let header = normalized(header)?;
        let authority = normalize(authority.as_str()).map_err(|_| Code::BadRequest)?;
        if header != authority {
            return Err(Code::BadRequest);
        }
    }
    HeaderValue::from_str(authority.as_str()).map_err(|_| Code::BadRequest)
}

/// The form tables are keyed by.
pub(super) fn normalized(host: &HeaderValue) -> Result<Cow<'_, str>, Code> {
    let host = host.to_str().map_err(|_| Code::BadRequest)?;
    normalize(host).map_err(|_| Code::BadRequest)
}

/// Refuses what no origin server behind a proxy should see.
pub(super) fn check_form(parts: &Parts) -> Result<(), Code> {
    let is_tunnel = parts.method == Method::CONNECT;
    if is_tunnel && parts.extensions.get::<Protocol>().is_none() {
        return Err(Code::BadRequest);
    }
    if parts.uri.scheme_str().is_some_and(|scheme| !["http", "https"].contains(&scheme)) {
        return Err(Code::BadRequest);
    }
    check_framing(&parts.headers, parts.version)
}

/// Refuses every body framing but the two plain ones. The parser has dealt with what it sees as
/// malformed; this is about what it lets pass and another parser may read differently.
fn check_framing(headers: &HeaderMap, version: Version) -> Result<(), Code> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let Some(coding) = coding else {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        lengths.next();
        return if lengths.next().is_some() { Err(Code::BadRequest) } else { Ok(()) };
    };
    let is_plain = codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !is_plain || headers.contains_key(CONTENT_LENGTH) || version != Version::HTTP_11 {
        return Err(Code::BadRequest);
    }
    Ok(())
}

/// A path that is answered by us or by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserved {
    Health,
    Blocked,
}

/// Whether a path belongs to the platform. Looks at the path the way a lenient program may: with
/// dots resolved, slashes joined, escapes decoded and in any case.
pub(super) fn reserved(uri: &Uri) -> Option<Reserved> {
    let path = uri.path();
    if path == "/.well-known/portolan/health" {
        return Some(Reserved::Health);
    }
    // Everything reserved has a dot or an escaped one in it; hardly any other path has a dot at
    // the start of a segment.
    if !path.contains("/.") && !path.contains('%') && !path.contains('\\') {
        return None;
    }
    let segments = resolved(path)?;
    let [first, second, ..] = &segments[..] else { return None };
    let is_reserved = first.eq_ignore_ascii_case(".well-known")
        && ["portolan", "miren"].iter().any(|name| second.eq_ignore_ascii_case(name));
    is_reserved.then_some(Reserved::Blocked)
}

/// The segments of a path after decoding; `None`: there are none.
fn resolved(path: &str) -> Option<Vec<String>> {
    let mut decoded = path.as_bytes().to_vec();
    // Twice, because a program behind another proxy may decode what that one has decoded already.
    for _ in 0..2 {
        decoded = percent_decoded(&decoded);
    }
    let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        // What follows a semicolon are parameters to some programs.
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment.to_owned()),
        }
    }
    (!segments.is_empty()).then_some(segments)
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, tail @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            decoded.push(u8::try_from(high * 16 + low).unwrap_or_default());
            rest = tail;
            continue;
        }
        decoded.push(*first);
        rest = tail;
    }
    decoded
}

#[cfg(test)]
mod tests {
    use http::header::{HOST, HeaderValue};
    use http::{Request, Uri};

    use super::{Reserved, check_form, host_of, reserved};
    use crate::error::Code;

    #[track_caller]
    fn check_host(uri: &str, hosts: &[&str], expected: Result<&str, Code>) {
        let mut request = Request::get(uri).body(()).unwrap();
        for host in hosts {
            request.headers_mut().append(HOST, HeaderValue::from_str(host).unwrap());
        }
        let (parts, ()) = request.into_parts();
        let host = host_of(&parts);
        assert_eq!(host.as_ref().map(|host| host.to_str().unwrap()), expected.as_ref().map(|h| *h));
    }

    #[test]
    fn one_host_and_only_one() {
        check_host("/", &["a.example"], Ok("a.example"));
        check_host("/", &[], Err(Code::BadRequest));
        check_host("/", &["a.example", "a.example"], Err(Code::BadRequest));
        check_host("http://a.example/", &["A.example:80"], Ok("a.example"));
        check_host("http://a.example/", &["b.example"], Err(Code::BadRequest));
        check_host("http://a.example/", &[], Ok("a.example"));
    }

    #[track_caller]
    fn check_forms(headers: &[(&str, &str)], expected: Result<(), Code>) {
        let mut request = Request::post("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(check_form(&parts), expected, "{headers:?}");
    }

    #[test]
    fn only_plain_framing_passes() {
        check_forms(&[], Ok(()));
        check_forms(&[("content-length", "3")], Ok(()));
        check_forms(&[("transfer-encoding", "chunked")], Ok(()));
        check_forms(&[("transfer-encoding", "Chunked")], Ok(()));
        let bad = Err(Code::BadRequest);
        check_forms(&[("content-length", "3"), ("content-length", "3")], bad);
        check_forms(&[("content-length", "3"), ("transfer-encoding", "chunked")], bad);
        check_forms(&[("transfer-encoding", "gzip, chunked")], bad);
        check_forms(&[("transfer-encoding", "xchunked")], bad);
        check_forms(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], bad);
        check_forms(&[("transfer-encoding", "identity")], bad);
    }

    #[track_caller]
    fn check_path(path: &str, expected: Option<Reserved>) {
        let uri: Uri = path.parse().unwrap();
        assert_eq!(reserved(&uri), expected, "{path}");
    }

    #[test]
    fn reserved_paths_are_seen_through_their_disguises() {
        check_path("/.well-known/portolan/health", Some(Reserved::Health));
        check_path("/.well-known/portolan/health?x=1", Some(Reserved::Health));
        for path in [
            "/.well-known/portolan",
            "/.well-known/portolan/",
            "/.well-known/miren/admin",
            "/.Well-Known/MIREN/admin",
            "/./.well-known/miren/x",
            "//.well-known//miren/x",
            "/a/../.well-known/miren/x",
            "/%2ewell-known/miren/x",
            "/%2e%77ell-known%2fmiren/x",
            "/%252ewell-known/miren/x",
            "/.well-known;a=b/miren/x",
            "/.well-known\\miren\\x",
        ] {
            if path.contains('\\') && path.parse::<Uri>().is_err() {
                continue;
            }
            check_path(path, Some(Reserved::Blocked));
        }
        for path in ["/", "/index.html", "/.well-known/acme-challenge/x", "/.git", "/%", "/%zz"] {
            check_path(path, None);
        }
        check_path("/.well-known/portolanish", None);
    }
}
