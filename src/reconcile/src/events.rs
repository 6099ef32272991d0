//! Events for the owner of an object: published beside the passes, never failing one.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use portolan_process::ErrorChain;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Transition, Verdict,
    controller::RunError,
    metrics::{ControllerLabel, ReconcileMetrics, WriteLabel},
};

/// Events that may wait for the API server; a transition that comes on top is only counted.
const WAITING_MAX: usize = 256;

/// What an Event says, at most, in bytes: the API refuses a longer note.
const NOTE_MAX: usize = 1024;

/// How long one Event may take; the next ones wait behind it.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long Events that wait at shutdown are still published.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Publishes Events in the name of one controller. Cheap to clone.
///
/// Publishing never waits and never fails: an Event that cannot be published is counted. Events
/// that repeat within six minutes are counted up in one object.
#[derive(Clone, Debug)]
pub struct Events {
    waiting: mpsc::Sender<(Event, ObjectReference)>,
    dropped: Counter,
}

/// The task behind [`Events`].
pub(crate) struct Publisher {
    waiting: mpsc::Receiver<(Event, ObjectReference)>,
    recorder: Recorder,
    dropped: Counter,
    written: Counter,
}

impl Events {
    pub(crate) fn new(
        client: Client,
        controller: &'static str,
        instance: &str,
        metrics: &ReconcileMetrics,
    ) -> (Self, Publisher) {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        let dropped = metrics.events_dropped.get_or_create_owned(&ControllerLabel { controller });
        let label = WriteLabel { controller, verb: "event" };
        let reporter = Reporter {
            controller: format!("portolan.dev/{controller}"),
            instance: Some(instance.to_owned()),
        };
        let publisher = Publisher {
            waiting,
            recorder: Recorder::new(client, reporter),
            dropped: dropped.clone(),
            written: metrics.writes.get_or_create_owned(&label),
        };
        (Self { waiting: sender, dropped }, publisher)
    }

    /// Tells the object's owner that something worth knowing happened, once.
    ///
    /// `action` is what the controller was doing and `reason` why it tells, both in camel case;
    /// `note` is for people.
    pub fn publish<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        action: &str,
        reason: &str,
        note: &str,
    ) {
        self.send(object.object_ref(&()), type_, action, reason, note);
    }

    fn send(
        &self,
        regarding: ObjectReference,
        type_: EventType,
        action: &str,
        reason: &str,
        note: &str,
    ) {
        let end = (0..=note.len().min(NOTE_MAX)).rev().find(|end| note.is_char_boundary(*end));
        let event = Event {
            type_,
            action: action.to_owned(),
            reason: reason.to_owned(),
            note: Some(note[..end.unwrap_or(0)].to_owned()),
            secondary: None,
        };
        if self.waiting.try_send((event, regarding)).is_err() {
            self.dropped.inc();
        }
    }

    /// One Event per transition that an owner acts on: `Ready` or what it stands on has become
    /// false, and `Ready` is true again where it was false.
    ///
    /// An Event is a write like any other, so what goes as it should makes none: that something is
    /// on its way, has come up, or does not apply to a new object, its conditions say. It is a
    /// warning if `Ready` stops being true or changes why it is not; the first verdict on a new
    /// object and every other condition is normal.
    pub fn publish_transitions<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        action: &str,
        transitions: &[Transition],
    ) {
        for transition in transitions.iter().filter(|transition| is_news(transition)) {
            let Transition { type_, from, to, reason, message, is_naming: _ } = transition;
            let bad = type_ == "Ready" && *to == Verdict::False && from.is_some();
            let event_type = if bad { EventType::Warning } else { EventType::Normal };
            let note = format!("{type_}={}: {message}", to.as_str());
            self.send(regarding(object, transition), event_type, action, reason, &note);
        }
    }
}

