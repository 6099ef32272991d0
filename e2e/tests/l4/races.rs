//! A thousand races for node ports, with two controllers that both believe to lead.

use std::collections::BTreeMap;
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
/// As long as all of it may take.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn of_two_that_ask_at_once_exactly_one_gets_the_port() -> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let leaders = [stage.start(stage.client.clone()), stage.start(stage.client.clone())];
        let started = Instant::now();
        let race = |pair: i32| {
            let stage = stage.clone();
            async move {
                let (name, first) = (format!("pair-{pair}"), FIRST + pair * PORTS);
                let names: Vec<_> = (0..PORTS).map(|port| format!("p{port}")).collect();
                let ports: Vec<_> = (0..PORTS)
                    .zip(&names)
                    .map(|(port, name)| (name.as_str(), 1000 + port, "tcp", Some(first + port)))
                    .collect();
                let sides = [&stage.ours, &stage.theirs];
                join_all(sides.map(|side| stage.apply(side, &name, None, &ports))).await;
            }
        };
        stream::iter((0..PAIRS).map(race)).buffer_unordered(16).collect::<Vec<()>>().await;
        for pair in 0..PAIRS {
            check(&stage, &format!("pair-{pair}")).await;
        }
        let elapsed = started.elapsed();
        let claims = stage.claims().list(&ListParams::default()).await.unwrap();
        let mut held: BTreeMap<String, usize> = BTreeMap::new();
        for claim in claims.items {
            let number = claim.spec.value.strip_suffix("/tcp").and_then(|one| one.parse().ok());
            let raced = FIRST..FIRST + PAIRS * PORTS;
            if number.is_some_and(|number: i32| raced.contains(&number)) {
                *held.entry(claim.spec.value).or_default() += 1;
            }
        }
        assert_eq!(held.len(), usize::try_from(PAIRS * PORTS).unwrap());
        assert!(held.values().all(|holders| *holders == 1), "{held:?}");
        println!("{} races in {elapsed:?}", PAIRS * PORTS);
        assert!(elapsed < LIMIT, "took {elapsed:?}");
        join_all(leaders.map(|leader| leader.stop())).await;
    })
    .await
}

/// Both have said how it ended, and together they report each port once.
async fn check(stage: &Stage, name: &str) {
    let mut held = Vec::new();
    for side in [&stage.ours, &stage.theirs] {
        let decided = || async {
            let service = stage.app_services(side).get(name).await.expect("it is there");
            let status = service.status.unwrap_or_default();
            let ready = status.conditions.first().map(|one| one.reason.clone());
            (ready, status.node_ports)
        };
        let is_decided = |(ready, ports): &(Option<String>, Vec<_>)| match ready.as_deref() {
            Some(reason::NODE_PORT_CONFLICT) => ports.len() < 16,
            Some(reason::NO_ACTIVE_VERSION) => ports.len() == 16,
            _ => false,
        };
        let what = format!("{side}/{name} knows its ports");
        let (_, ports) = crate::stage::until(&what, decided, is_decided).await;
        held.extend(ports.into_iter().map(|one| one.port));
    }
    held.sort_unstable();
    let count = held.len();
    held.dedup();
    assert_eq!((count, held.len()), (16, 16), "{name}: each port is reported once");
}
