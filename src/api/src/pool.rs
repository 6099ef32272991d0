//! `SandboxPool`: one sandbox template and how many.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::app::Concurrency;
use crate::sandbox::SandboxSpec;

/// What a pool is for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolRole {
    /// Serves: the active version uses it. Follows demand.
    Active,
    /// Is being verified: keeps `floor` sandboxes, gets no traffic.
    Candidate,
    /// No longer serves: drains to zero.
    Retired,
}

/// How a pool scales: what is left of the App's `scale` when its defaults are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolScale {
    /// Least number of sandboxes.
    pub min: i32,
    /// Greatest number of sandboxes.
    pub max: i32,
    /// How many requests one sandbox takes at once. Absent: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_instance: Option<i32>,
    /// Seconds without a request after which sandboxes are stopped. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down_delay_seconds: Option<i32>,
    /// What `requestsPerInstance` promises when a gateway is lost.
    pub concurrency: Concurrency,
}

/// One sandbox template and how many sandboxes run from it. Made by Portolan; every AppVersion
/// that uses it is an owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "SandboxPool",
    namespaced,
    status = "SandboxPoolStatus",
    shortname = "pool",
    category = "portolan",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("self.spec.app == oldSelf.spec.app && self.spec.service == oldSelf.spec.service && self.spec.sandbox == oldSelf.spec.sandbox")
        .message("app, service and sandbox of a pool never change; change the App, and a new pool is made"),
    printcolumn(name = "App", type_ = "string", json_path = ".spec.app"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPoolSpec {
    /// The App.
    #[schemars(length(min = 1, max = 63))]
    pub app: String,
    /// The service.
    #[schemars(length(min = 1, max = 63))]
    pub service: String,
    /// What each sandbox runs.
    pub sandbox: SandboxSpec,
    /// What the pool is for at the moment.
    pub role: PoolRole,
    /// How it scales while its role is Active.
    pub scale: PoolScale,
    /// Sandboxes to keep whatever the demand: the verification floor of a new version. Absent: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub floor: Option<i32>,
    /// How many sandboxes are wanted. Written by the pool controller alone; a new pool starts
    /// with one, which verifies it.
    #[serde(default = "default_replicas", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
}

impl SandboxPoolSpec {
    /// How many sandboxes are wanted; a pool that was never decided on starts with one.
    pub fn wanted(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }
}

/// In the schema, so that a new pool needs no second write; `Option`, so that whoever applies the
/// rest of the spec leaves the number to its owner by leaving it out.
fn default_replicas() -> Option<i32> {
    Some(1)
}

/// What the pool controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPoolStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many sandboxes exist that are not draining.
    #[serde(default)]
    pub replicas: i32,
    /// How many of them are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// How many more are draining: gateways send them nothing new and end what runs there.
    #[serde(default)]
    pub draining_replicas: i32,
    /// Label selector of the sandboxes, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,
    /// The greatest incarnation used in a Pod name, so that no name is used twice.
    #[serde(default)]
    pub incarnation: i64,
    /// When the pool last had a request, or was last told to serve. Asleep follows from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<Time>,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl SandboxPool {
    /// Whether a version that needs this pool may be activated: it is meant to serve, its
    /// controller has seen the latest spec, and it shows as many ready sandboxes as its floor
    /// asks, at least one.
    pub fn is_verified(&self) -> bool {
        let Some(status) = &self.status else { return false };
        self.spec.role != PoolRole::Retired
            && status.observed_generation == self.metadata.generation
            && status.ready_replicas >= self.spec.floor.unwrap_or(1).max(1)
    }

    /// Whether the object with this UID is among the owners.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
    }

    /// The condition `Ready`, once the pool controller has set it.
    pub fn ready(&self) -> Option<&Condition> {
        let conditions = &self.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.type_ == crate::conditions::READY)
    }

    /// The pool's own word for what is wrong with it: a reason of the documented list, and the
    /// message. `None` while it is well or on its way.
    pub fn failure(&self) -> Option<(&'static str, &str)> {
        let ready = self.ready().filter(|condition| condition.status == "False")?;
        let known = crate::conditions::reason::ALL.iter();
        let reason = known.copied().find(|known| *known == ready.reason)?;
        Some((reason, &ready.message))
    }
}
