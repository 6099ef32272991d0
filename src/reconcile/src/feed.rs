//! The running end of a watch: follows the API server, and knows when it cannot.
//!
//! Kube's own watcher hides that it has come back after an interruption until something changes,
//! which for a quiet kind is never; so this loop talks to the API server's watch itself.

use std::{convert::Infallible, ops::Range, time::Duration};

use futures::{Stream, StreamExt};
use kube::{
    Api, Resource,
    api::{WatchEvent, WatchParams},
    core::Status,
};
use portolan_process::ErrorChain;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Cache, Clock, Watched,
    cache::{Malformed, Sighting, version_number},
    controller::RunError,
    guard::Guarded,
};

/// How often a quiet watch looks after entries that only our own writes vouch for.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// For how many seconds a watch is asked for. Between these, so that watches that began together,
/// after an outage, do not end together for ever.
const WATCH_SECONDS: Range<u32> = 240..360;

/// How much later than the watch was to end its silence means that the connection is dead.
const IDLE_MARGIN: Duration = Duration::from_secs(5);

/// How long the API server may be silent in the middle of a list.
const LIST_SILENCE: Duration = Duration::from_secs(60);

/// How long the head of an answer may take; the client's own retries are within it.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long resuming a watch that ended in time may take and still leave no gap.
const RESUME_WITHIN: Duration = Duration::from_secs(2);

/// A watch that ended sooner was not ended by the time it was asked for. If it brought nothing,
/// something is wrong, even if nobody says so.
const LASTING: Duration = Duration::from_secs(5);

/// The longest rest after a failure in a row, and the shortest. An API server that returns is met
/// by all watches within ten seconds, but not by all at once.
const REST_MAX: Duration = Duration::from_secs(10);
const REST_MIN: Duration = Duration::from_millis(500);

/// What the API server puts on the bookmark after the last listed object.
const LISTED: &str = "k8s.io/initial-events-end";

/// Which objects are watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selectors {
    pub(crate) labels: Option<String>,
    pub(crate) fields: Option<String>,
}

