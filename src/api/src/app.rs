//! `App`: what a team applies.

use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::{EnvVar, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::app_service::SessionAffinity;
use crate::sandbox::{Port, PortType, SandboxTemplate};
use crate::schema::{
    distinct_node_ports, distinct_node_ports_of_services, distinct_ports, env_name, env_port,
    env_prefix, env_value, is_name, probe_handler, probe_port, rule, session_affinity,
};

/// An application: one image or several, its services, and how they scale. Applying it makes an
/// immutable `AppVersion`; applying an old manifest again is the rollback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "App",
    namespaced,
    status = "AppStatus",
    shortname = "papp",
    category = "portolan",
    derive = "PartialEq",
    validation = rule(
        "self.metadata.name.size() <= 40",
        "metadata.name of an App has at most 40 characters, because other names are made from it; shorten it",
    ),
    validation = rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name of an App is made of lower-case letters, digits and hyphens, starts with a letter and does not end with a hyphen",
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.activeVersion"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Pinned", type_ = "string", json_path = ".spec.version", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule(
    "self.services.all(s, has(s.image) || has(self.image))",
    "an image is missing: set spec.image, or an image on every service",
))]
#[x_kube(validation = distinct_node_ports_of_services())]
pub struct AppSpec {
    /// Container image of every service that does not name its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Environment of every service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = env_port(), validation = env_prefix())]
    #[x_kube(validation = env_name(), validation = env_value())]
    pub env: Vec<EnvVar>,
    /// The services, by name.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub services: Vec<ServiceSpec>,
    /// Pins an existing version of this App; while it is set, changes to the rest are not rolled
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub version: Option<String>,
    /// A new value here restarts all sandboxes by a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "legible")]
    #[schemars(regex(pattern = RESTARTED_AT))]
    pub restarted_at: Option<Time>,
    /// How many inactive versions to keep. Default 10.
    #[serde(default = "default_revision_history_limit")]
    #[schemars(range(min = 0, max = 100))]
    pub revision_history_limit: i32,
    /// Seconds a new version may take to become ready before `Progressing` says so. Default 600.
    #[serde(default = "default_progress_deadline")]
    #[schemars(range(min = 1, max = 86400))]
    pub progress_deadline_seconds: i32,
    /// Limits for previews of this App.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralPolicy>,
}

/// A time as every library reads it, in the years from 1000 to 2999: the API server by itself takes
/// some that are beyond what can be written, as `0000-01-01T00:00:00+01:00`.
const RESTARTED_AT: &str = "^[12][0-9]{3}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}\
    (\\.[0-9]{1,9})?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

/// Refuses what was stored before the schema did, and cannot be read again once it was written.
fn legible<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let time = Option::<Time>::deserialize(deserializer)?;
    let is_legible = |time: &Time| (1000..=3000).contains(&time.0.to_zoned(TimeZone::UTC).year());
    match time {
        Some(time) if !is_legible(&time) => Err(D::Error::custom("a time in no usual year")),
        time => Ok(time),
    }
}

fn default_revision_history_limit() -> i32 {
    10
}

fn default_progress_deadline() -> i32 {
    600
}

/// One service of an App: a program, its ports, and how many sandboxes run it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule(
    "!(has(self.ports) && self.ports.size() > 0 && \
     (has(self.port) || has(self.portName) || has(self.portType)))",
    "ports and the single-port shorthand (port, portName, portType) exclude each other; use one of them",
))]
#[x_kube(validation = rule(
    "has(self.port) || (!has(self.portName) && !has(self.portType))",
    "portName and portType belong to port; set port, or use ports",
))]
#[x_kube(validation = rule(
    "!has(self.scale) || has(self.scale.mode) || self.name == 'web' || \
     (!has(self.scale.requestsPerInstance) && !has(self.scale.scaleDownDelaySeconds) && \
     !has(self.scale.min) && !has(self.scale.max))",
    "requestsPerInstance, scaleDownDelaySeconds, min and max need scale.mode: Auto (only the service 'web' is Auto by itself)",
))]
#[x_kube(validation = rule(
    "!has(self.scale) || has(self.scale.mode) || self.name != 'web' || !has(self.scale.instances)",
    "instances needs scale.mode: Fixed (the service 'web' is Auto by itself)",
))]
#[x_kube(validation = probe_port("readiness"))]
#[x_kube(validation = probe_port("liveness"))]
#[x_kube(validation = probe_port("startup"))]
#[x_kube(validation = session_affinity())]
pub struct ServiceSpec {
    /// Name, unique within the App: lower-case letters, digits and hyphens, at most 20.
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = is_name())]
    pub name: String,
    /// Container image. Absent: the App's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Entry point, not run in a shell. Absent: the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 8192)))]
    pub command: Vec<String>,
    /// Arguments to the entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 8192)))]
    pub args: Vec<String>,
    /// Working directory. Absent: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub working_dir: Option<String>,
    /// Environment, added to the App's; the same name here wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = env_port(), validation = env_prefix())]
    #[x_kube(validation = env_name(), validation = env_value())]
    pub env: Vec<EnvVar>,
    /// Single-port shorthand: the number of the only port. A service named `web` that declares no
    /// port has 3000/http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Single-port shorthand: the name of the port. Default: its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = is_name())]
    pub port_name: Option<String>,
    /// Single-port shorthand: `http` (default), `tcp` or `udp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PortType")]
    pub port_type: Option<PortType>,
    /// The ports, by name; the first http port is the one that routes reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = distinct_ports(), validation = distinct_node_ports())]
    pub ports: Vec<Port>,
    /// How a client of a tcp or udp port, or of a node port, finds its sandbox again: `None`
    /// (default: any sandbox) or `ClientIP` (by its address). Routes do not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SessionAffinity")]
    pub session_affinity: Option<SessionAffinity>,
    /// How many sandboxes run. Absent: `web` is Auto (10 requests an instance, asleep after 15
    /// minutes), any other service is Fixed with 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleSpec>,
    /// Probes. Absent: ready when the first http or tcp port accepts a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Seconds after its start within which the program must listen, or pass its readiness or
    /// startup probe, before the condition says `NotListening` or `ProbeFailing` and visitors who
    /// wait for it get 503. A startup probe has as long as it may fail. Default 15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub listen_timeout_seconds: Option<i32>,
    /// Seconds between SIGTERM and SIGKILL. Default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub termination_grace_period_seconds: Option<i32>,
    /// The parts of the Pod template that are yours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<SandboxTemplate>,
}

