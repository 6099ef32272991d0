//! Objects as text, for caches of kinds of which there are many and most are at rest.

use std::{fmt, marker::PhantomData, sync::Arc};

use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Cache, Change, ObjectKey,
    shelf::{Shelf, Text},
};

/// An object as text. A spec with a Pod template in it is some hundred bytes as text and several
/// thousand as a struct, nearly all of them absent fields; reading it again costs a pass a few
/// microseconds.
///
/// What several caches of one process hold alike is there once, and small (`shelf.rs`). Equal
/// when the objects are. It is what [`crate::Watch::pack`] keeps.
pub struct Packed<K> {
    text: Text,
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource + Serialize + DeserializeOwned + 'static> Packed<K> {
    /// Keeps all of an object but its `managedFields`, which are often half of it and which nobody
    /// reads. `None`, and a line in the log, for an object that cannot be read from its own text.
    pub fn of(object: K) -> Option<Self> {
        let key = ObjectKey::of(&object);
        Self::checked(object)
            .inspect_err(|why| {
                let kind = std::any::type_name::<K>();
                tracing::warn!(kind, %key, why, "Object that does not read back left out");
            })
            .ok()
    }

    /// As [`Packed::of`], with the reason.
    ///
    /// It is read once here because later is too late: every pass that needs it would end the
    /// same way, and a handler would take the process with it.
    pub(crate) fn checked(mut object: K) -> Result<Self, String> {
        object.meta_mut().managed_fields = None;
        let text = serde_json::to_vec(&object);
        let text = text.map_err(|error| format!("it cannot be written: {error}"))?;
        let read = serde_json::from_slice::<K>(&text);
        read.map_err(|error| format!("what it is written as cannot be read: {error}"))?;
        Ok(Self { text: Shelf::of::<K>(&text).keep(&text), kind: PhantomData })
    }

    /// The object, without its `managedFields`.
    pub fn unpack(&self) -> K {
        serde_json::from_slice(&self.text.read()).expect("what is kept was read when it was packed")
    }
}

impl<K: Resource + Serialize + DeserializeOwned + 'static> Cache<K, Packed<K>> {
    /// As [`Cache::get`], unpacked.
    pub fn unpack(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.get(key).map(|packed| Arc::new(packed.unpack()))
    }

    /// As [`Cache::by_index`], unpacked.
    ///
    /// # Panics
    ///
    /// When the watch was built without that index.
    pub fn unpack_by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let found = self.by_index(index, value);
        found.into_iter().map(|packed| Arc::new(packed.unpack())).collect()
    }
}

impl<K: Resource + Serialize + DeserializeOwned + 'static> Change<'_, Packed<K>> {
    /// What was known before and what is known now, unpacked; one of them may be absent.
    pub fn sides(&self) -> impl Iterator<Item = K> {
        self.old.into_iter().chain(self.new).map(|packed| packed.unpack())
    }
}

impl<K> Clone for Packed<K> {
    fn clone(&self) -> Self {
        Self { text: self.text.clone(), kind: PhantomData }
    }
}

impl<K> PartialEq for Packed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<K> Eq for Packed<K> {}

impl<K> fmt::Debug for Packed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text.read()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::{
        api::core::v1::ConfigMap,
        apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
    };

    use super::*;

    fn mk_object(value: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta { name: Some("settings".into()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([("key".to_owned(), value.to_owned())])),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn what_is_unpacked_is_what_was_packed_but_for_managed_fields() {
        let object = mk_object("value");
        let mut sent = object.clone();
        sent.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default(); 9]);
        let packed = Packed::of(sent).expect("every object is kept");
        assert_eq!(packed.unpack(), object);
        assert_eq!(packed, Packed::of(object).expect("every object is kept"));
        assert_ne!(packed, Packed::of(mk_object("other")).expect("every object is kept"));
    }
}
