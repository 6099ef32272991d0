//! What the API server makes of the writer's requests.

use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use portolan_reconcile::{
    Applied, Created, Deleted, ObjectKey, Observed, Precondition, StatusWrite, Target, Writable,
    WriteError, Writer,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::support::{Place, in_a_namespace};

/// The object, deleted and made again under its name: the target of a plan that is too old.
async fn made_again(place: &Place, writer: &Writer) -> (Target, ConfigMap) {
    let object = place.config("chat", &[]);
    let first = created(writer.create(&object).await);
    let old = Target::of(&first);
    assert_eq!(writer.delete::<ConfigMap>(&old).await.expect("deleted"), Deleted::Deleted);
    (old, created(writer.create(&object).await))
}

#[track_caller]
fn created<K: Debug>(outcome: Result<Created<K>, WriteError>) -> K {
    match outcome {
        Ok(Created::Created(object)) => *object,
        other => panic!("expected a created object: {other:?}"),
    }
}

#[track_caller]
fn written<K: Debug>(outcome: Result<Applied<K>, WriteError>) -> K {
    match outcome {
        Ok(Applied::Written(object)) => *object,
        other => panic!("expected a write: {other:?}"),
    }
}

#[tokio::test]
async fn writes_never_reach_another_object_of_the_same_name() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let (old, new) = made_again(&place, &writer).await;
        let fields = json!({"data": {"a": "b"}});

        let outcome = writer.apply_fields::<ConfigMap, _>(&old, &fields).await.unwrap();
        assert_eq!(outcome, Precondition::Conflict);
        assert_eq!(writer.delete::<ConfigMap>(&old).await.unwrap(), Deleted::Conflict);
        let mut desired = place.config("chat", &[("a", "b")]);
        desired.metadata.uid = Some(old.uid.clone());
        let error = writer.apply(&desired).await.unwrap_err();
        assert_eq!(error.category(), "api_conflict", "{error:?}");

        let untouched = writer.get::<ConfigMap>(&old.key).await;
        assert_eq!(untouched, Observed::Present(new), "it is as it was made");
    })
    .await
}

#[tokio::test]
async fn writes_to_an_object_that_is_gone_create_nothing() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let object = created(writer.create(&place.config("chat", &[])).await);
        let target = Target::of(&object);
        assert_eq!(writer.delete::<ConfigMap>(&target).await.unwrap(), Deleted::Deleted);

        let fields = json!({"data": {"a": "b"}});
        let outcome = writer.apply_fields::<ConfigMap, _>(&target, &fields).await.unwrap();
        // The API server words it as a conflict: it will not create an object of a given UID.
        assert_eq!(outcome, Precondition::Conflict);
        assert_eq!(writer.delete::<ConfigMap>(&target).await.unwrap(), Deleted::Gone);
        assert_eq!(writer.get::<ConfigMap>(&target.key).await, Observed::Absent);

        let status = json!({"replicas": 1});
        let target = Target { key: ObjectKey::new(&place.namespace, "none"), ..target };
        let outcome = writer.apply_status::<Deployment, _>(&target, &status, None).await.unwrap();
        assert_eq!(outcome, StatusWrite::Gone);
        let outcome = writer.scale::<Deployment>(&target, 3).await.unwrap();
        assert_eq!(outcome, Precondition::Gone);
    })
    .await
}

#[tokio::test]
async fn of_two_writers_that_saw_the_same_version_one_succeeds() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let object = created(writer.create(&place.config("chat", &[])).await);
        let seen = Target::at(&object);
        let fields = |value: &str| json!({"data": {"a": value}});
        let first = writer.apply_fields::<ConfigMap, _>(&seen, &fields("1")).await.unwrap();
        assert!(matches!(first, Precondition::Met(_)), "{first:?}");
        let second = writer.apply_fields::<ConfigMap, _>(&seen, &fields("2")).await.unwrap();
        assert_eq!(second, Precondition::Conflict);
        assert_eq!(writer.delete::<ConfigMap>(&seen).await.unwrap(), Deleted::Conflict);
    })
    .await
}

#[tokio::test]
async fn a_taken_name_is_an_outcome() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let object = place.config("chat", &[]);
        created(writer.create(&object).await);
        assert_eq!(writer.create(&object).await.unwrap(), Created::AlreadyExists);
    })
    .await
}