/// Probes of a service, in the form of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// When a sandbox may get requests. Absent: a TCP connection to the first http or tcp port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = probe_handler())]
    pub readiness: Option<Probe>,
    /// When a sandbox is restarted. Absent: only when it exits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = probe_handler())]
    pub liveness: Option<Probe>,
    /// Holds the other probes back until the program has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = probe_handler())]
    pub startup: Option<Probe>,
}

/// Whether the number of sandboxes follows demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScaleMode {
    /// Follows the number of requests, down to `min`.
    Auto,
    /// Always `instances`.
    Fixed,
}

/// What `requestsPerInstance` promises when a gateway is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Concurrency {
    /// The slots of a lost gateway are given to the others at once.
    #[default]
    Soft,
    /// A sandbox whose slots cannot be proven free is replaced: never more at once.
    Strict,
}

/// How many sandboxes run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule(
    "!has(self.mode) || self.mode != 'Fixed' || has(self.instances)",
    "mode Fixed needs instances (1 or more)",
))]
#[x_kube(validation = rule(
    "!has(self.mode) || self.mode != 'Fixed' || (!has(self.requestsPerInstance) && \
     !has(self.scaleDownDelaySeconds) && !has(self.min) && !has(self.max))",
    "requestsPerInstance, scaleDownDelaySeconds, min and max apply to mode Auto; remove them or set mode: Auto",
))]
#[x_kube(validation = rule(
    "!has(self.mode) || self.mode != 'Auto' || !has(self.instances)",
    "instances applies to mode Fixed; use min and max, or set mode: Fixed",
))]
#[x_kube(validation = rule(
    "!has(self.min) || self.min <= (has(self.max) ? self.max : 20)",
    "min must not exceed max (20 when max is not set)",
))]
pub struct ScaleSpec {
    /// `Auto` or `Fixed`. Absent: Auto for the service `web`, else Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ScaleMode")]
    pub mode: Option<ScaleMode>,
    /// Auto: how many requests one sandbox takes at once. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub requests_per_instance: Option<i32>,
    /// Auto: seconds without a request after which sandboxes are stopped. Default 900.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub scale_down_delay_seconds: Option<i32>,
    /// Auto: least number of sandboxes. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub min: Option<i32>,
    /// Auto: greatest number of sandboxes. Default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max: Option<i32>,
    /// Fixed: the number of sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub instances: Option<i32>,
    /// What requestsPerInstance promises when a gateway is lost: `Soft` (default) or `Strict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Concurrency")]
    pub concurrency: Option<Concurrency>,
}

/// Limits for the previews of an App.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralPolicy {
    /// How many previews may exist at once. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub max: Option<i32>,
    /// Life of a preview that names none. Default 86400.
    #[serde(default, rename = "defaultTTLSeconds", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub default_ttl_seconds: Option<i32>,
}

/// Which version gateways serve. It changes in one write; `epoch` counts those writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Activation {
    /// Name of the `AppVersion`.
    #[schemars(length(max = 63))]
    pub version: String,
    /// Grows by one with each activation of this App.
    pub epoch: i64,
}

/// One service of the active version. How many sandboxes it has is said by its pool, so that
/// waking and sleeping do not rewrite the App.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Name of the service.
    #[schemars(length(max = 20))]
    pub name: String,
    /// The pool whose sandboxes serve it.
    #[schemars(length(max = 63))]
    pub pool: String,
}

/// What the app controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The version that the spec asks for; differs from the active one during a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub latest_version: Option<String>,
    /// When `latestVersion` last changed: the start of the progress deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_since: Option<Time>,
    /// The version that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub active_version: Option<String>,
    /// The switch that gateways follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// The last epoch that all live gateways have reported, or that of the first activation,
    /// which has nobody to wait for; until it equals `activation.epoch` the sandboxes of the
    /// version before stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_epoch: Option<i64>,
    /// Where the App answers, from its oldest ready Route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// The services of the active version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub services: Vec<ServiceStatus>,
    /// `Ready`, `Progressing`, `ServicesReady`, `RoutesReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
