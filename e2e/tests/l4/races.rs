//! Races for node ports, a thousand between two and one in a crowd, with two controllers that both
//! believe to lead. Who loses one is told who won, by a condition and an Event.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use kube::api::ListParams;
use portolan_api::conditions::reason;
use portolan_cluster::wait::until_seen;
use tokio::time::Instant;

use crate::stage::{Stage, alone, free_port};

/// Two AppServices race for each of these ports, sixteen ports to a pair.
const FIRST: i32 = 40_000;
const PAIRS: i32 = 63;
const PORTS: i32 = 16;
/// As long as all of it may take, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(180);
/// How many pairs race at once: what is measured is a race, not how long a thousand wait for one
/// another.
const AT_ONCE: usize = 2;
/// Half of the losers are told in this time. Theirs counts from the answer to the later request,
/// and both controllers, the API server and its store share the machine's processors.
const TOLD: Duration = Duration::from_secs(1);
/// How many race for one port.
const CROWD: usize = 16;
/// By then the last of them knows how it ended, on a busy machine too: none may be left to a long
/// rest after failures, or to the next look at everything.
const LAST_TOLD: Duration = Duration::from_secs(10);

#[tokio::test]
async fn of_two_that_ask_at_once_exactly_one_gets_the_port() -> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let leaders = [stage.start(stage.client.clone()), stage.start(stage.client.clone())];
        let started = Instant::now();
        let races = (0..PAIRS).map(|pair| race(stage.clone(), pair));
        let races = stream::iter(races).buffer_unordered(AT_ONCE);
        let losers: Vec<_> = races.flat_map(stream::iter).collect().await;
        let elapsed = started.elapsed();
        assert!(losers.len() >= usize::try_from(PAIRS).unwrap(), "each pair has one at least");
        let mut delays: Vec<_> = losers.iter().map(|loser| loser.told).collect();
        delays.sort_unstable();
        let (median, last) = (delays[delays.len() / 2], delays[delays.len() - 1]);
        println!(
            "{} losers of {PAIRS} pairs were told after {median:?} at median, {last:?} at most",
            losers.len()
        );
        assert!(median < TOLD, "{median:?}");
        until_events(&stage, &losers).await;
        each_is_held_once(&stage).await;
        println!("{} races in {elapsed:?}", PAIRS * PORTS);
        assert!(elapsed < LIMIT, "took {elapsed:?}");
        join_all(leaders.map(|leader| leader.stop())).await;
    })
    .await
}

#[tokio::test]
async fn of_a_crowd_that_asks_at_once_one_gets_the_port_and_the_last_is_told_soon()
-> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let leaders = [stage.start(stage.client.clone()), stage.start(stage.client.clone())];
        let port = free_port();
        let sides = [&stage.ours, &stage.theirs].into_iter().cycle();
        let crowd: Vec<_> = (0..CROWD).map(|one| format!("crowd-{one}")).zip(sides).collect();
        let asking = crowd.iter().map(|(name, side)| stage.apply_port(side, name, port));
        join_all(asking).await;
        let asked = Instant::now();
        let told = join_all(crowd.iter().map(|(name, side)| verdict(&stage, side, name))).await;
        let last = asked.elapsed();
        println!("the last of {CROWD} knew after {last:?}");
        let all = crowd.iter().zip(&told);
        let winners = all.filter(|(_, lost)| lost.is_none());
        let winners: Vec<_> = winners.map(|((name, side), _)| format!("{side}/{name}")).collect();
        let holder: Vec<_> = stage.holder(port).await.into_iter().collect();
        assert_eq!(winners, holder, "who has it says so, and nobody else does");
        let winner = format!("is held by AppService {};", winners[0]);
        for lost in told.iter().flatten() {
            assert!(lost.contains(&winner), "{lost}");
        }
        assert!(last < LAST_TOLD, "the last knew after {last:?}");
        join_all(leaders.map(|leader| leader.stop())).await;
    })
    .await
}

/// Waits until one that asked for one port says how it ended: `None` if it has the port, else what
/// it is told.
async fn verdict(stage: &Stage, side: &str, name: &str) -> Option<String> {
    let said = || async {
        let service = stage.app_services(side).get(name).await.expect("it is there");
        let status = service.status.unwrap_or_default();
        let ready = status.conditions.first().map(|one| (one.reason.clone(), one.message.clone()));
        (ready.unwrap_or_default(), status.node_ports.len())
    };
    let is_decided = |((ready, _), held): &((String, String), usize)| match ready.as_str() {
        reason::NODE_PORT_CONFLICT => *held == 0,
        reason::NO_ACTIVE_VERSION => *held == 1,
        _ => false,
    };
    let what = format!("{side}/{name} knows who has the port");
    let ((_, message), held) = until_seen(&what, said, is_decided).await;
    (held == 0).then_some(message)
}

