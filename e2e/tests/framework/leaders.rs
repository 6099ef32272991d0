//! Who may write when several processes compete.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kube::Client;
use portolan_cluster::wait::{PATIENCE, until_seen};
use portolan_reconcile::{
    Context, Controller, LeaseSettings, Next, ObjectKey, Pass, Reconciler, RunError, Settings,
    metrics::ControllerLabel, testing,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::support::{Place, in_a_namespace};

/// Short, so that a lapse is seen within the test; never the settings of a real installation.
const LEASE: Duration = Duration::from_secs(6);

/// Has one pass that never ends by itself, and counts passes that are under way.
#[derive(Clone, Default)]
pub(crate) struct Endless {
    running: Arc<AtomicUsize>,
}

impl Reconciler for Endless {
    type Error = Never;

    async fn reconcile(&self, _pass: &Pass) -> Result<Next, Never> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let _counted = Counted(&self.running);
        std::future::pending().await
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub(crate) enum Never {}

impl std::fmt::Display for Never {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

impl portolan_reconcile::ReconcileError for Never {
    fn category(&self) -> &'static str {
        match *self {}
    }

    fn retry(&self) -> portolan_reconcile::Retry {
        match *self {}
    }
}

/// A process that competes for the Lease `portolan-demo`.
struct Candidate {
    context: Context,
    passes: Endless,
    task: JoinHandle<Result<(), RunError>>,
}

impl Candidate {
    /// One without anything to do.
    fn idle(place: &Place, name: &str, client: Client) -> Self {
        Self::start(place, name, client, &[])
    }

    /// One that has a pass for each of these keys as soon as it leads.
    fn start(place: &Place, name: &str, client: Client, keys: &[&str]) -> Self {
        let lease = LeaseSettings {
            namespace: place.namespace.clone(),
            duration: LEASE,
            grace: Duration::from_secs(2),
        };
        let settings = Settings { lease: Some(lease), ..Settings::standard(name) };
        let context = testing::context_with(client, settings);
        let (controller, passes) = (Controller::new(&context, "demo"), Endless::default());
        keys.iter().for_each(|key| controller.queue().add(ObjectKey::cluster(*key)));
        let task = tokio::spawn(controller.run(passes.clone()));
        Self { context, passes, task }
    }

    fn leads(&self) -> bool {
        let label = ControllerLabel { controller: "demo" };
        self.context.metrics().leading.get_or_create(&label).get() == 1
    }

    fn running(&self) -> usize {
        self.passes.running.load(Ordering::SeqCst)
    }

    async fn until_leading(&self) -> Duration {
        let start = Instant::now();
        until_seen("the candidate leads", async || self.leads(), |leads| *leads).await;
        start.elapsed()
    }
}

#[tokio::test]
async fn the_lease_is_handed_over_at_shutdown() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let first = Candidate::idle(&place, "first", place.client.clone());
        first.until_leading().await;
        let second = Candidate::idle(&place, "second", place.client.clone());
        sleep(Duration::from_secs(1)).await;
        assert!(first.leads() && !second.leads());

        first.context.shutdown().cancel();
        first.task.await.unwrap().unwrap();
        let handed_over = second.until_leading().await;
        assert!(handed_over < LEASE, "the lease was given back: {handed_over:?}");
        second.task.abort();
    })
    .await
}

#[tokio::test]
async fn a_leader_without_api_server_stops_before_another_leads() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        let cut = Arc::new(AtomicBool::new(false));
        let first = Candidate::start(&place, "first", severable(&place.client, &cut), &["key"]);
        first.until_leading().await;
        let second = Candidate::start(&place, "second", place.client.clone(), &["key"]);
        sleep(Duration::from_secs(1)).await;
        assert_eq!((first.running(), second.running()), (1, 0), "only the leader works");

        cut.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + PATIENCE;
        while !second.leads() {
            assert!(Instant::now() < deadline, "the second candidate never led");
            sleep(Duration::from_millis(5)).await;
        }
        assert!(!first.leads(), "there are two leaders");
        assert_eq!(first.running(), 0, "a pass of the old leader goes on");
        // Reconnected, it finds the Lease taken and stays where it is.
        cut.store(false, Ordering::SeqCst);
        let both = async {
            loop {
                assert!(!(first.leads() && second.leads()), "there are two leaders");
                sleep(Duration::from_millis(5)).await;
            }
        };
        let watched = tokio::time::timeout(LEASE * 2, both).await;
        assert!(watched.is_err() && second.leads());
        first.task.abort();
        second.task.abort();
    })
    .await
}

/// A client whose requests hang while `cut` is set, as with a network that drops packets.
fn severable(client: &Client, cut: &Arc<AtomicBool>) -> Client {
    let (client, cut) = (client.clone(), cut.clone());
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request| {
        let (client, cut) = (client.clone(), cut.clone());
        async move {
            if cut.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            client.send(request).await
        }
    });
    Client::new(service, namespace)
}
