//! Hosts as Routes, Domains and Claims write them: `shop.example.com`, `*.example.com`, `*`.
//!
//! Pure. The API server has checked their form; nothing here fails on another.

/// The host that a Route serves when no other Route names the one asked for.
pub(crate) const DEFAULT: &str = "*";

/// The host without `*.`: what a Domain's suffix is compared with, and the suffix that a Domain
/// for exactly this host would have.
pub(crate) fn base(host: &str) -> &str {
    host.strip_prefix("*.").unwrap_or(host)
}

/// Whether a Domain of this suffix covers the host: the suffix itself, whatever lies below it, and
/// the wildcards of both. `*` covers everything, and nothing else covers the default route.
pub(crate) fn covers(suffix: &str, host: &str) -> bool {
    if suffix == DEFAULT {
        return true;
    }
    let rest = base(host).strip_suffix(suffix);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The hosts whose holders would lose requests to a Route of `host`: at most three.
///
/// A wildcard answers one label below its suffix and previews one more; an exact host has previews
/// one label below. A name of one label, such as `com`, protects nothing below it: else a tenant
/// could lock everybody out of it by naming it.
pub(crate) fn above(host: &str) -> Vec<String> {
    if host == DEFAULT {
        return Vec::new();
    }
    let (exact, wildcards) = match host.strip_prefix("*.") {
        Some(suffix) => (Some(suffix), vec![parent(suffix)]),
        None => (parent(host), vec![parent(host), parent(host).and_then(parent)]),
    };
    let exact = exact.map(str::to_owned);
    let wildcards = wildcards.into_iter().flatten().map(|suffix| format!("*.{suffix}"));
    exact.into_iter().chain(wildcards).collect()
}

/// Where a Route of this host answers: `None` for wildcards and the default route.
pub(crate) fn url(host: &str, secure: bool) -> Option<String> {
    let scheme = if secure { "https" } else { "http" };
    (!host.starts_with('*')).then(|| format!("{scheme}://{host}"))
}

/// The name without its first label, if at least two labels are left.
fn parent(name: &str) -> Option<&str> {
    let (_, parent) = name.split_once('.')?;
    parent.contains('.').then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_covers(suffix: &str, covered: &[&str], not: &[&str]) {
        for host in covered {
            assert!(covers(suffix, host), "{suffix} covers {host}");
        }
        for host in not {
            assert!(!covers(suffix, host), "{suffix} does not cover {host}");
        }
    }

    #[test]
    fn a_suffix_covers_itself_and_what_lies_below() {
        check_covers(
            "example.com",
            &[
                "example.com",
                "shop.example.com",
                "a.b.example.com",
                "*.example.com",
                "*.b.example.com",
            ],
            &[
                "com",
                "badexample.com",
                "*.badexample.com",
                "example.com.evil.org",
                "example.org",
                "*",
            ],
        );
    }

    #[test]
    fn a_star_covers_everything() {
        check_covers("*", &["*", "example.com", "*.example.com"], &[]);
    }

    #[track_caller]
    fn check_above(host: &str, expected: &[&str]) {
        assert_eq!(above(host), expected, "above {host}");
    }

    #[test]
    fn a_host_is_below_what_would_answer_for_it() {
        check_above(
            "a.shop.example.com",
            &["shop.example.com", "*.shop.example.com", "*.example.com"],
        );
        check_above("*.shop.example.com", &["shop.example.com", "*.example.com"]);
        check_above("shop.example.com", &["example.com", "*.example.com"]);
    }

    #[test]
    fn names_of_one_label_protect_nothing() {
        check_above("example.com", &[]);
        check_above("*.example.com", &["example.com"]);
        check_above("localhost", &[]);
        check_above("*", &[]);
    }

    #[test]
    fn only_exact_hosts_have_a_url() {
        assert_eq!(url("shop.example.com", true).as_deref(), Some("https://shop.example.com"));
        assert_eq!(url("shop.example.com", false).as_deref(), Some("http://shop.example.com"));
        assert_eq!(url("*.example.com", true), None);
        assert_eq!(url("*", false), None);
    }
}
