//! Which other gateways live, by their Leases. Pure: time is an argument.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use portolan_api::{Gateway, GatewayPhase};

use crate::lending::PeerEnd;

/// Another gateway that lives and can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) certificates: Vec<String>,
    /// It takes visitors: it does not leave.
    pub(crate) serves: bool,
}

/// The other gateways that live and can be reached, by instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    peers: BTreeMap<Arc<str>, Peer>,
}

impl Roster {
    #[cfg(test)]
    pub(crate) fn of(peers: impl IntoIterator<Item = (Arc<str>, Peer)>) -> Self {
        Self { peers: peers.into_iter().collect() }
    }

    pub(crate) fn get(&self, instance: &str) -> Option<&Peer> {
        self.peers.get(instance)
    }

    /// In the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Peer)> {
        self.peers.iter()
    }

    /// Whether any of them shows this certificate.
    pub(crate) fn knows(&self, digest: &str) -> bool {
        self.peers.values().any(|peer| peer.shows(digest))
    }

    /// The instance's own name if it shows this certificate.
    pub(crate) fn verify(&self, instance: &str, digest: &str) -> Option<Arc<str>> {
        let (name, peer) = self.peers.get_key_value(instance)?;
        peer.shows(digest).then(|| Arc::clone(name))
    }
}

impl Peer {
    pub(crate) fn shows(&self, digest: &str) -> bool {
        self.certificates.iter().any(|shown| shown == digest)
    }
}

/// What a look at the Leases found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) roster: Roster,
    /// Gateways that were seen alive and have ended since, each once.
    pub(crate) ended: Vec<(Arc<str>, PeerEnd)>,
    /// When to look again though nothing has changed: the next Lease lapses then.
    pub(crate) look_again: Option<Timestamp>,
}

/// Whom this gateway has seen alive.
#[derive(Debug)]
pub(crate) struct Census {
    /// Our own Pod's name: an earlier process of it is not a peer.
    own: String,
    alive: BTreeMap<Arc<str>, String>,
}

impl Census {
    pub(crate) fn new(own: String) -> Self {
        Self { own, alive: BTreeMap::new() }
    }

    /// Looks at all `gateways` at `now`. `unbroken`: since when no change can have been missed.
    pub(crate) fn look(
        &mut self,
        gateways: &[Arc<Gateway>],
        unbroken: Option<Timestamp>,
        now: Timestamp,
    ) -> Seen {
        let (mut roster, mut alive) = (Roster::default(), BTreeMap::new());
        let mut look_again: Option<Timestamp> = None;
        for gateway in gateways.iter().filter(|gateway| gateway.name != self.own) {
            let lapses = gateway.lapses_for(unbroken, now);
            if gateway.phase == GatewayPhase::Left || lapses <= now {
                continue;
            }
            look_again = Some(look_again.map_or(lapses, |other| other.min(lapses)));
            let instance: Arc<str> = gateway.instance.as_str().into();
            alive.insert(Arc::clone(&instance), gateway.name.clone());
            if let Some(peer) = &gateway.peer {
                let (address, certificates) = (peer.address, peer.certificates.clone());
                let serves = gateway.phase == GatewayPhase::Serving;
                roster.peers.insert(instance, Peer { address, certificates, serves });
            }
        }
        let before = std::mem::replace(&mut self.alive, alive);
        let ended = before.into_keys().filter(|instance| !self.alive.contains_key(instance));
        let ended = ended.map(|instance| {
            let left = |gateway: &Arc<Gateway>| {
                gateway.instance == *instance && gateway.phase == GatewayPhase::Left
            };
            let end = match gateways.iter().any(left) {
                true => PeerEnd::Left,
                false => PeerEnd::Lost,
            };
            (instance, end)
        });
        Seen { ended: ended.collect(), roster, look_again }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use portolan_api::GatewayPeer;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn gateway(name: &str, process: u32, renewed: i64) -> Gateway {
        Gateway {
            name: name.into(),
            instance: format!("{name}.{process}"),
            phase: GatewayPhase::Serving,
            renewed: at(renewed),
            duration: SignedDuration::from_secs(15),
            peer: Some(GatewayPeer {
                address: "10.0.0.7:8444".parse().unwrap(),
                certificates: vec![format!("{name}-digest")],
            }),
        }
    }

    /// Looks at `before` at second 100 and at `after` at second `now`.
    #[track_caller]
    fn check(after: &[Gateway], now: i64, unbroken: Option<i64>, names: &[&str], ends: &[PeerEnd]) {
        let arcs =
            |gateways: &[Gateway]| gateways.iter().cloned().map(Arc::new).collect::<Vec<_>>();
        let mut census = Census::new("own".into());
        let before = [gateway("own", 1, 100), gateway("other", 1, 100)];
        let seen = census.look(&arcs(&before), Some(at(0)), at(100));
        assert_eq!(seen.roster.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["other.1"]);
        assert_eq!((seen.ended, seen.look_again), (Vec::new(), Some(at(115))));
        let seen = census.look(&arcs(after), unbroken.map(at), at(now));
        assert_eq!(seen.roster.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), names);
        assert!(seen.ended.iter().all(|(name, _)| &**name == "other.1"), "{:?}", seen.ended);
        assert_eq!(seen.ended.iter().map(|(_, end)| *end).collect::<Vec<_>>(), ends);
        let again = census.look(&arcs(after), unbroken.map(at), at(now));
        assert_eq!(again.ended, [], "an end is told once");
    }

    #[test]
    fn peers_are_those_that_live() {
        let (own, other) = (gateway("own", 1, 104), gateway("other", 1, 104));
        let phase = |phase| Gateway { phase, ..other.clone() };
        let all = |other: Gateway| [own.clone(), other];
        let intact = Some(0);
        check(&all(other.clone()), 104, intact, &["other.1"], &[]);
        check(&all(phase(GatewayPhase::Leaving)), 104, intact, &["other.1"], &[]);
        check(&all(phase(GatewayPhase::Left)), 104, intact, &[], &[PeerEnd::Left]);
        check(&all(gateway("other", 2, 104)), 104, intact, &["other.2"], &[PeerEnd::Lost]);
        check(std::slice::from_ref(&own), 104, intact, &[], &[PeerEnd::Lost]);
        check(&all(other.clone()), 118, intact, &["other.1"], &[]);
        check(&all(other.clone()), 119, intact, &[], &[PeerEnd::Lost]);
        // Nobody could renew, or nobody could see it.
        check(&all(other.clone()), 119, None, &["other.1"], &[]);
        check(&all(other), 119, Some(110), &["other.1"], &[]);
    }

    #[test]
    fn one_that_shows_no_address_is_counted_and_not_reached() {
        let silent = Gateway { peer: None, ..gateway("other", 1, 104) };
        check(&[silent], 104, Some(0), &[], &[]);
    }

    #[test]
    fn a_certificate_counts_for_whom_it_is_shown_by() {
        let peer = |digest: &str| Peer {
            address: "10.0.0.7:8444".parse().unwrap(),
            certificates: vec![digest.into()],
            serves: true,
        };
        let roster = Roster::of([("a.1".into(), peer("aa")), ("b.1".into(), peer("bb"))]);
        assert!(roster.knows("aa") && !roster.knows("cc"));
        assert_eq!(roster.verify("a.1", "aa").as_deref(), Some("a.1"));
        assert_eq!(roster.verify("a.1", "bb"), None);
        assert_eq!(roster.verify("c.1", "aa"), None);
    }
}
