//! `NodeReport`: what the agent of one node can do, and what is in the way of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sandbox::PortType;

/// What the agent of one node can do and what it found there. Written by that agent alone, named
/// like its Node and owned by it, so it goes when the Node goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "NodeReport",
    shortname = "nr",
    category = "portolan",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".spec.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".spec.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".spec.kernel"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".spec.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportSpec {
    /// The kernel's release, as `uname -r` says it.
    #[schemars(length(max = 128))]
    pub kernel: String,
    /// What the kernel can do of what the agent can use, by name, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    pub features: Vec<String>,
    /// The node's addresses at which node ports answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 45)))]
    pub addresses: Vec<String>,
    /// Ports that a process of the host listens on, sorted: node ports that nobody gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub listening: Vec<ListeningPort>,
    /// `Ready`: whether the kernel forwards what it should.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A port that a process of the host listens on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct ListeningPort {
    /// The port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Over which transport.
    pub transport: Transport,
}

/// A transport, by the name that Kubernetes gives it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<PortType> for Transport {
    fn from(port: PortType) -> Self {
        match port {
            PortType::Http | PortType::Tcp => Self::Tcp,
            PortType::Udp => Self::Udp,
        }
    }
}
