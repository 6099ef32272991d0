//! `AppVersion`: one immutable, fully resolved configuration of an App.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::app_service::SessionAffinity;
use crate::conditions::{READY, reason};
use crate::pool::PoolScale;
use crate::sandbox::{Port, PortType, SandboxSpec};

/// One immutable configuration of an App, with all defaults resolved. Its name follows from its
/// content, so the same manifest always leads to the same version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "AppVersion",
    namespaced,
    status = "AppVersionStatus",
    shortname = "av",
    category = "portolan",
    derive = "PartialEq",
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("an AppVersion never changes; change the App, and a new version is made"),
    printcolumn(name = "App", type_ = "string", json_path = ".spec.app"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.services[0].sandbox.image"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AppVersionSpec {
    /// The App.
    #[schemars(length(min = 1, max = 63))]
    pub app: String,
    /// Which canonical form `digest` was computed over.
    pub hash_version: i32,
    /// SHA-256 of the user's canonical input, in hexadecimal. The name carries a part of it.
    #[schemars(length(min = 64, max = 64))]
    pub digest: String,
    /// The services, by name, in the order of their names.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub services: Vec<VersionService>,
}

/// One service of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionService {
    /// Name of the service.
    #[schemars(length(max = 63))]
    pub name: String,
    /// What its sandboxes run. Its digest names the pool, so versions with equal sandboxes share
    /// one.
    pub sandbox: SandboxSpec,
    /// How it scales while this version is the active one.
    pub scale: PoolScale,
    /// Its ports with their node ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ports: Vec<Port>,
    /// How a client that comes other than through routes finds its sandbox again. Absent: `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SessionAffinity")]
    pub session_affinity: Option<SessionAffinity>,
}

impl VersionService {
    /// Whether traffic may reach the service other than through routes: it has a port that is not
    /// http, or a node port.
    pub fn has_l4(&self) -> bool {
        self.ports.iter().any(|port| port.r#type != PortType::Http || port.node_port.is_some())
    }

    /// Whether the service may sleep: all that may reach it wakes it, and something may. A worker
    /// without ports would sleep for ever.
    pub fn can_sleep(&self) -> bool {
        !self.has_l4() && self.ports.iter().any(|port| port.r#type == PortType::Http)
    }
}

impl AppVersion {
    /// Whether its controller's last word was that it serves or has served. A version that is
    /// verified again says otherwise for a while, and counts as new until it serves.
    pub fn has_served(&self) -> bool {
        let conditions = self.status.iter().flat_map(|status| &status.conditions);
        let mut ready = conditions.filter(|condition| condition.type_ == READY);
        ready.any(|ready| [reason::ACTIVE, reason::REPLACED].contains(&ready.reason.as_str()))
    }
}

/// What the version controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppVersionStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, with reason `Active`, `Verified`, `Verifying`, `Waiting`, `Replaced`, `Superseded` or
    /// why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
