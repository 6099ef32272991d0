//! An object from the API server that may not be what its kind says.

use std::borrow::Cow;

use kube::{Resource, core::ObjectMeta};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use serde_json::value::RawValue;

/// An object, or its metadata and why the rest could not be understood.
///
/// Kube has a guard of its own, which first copies every object into a generic tree and clones
/// that. This one keeps the text, parses it once, and looks at it again only when that failed.
/// It relies on a watch event's type standing before its object, as the API server writes it.
#[derive(Clone, Debug)]
pub(crate) enum Guarded<K> {
    Good(Box<K>),
    Malformed { metadata: Box<ObjectMeta>, why: String },
}

/// What the API server itself writes, and all that has to be right for an object to be skipped by
/// name: anything else is the user's, `managedFields` with the years in them included, and one
/// object that cannot be read must not keep those after it from being seen.
#[derive(Deserialize)]
struct Known {
    metadata: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl From<Identity> for ObjectMeta {
    fn from(identity: Identity) -> Self {
        let Identity { name, namespace, uid, resource_version } = identity;
        Self { name, namespace, uid, resource_version, ..Self::default() }
    }
}

impl<'de, K: DeserializeOwned + Resource> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Borrowed where the whole line is in memory, which is the case for watches and lists.
        let text = <&RawValue>::deserialize(deserializer)?.get();
        match serde_json::from_str(text) {
            Ok(object) => Ok(Self::Good(Box::new(object))),
            Err(error) => {
                let Known { metadata } = serde_json::from_str(text).map_err(D::Error::custom)?;
                Ok(Self::Malformed { metadata: Box::new(metadata.into()), why: error.to_string() })
            }
        }
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Good(object) => object.meta(),
            Self::Malformed { metadata, .. } => metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Good(object) => object.meta_mut(),
            Self::Malformed { metadata, .. } => metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::{api::WatchEvent, core::ObjectList};

    use super::*;

    #[test]
    fn a_watch_line_with_a_malformed_object_keeps_its_name() {
        let line = r#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1",
            "metadata":{"name":"odd","namespace":"team-a","resourceVersion":"7"},
            "spec":{"containers":"none"}}}"#;
        let event: WatchEvent<Guarded<Pod>> = serde_json::from_str(line).unwrap();
        let WatchEvent::Added(Guarded::Malformed { metadata, why }) = event else {
            panic!("expected a malformed object, got {event:?}");
        };
        assert_eq!(metadata.name.as_deref(), Some("odd"));
        assert_eq!(metadata.resource_version.as_deref(), Some("7"));
        assert!(why.contains("containers") || why.contains("sequence"), "{why}");
    }

    #[test]
    fn metadata_that_cannot_be_read_is_skipped_by_name() {
        // As Go writes 0000-01-01T00:00:00+01:00, which the API server takes.
        let line = r#"{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1",
            "metadata":{"name":"odd","namespace":"team-a","uid":"u","resourceVersion":"7",
            "managedFields":[{"manager":"x","time":"-0001-12-31T23:00:00Z"}]}}}"#;
        let event: WatchEvent<Guarded<Pod>> = serde_json::from_str(line).unwrap();
        let WatchEvent::Modified(Guarded::Malformed { metadata, why }) = event else {
            panic!("expected a malformed object, got {event:?}");
        };
        assert_eq!((metadata.name.as_deref(), metadata.uid.as_deref()), (Some("odd"), Some("u")));
        assert!(!why.is_empty());
    }

    #[test]
    fn a_list_keeps_its_good_objects_beside_a_malformed_one() {
        let list = r#"{"kind":"ConfigMapList","apiVersion":"v1",
            "metadata":{"resourceVersion":"9"},"items":[
            {"metadata":{"name":"odd"},"data":7},
            {"metadata":{"name":"good"},"data":{"a":"b"}}]}"#;
        let list: ObjectList<Guarded<ConfigMap>> = serde_json::from_str(list).unwrap();
        assert!(matches!(&list.items[0], Guarded::Malformed { .. }));
        assert!(matches!(&list.items[1], Guarded::Good(_)));
        assert_eq!(list.items[1].meta().name.as_deref(), Some("good"));
    }

    #[test]
    fn text_that_is_no_object_at_all_is_an_error() {
        serde_json::from_str::<Guarded<Pod>>("[1]").unwrap_err();
        serde_json::from_str::<Guarded<Pod>>(r#"{"metadata":7}"#).unwrap_err();
    }
}