/// Both sides of a pair ask at once; gives who lost.
async fn race(stage: Stage, pair: i32) -> Vec<Loser> {
    let (name, first) = (format!("pair-{pair}"), FIRST + pair * PORTS);
    let names: Vec<_> = (0..PORTS).map(|port| format!("p{port}")).collect();
    let ports: Vec<_> = (0..PORTS)
        .zip(&names)
        .map(|(port, name)| (name.as_str(), 1000 + port, "tcp", Some(first + port)))
        .collect();
    let sides = [&stage.ours, &stage.theirs];
    join_all(sides.map(|side| stage.apply(side, &name, None, &ports))).await;
    check(&stage, &name, Instant::now()).await
}

async fn each_is_held_once(stage: &Stage) {
    let claims = stage.claims().list(&ListParams::default()).await.expect("the Claims");
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    for claim in claims.items {
        let number = claim.spec.value.strip_suffix("/tcp").and_then(|one| one.parse().ok());
        let raced = FIRST..FIRST + PAIRS * PORTS;
        if number.is_some_and(|number: i32| raced.contains(&number)) {
            *held.entry(claim.spec.value).or_default() += 1;
        }
    }
    assert_eq!(held.len(), usize::try_from(PAIRS * PORTS).expect("a count"));
    assert!(held.values().all(|holders| *holders == 1), "{held:?}");
}

/// A side that did not get all of its ports.
struct Loser {
    uid: String,
    /// How whoever won is named.
    winner: String,
    /// How long after both had asked it was seen to be told.
    told: Duration,
}

/// Both have said how it ended, together they report each port once, and who lost one names the
/// other.
async fn check(stage: &Stage, name: &str, asked: Instant) -> Vec<Loser> {
    let sides = [(&stage.ours, &stage.theirs), (&stage.theirs, &stage.ours)];
    let ended = join_all(sides.map(|(side, other)| decided(stage, side, other, name, asked))).await;
    let mut held: Vec<_> = ended.iter().flat_map(|(held, _)| held.clone()).collect();
    held.sort_unstable();
    let count = held.len();
    held.dedup();
    assert_eq!((count, held.len()), (16, 16), "{name}: each port is reported once");
    ended.into_iter().filter_map(|(_, loser)| loser).collect()
}

/// Waits until one side says how it ended: the ports it holds, and what it lost.
async fn decided(
    stage: &Stage,
    side: &str,
    other: &str,
    name: &str,
    asked: Instant,
) -> (Vec<i32>, Option<Loser>) {
    let said = || async {
        let service = stage.app_services(side).get(name).await.expect("it is there");
        let status = service.status.unwrap_or_default();
        let ready = status.conditions.first().map(|one| (one.reason.clone(), one.message.clone()));
        (ready.unwrap_or_default(), status.node_ports, service.metadata.uid.unwrap_or_default())
    };
    let is_decided =
        |((ready, _), ports, _): &((String, String), Vec<_>, String)| match ready.as_str() {
            reason::NODE_PORT_CONFLICT => ports.len() < 16,
            reason::NO_ACTIVE_VERSION => ports.len() == 16,
            _ => false,
        };
    let what = format!("{side}/{name} knows its ports");
    let ((_, message), ports, uid) = until_seen(&what, said, is_decided).await;
    let told = asked.elapsed();
    let lost = (ports.len() < 16).then(|| {
        let winner = format!("is held by AppService {other}/{name};");
        assert!(message.contains(&winner), "{side}/{name}: {message}");
        Loser { uid, winner, told }
    });
    (ports.into_iter().map(|one| one.port).collect(), lost)
}

/// Waits until each loser has an Event that names the winner.
async fn until_events(stage: &Stage, losers: &[Loser]) {
    let untold = || async {
        let mut events = stage.events(&stage.ours).await;
        events.extend(stage.events(&stage.theirs).await);
        let is_told = |loser: &Loser| {
            events.iter().any(|(uid, note)| *uid == loser.uid && note.contains(&loser.winner))
        };
        let untold = losers.iter().filter(|loser| !is_told(loser));
        untold.map(|loser| loser.winner.clone()).collect::<Vec<_>>()
    };
    until_seen("each loser has an Event", untold, Vec::is_empty).await;
}