/// Why a watch was interrupted.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("watch was not begun")]
    Refused(#[source] Box<kube::Error>),
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Unanswered,
    #[error("watch cannot be read")]
    Unreadable(#[source] Box<kube::Error>),
    #[error("the API server ended the watch: {} ({})", .0.message, .0.code)]
    Ended(Box<Status>),
    #[error("nothing was heard for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("watch ended before everything was listed")]
    ListCut,
    #[error("watch ended as soon as it had begun, and brought nothing")]
    Short,
}

/// The running end of a watch.
pub(crate) struct Feed<K: Watched, T> {
    pub(crate) api: Api<Guarded<K>>,
    pub(crate) selectors: Selectors,
    pub(crate) cache: Cache<K, T>,
    pub(crate) clock: Clock,
    pub(crate) errors: Counter,
    pub(crate) lists: Counter,
    pub(crate) malformed: Counter,
}

impl<K: Watched, T: Send + Sync + 'static> Feed<K, T> {
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), RunError> {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            never = self.follow() => match never {},
            never = self.sweep() => match never {},
        }
    }

    async fn sweep(&self) -> Infallible {
        let mut sweep = interval(SWEEP_EVERY);
        loop {
            sweep.tick().await;
            self.cache.sweep();
        }
    }

    /// Follows one watch after the other.
    async fn follow(&self) -> Infallible {
        // The version up to which everything was seen; `None` when everything must be listed.
        let mut position = None;
        let mut rest = REST_MIN;
        loop {
            let begun = Instant::now();
            let before = position.clone();
            let mut end = self.follow_one(&mut position).await;
            let lasted = begun.elapsed() >= LASTING;
            // One that brought something is gone on with at once: under load the API server ends
            // the watches that it cannot serve fast enough, and those who rest fall further behind.
            if end.is_ok() && !lasted && position == before {
                end = Err(Interruption::Short);
            }
            let Err(interruption) = end else {
                rest = REST_MIN;
                continue;
            };
            self.interrupted(&interruption);
            let is_void = interruption.voids_position();
            if is_void {
                position = None;
            }
            // An API server that knows nothing of our position is there again, and everything that
            // came meanwhile is still to be read. One that refuses what it has just listed is not.
            let is_back = is_void && before.is_some();
            // Failures in a row are quick ones; what took long needs no longer rest.
            if lasted || is_back {
                rest = REST_MIN;
            }
            // Spread, because what ended for one watch ended for all.
            sleep(rest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            rest = (rest * 2).min(REST_MAX);
        }
    }

    /// Follows one watch until it ends. `Ok` when it ended as it should, to be resumed at once.
    async fn follow_one(&self, position: &mut Option<String>) -> Result<(), Interruption> {
        let seconds = fastrand::u32(WATCH_SECONDS);
        let mut is_listing = position.is_none();
        if is_listing {
            // Before the list is asked for: it may lack what we create from then on.
            self.cache.begin_relist();
        }
        let mut events = self.open(position.as_deref(), seconds).await?;
        if !is_listing {
            self.cache.followed((self.clock)());
        }
        let watched = Duration::from_secs(seconds.into()) + IDLE_MARGIN;
        loop {
            let patience = if is_listing { LIST_SILENCE } else { watched };
            let event = timeout(patience, events.next()).await;
            let event = match event.map_err(|_elapsed| Interruption::Silent(patience))? {
                Some(event) => event.map_err(|error| Interruption::Unreadable(Box::new(error)))?,
                None if is_listing => return Err(Interruption::ListCut),
                None => return Ok(()),
            };
            let version = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let version = object.meta().resource_version.clone();
                    self.show(object);
                    version
                }
                WatchEvent::Deleted(object) => {
                    self.cache.gone(&Sighting::of(object.meta()));
                    object.meta().resource_version.clone()
                }
                WatchEvent::Bookmark(bookmark) => {
                    if is_listing && bookmark.metadata.annotations.contains_key(LISTED) {
                        is_listing = false;
                        self.lists.inc();
                        let version = &bookmark.metadata.resource_version;
                        self.cache.end_relist(version_number(version), (self.clock)());
                    }
                    Some(bookmark.metadata.resource_version)
                }
                WatchEvent::Error(status) => return Err(Interruption::Ended(status)),
            };
            // Versions come in no order while listing: only the end of the list is a position.
            if !is_listing && version.is_some() {
                *position = version;
            }
        }
    }

    /// Begins a watch; returns when the head of the answer is here. From then on nothing is missed
    /// that happens after `position`.
    async fn open(
        &self,
        position: Option<&str>,
        seconds: u32,
    ) -> Result<
        impl Stream<Item = kube::Result<WatchEvent<Guarded<K>>>> + Unpin + use<K, T>,
        Interruption,
    > {
        let params = WatchParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            // A list as a stream costs the API server and us one object at a time.
            send_initial_events: position.is_none(),
        };
        // No version: as new as the list is asked for. Any other could show us a past that another
        // API server has told us to be over already.
        let version = position.unwrap_or_default();
        let opening = timeout(ANSWER_WITHIN, self.api.watch(&params, version));
        tokio::pin!(opening);
        let answer = match timeout(RESUME_WITHIN, &mut opening).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                self.cache.interrupted((self.clock)());
                opening.await
            }
        };
        match answer {
            Ok(Ok(events)) => Ok(Box::pin(events)),
            Ok(Err(error)) => Err(Interruption::Refused(Box::new(error))),
            Err(_elapsed) => Err(Interruption::Unanswered),
        }
    }

    fn show(&self, object: Guarded<K>) {
        let shown = match object {
            Guarded::Good(object) => self.cache.shown(*object),
            Guarded::Malformed { metadata, why } => {
                Err(Malformed { sighting: Sighting::of(&metadata), why })
            }
        };
        if let Err(malformed) = shown {
            self.malformed.inc();
            let (kind, key) = (K::kind(&()), &malformed.sighting.key);
            tracing::warn!(%kind, %key, why = malformed.why, "Malformed object skipped");
            self.cache.shown_malformed(malformed);
        }
    }

    fn interrupted(&self, why: &Interruption) {
        self.cache.interrupted((self.clock)());
        self.errors.inc();
        let kind = K::kind(&());
        tracing::warn!(%kind, error = %ErrorChain(why), "Watch interrupted");
    }
}

impl Interruption {
    /// Whether the API server knows nothing of the version that we are at, and never will: it is
    /// too old, or from a time before the API server's store was put back to a former state.
    fn voids_position(&self) -> bool {
        let status = match self {
            Self::Ended(status) => status,
            Self::Refused(error) | Self::Unreadable(error) => match &**error {
                kube::Error::Api(status) => status,
                _ => return false,
            },
            _ => return false,
        };
        let is_ahead = |status: &Status| {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            causes.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
        };
        status.code == 410 || is_ahead(status)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use crate::{
        Cache, ObjectKey, Watch,
        pass::mk_pass,
        testing::{Answer, Wire, context, initial_events_end},
    };

    #[tokio::test(start_paused = true)]
    async fn what_is_created_while_the_list_is_asked_for_outlives_a_list_that_is_older() {
        let cache = Arc::new(OnceLock::<Cache<ConfigMap>>::new());
        let known = cache.clone();
        let (_, client) = Wire::answering(move |_| {
            let created = json!({"metadata": {
                "name": "new", "namespace": "team-a", "uid": "new", "resourceVersion": "12",
            }});
            let created = serde_json::from_value(created).expect("a ConfigMap");
            known.get().expect("the watch has begun").observe(created, &mk_pass());
            Answer::Watch(vec![initial_events_end("ConfigMap", 9)])
        });
        let context = context(client);
        let (watched, task) = Watch::<ConfigMap>::new().start(&context, "demo");
        cache.set(watched.clone()).expect("set once");
        let task = tokio::spawn(task);
        watched.synced().await;
        assert_eq!(watched.keys(), [ObjectKey::new("team-a", "new")]);
        task.abort();
    }
}
