//! Objects kept as text whose kind does not read what it writes.

use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Resource, core::ObjectMeta};
use portolan_reconcile::{
    ObjectKey, Packed, Watch,
    metrics::WatchLabel,
    testing::{Answer, Wire, context, initial_events_end},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Writes twice the size that it has read, which is too large to be read again from 128 on.
#[derive(Clone, Debug, Deserialize, PartialEq, Resource, Serialize)]
#[resource(inherit = ConfigMap)]
struct Uneven {
    metadata: ObjectMeta,
    #[serde(serialize_with = "twice")]
    size: u8,
}

fn twice<S: Serializer>(size: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(u16::from(*size) * 2)
}

fn added(name: &str, size: u8) -> Value {
    json!({"type": "ADDED", "object": {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "team-a", "uid": name, "resourceVersion": "1"},
        "size": size,
    }})
}

#[tokio::test(start_paused = true)]
async fn an_object_that_does_not_read_back_is_skipped_as_a_malformed_one() {
    let events = vec![added("large", 200), added("small", 100), initial_events_end("ConfigMap", 2)];
    let (_, client) = Wire::scripted([Answer::Watch(events)]);
    let context = context(client);
    let watch = Watch::<Uneven>::new().pack();
    let (cache, task) =
        watch.index("size", |kept| [kept.unpack().size.to_string()]).start(&context, "demo");
    let task = tokio::spawn(task);
    timeout(Duration::from_secs(1), cache.synced()).await.expect("the rest goes on");
    sleep(Duration::from_secs(1)).await;
    let key = |name: &str| ObjectKey::new("team-a", name);
    assert_eq!(cache.keys(), [key("small")]);
    assert_eq!(cache.unpack_by_index("size", "200").len(), 1);
    assert!(cache.observed(&key("large")).is_unknown(), "malformed is not absent");
    let label = WatchLabel { controller: "demo", kind: "ConfigMap".into() };
    assert_eq!(context.metrics().malformed_objects.get_or_create(&label).get(), 1);
    task.abort();
}

#[test]
fn only_what_reads_back_is_packed() {
    let object = |size| Uneven { metadata: ObjectMeta::default(), size };
    assert!(Packed::of(object(100)).is_some());
    assert_eq!(Packed::of(object(200)), None);
}
