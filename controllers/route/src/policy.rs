//! Which namespace may have which host. Pure; design: `Domain`s decide where they cover a host,
//! the first Route to claim it elsewhere.

use jiff::Timestamp;
use portolan_api::{Claim, ClaimKind, Domain};
use serde::Serialize;

use crate::host;

/// Every namespace, in the list of a Domain.
const ALL_NAMESPACES: &str = "*";

/// A Domain as decisions see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DomainRule {
    /// Name of the Domain.
    pub(crate) name: String,
    /// Its suffix; `*` for all hosts.
    pub(crate) suffix: String,
    /// The namespaces that may claim hosts under it; may hold `*`.
    pub(crate) namespaces: Vec<String>,
    /// When it was made: the older of two with one suffix is in force.
    pub(crate) created: Timestamp,
}

impl DomainRule {
    /// The rule of a Domain. One that is being deleted is in force until it is gone.
    pub(crate) fn of(domain: Domain) -> Option<Self> {
        let created = crate::created(&domain);
        let Domain { metadata, spec, .. } = domain;
        Some(Self {
            name: metadata.name?,
            suffix: spec.suffix,
            namespaces: spec.namespaces,
            created,
        })
    }

    /// Whether it lets this namespace claim what it covers.
    pub(crate) fn lists(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|listed| listed == namespace || listed == ALL_NAMESPACES)
    }

    /// The order of age: the first of several with one suffix is in force.
    pub(crate) fn age(&self) -> (Timestamp, &str) {
        (self.created, &self.name)
    }
}

/// Why a namespace may not have a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Denial {
    /// The Domain that covers the host does not list the namespace.
    Domain {
        /// Name of that Domain.
        name: String,
        /// Its suffix.
        suffix: String,
    },
    /// It is the default route, and there are Domains but none for it.
    DefaultRoute,
    /// The host lies under one that another namespace holds, and no Domain covers it.
    Under {
        /// The host above.
        host: String,
        /// The namespace that holds it.
        namespace: String,
    },
}

/// Who asks for which host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The host.
    pub(crate) host: &'a str,
    /// The namespace of the Route.
    pub(crate) namespace: &'a str,
    /// Whether a Route of this namespace holds the host already. Then only Domains can take it
    /// away: what others claimed above it later does not.
    pub(crate) held: bool,
}

/// Why the request is denied; `None` if the namespace may have the host.
///
/// `above` are the Claims on the hosts that [`host::above`] names, whoever holds them.
pub(crate) fn denial<'a>(
    request: Request<'_>,
    domains: impl IntoIterator<Item = &'a DomainRule>,
    above: impl IntoIterator<Item = &'a Claim>,
) -> Option<Denial> {
    let Request { host, namespace, held } = request;
    let mut domains = domains.into_iter().peekable();
    let any = domains.peek().is_some();
    if let Some(domain) = in_force(host, domains) {
        return (!domain.lists(namespace))
            .then(|| Denial::Domain { name: domain.name.clone(), suffix: domain.suffix.clone() });
    }
    if host == host::DEFAULT {
        return any.then_some(Denial::DefaultRoute);
    }
    if held {
        return None;
    }
    let foreign = above.into_iter().find(|claim| claim.spec.holder.namespace != namespace)?;
    Some(Denial::Under {
        host: foreign.spec.value.clone(),
        namespace: foreign.spec.holder.namespace.clone(),
    })
}

/// The Domain that decides about a host: the one with the longest suffix that covers it, and the
/// oldest of those with that suffix.
fn in_force<'a>(
    host: &str,
    domains: impl IntoIterator<Item = &'a DomainRule>,
) -> Option<&'a DomainRule> {
    let covering = domains.into_iter().filter(|domain| host::covers(&domain.suffix, host));
    // Suffixes that cover one host are suffixes of each other, so length orders them; `*` is
    // shorter than all but names of one letter, which it must not outweigh.
    let weight = |suffix: &str| if suffix == host::DEFAULT { 0 } else { suffix.len() };
    covering.min_by(|one, other| {
        weight(&other.suffix).cmp(&weight(&one.suffix)).then_with(|| one.age().cmp(&other.age()))
    })
}