#[tokio::test]
async fn status_and_scale_reach_their_object_and_no_other() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let deployment: Deployment = object(
            &place,
            &json!({
                // Nothing is scheduled for it: another controller would write its status.
                "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "paused": true,
                    "template": {"metadata": {"labels": {"a": "b"}},
                        "spec": {"containers": [{"name": "c", "image": "none"}]}}},
            }),
        );
        let deployment = created(writer.create(&deployment).await);
        let target = Target::of(&deployment);
        let other = Target { uid: "other".into(), ..target.clone() };
        let status = json!({"conditions": [{
            "type": "Demo", "status": "True", "reason": "Here", "message": "",
        }]});

        let outcome = writer.apply_status::<Deployment, _>(&other, &status, None).await.unwrap();
        assert_eq!(outcome, StatusWrite::Conflict);
        let outcome = writer.apply_status::<Deployment, _>(&target, &status, None).await.unwrap();
        let StatusWrite::Written(live) = outcome else { panic!("{outcome:?}") };
        let conditions = live.status.and_then(|status| status.conditions).unwrap_or_default();
        assert!(conditions.iter().any(|condition| condition.type_ == "Demo"), "{conditions:?}");

        let outcome = writer.scale::<Deployment>(&target, 0).await.unwrap();
        assert_eq!(outcome, Precondition::Met(Box::new(())));
        let outcome = writer.scale::<Deployment>(&other, 3).await.unwrap();
        assert_eq!(outcome, Precondition::Conflict);
        let live = writer.get::<Deployment>(&target.key).await;
        let replicas = live.present().and_then(|live| live.spec.as_ref()?.replicas);
        assert_eq!(replicas, Some(0), "the other one was not scaled in its place");
    })
    .await
}

#[tokio::test]
async fn a_delete_says_whether_the_object_lingers() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let mut held = place.config("held", &[]);
        held.metadata.finalizers = Some(vec!["portolan.dev/test".into()]);
        let held = created(writer.create(&held).await);
        let target = Target::of(&held);
        let outcome = writer.delete::<ConfigMap>(&target).await.unwrap();
        assert!(matches!(outcome, Deleted::Terminating(_)), "{outcome:?}");
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        place.configs().patch("held", &PatchParams::default(), &release).await.unwrap();
        assert_eq!(writer.delete::<ConfigMap>(&target).await.unwrap(), Deleted::Gone);

        let pod: Pod = object(
            &place,
            &json!({"spec": {"containers": [
                {"name": "c", "image": "none", "imagePullPolicy": "Never"},
            ]}}),
        );
        let pod = created(writer.create(&pod).await);
        // Not yet, or no longer, on a node: it goes at once; on a node it has a grace period.
        let outcome = writer.delete::<Pod>(&Target::of(&pod)).await.unwrap();
        assert!(matches!(outcome, Deleted::Terminating(_) | Deleted::Deleted), "{outcome:?}");
    })
    .await
}

#[tokio::test]
async fn what_is_no_longer_wished_is_removed_and_foreign_fields_stay() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let wide = place.config("chat", &[("a", "1"), ("b", "2")]);
        let live = written(writer.apply_if_changed(&wide, None).await);
        let foreign = Patch::Merge(json!({"data": {"foreign": "x", "a": "edited"}}));
        place.configs().patch("chat", &PatchParams::default(), &foreign).await.unwrap();

        let narrow = place.config("chat", &[("a", "1")]);
        let applied = writer.apply_if_changed(&narrow, Some(&live)).await;
        let data = written(applied).data.unwrap_or_default();
        let expected = [("a", "1"), ("foreign", "x")];
        let expected: BTreeMap<String, String> =
            expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(data, expected);
    })
    .await
}

/// Applies an object twice: what the API server adds to it must not look like a difference.
async fn check_settles<K: Writable + Clone + PartialEq>(place: &Place, fields: Value) {
    let (writer, context) = place.writer();
    let desired: K = object(place, &fields);
    let live = written(writer.apply_if_changed(&desired, None).await);
    let read = writer.get::<K>(&ObjectKey::of(&live)).await;
    let observed = read.present().expect("it was applied");
    let again = writer.apply_if_changed(&desired, Some(observed)).await.expect("compared");
    assert_eq!(again, Applied::Unchanged, "desired {fields:#}\nfound {:#}", value(observed));
    assert_eq!(context.metrics().writes_of("demo"), 1);
}

