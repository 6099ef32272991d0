//! Names of derived objects. Every name that is made from another is made here.

use data_encoding::{Encoding, HEXLOWER, Specification};
use sha2::{Digest, Sha256};

use crate::claim::ClaimKind;

/// Longest label value.
const LABEL_VALUE_LIMIT: usize = 63;
/// Longest pool name, so that Pod names (`-ordinal-incarnation`) still fit a host name.
const POOL_NAME_LIMIT: usize = 52;
/// Characters of a digest that names carry: 40 bits; full digests are compared on a hit.
const SHORT_HASH: usize = 8;

/// SHA-256 of `parts`, each preceded by its length so that no two lists collide; hexadecimal.
pub fn digest(parts: &[&[u8]]) -> String {
    HEXLOWER.encode(&sha256(parts))
}

/// `<app>-<hash>`: the name of the version with this digest (hexadecimal, from [`digest`]).
pub fn version(app: &str, digest: &str) -> String {
    format!("{app}-{}", short_hash(&[digest.as_bytes()]))
}

/// The pool of sandboxes with this digest, in at most 52 characters: readable while it fits, cut
/// before the hash otherwise.
pub fn pool(app: &str, service: &str, sandbox_digest: &str, ephemeral: Option<&str>) -> String {
    let mut parts = vec![app.as_bytes(), service.as_bytes(), sandbox_digest.as_bytes()];
    parts.extend(ephemeral.map(str::as_bytes));
    bounded(&format!("{app}-{service}"), &short_hash(&parts), POOL_NAME_LIMIT)
}

/// The name of a Pod: the same decision always leads to the same name, so a second create by a
/// leader that lags is refused by the API server.
pub fn pod(pool: &str, ordinal: i32, incarnation: i64) -> String {
    format!("{pool}-{ordinal}-{incarnation}")
}

/// The `(ordinal, incarnation)` of a Pod of this pool; `None` for a name that [`pod`] did not
/// make.
pub fn parse_pod(pool: &str, name: &str) -> Option<(i32, i64)> {
    let (ordinal, incarnation) = name.strip_prefix(pool)?.strip_prefix('-')?.split_once('-')?;
    Some((ordinal.parse().ok()?, incarnation.parse().ok()?))
}

/// The AppService of a service, and the Service that gives it its address. It is a host name too,
/// so an App and a service whose names are too long together have a cut one with a hash.
pub fn app_service(app: &str, service: &str) -> String {
    let whole = format!("{app}-{service}");
    if whole.len() <= LABEL_VALUE_LIMIT {
        return whole;
    }
    bounded(&whole, &short_hash(&[app.as_bytes(), service.as_bytes()]), LABEL_VALUE_LIMIT)
}

/// The value of a node port's Claim: `port/transport`, the transport in lower case.
pub fn node_port(port: i32, transport: &str) -> String {
    format!("{port}/{}", transport.to_ascii_lowercase())
}

/// The NetworkPolicy of an App.
pub fn network_policy(app: &str) -> String {
    format!("portolan-{app}")
}

/// The Claim of a host or node port: readable where the value is a legal name, hashed otherwise.
pub fn claim(kind: ClaimKind, value: &str) -> String {
    let prefix = match kind {
        ClaimKind::Host => "host",
        ClaimKind::NodePort => "nodeport",
    };
    let legal = value.len() <= 200
        && value
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b))
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.ends_with(|c: char| c.is_ascii_alphanumeric());
    if legal {
        format!("{prefix}.{value}")
    } else {
        format!("{prefix}-{}", &digest(&[value.as_bytes()])[..32])
    }
}

/// A label value for any text: itself if it fits, else cut and hashed. The one function for it.
pub fn label_value(text: &str) -> String {
    if text.len() <= LABEL_VALUE_LIMIT {
        return text.into();
    }
    bounded(text, &short_hash(&[text.as_bytes()]), LABEL_VALUE_LIMIT)
}

fn bounded(prefix: &str, hash: &str, limit: usize) -> String {
    let room = limit - hash.len() - 1;
    let cut = prefix.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= room);
    let prefix = &prefix[..cut.last().unwrap_or(0)];
    format!("{}-{hash}", prefix.trim_end_matches(['-', '.', '_']))
}

fn short_hash(parts: &[&[u8]]) -> String {
    let mut hash = alphabet().encode(&sha256(parts)[..5]);
    hash.truncate(SHORT_HASH);
    hash
}

/// Base 32 without the letters that read like others (i, l, o, u).
fn alphabet() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
    specification.encoding().expect("the alphabet has 32 distinct symbols")
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_name_is_read_back() {
        let pool = pool("shop", "web", &digest(&[b"x"]), None);
        assert_eq!(parse_pod(&pool, &pod(&pool, 3, 17)), Some((3, 17)));
        for foreign in ["", "other-3-17", &format!("{pool}-x-1"), &format!("{pool}-1"), &pool] {
            assert_eq!(parse_pod(&pool, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_longest_names_leave_room_for_a_host_name() {
        let name = pool(&"a".repeat(40), &"s".repeat(20), "d", None);
        assert!(name.len() <= 52, "{name}");
        assert!(pod(&name, 999, 99_999).len() <= 63);
    }

    #[test]
    fn different_inputs_have_different_pools() {
        let names = [
            pool("a", "b", "d", None),
            pool("a", "b", "e", None),
            pool("a", "b", "d", Some("uid")),
            pool("a-b", "c", "d", None),
            pool("a", "b-c", "d", None),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    #[test]
    fn a_claim_is_named_after_what_it_holds() {
        assert_eq!(claim(ClaimKind::Host, "shop.example.com"), "host.shop.example.com");
        let wildcard = claim(ClaimKind::Host, "*.example.com");
        assert!(wildcard.starts_with("host-") && wildcard.len() == 37, "{wildcard}");
        assert_ne!(wildcard, claim(ClaimKind::Host, "*"));
        assert!(claim(ClaimKind::NodePort, "6697/TCP").starts_with("nodeport-"));
    }

    #[test]
    fn a_label_value_fits() {
        assert_eq!(label_value("shop"), "shop");
        let long = label_value(&"x".repeat(100));
        assert_eq!(long.len(), 63);
        assert_ne!(long, label_value(&"x".repeat(101)));
    }
}
