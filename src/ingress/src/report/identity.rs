//! Who this gateway is.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use portolan_api::labels;

/// Who this gateway is: its Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Namespace of the system.
    pub namespace: String,
    /// Name of the Pod; the Lease has the same.
    pub pod: String,
    /// UID of the Pod, which owns Lease and reports, so that they go with it. `None` outside a
    /// cluster: they are then deleted on shutdown only.
    pub uid: Option<String>,
}

impl Identity {
    /// Metadata of an object of this gateway.
    pub(crate) fn metadata(&self, name: String) -> ObjectMeta {
        let owner = self.uid.clone().map(|uid| OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: self.pod.clone(),
            uid,
            controller: None,
            block_owner_deletion: None,
        });
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            labels: Some(BTreeMap::from([
                (labels::MANAGED_BY.into(), labels::MANAGER.into()),
                (labels::COMPONENT.into(), labels::COMPONENT_GATEWAY.into()),
            ])),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }
}
