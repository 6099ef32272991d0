//! Which gateways there are: each holds a Lease of its own in the system namespace.

use std::net::SocketAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

/// Annotation of a gateway's Lease: its [`GatewayPhase`], by name.
pub const PHASE: &str = "portolan.dev/gateway-phase";
/// Annotation of a gateway's Lease: where other gateways reach it, as `address:port`.
pub const PEER_ADDRESS: &str = "portolan.dev/peer-address";
/// Annotation of a gateway's Lease: SHA-256 digests, in hexadecimal and separated by commas, of the
/// certificates that it may show to other gateways and that these may expect of it.
pub const PEER_CERTIFICATES: &str = "portolan.dev/peer-certificates";

/// The name of the process that `started` in the Pod of a gateway. What an earlier process of the
/// Pod had on its way may still run in a sandbox, so slots are granted to this name.
pub fn instance(pod: &str, started: Timestamp) -> String {
    format!("{pod}.{:x}", started.as_millisecond())
}

/// The Pod of a process named by [`instance`].
pub fn pod_of(instance: &str) -> Option<&str> {
    instance.rsplit_once('.').map(|(pod, _)| pod)
}

/// How far a gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum GatewayPhase {
    /// It takes requests.
    Serving,
    /// It ends: it takes its last requests and finishes them. Switches still wait for it.
    Leaving,
    /// It has ended in order: nothing that it sent is running anywhere, and every slot that it held
    /// is free. Nobody waits for it.
    Left,
}

impl GatewayPhase {
    /// The annotation's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serving => "Serving",
            Self::Leaving => "Leaving",
            Self::Left => "Left",
        }
    }

    /// Reads the annotation's value; a gateway that says nothing, or nothing we know, serves.
    fn of(name: Option<&String>) -> Self {
        match name.map(String::as_str) {
            Some("Leaving") => Self::Leaving,
            Some("Left") => Self::Left,
            _ => Self::Serving,
        }
    }
}

/// A gateway, as its Lease tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Name of the gateway, which is that of its Pod, its Lease and its reports.
    pub name: String,
    /// The process: differs from that of every earlier process of the same Pod. Slots are granted
    /// to it, because what an earlier process had on its way is not this one's.
    pub instance: String,
    /// How far it is.
    pub phase: GatewayPhase,
    /// When it last renewed its Lease.
    pub renewed: Timestamp,
    /// How long the Lease holds from then on.
    pub duration: SignedDuration,
    /// Where other gateways reach it; `None`: nowhere.
    pub peer: Option<GatewayPeer>,
}

/// How other gateways reach one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPeer {
    /// Address of its Pod and the port for gateways.
    pub address: SocketAddr,
    /// SHA-256 digests of its certificates, in hexadecimal; at least one.
    pub certificates: Vec<String>,
}

impl Gateway {
    /// Label selector of the Leases of gateways.
    pub const SELECTOR: &str =
        "app.kubernetes.io/managed-by=portolan,app.kubernetes.io/component=gateway";

    /// The gateway that holds this Lease; `None` for a Lease that nobody has taken yet, or whose
    /// times are beyond the calendar, which only a forged one has.
    pub fn of(lease: Lease) -> Option<Self> {
        let annotations = lease.metadata.annotations.unwrap_or_default();
        let spec = lease.spec?;
        let name = lease.metadata.name?;
        let duration = SignedDuration::from_secs(spec.lease_duration_seconds?.max(0).into());
        let renewed = spec.renew_time?.0;
        renewed.checked_add(duration).ok()?;
        Some(Self {
            instance: spec.holder_identity.unwrap_or_else(|| name.clone()),
            phase: GatewayPhase::of(annotations.get(PHASE)),
            peer: peer(annotations.get(PEER_ADDRESS), annotations.get(PEER_CERTIFICATES)),
            renewed,
            duration,
            name,
        })
    }

    /// When its process started, by the clock of its node, in whole milliseconds; `None` if the
    /// name of the process does not tell, as [`instance`] makes it.
    pub fn started(&self) -> Option<Timestamp> {
        let time = self.instance.strip_prefix(&self.name)?.strip_prefix('.')?;
        Timestamp::from_millisecond(i64::from_str_radix(time, 16).ok()?).ok()
    }

