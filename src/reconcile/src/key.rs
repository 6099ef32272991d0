//! The name by which the framework knows an object.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, LazyLock},
};

use kube::Resource;
use parking_lot::Mutex;
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

    /// The same key, once for all of this process: several controllers watch the same objects,
    /// each for itself, and indexes name them again.
    pub fn shared(&self) -> Arc<Self> {
        KNOWN.lock().get(self)
    }

    /// The namespace, or `None` for a cluster-scoped object.
    pub fn scope(&self) -> Option<&str> {
        (!self.namespace.is_empty()).then_some(self.namespace.as_str())
    }
}

/// Keys that somebody has, and some that nobody has any more.
struct Known {
    keys: HashSet<Arc<ObjectKey>>,
    /// With more than this those that nobody has are looked for and forgotten.
    limit: usize,
}

/// Below this many nobody looks for what to forget.
const KNOWN_MIN: usize = 1024;

static KNOWN: LazyLock<Mutex<Known>> =
    LazyLock::new(|| Mutex::new(Known { keys: HashSet::new(), limit: KNOWN_MIN }));

impl Known {
    fn get(&mut self, key: &ObjectKey) -> Arc<ObjectKey> {
        if let Some(known) = self.keys.get(key) {
            return known.clone();
        }
        if self.keys.len() >= self.limit {
            self.keys.retain(|key| Arc::strong_count(key) > 1);
            self.keys.shrink_to(KNOWN_MIN);
            // In proportion, so that a look costs no more than the keys that came since the last.
            self.limit = KNOWN_MIN.max(self.keys.len() + self.keys.len() / 2);
        }
        let new = Arc::new(key.clone());
        self.keys.insert(new.clone());
        new
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

    #[test]
    fn a_shared_key_is_there_once_and_is_forgotten_when_nobody_has_it() {
        let mut known = Known { keys: HashSet::new(), limit: 4 };
        let key = |number: u32| ObjectKey::new("team-a", format!("app-{number}"));
        let kept = [known.get(&key(1)), known.get(&key(2))];
        assert!(Arc::ptr_eq(&kept[0], &known.get(&key(1))));
        known.get(&key(3));
        known.get(&key(4));
        assert_eq!(known.keys.len(), 4, "it is not looked for yet");
        known.get(&key(5));
        assert_eq!(known.keys.len(), 3);
        assert!(Arc::ptr_eq(&kept[1], &known.get(&key(2))));
        assert_eq!(known.limit, KNOWN_MIN);
    }
}
