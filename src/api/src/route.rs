//! `Route`: host to service.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{DNS_NAME, is_name, is_object_name, rule};

/// Sends the requests for a host to a service of an App in the same namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "Route",
    namespaced,
    status = "RouteStatus",
    shortname = "rt",
    category = "portolan",
    derive = "PartialEq",
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "App", type_ = "string", json_path = ".spec.app"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rule(
    "self.host != '*' || !has(self.tls)",
    "the default route has no certificate of its own; remove tls, and set the gateway's default certificate in the chart",
))]
pub struct RouteSpec {
    /// The host: exact (`shop.example.com`), a wildcard for one label (`*.example.com`), or `*`
    /// for every host that no other Route names. Lower case.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rule(
        &format!("self == '*' || self.matches('^([*][.])?{DNS_NAME}$')"),
        "host must be a lower-case DNS name without a dot at its end, '*.' and a DNS name of at \
         least two labels, or '*' for the default route; no scheme, port or path",
    ))]
    #[x_kube(validation = rule(
        "!self.startsWith('*.') || self.matches('^[*][.][^.]+[.].+$')",
        "a wildcard host needs at least two labels after '*.'",
    ))]
    #[x_kube(validation = rule(
        "!isIP(self)",
        "host must be a name, not an IP address; use '*' to answer on the gateway's addresses",
    ))]
    pub host: String,
    /// The App, in the same namespace.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = is_name())]
    pub app: String,
    /// The service of that App; it needs an http port. Default `web`.
    #[serde(default = "default_service")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = is_name())]
    pub service: String,
    /// The certificate for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RouteTls>,
    /// Whether plain http is redirected to https. Default `Auto`: when the host has a
    /// certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Redirect")]
    pub redirect: Option<Redirect>,
    /// How long the service may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<RouteTimeouts>,
    /// Greatest request body in bytes; a larger one is refused with 413. Absent: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_body_bytes: Option<i64>,
}

fn default_service() -> String {
    "web".into()
}

/// The certificate of a Route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteTls {
    /// A Secret of type `kubernetes.io/tls` in the Route's namespace. The gateway must be allowed
    /// to read it: the condition `CertificateReady` prints the Role when it is not.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = is_object_name())]
    pub secret_name: String,
}

/// Whether plain http is redirected to https.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Redirect {
    /// When the host has a certificate.
    #[default]
    Auto,
    /// Never.
    Disabled,
}

/// How long a service may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteTimeouts {
    /// Seconds until the response headers. Default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub response_seconds: Option<i32>,
    /// Seconds without a byte in either direction. Default 60; upgraded connections 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub idle_seconds: Option<i32>,
}

/// What the route controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the Route answers. Absent for wildcard and default routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub url: Option<String>,
    /// `Ready`, `HostClaimed`, `BackendResolved`, `CertificateReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
