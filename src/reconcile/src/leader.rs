//! Leadership: at most one process at a time lets a controller write.
//!
//! The Lease is kept by kube-lease-manager. That one says who holds the Lease, but not for how
//! much longer: a holder that cannot reach the API server goes on believing. So its client is
//! wrapped, and every renewal that the API server confirmed is remembered with the time at which
//! it was *sent*. We lead only for a while after that, and stop before anybody else may take over.
//!
//! Nor does it look at a Lease of somebody else before that lapses. So a candidate that waits reads
//! the Lease now and then, and begins anew when its holder gave it back.

use std::{future::Future, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, client::Body};
use kube_lease_manager::{LeaseCreateMode, LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use portolan_process::ErrorChain;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use crate::{LeaseSettings, controller::RunError};

/// How long to rest after the Lease could not be read or written.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How long to try to give the Lease back at shutdown; it lapses by itself otherwise.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a candidate looks whether the Lease was given back.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Competes for one Lease.
pub(crate) struct Election {
    pub(crate) client: Client,
    pub(crate) lease: String,
    pub(crate) identity: String,
    pub(crate) settings: LeaseSettings,
}

impl Election {
    /// Competes until `stop` is cancelled, then gives the Lease back. `leading` says at any time
    /// whether this process leads; it turns false before another process can turn true.
    pub(crate) async fn run(
        self,
        leading: watch::Sender<bool>,
        stop: CancellationToken,
    ) -> Result<(), RunError> {
        // Outlives a manager: a renewal of the last one holds for the next.
        let renewed = watch::Sender::new(None);
        while !stop.is_cancelled() {
            let error = match self.compete(&leading, &renewed, &stop).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            leading.send_replace(false);
            let lease = &self.lease;
            tracing::warn!(lease, error = %ErrorChain(&error), "Lease neither read nor written");
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
        Ok(())
    }

    /// One life of a lease manager: ends with `stop`, when another one would get the Lease sooner,
    /// or when the Lease itself is lost.
    async fn compete(
        &self,
        leading: &watch::Sender<bool>,
        renewed: &watch::Sender<Option<Instant>>,
        stop: &CancellationToken,
    ) -> Result<(), LeaseManagerError> {
        let margin = self.settings.grace / 4;
        let client = watched(self.client.clone(), renewed.clone(), margin);
        let manager = LeaseManagerBuilder::new(client, &self.lease)
            .with_namespace(&self.settings.namespace)
            .with_identity(&self.identity)
            .with_duration(self.settings.duration.as_secs())
            .with_grace(self.settings.grace.as_secs())
            .with_field_manager(format!("portolan-lease-{}", self.identity))
            // The chart makes the Lease; one that somebody deleted must not wait for its next
            // upgrade. Without the permission to create it, this fails until it is there again.
            .with_create_mode(LeaseCreateMode::AutoCreate)
            .build()
            .await?;
        let mut fence = Fence {
            leading,
            renewed: renewed.subscribe(),
            valid_for: self.settings.duration - margin,
            held: false,
        };
        tokio::select! {
            ended = fence.follow(&manager) => ended,
            () = self.given_back(leading) => Ok(()),
            () = stop.cancelled() => {
                leading.send_replace(false);
                if timeout(RELEASE_TIMEOUT, manager.release()).await.is_err() {
                    tracing::debug!(lease = self.lease, "Lease not given back in time");
                }
                Ok(())
            }
        }
    }
}

impl Election {
    /// Resolves when nobody holds the Lease while we wait for it. A read that fails says nothing.
    async fn given_back(&self, leading: &watch::Sender<bool>) {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if *leading.borrow() {
                continue;
            }
            let read = timeout(LOOK_EVERY, leases.get(&self.lease)).await;
            let holder = |lease: Lease| lease.spec.and_then(|spec| spec.holder_identity);
            if read.is_ok_and(|read| read.is_ok_and(|lease| holder(lease).is_none())) {
                return;
            }
        }
    }
}

/// Leads while the manager says so *and* the last confirmed renewal is recent.
struct Fence<'a> {
    leading: &'a watch::Sender<bool>,
    renewed: watch::Receiver<Option<Instant>>,
    valid_for: Duration,
    held: bool,
}

