//! Who this gateway is.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use portolan_api::{gateway, labels};

/// Who this gateway is: its Pod, and which process in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Namespace of the system.
    pub namespace: String,
    /// Name of the Pod; the Lease has the same.
    pub pod: String,
    /// UID of the Pod, which owns Lease and reports, so that they go with it. `None` outside a
    /// cluster: they are then deleted on shutdown only.
    pub uid: Option<String>,
    /// The process. What an earlier process of this Pod had on its way may still run in a sandbox,
    /// so slots are granted to this name and not to the Pod's.
    pub instance: Arc<str>,
}

impl Identity {
    /// The process that was `started` in the Pod.
    pub fn new(namespace: String, pod: String, uid: Option<String>, started: Timestamp) -> Self {
        let instance = gateway::instance(&pod, started).into();
        Self { namespace, pod, uid, instance }
    }

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
