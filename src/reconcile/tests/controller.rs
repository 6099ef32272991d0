//! How a controller runs its passes: retries, concurrency, panics, shutdown, full passes.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::core::PartialObjectMeta;
use portolan_reconcile::{
    Cache, Context, Controller, LeaseSettings, Next, ObjectKey, Pass, Queue, ReconcileError,
    Reconciler, Retry, RunError, Settings, Watch,
    metrics::PassLabel,
    testing::{Answer, Wire, context, context_with, initial_events_end},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("no luck")]
struct Failure(Retry);

impl ReconcileError for Failure {
    fn category(&self) -> &'static str {
        "no_luck"
    }

    fn retry(&self) -> Retry {
        self.0
    }
}

type Outcome = Pin<Box<dyn Future<Output = Result<Next, Failure>> + Send>>;

/// Notes when each key's passes began, and leaves their outcome to the test.
#[derive(Clone)]
struct Probe {
    begun: Arc<Mutex<Vec<(String, u32, Instant)>>>,
    outcome: Arc<dyn Fn(&Pass) -> Outcome + Send + Sync>,
}

impl Probe {
    fn new<F>(outcome: impl Fn(&Pass) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Next, Failure>> + Send + 'static,
    {
        let outcome = move |pass: &Pass| -> Outcome { Box::pin(outcome(pass)) };
        Self { begun: Arc::default(), outcome: Arc::new(outcome) }
    }

    /// The passes so far: key, failures before, seconds since `start` rounded down.
    fn passes(&self, start: Instant) -> Vec<(String, u32, u64)> {
        let begun = self.begun.lock().expect("no test panics holding it");
        let pass = |(key, attempt, when): &(String, u32, Instant)| {
            (key.clone(), *attempt, when.duration_since(start).as_secs())
        };
        begun.iter().map(pass).collect()
    }

    fn count(&self) -> usize {
        self.begun.lock().expect("no test panics holding it").len()
    }
}

impl Reconciler for Probe {
    type Error = Failure;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Failure> {
        let begun = (pass.key().name.clone(), pass.attempt(), Instant::now());
        self.begun.lock().expect("no test panics holding it").push(begun);
        (self.outcome)(pass).await
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("team-a", name)
}

/// A controller without watches, run by the test while it does something else.
struct Running {
    context: Context,
    queue: Queue,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
}

fn run(probe: &Probe, settings: Settings) -> Running {
    let (_, client) = Wire::scripted([]);
    let context = context_with(client, settings);
    let controller = Controller::new(&context, "demo");
    let queue = controller.queue();
    let task = tokio::spawn(controller.run(probe.clone()));
    Running { context, queue, task }
}

impl Running {
    fn passes(&self, result: &'static str) -> u64 {
        let label = PassLabel { controller: "demo", result };
        self.context.metrics().passes.get_or_create(&label).get()
    }

