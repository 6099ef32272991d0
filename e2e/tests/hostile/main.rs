//! Clients from outside do what harms gateways: they are refused or borne within bounds, and the
//! Apps beside the one they attack lose not a single request.
//!
//! How much later the neighbours are answered is not asserted here, where attackers, gateways and
//! visitors share two processors: `portolan-bench hostile` measures it.
//!
//! On a cluster of its own, because its gateways are attacked.

mod scene;
mod vanished;

use std::time::Duration;

use anyhow::ensure;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait;
use portolan_e2e::on_own_cluster;
use portolan_hostile::Attack;

use crate::scene::{Outcome, Scene};
use crate::vanished::Vanished;

const CLUSTER: &str = "hostile";

/// How long an attack goes on that is refused at once, or borne for as long as it likes.
const SHORT: Duration = Duration::from_secs(4);
/// How long a gateway takes at most to end a connection that begins nothing
/// (`Settings::header_timeout`), and how much later than that a busy machine may show it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(3);

/// What one gateway may need more than at rest, in bytes. The most is needed for the 5 000
/// connections that one client may have, some kilobytes each; twice that is the bound.
const MEMORY: u64 = 64 << 20;
/// Connections that are there for other reasons: those of the neighbours.
const OTHERS: f64 = 200.0;
/// Requests that may wait for one service in both gateways together (`Settings::queue_limit`).
const QUEUES: f64 = 2_000.0;
/// How long the connections of attackers who have left may still be counted.
const LEAVE: Duration = Duration::from_secs(10);

/// What becomes of attackers.
enum Fate {
    /// Each connection ends with one of these words.
    Refused(&'static [&'static str]),
    /// No connection is borne for longer than the head of a request may take.
    Cut,
    /// They may stay, so many of them.
    Borne,
    /// All but so many are turned away.
    Limited,
    /// They wait; those for whom there is no room are told so.
    Queued,
}

fn fate(attack: Attack) -> Fate {
    match attack {
        Attack::Unused | Attack::SlowBodies | Attack::Unread => Fate::Borne,
        // Until they have gone without a request for `Settings::keep_alive`.
        Attack::Settings | Attack::Pings => Fate::Borne,
        Attack::SlowSandbox => Fate::Queued,
        Attack::Crowd => Fate::Limited,
        Attack::SlowHeads => Fate::Cut,
        Attack::ManyFields | Attack::LargeHeads => Fate::Refused(&["431"]),
        // The program answers before the body is over its limit; then the answer is cut, too.
        Attack::EndlessBodies => Fate::Refused(&["200"]),
        Attack::RapidReset | Attack::Continuation | Attack::EmptyData => {
            Fate::Refused(&["goaway 11"])
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_the_attacked_lose_no_request() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let scene = Scene::set(Cluster::ensure(CLUSTER, 1).await?).await?;
    let calm = scene.calm(SHORT).await?;
    ensure!(calm.failures.is_empty(), "without an attack: {:?}", calm.failures.first());
    let mut rest = 0;
    for gateway in &scene.gateways {
        rest = rest.max(gateway.memory()?.now);
    }
    eprintln!("    {:<44} p50 {:?}, {} MiB", "nobody", calm.quantile(0.5), rest >> 20);
    // They are gone while others attack, for as long as it takes to notice them.
    let vanished = Vanished::begin(&scene.cluster).await?;
    let mut complaints = Vec::new();
    for attack in Attack::ALL {
        let time = match fate(attack) {
            Fate::Cut => HEADER_TIMEOUT + LATE + Duration::from_secs(1),
            Fate::Limited => 2 * SHORT,
            _ => SHORT,
        };
        let outcome = scene.attack(attack, time).await?;
        tell(attack, &outcome);
        let verdict = judge(attack, &outcome, rest).and(gone(&scene).await);
        complaints.extend(verdict.err().map(|error| format!("{}: {error:#}", attack.title())));
    }
    match vanished.end().await {
        Ok(freed) => eprintln!("    what clients without a network held was free after {freed:?}"),
        Err(error) => complaints.push(format!("clients without a network: {error:#}")),
    }
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

fn tell(attack: Attack, outcome: &Outcome) {
    let Outcome { attackers, neighbours, memory, connections, .. } = outcome;
    eprintln!(
        "    {:<44} p50 {:?}, {} MiB, {connections} connections; {} opened, {} ended, at most \
         {:.1?}, {} MB; {:?}",
        attack.title(),
        neighbours.quantile(0.5),
        memory >> 20,
        attackers.opened,
        attackers.ended,
        attackers.longest,
        attackers.sent / 1_000_000,
        attackers.answers,
    );
}

fn judge(attack: Attack, outcome: &Outcome, rest: u64) -> anyhow::Result<()> {
    let Outcome { attackers, neighbours, memory, connections, .. } = outcome;
    let failed = neighbours.failures.len();
    ensure!(failed == 0, "{failed} neighbours failed, the first: {:?}", neighbours.failures[0]);
    ensure!(neighbours.asked() > 100, "only {} neighbours asked", neighbours.asked());
    ensure!(*memory < rest + MEMORY, "{memory} bytes of memory, {rest} at rest");
    ensure!(attackers.opened > 0, "nobody attacked: {attackers:?}");
    match fate(attack) {
        Fate::Refused(words) => {
            let said: Vec<_> = attackers.answers.keys().map(String::as_str).collect();
            ensure!(said == words, "they were told {said:?}, not {words:?}");
            // The last ones may have just begun.
            ensure!(attackers.ended + 20 >= attackers.opened, "some were borne: {attackers:?}");
        }
        Fate::Cut => {
            let limit = HEADER_TIMEOUT + LATE;
            ensure!(attackers.longest < limit, "one was borne for {:?}", attackers.longest);
            ensure!(attackers.ended > 0, "nobody was cut: {attackers:?}");
        }
        Fate::Borne => {
            #[expect(clippy::cast_precision_loss, reason = "a thousand or so")]
            let limit = attackers.peak as f64 + OTHERS;
            ensure!(*connections <= limit, "{connections} connections, not {limit}");
        }
        Fate::Queued => {
            let Outcome { queued, turned_away, .. } = outcome;
            ensure!(*queued <= QUEUES, "{queued} requests wait");
            ensure!(*turned_away > 0.0, "{queued} requests wait, and nobody was turned away");
        }
        Fate::Limited => {
            ensure!(attackers.ended > 100, "nobody was turned away: {attackers:?}");
        }
    }
    Ok(())
}

/// Waits until the attackers' connections are gone.
async fn gone(scene: &Scene) -> anyhow::Result<()> {
    wait::until("the attackers to be gone", LEAVE, async || {
        let connections = scene.connections()?;
        ensure!(connections < OTHERS, "{connections} connections are open");
        anyhow::Ok(())
    })
    .await
}