    /// When the Lease lapses unless it is renewed. From then on the gateway's reports are not
    /// demand, and nobody waits for it.
    pub fn lapses(&self) -> Timestamp {
        self.renewed.saturating_add(self.duration).expect("checked when the Lease was read")
    }

    /// The same for a reader who has seen every change of Leases since `unbroken`, and not before:
    /// while the API server is away nobody can renew, so each gateway then gets its time anew.
    /// `None`: changes cannot be seen at present, so nothing lapses within one more duration.
    pub fn lapses_for(&self, unbroken: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let given = unbroken.unwrap_or(now).saturating_add(self.duration);
        given.map_or_else(|_| self.lapses(), |given| given.max(self.lapses()))
    }

    /// Whether `new` only renews `old` in time: the same process in the same phase. What does not
    /// is somebody's coming, leaving or return, and concerns whoever counts gateways.
    pub fn is_renewal(old: Option<&Self>, new: Option<&Self>) -> bool {
        let (Some(old), Some(new)) = (old, new) else { return false };
        old.instance == new.instance && old.phase == new.phase && new.renewed < old.lapses()
    }
}

fn peer(address: Option<&String>, certificates: Option<&String>) -> Option<GatewayPeer> {
    let certificates: Vec<String> =
        certificates?.split(',').filter(|digest| !digest.is_empty()).map(str::to_owned).collect();
    let address = address?.parse().ok()?;
    (!certificates.is_empty()).then_some(GatewayPeer { address, certificates })
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn gateway(renewed: i64) -> Gateway {
        Gateway {
            name: "gw-1".into(),
            instance: "gw-1.a".into(),
            phase: GatewayPhase::Serving,
            renewed: at(renewed),
            duration: SignedDuration::from_secs(15),
            peer: None,
        }
    }

    #[test]
    fn a_lease_tells_all_of_a_gateway() {
        let lease = from_value(json!({
            "metadata": { "name": "gw-1", "annotations": {
                PHASE: "Leaving", PEER_ADDRESS: "10.0.0.7:8444", PEER_CERTIFICATES: "aa,bb" } },
            "spec": { "holderIdentity": "gw-1.a", "leaseDurationSeconds": 15,
                "renewTime": "1970-01-01T00:01:40.000000Z" },
        }));
        let expected = Gateway {
            phase: GatewayPhase::Leaving,
            peer: Some(GatewayPeer {
                address: "10.0.0.7:8444".parse().unwrap(),
                certificates: vec!["aa".into(), "bb".into()],
            }),
            ..gateway(100)
        };
        assert_eq!(Gateway::of(lease.unwrap()), Some(expected));
    }

    #[test]
    fn the_name_of_a_process_tells_when_it_started() {
        let started =
            |instance: &str| Gateway { instance: instance.into(), ..gateway(100) }.started();
        assert_eq!(started(&instance("gw-1", at(7))), Some(at(7)));
        for strange in ["gw-1", "gw-1.", "gw-1.x", "gw-2.ff", "gw-1.ffffffffffffffff"] {
            assert_eq!(started(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_lease_that_nobody_took_is_no_gateway() {
        let lease = from_value(json!({ "metadata": { "name": "gw-1" }, "spec": {} }));
        assert_eq!(Gateway::of(lease.unwrap()), None);
    }

    #[test]
    fn a_lease_lapses_after_its_duration() {
        assert_eq!(gateway(100).lapses(), at(115));
    }

    #[test]
    fn nothing_lapses_while_renewals_cannot_be_seen() {
        assert_eq!(gateway(100).lapses_for(Some(at(50)), at(110)), at(115));
        assert_eq!(gateway(100).lapses_for(Some(at(400)), at(401)), at(415));
        assert_eq!(gateway(100).lapses_for(None, at(401)), at(416));
    }

    #[test]
    fn only_the_same_process_in_the_same_phase_renews() {
        let first = gateway(100);
        let later = |change: fn(&mut Gateway)| {
            let mut new = gateway(104);
            change(&mut new);
            Gateway::is_renewal(Some(&first), Some(&new))
        };
        assert!(later(|_| {}));
        assert!(!later(|new| new.instance = "gw-1.b".into()));
        assert!(!later(|new| new.phase = GatewayPhase::Left));
        assert!(!later(|new| new.renewed = at(115)), "it had lapsed");
        assert!(!Gateway::is_renewal(None, Some(&first)));
        assert!(!Gateway::is_renewal(Some(&first), None));
    }
}
