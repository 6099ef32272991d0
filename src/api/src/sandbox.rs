//! What runs in a sandbox: the resolved container, its ports, and the parts of a Pod template
//! that belong to the user.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvVar, HostAlias, LocalObjectReference, PodDNSConfig, PodSecurityContext,
    Probe, ResourceRequirements, SecurityContext, Toleration, TopologySpreadConstraint, Volume,
    VolumeMount,
};
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{is_name, no_own_keys, quantities, rule, string_map};

/// What a port speaks. The transport follows from it: `udp` is UDP, all others are TCP.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PortType {
    /// HTTP: reached through routes, wakes a sleeping service.
    #[default]
    Http,
    /// Any protocol over TCP.
    Tcp,
    /// Any protocol over UDP.
    Udp,
}

impl PortType {
    /// The Kubernetes transport name.
    pub fn transport(self) -> &'static str {
        match self {
            Self::Http | Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// How the gateway speaks to an http port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AppProtocol {
    /// HTTP/1.1 (gRPC requests still go over HTTP/2).
    #[serde(rename = "http")]
    Http,
    /// HTTP/2 without TLS, with prior knowledge: gRPC servers and the like.
    #[serde(rename = "kubernetes.io/h2c")]
    H2c,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule(
    "!has(self.appProtocol) || self.type == 'http'",
    "appProtocol applies to ports of type http only; remove it or set type: http",
))]
pub struct Port {
    /// Name of the port, unique within the service: lower-case letters, digits and hyphens.
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = is_name())]
    pub name: String,
    /// The number that the program listens on, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// What the port speaks: `http`, `tcp` or `udp`. Default `http`.
    #[serde(default)]
    #[schemars(default)]
    pub r#type: PortType,
    /// A port to open on every node, 1 to 65535. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<i32>,
    /// How the gateway speaks to an http port: `http` (HTTP/1.1, the default) or
    /// `kubernetes.io/h2c` (HTTP/2 without TLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AppProtocol")]
    pub app_protocol: Option<AppProtocol>,
}

/// A port as the sandbox has it: what is left of [`Port`] when node ports are taken out, because
/// opening a node port restarts nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPort {
    /// Name of the port, unique within the sandbox.
    #[schemars(length(max = 15))]
    pub name: String,
    /// The number that the program listens on.
    pub port: i32,
    /// What the port speaks.
    pub r#type: PortType,
    /// How the gateway speaks to an http port. Absent: HTTP/1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<AppProtocol>,
}

/// One sandbox, fully resolved: nothing in here has a default left to be filled in by a later
/// version of Portolan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// Container image.
    #[schemars(length(max = 1024))]
    pub image: String,
    /// Entry point; empty: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 8192)))]
    pub command: Vec<String>,
    /// Arguments; empty: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 8192)))]
    pub args: Vec<String>,
    /// Working directory. Absent: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub working_dir: Option<String>,
    /// Environment, in order: the App's, then the service's. `PORT` is not in here, it follows
    /// from `ports`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub env: Vec<EnvVar>,
    /// Ports in the user's order; empty: the program serves nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ports: Vec<SandboxPort>,
    /// Readiness probe. Absent: ready once started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// Liveness probe. Absent: alive while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Startup probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// Seconds between SIGTERM and SIGKILL.
    pub termination_grace_seconds: i64,
    /// Seconds after its start within which the program must listen; later, the condition says
    /// `NotListening`.
    pub listen_timeout_seconds: i64,
    /// The user's parts of the Pod template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<SandboxTemplate>,
    /// Set by `spec.restartedAt` of the App: a new value is a new sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restarted_at: Option<String>,
}

impl SandboxSpec {
    /// The port that `PORT` names: the first http port, else the first.
    pub fn main_port(&self) -> Option<&SandboxPort> {
        self.http_port().or_else(|| self.ports.first())
    }

    /// The port that routes reach: the first of type http.
    pub fn http_port(&self) -> Option<&SandboxPort> {
        self.ports.iter().find(|port| port.r#type == PortType::Http)
    }

    /// The first port that takes connections, which a derived probe dials.
    pub fn stream_port(&self) -> Option<&SandboxPort> {
        self.ports.iter().find(|port| port.r#type != PortType::Udp)
    }
}

/// The parts of a Pod template that belong to the user. What Portolan owns is refused by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule(
    "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && \
     self.volumes.exists(v, v.name == m.name))",
    "every volumeMount names a volume of template.volumes; add the volume or correct the name",
))]
pub struct SandboxTemplate {
    /// Labels to add to the Pod. Keys under `portolan.dev/` are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "string_map::<32, 63>")]
    #[x_kube(validation = no_own_keys())]
    pub labels: BTreeMap<String, String>,
    /// Annotations to add to the Pod. Keys under `portolan.dev/` are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "string_map::<32, 4096>")]
    #[x_kube(validation = no_own_keys())]
    pub annotations: BTreeMap<String, String>,
    /// Requests and limits of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = quantities("limits"), validation = quantities("requests"))]
    pub resources: Option<ResourceRequirements>,
    /// Volumes of the Pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volumes: Vec<Volume>,
    /// Where the container mounts the volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["mountPath".into()]))]
    pub volume_mounts: Vec<VolumeMount>,
    /// Containers that run to completion first, or beside the program (`restartPolicy: Always`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = rule(
        "self.all(c, has(c.image))",
        "every init container names its image",
    ))]
    pub init_containers: Vec<Container>,
    /// Service account. Its token is mounted only when this is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service_account_name: Option<String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "string_map::<32, 63>")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints to tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Node and Pod affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Spread over zones or nodes. Absent: over nodes, as far as possible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Security context of the Pod; what it does not say keeps the restricted default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<PodSecurityContext>,
    /// Security context of the container; what it does not say keeps the restricted default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_security_context: Option<SecurityContext>,
    /// Secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Runtime class, for gVisor, Kata and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub runtime_class_name: Option<String>,
    /// Priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// Entries for /etc/hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["ip".into()]))]
    pub host_aliases: Vec<HostAlias>,
    /// DNS options of the Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<PodDNSConfig>,
}