/// What the Event of a transition is about. The recorder counts an Event up whatever its note says,
/// as long as all else is the same, and keeps the first note; so an Event that names something is
/// about one version of the object, which the write that goes with it has ended.
fn regarding<K: Resource<DynamicType = ()>>(
    object: &K,
    transition: &Transition,
) -> ObjectReference {
    let version = object.meta().resource_version.clone();
    let resource_version = version.filter(|_| transition.is_naming);
    ObjectReference { resource_version, ..object.object_ref(&()) }
}

fn is_news(transition: &Transition) -> bool {
    let is_ready = transition.type_ == "Ready";
    match (transition.to, transition.from.as_deref()) {
        // `Ready` of a new object repeats the word of the condition that keeps it from it.
        (Verdict::False, from) => is_ready || from.is_some(),
        (Verdict::True, from) => is_ready && from == Some("False"),
        (Verdict::Unknown, _) => false,
    }
}

impl Publisher {
    /// Publishes until `stop` is cancelled, then what is waiting, for a moment.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), RunError> {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = self.waiting.recv() => match event {
                    Some((event, object)) => self.publish(&event, &object).await,
                    // Nobody is left who could publish.
                    None => {
                        stop.cancelled().await;
                        return Ok(());
                    }
                },
            }
        }
        let rest = async {
            while let Ok((event, object)) = self.waiting.try_recv() {
                self.publish(&event, &object).await;
            }
        };
        // What does not make it is lost with the process; Events are no record.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
        Ok(())
    }

    async fn publish(&self, event: &Event, object: &ObjectReference) {
        self.written.inc();
        let published = self.recorder.publish(event, object);
        match tokio::time::timeout(PUBLISH_TIMEOUT, published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.dropped.inc();
                tracing::debug!(error = %ErrorChain(&error), "Event not published");
            }
            Err(_elapsed) => {
                self.dropped.inc();
                tracing::debug!("Event not published in time");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    fn mk_transition(type_: &str, from: Option<&str>, to: Verdict, is_naming: bool) -> Transition {
        let (type_, from) = (type_.to_owned(), from.map(str::to_owned));
        let (reason, message) = (String::new(), String::new());
        Transition { type_, from, to, reason, message, is_naming }
    }

    #[test]
    fn an_event_that_names_something_is_no_repetition_of_one_about_another_version() {
        let object = |version: &str| {
            let metadata = ObjectMeta {
                name: Some("chat-irc".to_owned()),
                uid: Some("uid".to_owned()),
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            };
            ConfigMap { metadata, ..ConfigMap::default() }
        };
        let about = |version: &str, is_naming: bool| {
            let transition = mk_transition("Ready", Some("False"), Verdict::False, is_naming);
            regarding(&object(version), &transition)
        };
        assert_eq!(about("7", false), about("8", false), "it is counted up");
        assert_ne!(about("7", true), about("8", true));
        assert_eq!(about("7", true).uid, about("7", false).uid, "it is the same object");
    }

    #[test]
    fn what_goes_wrong_is_news_and_what_goes_well_is_not() {
        let cases = [
            ("Ready", None, Verdict::Unknown, false),
            ("Ready", None, Verdict::True, false),
            ("Ready", Some("Unknown"), Verdict::True, false),
            ("Ready", None, Verdict::False, true),
            ("Ready", Some("Unknown"), Verdict::False, true),
            ("Ready", Some("True"), Verdict::False, true),
            ("Ready", Some("False"), Verdict::False, true),
            ("Ready", Some("False"), Verdict::True, true),
            ("Ready", Some("False"), Verdict::Unknown, false),
            ("ServicesReady", None, Verdict::False, false),
            ("ServicesReady", Some("True"), Verdict::False, true),
            ("ServicesReady", Some("False"), Verdict::True, false),
        ];
        for (type_, from, to, expected) in cases {
            let transition = mk_transition(type_, from, to, false);
            assert_eq!(is_news(&transition), expected, "{transition:?}");
        }
    }
}