/// Whether this is a Claim on exactly this host. Two hosts never share a Claim's name unless
/// somebody made the Claim by hand.
pub(crate) fn is_claim_on(claim: &Claim, host: &str) -> bool {
    claim.spec.kind == ClaimKind::Host && claim.spec.value == host
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{claim, domain};

    const TEAM_A: &str = "team-a";
    const TEAM_B: &str = "team-b";

    struct Situation<'a> {
        host: &'a str,
        domains: &'a [DomainRule],
        above: &'a [Claim],
        held: bool,
    }

    #[track_caller]
    fn check(situation: Situation<'_>, expected: Option<Denial>) {
        let Situation { host, domains, above, held } = situation;
        let request = Request { host, namespace: TEAM_B, held };
        assert_eq!(denial(request, domains, above), expected, "{host} for {TEAM_B}");
    }

    #[track_caller]
    fn check_domains(host: &str, domains: &[DomainRule], denied_by: Option<&str>) {
        let expected = denied_by.map(|name| {
            let domain = domains.iter().find(|domain| domain.name == name).unwrap();
            Denial::Domain { name: name.into(), suffix: domain.suffix.clone() }
        });
        check(Situation { host, domains, above: &[], held: false }, expected.clone());
        check(Situation { host, domains, above: &[], held: true }, expected);
    }

    fn under(host: &str) -> Option<Denial> {
        Some(Denial::Under { host: host.into(), namespace: TEAM_A.into() })
    }

    #[test]
    fn without_any_domain_the_first_may_have_it() {
        for host in ["shop.example.com", "*.example.com", "*", "localhost"] {
            check_domains(host, &[], None);
        }
    }

    #[test]
    fn a_domain_gives_what_it_covers_to_its_namespaces_only() {
        let domains = [
            domain("ours", "b.example.com", &[TEAM_B], 1),
            domain("theirs", "a.example.com", &[TEAM_A], 1),
            domain("shared", "shared.example.com", &[TEAM_A, TEAM_B], 1),
            domain("open", "open.example.com", &["*"], 1),
            domain("closed", "closed.example.com", &[], 1),
        ];
        check_domains("b.example.com", &domains, None);
        check_domains("*.b.example.com", &domains, None);
        check_domains("x.y.b.example.com", &domains, None);
        check_domains("shared.example.com", &domains, None);
        check_domains("x.open.example.com", &domains, None);
        check_domains("a.example.com", &domains, Some("theirs"));
        check_domains("*.a.example.com", &domains, Some("theirs"));
        check_domains("x.closed.example.com", &domains, Some("closed"));
        check_domains("elsewhere.example.com", &domains, None);
    }

    #[test]
    fn the_longest_suffix_decides() {
        let domains = [
            domain("top", "example.com", &[TEAM_A], 1),
            domain("mine", "shop.example.com", &[TEAM_B], 2),
            domain("inner", "x.shop.example.com", &[TEAM_A], 3),
            domain("rest", "*", &[TEAM_A], 0),
        ];
        check_domains("shop.example.com", &domains, None);
        check_domains("a.shop.example.com", &domains, None);
        check_domains("y.x.shop.example.com", &domains, Some("inner"));
        check_domains("*.example.com", &domains, Some("top"));
        check_domains("other.org", &domains, Some("rest"));
        check_domains("*", &domains, Some("rest"));
    }

    #[test]
    fn a_name_of_one_letter_outweighs_the_star() {
        let domains = [domain("letter", "x", &[TEAM_B], 9), domain("rest", "*", &[TEAM_A], 0)];
        check_domains("a.x", &domains, None);
    }

    #[test]
    fn of_two_domains_with_one_suffix_the_older_is_in_force() {
        let older = domain("z-older", "example.com", &[TEAM_A], 1);
        let younger = domain("a-younger", "example.com", &[TEAM_B], 2);
        check_domains("shop.example.com", &[older.clone(), younger.clone()], Some("z-older"));
        check_domains("shop.example.com", &[younger, older], Some("z-older"));
        let same_second = domain("a-same", "example.com", &[TEAM_B], 1);
        let other = domain("b-same", "example.com", &[TEAM_A], 1);
        check_domains("shop.example.com", &[other, same_second], None);
    }

    #[test]
    fn the_default_route_needs_a_domain_once_there_is_one() {
        let unrelated = [domain("a", "example.com", &[TEAM_B], 1)];
        for held in [false, true] {
            let situation = Situation { host: "*", domains: &unrelated, above: &[], held };
            check(situation, Some(Denial::DefaultRoute));
        }
        check_domains("*", &[domain("all", "*", &[TEAM_B], 1)], None);
        check_domains("*", &[domain("all", "*", &[TEAM_A], 1)], Some("all"));
    }

    #[test]
    fn a_host_under_another_namespaces_needs_a_domain() {
        let wildcard = [claim("*.example.com", TEAM_A, "wild", "uid-1")];
        let ours = [claim("*.example.com", TEAM_B, "wild", "uid-1")];
        let host = "shop.example.com";
        let check = |domains: &[DomainRule], above: &[Claim], held, expected| {
            check(Situation { host, domains, above, held }, expected);
        };
        check(&[], &wildcard, false, under("*.example.com"));
        check(&[], &ours, false, None);
        check(&[], &wildcard, true, None);
        check(&[domain("d", "shop.example.com", &[TEAM_B], 1)], &wildcard, false, None);
        check(&[domain("d", "other.org", &[TEAM_B], 1)], &wildcard, false, under("*.example.com"));
    }
}
