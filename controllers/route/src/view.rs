//! What is kept of objects that other components own: small, and only what a decision needs.

use portolan_api::{App, CertificateReport, GatewayReport, PortType, ReportShard, resolve};
use portolan_reconcile::ObjectKey;
use serde::Serialize;

/// The services of an App, by name, and whether a Route can reach them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct AppServices {
    /// The App.
    pub(crate) key: ObjectKey,
    /// Each service in order, and whether it has an http port. A list, because a map takes room
    /// for eleven.
    pub(crate) has_http: Box<[(Box<str>, bool)]>,
}

impl AppServices {
    /// From what the spec asks for now: a Route to a service that the next version brings is
    /// resolved already, and becomes reachable with its activation.
    pub(crate) fn of(app: App) -> Option<Self> {
        let key = ObjectKey::of(&app);
        let version = resolve::resolve(&key.name, &app.spec);
        let has_http = version.services.into_iter().map(|service| {
            let http = service.ports.iter().any(|port| port.r#type == PortType::Http);
            (service.name.into(), http)
        });
        let mut has_http: Box<[_]> = has_http.collect();
        has_http.sort_unstable();
        Some(Self { has_http, key })
    }

    /// Whether this service has an http port; `None` if there is no such service.
    pub(crate) fn has_http(&self, service: &str) -> Option<bool> {
        self.has_http.iter().find(|(name, _)| **name == *service).map(|(_, http)| *http)
    }
}

/// The certificates that one gateway could not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CertificateProblems {
    /// The gateway: the name of its Lease.
    pub(crate) gateway: String,
    /// One entry for each Secret, in the gateway's order.
    pub(crate) certificates: Vec<CertificateReport>,
}

impl CertificateProblems {
    /// From the shard that holds them; nothing is kept of reports of demand.
    pub(crate) fn of(report: GatewayReport) -> Option<Self> {
        let spec = report.spec;
        (spec.shard == ReportShard::State)
            .then_some(Self { gateway: spec.gateway, certificates: spec.certificates })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn services_are_known_with_their_defaults() {
        let app: App = from_value(json!({
            "metadata": { "name": "shop", "namespace": "team-a" },
            "spec": { "image": "i", "services": [
                { "name": "web" },
                { "name": "worker" },
                { "name": "irc", "port": 6667, "portType": "tcp" },
                { "name": "mixed", "ports": [
                    { "name": "line", "port": 1, "type": "tcp" }, { "name": "site", "port": 2 } ] },
            ] },
        }))
        .unwrap();
        let known = AppServices::of(app).unwrap();
        let expected = [("irc", false), ("mixed", true), ("web", true), ("worker", false)];
        assert_eq!(known.key, ObjectKey::new("team-a", "shop"));
        assert_eq!(known.has_http, expected.map(|(name, http)| (name.into(), http)).into());
    }

    #[test]
    fn only_the_state_shard_is_kept() {
        let report = |shard: &str| -> GatewayReport {
            from_value(json!({
                "metadata": { "name": "gw-1" },
                "spec": { "gateway": "gw-1", "shard": shard, "certificates": [
                    { "namespace": "team-a", "name": "tls", "reason": "SecretNotFound", "message": "" } ] },
            }))
            .unwrap()
        };
        assert_eq!(CertificateProblems::of(report("Demand")), None);
        let kept = CertificateProblems::of(report("State")).unwrap();
        assert_eq!((kept.gateway.as_str(), kept.certificates.len()), ("gw-1", 1));
    }
}
