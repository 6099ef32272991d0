use portolan_api::Transport;
use portolan_api::conditions::reason;
use portolan_nft::Features;
use portolan_reconcile::testing::{Answer, Sent, Wire, context};
use serde_json::Value;

use super::*;
use crate::inbox::Ground;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn machine(addresses: &[[u8; 4]], routes: &[Family]) -> Machine {
    let addresses = addresses.iter().map(|address| (*address).into()).collect();
    let ground = Ground { addresses, ..Ground::default() };
    Machine { ground, default_routes: routes.iter().copied().collect() }
}

fn facts(state: State) -> Facts {
    let machine = machine(&[[192, 0, 2, 10]], &[Family::V4]);
    Facts { kernel: "6.18.0".into(), machine, state, ..Facts::default() }
}

#[track_caller]
fn check(facts: Facts, status: &str, reason: &str, words: &str) {
    let spec = spec(facts, &[], NOW);
    let [ready] = &spec.conditions[..] else { panic!("{:?}", spec.conditions) };
    assert_eq!((&*ready.type_, &*ready.status, &*ready.reason), ("Ready", status, reason));
    assert!(ready.message.contains(words), "{} does not say {words}", ready.message);
    assert_eq!(ready.observed_generation, None, "a report is its own spec");
}

#[test]
fn each_state_has_its_reason() {
    check(facts(State::Starting), "False", reason::STARTING, "nothing is programmed yet");
    check(facts(State::Programmed), "True", reason::PROGRAMMED, "as they should be");
    let refused = State::Refused { count: 2, example: "NodePort(6697)".into() };
    check(facts(refused), "False", reason::PARTLY_PROGRAMMED, "2 of the ports");
    let foreign = State::Foreign("a table of this name".into());
    check(facts(foreign), "False", reason::FOREIGN_TABLE, "delete it");
    let failed = State::Failed("no privilege".into());
    check(facts(failed), "False", reason::UNPROGRAMMABLE, "no privilege");
}

#[test]
fn what_the_machine_lacks_is_said() {
    let lacking = |machine| Facts { machine, ..facts(State::Programmed) };
    let nowhere = lacking(machine(&[], &[Family::V4]));
    check(nowhere, "True", reason::PROGRAMMED, "node ports do not answer here");
    let routeless = lacking(machine(&[[192, 0, 2, 10]], &[]));
    check(routeless, "True", reason::PROGRAMMED, "no default route");
}

#[test]
fn features_are_named_in_order() {
    let all = Features {
        owned_tables: true,
        proves_commits: true,
        counts_elements: true,
        names_elements: true,
    };
    let opened = Opened { port: 1, features: all, filters: Some(false) };
    let found = spec(Facts { opened: Some(opened), ..facts(State::Programmed) }, &[], NOW);
    let expected =
        "Conntrack CountedElements DefaultRouteIPv4 NamedElements OwnedTables ProvenCommits";
    assert_eq!(found.features.join(" "), expected);
    assert_eq!(found.addresses, ["192.0.2.10"]);
    assert_eq!(spec(facts(State::Starting), &[], NOW).features, ["DefaultRouteIPv4"]);
}

#[test]
fn a_report_says_no_more_ports_than_it_may() {
    let port = |port| ListeningPort { port, transport: Transport::Tcp };
    let listening = (1..=2_000).map(port).collect();
    let found = spec(Facts { listening, ..facts(State::Programmed) }, &[], NOW).listening;
    assert_eq!(found.len(), LISTENING_MAX);
    assert_eq!(found.last(), Some(&port(1_024)), "those that Apps rather want");
}

#[test]
fn the_same_state_is_the_same_report_later() {
    let first = spec(facts(State::Programmed), &[], NOW);
    let later = NOW + Duration::from_secs(60);
    let again = spec(facts(State::Programmed), &first.conditions, later);
    assert_eq!(again, first);
    let failed = spec(facts(State::Failed("x".into())), &first.conditions, later);
    assert_ne!(failed.conditions[0].last_transition_time, first.conditions[0].last_transition_time);
}

fn node(uid: &str) -> Option<NodeFacts> {
    Some(NodeFacts { uid: uid.into(), addresses: BTreeSet::new() })
}

/// Runs the reporter of `node-1` in a cluster that keeps its reports, or loses each at once, and
/// returns what is sent and how to tell it of its Node.
fn start(is_kept: bool) -> (Wire, watch::Sender<Option<NodeFacts>>) {
    let stored = parking_lot::Mutex::new(None::<Value>);
    let (wire, client) = Wire::answering(move |sent| {
        if sent.method.as_str() == "PATCH" {
            *stored.lock() = is_kept.then(|| sent.body.clone());
            return Answer::Json(200, sent.body.clone());
        }
        let live = stored.lock().clone();
        let absent = || Answer::failure(404, "NotFound", "not found");
        live.map_or_else(absent, |report| Answer::Json(200, report))
    });
    let (told, node) = watch::channel(node("uid-a"));
    let reporter = Reporter {
        ctx: context(client),
        inbox: Arc::default(),
        node_name: "node-1".into(),
        // What listens on the machine of the tests changes while they run.
        proc: "/nowhere".into(),
        node,
        machine: watch::channel(Some(Machine::default())).1,
        opened: watch::channel(None).1,
        state: watch::channel(State::Programmed).1,
    };
    tokio::spawn(reporter.run());
    (wire, told)
}

/// The reports that were written, in order.
fn written(wire: &Wire) -> Vec<Value> {
    let sent = wire.sent().into_iter().filter(|one| one.method.as_str() == "PATCH");
    let report = |one: Sent| {
        assert_eq!(one.path, "/apis/portolan.dev/v1alpha1/nodereports/node-1");
        one.body
    };
    sent.map(report).collect()
}

/// UID of the owner of each.
fn owners(wire: &Wire) -> Vec<Value> {
    let owner = |report: &Value| report["metadata"]["ownerReferences"][0]["uid"].clone();
    written(wire).iter().map(owner).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_as_another_owns_its_report() {
    let (wire, told) = start(true);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(owners(&wire), ["uid-a"]);
    told.send_replace(node("uid-b"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(owners(&wire), ["uid-a", "uid-b"]);
    sleep(CHECK_EVERY * 3).await;
    assert_eq!(written(&wire).len(), 2, "what is there and as it should be is not written again");
}

#[tokio::test(start_paused = true)]
async fn a_report_that_somebody_deleted_comes_back_as_it_was() {
    let (wire, _told) = start(false);
    sleep(CHECK_EVERY - Duration::from_secs(1)).await;
    assert_eq!(owners(&wire), ["uid-a"]);
    sleep(Duration::from_secs(2)).await;
    let written = written(&wire);
    let [first, second] = &written[..] else { panic!("two reports: {written:#?}") };
    assert_eq!(first, second, "and says since when conditions hold");
}
