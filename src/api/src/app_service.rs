//! `AppService`: the stable L4 name of a service.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::{READY, reason};
use crate::node_report::Transport;
use crate::sandbox::PortType;

/// How a client of an L4 port finds its sandbox again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SessionAffinity {
    /// It does not: each connection goes to any sandbox.
    #[default]
    None,
    /// By its source address, as long as the sandbox is there.
    ClientIP,
}

/// A service's stable address: all its ports, those of type http too, on one virtual address and,
/// where asked for, on every node. Made by Portolan for each service that has a port which is not
/// http, or a node port; named `<app>-<service>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "AppService",
    namespaced,
    status = "AppServiceStatus",
    shortname = "asvc",
    category = "portolan",
    derive = "PartialEq",
    validation = Rule::new("self.spec.app == oldSelf.spec.app && self.spec.service == oldSelf.spec.service")
        .message("app and service of an AppService never change; delete it, and another is made"),
    printcolumn(name = "App", type_ = "string", json_path = ".spec.app"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(name = "Cluster-IP", type_ = "string", json_path = ".status.clusterIPs[0]"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".status.portSummary"),
    printcolumn(name = "Endpoints", type_ = "integer", json_path = ".status.readyEndpoints"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AppServiceSpec {
    /// The App.
    #[schemars(length(min = 1, max = 63))]
    pub app: String,
    /// The service.
    #[schemars(length(min = 1, max = 63))]
    pub service: String,
    /// The pool whose ready sandboxes are the endpoints: the active version's. Absent: no version
    /// is active yet, and connections are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub pool: Option<String>,
    /// Its ports, at least one, unique by name and by number and transport.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub ports: Vec<AppServicePort>,
    /// How a client finds its sandbox again. Absent: `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<SessionAffinity>,
}

impl AppService {
    /// How many sandboxes, of each family of addresses, a node leads to behind one port. What an
    /// agent can program; one that could do another number would not compile.
    pub const ENDPOINTS_LED_MAX: usize = 256;

    /// The condition `Ready`, once the service controller has set it.
    pub fn ready(&self) -> Option<&Condition> {
        let conditions = &self.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.type_ == READY)
    }

    /// Its own word for what is wrong with it: a reason of the documented list, and the message.
    /// `None` while it is well or nobody has looked.
    pub fn failure(&self) -> Option<(&'static str, &str)> {
        let ready = self.ready().filter(|condition| condition.status == "False")?;
        let reason = reason::ALL.iter().copied().find(|known| *known == ready.reason)?;
        Some((reason, &ready.message))
    }

    /// Whether its status speaks of its spec as it is now.
    pub fn is_current(&self) -> bool {
        let observed = self.status.as_ref().and_then(|status| status.observed_generation);
        observed.is_some() && observed == self.metadata.generation
    }
}

impl AppServiceSpec {
    /// Its ports in one line, as [`AppServiceStatus::port_summary`] says them: a column of
    /// `kubectl get` shows only the first of several values.
    pub fn port_summary(&self, held: &[HeldNodePort]) -> String {
        let text = |port: &AppServicePort| {
            let node_port = held.iter().find(|held| held.name == port.name);
            let node_port = node_port.map(|held| format!(":{}", held.port)).unwrap_or_default();
            format!("{}{node_port}/{}", port.port, port.r#type.transport())
        };
        self.ports.iter().map(text).collect::<Vec<_>>().join(",")
    }
}

/// A port of an [`AppService`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppServicePort {
    /// Name of the port.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// The port of the virtual address.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// What it speaks; the transport follows from it.
    pub r#type: PortType,
    /// The port that the sandbox listens on.
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: i32,
    /// A port to open on every node. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
}

/// What the service controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppServiceStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The virtual addresses, one of each family that the cluster's Services have. Empty: none is
    /// allocated yet.
    #[serde(default, rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 45)))]
    pub cluster_ips: Vec<String>,
    /// The node ports that this AppService holds. Node agents open these, and no others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub node_ports: Vec<HeldNodePort>,
    /// Its ports in one line, for people: `6667/TCP,6697:6697/TCP`, with the node port that is
    /// held after the colon.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 255))]
    pub port_summary: String,
    /// How many sandboxes take connections.
    #[serde(default)]
    pub ready_endpoints: i32,
    /// `Ready`, and `NodePortsExclusive` if something else came to a node port that is held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A node port that an [`AppService`] holds by its Claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldNodePort {
    /// Name of the AppService's port.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// The port on every node.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Its transport. Absent: a former release wrote it, which did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
}

impl HeldNodePort {
    /// Whether it is the node port that a port of the spec asks for. What it asked for before is
    /// held a moment longer than it is asked for.
    pub fn is_of(&self, port: &AppServicePort) -> bool {
        let transport = port.r#type.into();
        self.name == port.name
            && Some(self.port) == port.node_port
            && self.transport.is_none_or(|held| held == transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_in_one_line() {
        let port = |name: &str, port, r#type| AppServicePort {
            name: name.into(),
            port,
            r#type,
            target_port: port,
            node_port: Some(port + 1),
        };
        let spec = AppServiceSpec {
            app: "chat".into(),
            service: "irc".into(),
            pool: None,
            ports: vec![port("irc", 6667, PortType::Tcp), port("dns", 53, PortType::Udp)],
            session_affinity: None,
        };
        let held = [HeldNodePort { name: "irc".into(), port: 6668, transport: None }];
        assert_eq!(spec.port_summary(&held), "6667:6668/TCP,53/UDP");
    }

    #[test]
    fn what_is_held_is_known_by_all_that_is_asked_for() {
        let asked = |name: &str, node_port| AppServicePort {
            name: name.into(),
            port: 53,
            r#type: PortType::Udp,
            target_port: 53,
            node_port,
        };
        let port = asked("dns", Some(53));
        let held = |port, transport| HeldNodePort { name: "dns".into(), port, transport };
        assert!(held(53, Some(Transport::Udp)).is_of(&port));
        assert!(held(53, None).is_of(&port), "a former release said no more");
        assert!(!held(53, Some(Transport::Tcp)).is_of(&port));
        assert!(!held(54, Some(Transport::Udp)).is_of(&port));
        assert!(!held(53, Some(Transport::Udp)).is_of(&asked("dns", None)));
        assert!(!held(53, Some(Transport::Udp)).is_of(&asked("names", Some(53))));
    }
}
