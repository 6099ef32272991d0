//! When the agent is ready, on a real kernel and with an API server that is made up.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use portolan_process::Readiness;
use portolan_reconcile::testing::{Answer, Sent, Wire, context, initial_events_end};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const GATE: &str = "node.programmed";

/// An API server that says everything once, but for the slices while they are held back, and is
/// gone then.
#[derive(Default)]
struct ApiServer {
    says_slices: AtomicBool,
    refused: AtomicUsize,
}

impl ApiServer {
    fn answer(&self, sent: &Sent) -> Answer {
        if sent.method.as_str() == "PATCH" {
            return Answer::Json(200, sent.body.clone());
        }
        if !sent.query.contains("watch=true") {
            return Answer::failure(404, "NotFound", "not found");
        }
        if !sent.query.contains("sendInitialEvents") {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Answer::failure(503, "ServiceUnavailable", "it is gone");
        }
        match sent.path.rsplit('/').next().unwrap_or_default() {
            "nodes" => listing("Node", Some(node())),
            "endpointslices" if !self.says_slices.load(Ordering::Relaxed) => {
                Answer::WatchThenEnd(Vec::new())
            }
            "endpointslices" => listing("EndpointSlice", None),
            "appservices" => listing("AppService", None),
            "services" => listing("Service", None),
            other => panic!("nobody asks for {other}"),
        }
    }
}

fn listing(kind: &str, object: Option<Value>) -> Answer {
    let added = object.map(|object| json!({ "type": "ADDED", "object": object }));
    Answer::WatchThenEnd(added.into_iter().chain([initial_events_end(kind, 12)]).collect())
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "node-1", "uid": "uid-of-the-node", "resourceVersion": "11" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.10" }] },
    })
}

/// The reasons that the report of the node gave, in order.
fn reasons(wire: &Wire) -> Vec<Value> {
    let sent = wire.sent().into_iter().filter(|one| one.method.as_str() == "PATCH");
    sent.map(|report| report.body["spec"]["conditions"][0]["reason"].clone()).collect()
}

/// Runs a test in a network namespace that goes with it.
fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let inside = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the privilege to make network namespaces");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test());
    });
    inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

async fn until(awaited: &str, mut look: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(seen) = look() {
        assert!(Instant::now() < deadline, "waited for {awaited}, last seen: {seen}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn has_table() -> bool {
    let output = Command::new("nft").args(["list", "tables"]).output().expect("nft");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).contains("inet portolan\n")
}

#[test]
fn it_is_ready_once_all_was_read_and_programmed_and_stays_so_without_the_api_server() {
    in_namespace(async || {
        let server = Arc::new(ApiServer::default());
        let answering = server.clone();
        let (wire, client) = Wire::answering(move |sent| answering.answer(sent));
        let ctx = context(client);
        let settings = Settings {
            node_name: "node-1".into(),
            system_namespace: "portolan-system".into(),
            gateway_service: "portolan-gateway-internal".into(),
        };
        let metrics = Metrics::register(&mut Registry::default());
        let tasks = start(&ctx, settings, metrics).into_iter();
        let tasks: Vec<_> = tasks.map(|(_, task)| tokio::spawn(task)).collect();
        until("a first report", || {
            (!reasons(&wire).is_empty()).then_some(()).ok_or("no report".into())
        })
        .await;
        let reasons = reasons(&wire);
        assert!(reasons.iter().all(|reason| reason == "Starting"), "{reasons:?}");
        assert_eq!(ctx.readiness().closed(), [GATE], "slices were not read");
        assert!(!has_table(), "what is there would be deleted for what was not read");

        server.says_slices.store(true, Ordering::Relaxed);
        until("the gate to open", || {
            let closed = ctx.readiness().closed();
            closed.is_empty().then_some(()).ok_or(format!("{closed:?}"))
        })
        .await;
        assert!(has_table(), "it is ready without its table");
        let before = server.refused.load(Ordering::Relaxed);
        until("the API server to be missed", || {
            let refused = server.refused.load(Ordering::Relaxed);
            (refused > before).then_some(()).ok_or(format!("{refused} requests were refused"))
        })
        .await;
        assert!(ctx.readiness().closed().is_empty(), "what is programmed stays so");
        ctx.shutdown().cancel();
        for task in tasks {
            task.await.expect("no panic").expect("an end in order");
        }
    });
}

#[tokio::test]
async fn the_gate_opens_with_the_first_programming_and_stays_open() {
    let refused = State::Refused { count: 1, example: "one".into() };
    let failures = [State::Foreign("another's".into()), State::Failed("no privilege".into())];
    for first in [State::Programmed, refused] {
        let (readiness, shutdown) = (Readiness::new(), CancellationToken::new());
        let (state, states) = watch::channel(State::default());
        let keeper = tokio::spawn(keep_gate(readiness.gate(GATE), states, shutdown.clone()));
        for before in &failures {
            state.send_replace(before.clone());
            settle().await;
            assert_eq!(readiness.closed(), [GATE], "{before:?} before {first:?}");
        }
        for now in [&first].into_iter().chain(&failures) {
            state.send_replace(now.clone());
            settle().await;
            assert!(readiness.closed().is_empty(), "{now:?} from {first:?} on");
        }
        shutdown.cancel();
        keeper.await.expect("no panic").expect("an end in order");
    }
}

/// Lets the other tasks of this thread go on until they wait.
async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}
