//! `Claim`: the exclusive hold of a host or a node port. Creation is the lock.

use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is claimed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum ClaimKind {
    /// A host of a Route; the value is the host as the Route says it.
    Host,
    /// A node port; the value is `port/transport`.
    NodePort,
}

/// The exclusive hold of a host or a node port. Made by creation only (a name taken is a claim
/// lost), never changed, released by the holder's controller. It has no status: that it exists is
/// all it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "Claim",
    category = "portolan",
    derive = "PartialEq",
    validation = Rule::new("self.spec == oldSelf.spec").message("a Claim never changes; delete it to release it"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Value", type_ = "string", json_path = ".spec.value"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.holder.namespace"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.holder.name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// What is claimed.
    pub kind: ClaimKind,
    /// The thing itself: the name of the Claim is only an escaped form of it.
    #[schemars(length(min = 1, max = 253))]
    pub value: String,
    /// Who holds it.
    pub holder: Holder,
}

/// The object that holds a Claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    /// Its kind.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID; an object of the same name with another UID does not hold the Claim.
    #[schemars(length(min = 1, max = 63))]
    pub uid: String,
}
