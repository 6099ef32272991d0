//! Hosts: what a request may name, and what a route may answer.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Longest host name in bytes (RFC 1035, without the trailing dot).
const HOST_SIZE_MAX: usize = 253;
/// Longest label in bytes.
const LABEL_SIZE_MAX: usize = 63;

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing is left once the port is gone.
    #[error("host is empty")]
    Empty,
    /// Longer than a domain name can be.
    #[error("host is longer than 253 bytes")]
    TooLong,
    /// Empty, overlong or with characters no host name has.
    #[error("host has an invalid label")]
    Label,
    /// Not a number from 0 to 65535.
    #[error("port is invalid")]
    Port,
    /// Brackets that hold no IPv6 address.
    #[error("address in brackets is invalid")]
    Address,
    /// `*` elsewhere than as the first label, or with fewer than two labels behind it.
    #[error("wildcard must be the first label, with at least two labels behind it")]
    Wildcard,
}

/// Which hosts a route answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One host.
    Exact(Arc<str>),
    /// Every host with one label before this suffix; the suffix has no leading dot.
    Wildcard(Arc<str>),
    /// Every host that no other route answers.
    Default,
}

impl HostPattern {
    /// Reads `shop.example.com`, `*.example.com` or `*`.
    ///
    /// # Errors
    ///
    /// What [`HostError`] lists; a port is refused.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Ok(Self::Default);
        }
        if text.contains(':') && !text.starts_with('[') {
            return Err(HostError::Port);
        }
        let Some(suffix) = text.strip_prefix("*.") else {
            return if text.contains('*') {
                Err(HostError::Wildcard)
            } else {
                Ok(Self::Exact(normalize(text)?.into()))
            };
        };
        if suffix.contains('*') || !suffix.trim_end_matches('.').contains('.') {
            return Err(HostError::Wildcard);
        }
        Ok(Self::Wildcard(normalize(suffix)?.into()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Default => f.write_str("*"),
        }
    }
}

/// Brings the host of an authority into the one form tables are keyed by: lower case, no port, no
/// trailing dot, IPv6 in brackets and in its canonical text.
///
/// Allocates only where the text is not in that form already.
///
/// # Errors
///
/// What [`HostError`] lists, except `Wildcard`.
pub(crate) fn normalize(authority: &str) -> Result<Cow<'_, str>, HostError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(HostError::Address)?;
        check_port(port)?;
        let address: Ipv6Addr = address.parse().map_err(|_| HostError::Address)?;
        return Ok(Cow::Owned(format!("[{address}]")));
    }
    let host = match authority.split_once(':') {
        Some((host, _)) => {
            check_port(&authority[host.len()..])?;
            host
        }
        None => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    check_name(host)?;
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(Cow::Owned(host.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(host))
}

/// Splits the first label off; `None`: there is only one, or this is an address.
pub(crate) fn split_label(host: &str) -> Option<(&str, &str)> {
    if host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok() {
        return None;
    }
    host.split_once('.')
}

/// The `<name>.<namespace>` that a host means inside the cluster, as cluster DNS reads it: also
/// with `.svc` and with `.svc.<cluster domain>` behind it. What has another form comes back as it
/// is.
pub(crate) fn service_name<'a>(host: &'a str, cluster_domain: &str) -> &'a str {
    let is_whole = |host: &&str| host.contains('.');
    let full = host.strip_suffix(cluster_domain).and_then(|host| host.strip_suffix(".svc."));
    let short = full.or_else(|| host.strip_suffix(".svc"));
    // In a namespace called `svc`, the last label of the short form is the namespace.
    short.filter(is_whole).unwrap_or(host)
}

/// `suffix` is what follows the host: empty, or a colon and digits. An empty port is legal.
fn check_port(suffix: &str) -> Result<(), HostError> {
    let Some(port) = suffix.strip_prefix(':') else {
        return if suffix.is_empty() { Ok(()) } else { Err(HostError::Port) };
    };
    // `u16::from_str` would take a leading plus sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_empty() || (digits && port.parse::<u16>().is_ok()) {
        Ok(())
    } else {
        Err(HostError::Port)
    }
}

