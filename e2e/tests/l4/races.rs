//! A thousand races for node ports, with two controllers that both believe to lead. Who loses one is
//! told who won, by a condition and an Event.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use kube::api::ListParams;
use portolan_api::conditions::reason;
use tokio::time::Instant;

use crate::stage::{Stage, alone};

/// Two AppServices race for each of these ports, sixteen ports to a pair.
const FIRST: i32 = 40_000;
const PAIRS: i32 = 63;
const PORTS: i32 = 16;
/// As long as all of it may take, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(180);
/// How often is looked whether losers were told. A look at all costs the API server as much as a
/// race.
const LOOK: Duration = Duration::from_millis(100);

/// When each side of each pair asked, or was seen to be told: by namespace and name.
type Times = BTreeMap<(String, String), Instant>;

#[tokio::test]
async fn of_two_that_ask_at_once_exactly_one_gets_the_port() -> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let leaders = [stage.start(stage.client.clone()), stage.start(stage.client.clone())];
        let started = Instant::now();
        let told = Mutex::new(Times::new());
        let races = async {
            let begun = (0..PAIRS).map(|pair| race(stage.clone(), pair));
            let asked = stream::iter(begun).buffer_unordered(16);
            let asked: Vec<_> = asked.collect().await;
            let mut losers = Vec::new();
            for pair in 0..PAIRS {
                losers.extend(check(&stage, &format!("pair-{pair}")).await);
            }
            (asked.into_iter().flatten().collect::<Times>(), losers)
        };
        let (asked, losers) = tokio::select! {
            ended = races => ended,
            () = note(&stage, &told) => unreachable!("it looks until the races are over"),
        };
        let elapsed = started.elapsed();
        let told = told.into_inner().expect("no panic");
        // Who was told before the other's request had been answered did not wait.
        let delay = |loser: &Loser| {
            Some(told.get(&loser.key)?.saturating_duration_since(asked[&loser.key]))
        };
        let mut delays: Vec<_> = losers.iter().filter_map(delay).collect();
        delays.sort();
        let median = delays.get(delays.len() / 2);
        println!("{} losers of {PAIRS} pairs were told after {median:?}, at median", losers.len());
        assert!(losers.len() >= usize::try_from(PAIRS).unwrap(), "each pair has one at least");
        until_events(&stage, &losers).await;
        each_is_held_once(&stage).await;
        println!("{} races in {elapsed:?}", PAIRS * PORTS);
        assert!(elapsed < LIMIT, "took {elapsed:?}");
        join_all(leaders.map(|leader| leader.stop())).await;
    })
    .await
}

/// Both sides of a pair ask; gives when the later one had.
async fn race(stage: Stage, pair: i32) -> [((String, String), Instant); 2] {
    let (name, first) = (format!("pair-{pair}"), FIRST + pair * PORTS);
    let names: Vec<_> = (0..PORTS).map(|port| format!("p{port}")).collect();
    let ports: Vec<_> = (0..PORTS)
        .zip(&names)
        .map(|(port, name)| (name.as_str(), 1000 + port, "tcp", Some(first + port)))
        .collect();
    let sides = [&stage.ours, &stage.theirs];
    join_all(sides.map(|side| stage.apply(side, &name, None, &ports))).await;
    let asked = Instant::now();
    sides.map(|side| ((side.clone(), name.clone()), asked))
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
    key: (String, String),
    uid: String,
    /// How whoever won is named.
    winner: String,
}

/// Both have said how it ended, together they report each port once, and who lost one names the
/// other.
async fn check(stage: &Stage, name: &str) -> Vec<Loser> {
    let (mut held, mut losers) = (Vec::new(), Vec::new());
    for (side, other) in [(&stage.ours, &stage.theirs), (&stage.theirs, &stage.ours)] {
        let decided = || async {
            let service = stage.app_services(side).get(name).await.expect("it is there");
            let status = service.status.unwrap_or_default();
            let ready =
                status.conditions.first().map(|one| (one.reason.clone(), one.message.clone()));
            (ready.unwrap_or_default(), status.node_ports, service.metadata.uid.unwrap_or_default())
        };
        let is_decided =
            |((ready, _), ports, _): &((String, String), Vec<_>, String)| match ready.as_str() {
                reason::NODE_PORT_CONFLICT => ports.len() < 16,
                reason::NO_ACTIVE_VERSION => ports.len() == 16,
                _ => false,
            };
        let what = format!("{side}/{name} knows its ports");
        let ((_, message), ports, uid) = crate::stage::until(&what, decided, is_decided).await;
        if ports.len() < 16 {
            let winner = format!("is held by AppService {other}/{name};");
            assert!(message.contains(&winner), "{side}/{name}: {message}");
            losers.push(Loser { key: (side.clone(), name.to_owned()), uid, winner });
        }
        held.extend(ports.into_iter().map(|one| one.port));
    }
    held.sort_unstable();
    let count = held.len();
    held.dedup();
    assert_eq!((count, held.len()), (16, 16), "{name}: each port is reported once");
    losers
}

/// Notes when a side is first seen to say that it lost a port; until it is dropped.
async fn note(stage: &Stage, told: &Mutex<Times>) {
    loop {
        for side in [&stage.ours, &stage.theirs] {
            let all = stage.app_services(side).list(&ListParams::default()).await.expect("listed");
            let now = Instant::now();
            for service in all.items {
                let lost =
                    service.ready().is_some_and(|one| one.reason == reason::NODE_PORT_CONFLICT);
                if lost {
                    let key = (side.clone(), service.metadata.name.unwrap_or_default());
                    told.lock().expect("no panic").entry(key).or_insert(now);
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
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
        untold.map(|loser| loser.key.clone()).collect::<Vec<_>>()
    };
    crate::stage::until("each loser has an Event", untold, Vec::is_empty).await;
}