    async fn stop(self) {
        self.context.shutdown().cancel();
        self.task.await.expect("no panic").expect("a clean end");
    }
}

fn standard() -> Settings {
    Settings::standard("test")
}

#[tokio::test(start_paused = true)]
async fn a_failed_key_is_tried_again_with_backoff_without_waiting_for_a_full_pass() {
    let probe = Probe::new(|pass| {
        let failed = pass.attempt() < 3;
        async move { if failed { Err(Failure(Retry::Backoff)) } else { Ok(Next::Settled) } }
    });
    let running = run(&probe, standard());
    running.queue.add(key("a"));
    sleep(SECOND).await;
    assert_eq!(probe.count(), 4, "50, 100 and 200 ms at most");
    assert_eq!((running.passes("no_luck"), running.passes("settled")), (3, 1));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_must_wait_for_a_change_is_not_tried_again() {
    for retry in [Retry::WaitForChange, Retry::Never] {
        let probe = Probe::new(move |_| async move { Err(Failure(retry)) });
        let running = run(&probe, standard());
        running.queue.add(key("a"));
        sleep(500 * SECOND).await;
        assert_eq!(probe.count(), 1, "{retry:?}");
        running.queue.add(key("a"));
        sleep(SECOND).await;
        assert_eq!(probe.count(), 2, "a change brings it back: {retry:?}");
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_says_when_to_look_again() {
    let start = Instant::now();
    let probe = Probe::new(|pass| {
        let next = match pass.key().name.as_str() {
            "after" => Next::After(7 * SECOND),
            _ => Next::Settled,
        };
        async move { Ok(next) }
    });
    let running = run(&probe, standard());
    running.queue.add(key("after"));
    running.queue.add(key("settled"));
    sleep(15 * SECOND).await;
    let mut passes = probe.passes(start);
    passes.sort();
    let expected = [("after", 0), ("after", 7), ("after", 14), ("settled", 0)];
    let expected: Vec<_> =
        expected.into_iter().map(|(key, when)| (key.to_owned(), 0, when)).collect();
    assert_eq!(passes, expected);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_counted_and_the_key_is_tried_again() {
    let probe = Probe::new(|pass| {
        let first = pass.attempt() == 0;
        async move {
            assert!(!first, "index out of bounds");
            Ok(Next::Settled)
        }
    });
    let running = run(&probe, standard());
    running.queue.add(key("a"));
    sleep(SECOND).await;
    assert_eq!((running.passes("panic"), running.passes("settled")), (1, 1));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_takes_too_long_is_dropped_and_disturbs_no_other_key() {
    let probe = Probe::new(|pass| {
        let stuck = pass.key().name == "stuck";
        async move {
            if stuck {
                std::future::pending::<()>().await;
            }
            Ok(Next::Settled)
        }
    });
    let running = run(&probe, standard());
    running.queue.add(key("stuck"));
    running.queue.add(key("other"));
    sleep(SECOND).await;
    assert_eq!(running.passes("settled"), 1);
    sleep(running.context.settings().pass_timeout).await;
    assert_eq!(running.passes("timeout"), 1);
    running.task.abort();
}

#[tokio::test(start_paused = true)]
async fn passes_run_beside_each_other_up_to_the_limit_and_never_twice_for_one_key() {
    #[derive(Default)]
    struct Load {
        now: BTreeMap<ObjectKey, usize>,
        most: usize,
    }
    let load = Arc::new(Mutex::new(Load::default()));
    let shared = load.clone();
    let probe = Probe::new(move |pass| {
        let (load, key) = (shared.clone(), pass.key().clone());
        async move {
            {
                let mut load = load.lock().unwrap();
                *load.now.entry(key.clone()).or_default() += 1;
                load.most = load.most.max(load.now.values().sum());
                assert_eq!(load.now[&key], 1, "a key is never in work twice");
            }
            sleep(SECOND).await;
            *load.lock().unwrap().now.get_mut(&key).unwrap() -= 1;
            Ok(Next::Settled)
        }
    });
    let running = run(&probe, Settings { concurrency: 4, ..standard() });
    for _ in 0..3 {
        for name in ["a", "b", "c", "d", "e", "f"] {
            running.queue.add(key(name));
        }
        sleep(SECOND / 2).await;
    }
    sleep(10 * SECOND).await;
    assert_eq!(running.passes("panic"), 0);
    assert_eq!(load.lock().unwrap().most, 4);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_running_passes_end_and_begins_none() {
    let probe = Probe::new(|_| async {
        sleep(5 * SECOND).await;
        Ok(Next::Settled)
    });
    let running = run(&probe, Settings { concurrency: 1, ..standard() });
    running.queue.add(key("running"));
    running.queue.add(key("waiting"));
    sleep(SECOND).await;
    let start = Instant::now();
    let context = running.context.clone();
    running.stop().await;
    assert_eq!(start.elapsed(), 4 * SECOND);
    assert_eq!(probe.count(), 1);
    let label = PassLabel { controller: "demo", result: "settled" };
    assert_eq!(context.metrics().passes.get_or_create(&label).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_ever_for_a_pass() {
    let probe = Probe::new(|_| std::future::pending());
    let running = run(&probe, standard());
    running.queue.add(key("stuck"));
    sleep(SECOND).await;
    let start = Instant::now();
    let context = running.context.clone();
    running.stop().await;
    assert_eq!(start.elapsed(), 20 * SECOND, "less than a process gets to end");
    let label = PassLabel { controller: "demo", result: "aborted" };
    assert_eq!(context.metrics().passes.get_or_create(&label).get(), 1);
}

// --- with a watch ---

fn config(name: &str, version: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "namespace": "team-a", "uid": name,
            "resourceVersion": version.to_string(), "generation": 1,
        },
    })
}

fn listing(names: &[&str]) -> Answer {
    let added = |name: &&str| json!({"type": "ADDED", "object": config(name, 5)});
    let mut events: Vec<Value> = names.iter().map(added).collect();
    events.push(initial_events_end("ConfigMap", 9));
    Answer::Watch(events)
}

#[tokio::test(start_paused = true)]
async fn passes_and_elections_begin_when_all_caches_are_synced_and_so_does_readiness() {
    let (wire, client) = Wire::answering(|sent| {
        if sent.path.ends_with("configmaps") { listing(&["a"]) } else { Answer::Silence }
    });
    let (context, controller, cache) = with_secrets(client);
    let probe = Probe::new(|_| async { Ok(Next::Settled) });
    let task = tokio::spawn(controller.run(probe.clone()));
    timeout(SECOND, cache.synced()).await.expect("one of two caches is synced");
    sleep(100 * SECOND).await;
    assert_eq!(probe.count(), 0, "the other one is not");
    assert_eq!(context.readiness().closed(), ["demo.caches"]);
    let paths: Vec<_> = wire.sent().into_iter().map(|sent| sent.path).collect();
    assert!(paths.iter().all(|path| !path.contains("/leases")), "no candidate: {paths:?}");
    context.shutdown().cancel();
    timeout(SECOND, task).await.expect("at once").expect("no panic").expect("a clean end");
}

#[tokio::test(start_paused = true)]
async fn a_standby_is_a_candidate_as_soon_as_its_caches_are_synced() {
    let (wire, client) = Wire::answering(|sent| match sent.path.rsplit('/').next() {
        Some("configmaps") => listing(&["a"]),
        Some("secrets") => Answer::Watch(vec![initial_events_end("Secret", 9)]),
        _ => held_by_another(),
    });
    let (context, controller, _) = with_secrets(client);
    let probe = Probe::new(|_| async { Ok(Next::Settled) });
    let task = tokio::spawn(controller.run(probe.clone()));
    sleep(SECOND).await;
    assert!(context.readiness().closed().is_empty(), "it is as warm as the leader");
    let asked = wire.sent().into_iter().any(|sent| sent.path.ends_with("/leases/portolan-demo"));
    assert!(asked, "it competes");
    assert_eq!(probe.count(), 0, "another one leads");
    context.shutdown().cancel();
    timeout(5 * SECOND, task).await.expect("soon").expect("no panic").expect("a clean end");
}

/// A controller that elects leaders and has two caches, and the one of its objects.
fn with_secrets(client: kube::Client) -> (Context, Controller, Cache<ConfigMap>) {
    let lease = Some(LeaseSettings::standard("system"));
    let context = context_with(client, Settings { lease, ..standard() });
    let mut controller = Controller::new(&context, "demo");
    let cache = controller.primary(Watch::<ConfigMap>::new());
    controller.read(Watch::<PartialObjectMeta<Secret>>::new());
    (context, controller, cache)
}

/// The Lease, for longer than any test takes.
fn held_by_another() -> Answer {
    Answer::Json(
        200,
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "portolan-demo", "namespace": "system"},
            "spec": {
                "holderIdentity": "another", "leaseDurationSeconds": 3600,
                "renewTime": format!("{:.6}", jiff::Timestamp::now()),
            },
        }),
    )
}

#[tokio::test(start_paused = true)]
async fn every_object_is_looked_at_at_start_and_again_by_the_full_pass() {
    let (_, client) = Wire::answering(|_| listing(&["a", "b", "c"]));
    let context = context(client);
    let mut controller = Controller::new(&context, "demo");
    controller.primary(Watch::<ConfigMap>::new());
    let probe = Probe::new(|_| async { Ok(Next::Settled) });
    let task = tokio::spawn(controller.run(probe.clone()));
    sleep(SECOND).await;
    assert_eq!(probe.count(), 3);
    assert!(context.readiness().closed().is_empty());
    let every = context.settings().resync_every;
    sleep(every.mul_f64(0.89) - SECOND).await;
    assert_eq!(probe.count(), 3, "not earlier than a tenth before its time");
    sleep(every.mul_f64(0.22)).await;
    assert_eq!(probe.count(), 6);
    assert_eq!(context.metrics().writes_of("demo"), 0);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn keys_refused_by_a_full_queue_are_made_up_for() {
    let names: Vec<String> = (0..40).map(|n| format!("app-{n:02}")).collect();
    let (_, client) = Wire::answering({
        let names = names.clone();
        move |_| listing(&names.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let context = context_with(client, Settings { queue_capacity: 10, ..standard() });
    let mut controller = Controller::new(&context, "demo");
    controller.primary(Watch::<ConfigMap>::new());
    let probe = Probe::new(|_| async {
        sleep(Duration::from_millis(10)).await;
        Ok(Next::Settled)
    });
    let task = tokio::spawn(controller.run(probe.clone()));
    sleep(10 * SECOND).await;
    let mut seen: Vec<_> =
        probe.passes(Instant::now() - 10 * SECOND).into_iter().map(|(key, ..)| key).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, names, "every key has had its pass");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_own_write_wakes_others_but_not_its_own_key() {
    let (_, client) = Wire::answering(|_| listing(&["a", "b"]));
    let context = context(client);
    let mut controller = Controller::new(&context, "demo");
    // A change of any object concerns both.
    let cache = controller.watch(Watch::<ConfigMap>::new(), |_| [key("a"), key("b")]);
    let written = cache.clone();
    let probe = Probe::new(move |pass| {
        if pass.key().name == "a" && pass.attempt() == 0 {
            let answer = serde_json::from_value(config("a", 50)).unwrap();
            written.observe(answer, pass);
        }
        async { Ok(Next::Settled) }
    });
    let task = tokio::spawn(controller.run(probe.clone()));
    sleep(SECOND).await;
    let keys = probe.passes(Instant::now() - SECOND);
    let count = |name: &str| keys.iter().filter(|(key, ..)| key == name).count();
    assert_eq!(count("a"), 1, "the pass that wrote is not repeated: {keys:?}");
    assert!((1..=2).contains(&count("b")), "the other one is woken: {keys:?}");
    let known = cache.get(&key("a")).expect("cached");
    assert_eq!(known.metadata.resource_version.as_deref(), Some("50"), "read your own writes");
    task.abort();
}
