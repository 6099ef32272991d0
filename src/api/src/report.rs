//! `GatewayReport`: what one gateway sees.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which part of a gateway's report an object holds, so that a change of demand does not rewrite
/// what rarely changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReportShard {
    /// Requests queued and running.
    Demand,
    /// Epochs followed, certificates that could not be used, and gateways that have ended.
    State,
}

/// What one gateway sees: raw counts, no decisions. Written by that gateway alone, owned by its
/// Pod, so it goes when the gateway goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "GatewayReport",
    namespaced,
    shortname = "gwr",
    category = "portolan",
    derive = "PartialEq",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gateway"),
    printcolumn(name = "Shard", type_ = "string", json_path = ".spec.shard"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GatewayReportSpec {
    /// The gateway: the name of its Pod, which is also the name of its Lease.
    #[schemars(length(min = 1, max = 253))]
    pub gateway: String,
    /// Which part this object holds.
    pub shard: ReportShard,
    /// Pools with requests, or with one less than a scale-down delay ago.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16384))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub pools: Vec<PoolReport>,
    /// Apps whose activation has not settled, and the epoch that this gateway follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16384))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub epochs: Vec<EpochReport>,
    /// Certificates that this gateway could not use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16384))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub certificates: Vec<CertificateReport>,
    /// Processes of other gateways that were linked to this one, and where nobody listens any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 320)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub unheard: Vec<String>,
}

/// The requests of one pool in one gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolReport {
    /// Namespace of the pool.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the pool.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Requests that wait for a sandbox.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queued: i64,
    /// Requests, streams and connections that a sandbox is serving.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub running: i64,
    /// When the last request ended, rounded to a quarter of the pool's scale-down delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<MicroTime>,
    /// Sandboxes that drain, with what still runs on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub draining: Vec<DrainReport>,
    /// Names of the Pods that this gateway sends no request to any more, because a response on them
    /// did not end in time or was lost with another gateway: under `Strict` only a new sandbox can
    /// keep the promise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub retired: Vec<String>,
}

/// One draining sandbox in one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainReport {
    /// Name of the Pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// The epoch of the drain mark that this gateway follows.
    pub epoch: i64,
    /// Requests still running on it.
    pub running: i64,
}

/// The epoch of an App that one gateway follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochReport {
    /// Namespace of the App.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the App.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The epoch.
    pub epoch: i64,
}

/// A certificate that one gateway could not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateReport {
    /// Namespace of the Secret.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    pub name: String,
    /// A reason of the Route's `CertificateReady` condition.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// What to do.
    #[schemars(length(max = 4096))]
    pub message: String,
}

fn is_zero(count: &i64) -> bool {
    *count == 0
}