impl Fence<'_> {
    /// Follows the manager until the Lease cannot be used any more.
    async fn follow(&mut self, manager: &LeaseManager) -> Result<(), LeaseManagerError> {
        loop {
            match self.while_fenced(manager.changed()).await {
                Ok(held) => self.held = held,
                // Deleted by somebody: only a new manager makes a new one.
                Err(error @ LeaseManagerError::NonexistentLease(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "Lease not renewed");
                    // The fence goes on while we rest: it may fall meanwhile.
                    self.while_fenced(tokio::time::sleep(RETRY_AFTER)).await;
                }
            }
        }
    }

    /// Waits for `event` while renewals extend, and their absence ends, our leadership.
    async fn while_fenced<R>(&mut self, event: impl Future<Output = R>) -> R {
        tokio::pin!(event);
        loop {
            let deadline = self.publish();
            tokio::select! {
                result = &mut event => return result,
                _ = self.renewed.changed() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    /// Says whether we lead now. Returns until when, if we do.
    fn publish(&mut self) -> Option<Instant> {
        let renewed = *self.renewed.borrow_and_update();
        let until = renewed.map(|sent| sent + self.valid_for);
        let deadline = until.filter(|until| self.held && *until > Instant::now());
        self.leading.send_if_modified(|leading| {
            let changed = *leading != deadline.is_some();
            *leading = deadline.is_some();
            changed
        });
        deadline
    }
}

/// A client that notes when a write that the API server confirmed was sent, and gives up on
/// requests that take longer than `limit`.
fn watched(client: Client, renewed: watch::Sender<Option<Instant>>, limit: Duration) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (client, renewed) = (client.clone(), renewed.clone());
        async move {
            let is_write = request.method() == http::Method::PATCH;
            let sent = Instant::now();
            let response = timeout(limit, client.send(request)).await??;
            if is_write && response.status().is_success() {
                renewed.send_replace(Some(sent));
            }
            Ok::<_, BoxError>(response)
        }
    });
    Client::new(service, namespace)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;

    use super::*;
    use crate::testing::{Answer, Wire};

    const VALID: Duration = Duration::from_secs(12);

    struct Setup {
        leading: watch::Sender<bool>,
        renewed: watch::Sender<Option<Instant>>,
    }

    impl Setup {
        fn new() -> Self {
            Self { leading: watch::Sender::new(false), renewed: watch::Sender::new(None) }
        }

        fn fence(&self, held: bool) -> Fence<'_> {
            let renewed = self.renewed.subscribe();
            Fence { leading: &self.leading, renewed, valid_for: VALID, held }
        }

        fn leads(&self) -> bool {
            *self.leading.borrow()
        }
    }

    async fn seconds(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_cannot_renew_stops_leading_before_the_lease_lapses() {
        let setup = Setup::new();
        let mut fence = setup.fence(true);
        setup.renewed.send_replace(Some(Instant::now()));
        let story = async {
            seconds(11).await;
            assert!(setup.leads(), "the renewal is recent");
            seconds(2).await;
            assert!(!setup.leads(), "nobody else can hold a lease of 15 s yet");
        };
        fence.while_fenced(story).await;
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_keep_leadership_and_bring_it_back() {
        let setup = Setup::new();
        let mut fence = setup.fence(true);
        let story = async {
            for _ in 0..5 {
                setup.renewed.send_replace(Some(Instant::now()));
                seconds(10).await;
                assert!(setup.leads());
            }
            seconds(5).await;
            assert!(!setup.leads());
            setup.renewed.send_replace(Some(Instant::now()));
            seconds(1).await;
            assert!(setup.leads(), "the manager never said that the lease was lost");
        };
        fence.while_fenced(story).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_lease_of_somebody_else_is_no_leadership() {
        let setup = Setup::new();
        let mut fence = setup.fence(false);
        setup.renewed.send_replace(Some(Instant::now()));
        fence.while_fenced(seconds(1)).await;
        assert!(!setup.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_found_in_our_name_counts_only_once_it_is_renewed() {
        let setup = Setup::new();
        let mut fence = setup.fence(true);
        fence.while_fenced(seconds(1)).await;
        assert!(!setup.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_missing_is_made() {
        let is_made = AtomicBool::new(false);
        let (wire, client) = Wire::answering(move |sent| {
            let is_new = sent.method == http::Method::POST;
            if !is_new && !is_made.load(Ordering::SeqCst) {
                return Answer::failure(404, "NotFound", "leases \"portolan-demo\" not found");
            }
            is_made.store(true, Ordering::SeqCst);
            let spec = json!({
                "holderIdentity": "faster", "leaseDurationSeconds": 3600,
                "renewTime": format!("{:.6}", jiff::Timestamp::now()),
            });
            Answer::Json(200, json!({"metadata": {"name": "portolan-demo"}, "spec": spec}))
        });
        let settings = LeaseSettings::standard("system");
        let (lease, identity) = ("portolan-demo".to_owned(), "slower".to_owned());
        let (stop, leading) = (CancellationToken::new(), watch::Sender::new(false));
        let election = Election { client, lease, identity, settings };
        let task = tokio::spawn(election.run(leading, stop.clone()));
        seconds(5).await;
        stop.cancel();
        task.await.expect("no panic").expect("a clean end");
        let made = wire.sent().into_iter().filter(|sent| sent.method == http::Method::POST);
        let made: Vec<_> = made.map(|sent| (sent.path, sent.body["metadata"].clone())).collect();
        let path = "/apis/coordination.k8s.io/v1/namespaces/system/leases".to_owned();
        assert_eq!(made, [(path, json!({"name": "portolan-demo"}))]);
    }
}
