//! `Domain`: which namespaces may use hosts under a suffix.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::schema::{DNS_NAME, rule};

/// Says which namespaces may claim hosts under a suffix. Where a Domain covers a host, no other
/// namespace can have it; where none does, the first Route holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "Domain",
    status = "DomainStatus",
    shortname = "dom",
    category = "portolan",
    derive = "PartialEq",
    printcolumn(name = "Suffix", type_ = "string", json_path = ".spec.suffix"),
    printcolumn(name = "Namespaces", type_ = "string", json_path = ".spec.namespaces"),
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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DomainSpec {
    /// The suffix: `example.com` covers itself, every host below it and their wildcards; `*`
    /// covers the default route and every host that no longer suffix covers.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rule(
        &format!("self == '*' || self.matches('^{DNS_NAME}$')"),
        "suffix must be a lower-case DNS name without '*.' and without a dot at its end, or '*' for all hosts",
    ))]
    pub suffix: String,
    /// The namespaces that may claim hosts under it; `*` for all. Empty: none.
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = rule(
        "self.all(n, n == '*' || n.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))",
        "namespaces are names of namespaces, or '*' for all of them",
    ))]
    pub namespaces: Vec<String>,
}

/// What the route controller reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`; False when an older Domain has the same suffix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
