//! The name by which the framework knows an object.

use std::fmt;

use kube::Resource;
use serde::Serialize;

/// Namespace and name of an object; the kind is known from the context.
///
/// Ordered by namespace, then name. The namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectKey {
    /// The namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// The key of an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self { namespace: String::new(), name: name.into() }
    }

    /// The key of an object that was read from the API server or is about to be written there.
    ///
    /// An object without a name, which the API server never returns, has an empty one here.
    pub fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// The namespace, or `None` for a cluster-scoped object.
    pub fn scope(&self) -> Option<&str> {
        (!self.namespace.is_empty()).then_some(self.namespace.as_str())
    }
}

/// `namespace/name`, or `name` for a cluster-scoped object; never ambiguous, because neither part
/// may contain a slash.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope() {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Node};
    use kube::core::ObjectMeta;

    use super::*;

    #[test]
    fn keys_print_as_kubectl_users_write_them() {
        assert_eq!(ObjectKey::new("team-a", "chat").to_string(), "team-a/chat");
        assert_eq!(ObjectKey::cluster("chat").to_string(), "chat");
    }

    #[test]
    fn the_key_of_an_object_is_its_namespace_and_name() {
        let metadata = ObjectMeta {
            name: Some("chat".into()),
            namespace: Some("team-a".into()),
            ..ObjectMeta::default()
        };
        let object = ConfigMap { metadata, ..ConfigMap::default() };
        assert_eq!(ObjectKey::of(&object), ObjectKey::new("team-a", "chat"));
        let metadata = ObjectMeta { name: Some("node-1".into()), ..ObjectMeta::default() };
        let node = Node { metadata, ..Node::default() };
        assert_eq!(ObjectKey::of(&node), ObjectKey::cluster("node-1"));
    }
}