#[tokio::test]
async fn an_applied_object_is_not_written_again() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        check_settles::<Service>(&place, json!({"spec": {
            "selector": {"a": "b"},
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        }}))
        .await;
        check_settles::<NetworkPolicy>(
            &place,
            json!({"spec": {
                "podSelector": {}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 3000}]}, {}],
            }}),
        )
        .await;
        check_settles::<PodDisruptionBudget>(
            &place,
            json!({"spec": {
                "minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}},
            }}),
        )
        .await;
        check_settles::<EndpointSlice>(
            &place,
            json!({
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}],
                "ports": [{"name": "irc", "port": 6667}],
            }),
        )
        .await;
        check_settles::<Deployment>(
            &place,
            json!({"spec": {
                "replicas": 0, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                    "containers": [{
                        "name": "c", "image": "none", "command": ["./c", "--flag"],
                        "env": [{"name": "A", "value": "b"}, {"name": "EMPTY", "value": ""}],
                        "ports": [{"containerPort": 3000}],
                        "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"},
                            "requests": {"cpu": 0.25, "memory": "1e6"}},
                        "readinessProbe": {"httpGet": {"path": "/", "port": 3000}},
                        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
                    }],
                    "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "0.5Gi"}}],
                    "tolerations": [{"key": "k", "operator": "Exists"}],
                    "terminationGracePeriodSeconds": 40,
                }},
            }}),
        )
        .await;
    })
    .await
}

/// An object named `chat` in the test's namespace.
fn object<K: Writable>(place: &Place, fields: &Value) -> K {
    let mut object = fields.clone();
    object["metadata"] = value(&place.named("chat"));
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    serde_json::from_value(object).expect("an object of its kind")
}

fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("objects are JSON")
}

#[tokio::test]
async fn an_object_of_ours_is_taken_back_from_whoever_applied_over_it() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let desired = place.config("chat", &[("a", "ours")]);
        written(writer.apply_if_changed(&desired, None).await);
        let theirs = Patch::Apply(place.config("chat", &[("a", "theirs")]));
        let params = PatchParams::apply("kubectl").force();
        let live = place.configs().patch("chat", &params, &theirs).await.unwrap();
        let live = written(writer.apply_if_changed(&desired, Some(&live)).await);
        assert_eq!(live.data.unwrap_or_default()["a"], "ours");
        // Their manager still sends it; what we see is ours, so nothing is written.
        let seen = place.configs().get("chat").await.unwrap();
        let again = writer.apply_if_changed(&desired, Some(&seen)).await.unwrap();
        assert_eq!(again, Applied::Unchanged);
    })
    .await
}

#[tokio::test]
async fn an_invalid_object_is_refused_with_the_servers_words() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let invalid = place.config("Not_A_Name", &[]);
        let error = writer.create(&invalid).await.unwrap_err();
        assert!(error.is_invalid(), "{error:?}");
        assert!(error.answer().is_some_and(|said| said.contains("metadata.name")), "{error:?}");
    })
    .await
}

#[tokio::test]
async fn a_namespace_that_is_gone_or_going_is_told_from_a_missing_right() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let (writer, _) = place.writer();
        let mut nowhere = place.config("chat", &[]);
        nowhere.metadata.namespace = Some("no-such-namespace".into());
        let error = writer.create(&nowhere).await.unwrap_err();
        assert_eq!(error.category(), "namespace_gone", "{error:?}");
        let target = Target { uid: "some".into(), ..Target::of(&nowhere) };
        let fields = json!({"data": {"a": "b"}});
        let outcome = writer.apply_fields::<ConfigMap, _>(&target, &fields).await.unwrap();
        assert_eq!(outcome, Precondition::Conflict, "as for any object that is gone");
        assert_eq!(writer.delete::<ConfigMap>(&target).await.unwrap(), Deleted::Gone);

        // Something in it that stays keeps the namespace going.
        let mut held = place.config("held", &[]);
        held.metadata.finalizers = Some(vec!["portolan.dev/test".into()]);
        created(writer.create(&held).await);
        let namespaces = Api::<Namespace>::all(place.client.clone());
        namespaces.delete(&place.namespace, &DeleteParams::default()).await.unwrap();
        let error = writer.create(&place.config("late", &[])).await.unwrap_err();
        assert_eq!(error.category(), "namespace_gone", "{error:?}");
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        place.configs().patch("held", &PatchParams::default(), &release).await.unwrap();
    })
    .await
}
