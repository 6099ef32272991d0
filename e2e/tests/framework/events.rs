//! Events as the owner of an object reads them.

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use portolan_cluster::wait::until_seen;
use portolan_reconcile::{Controller, EventType, Transition, Verdict, testing};

use crate::support::in_a_namespace;

#[tokio::test]
async fn transitions_become_events_and_repetitions_are_counted_up() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let object = place.config("chat", &[]);
        let object = place.configs().create(&PostParams::default(), &object).await.unwrap();
        let context = testing::context(place.client.clone());
        let controller = Controller::new(&context, "demo");
        let events = controller.events();
        let task = tokio::spawn(controller.run(crate::leaders::Endless::default()));

        let crashing = Transition {
            type_: "Ready".to_owned(),
            from: Some("True".to_owned()),
            to: Verdict::False,
            reason: "CrashLooping".to_owned(),
            message: "exit code 1".to_owned(),
            is_naming: false,
        };
        for _ in 0..3 {
            events.publish_transitions(&object, "Reconcile", std::slice::from_ref(&crashing));
        }
        events.publish(&object, EventType::Normal, "Scale", "Woken", "one request waits");
        let published: Api<Event> = Api::namespaced(place.client.clone(), &place.namespace);
        let listed = async || published.list(&ListParams::default()).await.expect("listed").items;
        let seen = until_seen("both events are there", listed, |events| {
            events.len() == 2 && events.iter().any(|event| event.series.is_some())
        });
        let seen = seen.await;
        let find = |reason| seen.iter().find(|event| event.reason.as_deref() == Some(reason));
        let warning = find("CrashLooping").expect("published");
        assert_eq!(warning.type_.as_deref(), Some("Warning"));
        assert_eq!(warning.note.as_deref(), Some("Ready=False: exit code 1"));
        assert_eq!(warning.reporting_controller.as_deref(), Some("portolan.dev/demo"));
        let regarding = warning.regarding.as_ref().expect("an object");
        assert_eq!(regarding.uid, object.metadata.uid);
        assert_eq!(find("Woken").expect("published").type_.as_deref(), Some("Normal"));

        // What waits at shutdown is published, too.
        events.publish(&object, EventType::Normal, "Scale", "Last", "before the end");
        context.shutdown().cancel();
        task.await.unwrap().unwrap();
        assert!(listed().await.iter().any(|event| event.reason.as_deref() == Some("Last")));
    })
    .await
}