fn check_name(host: &str) -> Result<(), HostError> {
    if host.is_empty() {
        return Err(HostError::Empty);
    }
    if host.len() > HOST_SIZE_MAX {
        return Err(HostError::TooLong);
    }
    // One pass: this runs once per request.
    let mut label_size = 0;
    for byte in host.bytes() {
        match byte {
            b'.' if label_size > 0 => label_size = 0,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => label_size += 1,
            _ => return Err(HostError::Label),
        }
        if label_size > LABEL_SIZE_MAX {
            return Err(HostError::Label);
        }
    }
    if label_size == 0 { Err(HostError::Label) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{HostError, HostPattern, normalize, service_name, split_label};

    #[track_caller]
    fn check(input: &str, expected: Result<&str, HostError>) {
        assert_eq!(normalize(input).as_deref(), expected.as_ref().map(|s| &**s), "{input:?}");
    }

    #[test]
    fn hosts_take_one_form() {
        check("shop.example.com", Ok("shop.example.com"));
        check("Shop.EXAMPLE.com:8443", Ok("shop.example.com"));
        check("shop.example.com.", Ok("shop.example.com"));
        check("shop.example.com.:80", Ok("shop.example.com"));
        check("localhost:", Ok("localhost"));
        check("10.0.0.1:80", Ok("10.0.0.1"));
        check("[2001:DB8:0::1]:443", Ok("[2001:db8::1]"));
        check("[::1]", Ok("[::1]"));
        check("a_b.example.com", Ok("a_b.example.com"));
    }

    #[test]
    fn hostile_hosts_are_refused() {
        check("", Err(HostError::Empty));
        check(":80", Err(HostError::Empty));
        check(".", Err(HostError::Empty));
        check("a..b", Err(HostError::Label));
        check(".a", Err(HostError::Label));
        check("a..", Err(HostError::Label));
        check("a b", Err(HostError::Label));
        check("a/b", Err(HostError::Label));
        check("user@host", Err(HostError::Label));
        check("*.example.com", Err(HostError::Label));
        check("b\u{fc}cher.example", Err(HostError::Label));
        check("a\0b", Err(HostError::Label));
        check("host:99999", Err(HostError::Port));
        check("host:+80", Err(HostError::Port));
        check("host:80:90", Err(HostError::Port));
        check("2001:db8::1", Err(HostError::Port));
        check("[::1", Err(HostError::Address));
        check("[::1]x", Err(HostError::Port));
        check("[fe80::1%eth0]", Err(HostError::Address));
        check(&"a".repeat(64), Err(HostError::Label));
        check(&"a.".repeat(150), Err(HostError::TooLong));
    }

    #[test]
    fn patterns_are_exact_wildcard_or_default() {
        let parse = HostPattern::parse;
        assert_eq!(parse("A.example.com"), Ok(HostPattern::Exact("a.example.com".into())));
        assert_eq!(parse("*.Example.com"), Ok(HostPattern::Wildcard("example.com".into())));
        assert_eq!(parse("*"), Ok(HostPattern::Default));
        assert_eq!(parse("*.com"), Err(HostError::Wildcard));
        assert_eq!(parse("a.*.com"), Err(HostError::Wildcard));
        assert_eq!(parse("*.*.com"), Err(HostError::Wildcard));
        assert_eq!(parse("a.example.com:80"), Err(HostError::Port));
    }

    #[test]
    fn names_of_services_have_three_forms() {
        let check = |host, expected| assert_eq!(service_name(host, "c.local"), expected, "{host}");
        check("shop-web.team-a", "shop-web.team-a");
        check("shop-web.team-a.svc", "shop-web.team-a");
        check("shop-web.team-a.svc.c.local", "shop-web.team-a");
        check("label.shop-web.team-a.svc", "label.shop-web.team-a");
        check("shop-web.svc", "shop-web.svc");
        check("shop-web.svc.svc", "shop-web.svc");
        check("shop-web.svc.svc.c.local", "shop-web.svc");
        for other in ["shop-web", "shop-web.team-a.c.local", "shop-web.team-a.svc.other", "c.local"]
        {
            check(other, other);
        }
        check("shop-web.team-a.svcc.local", "shop-web.team-a.svcc.local");
        check("svc.c.local", "svc.c.local");
    }

    #[test]
    fn addresses_have_no_labels() {
        assert_eq!(split_label("a.b.c"), Some(("a", "b.c")));
        assert_eq!(split_label("localhost"), None);
        assert_eq!(split_label("10.0.0.1"), None);
        assert_eq!(split_label("[::1]"), None);
    }
}
