//! What visitors of one App notice of clients who attack another through the same gateway.
//!
//! Attackers, gateways, programs and visitors share the machine's processors, so a neighbour is
//! slower during an attack whatever the gateway does. What counts is how much slower it is than a
//! visitor who asks at the same time through a second gateway on the same machine, which nobody
//! attacks. The two change places with each round.

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use portolan_hostile::{Attack, Target, press};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::figures::{Figure, Row, machine, publish};
use crate::ingress::{free, own};
use crate::paced::{self, Latency};
use crate::program::Program;
use crate::roles::{SLOW, VICTIM};

/// Requests per second of the neighbour.
const PACE: u32 = 200;
/// What the neighbour's p99 may be of that through a gateway that nobody attacks.
const AIM: f64 = 1.1;
/// How long an attack is under way before the neighbour is measured.
const RAMP: Duration = Duration::from_secs(1);
/// Where attackers come from: to the gateway they are another client than the neighbour.
const ATTACKERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The sample program; it answers what attacks ask for.
const PROGRAM: &str = "portolan-sample-echo";

/// A neighbour's latency while others are attacked through the same gateway.
#[derive(Debug, clap::Args)]
pub(crate) struct HostileArgs {
    /// How many rounds, an even number; in each, every attack has its turn.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds of one turn.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// One attack in one round.
struct Turn {
    /// Through the gateway that was attacked.
    attacked: Latency,
    /// Through the other one, at the same time.
    spared: Latency,
}

impl HostileArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { rounds, seconds, page } = self;
        let program = program().await?;
        let gateway = own(&["gateway"], &[free()?, program.address]).await?;
        let other = own(&["gateway"], &[free()?, program.address]).await?;
        let mut turns: Vec<Vec<Turn>> = Attack::ALL.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            eprintln!("==> round {} of {rounds}", round + 1);
            for (attack, turns) in Attack::ALL.into_iter().zip(&mut turns) {
                let (attacked, spared) = match round % 2 {
                    0 => (&gateway, &other),
                    _ => (&other, &gateway),
                };
                let turn = turn(attack, attacked, spared, Duration::from_secs(seconds)).await;
                turns.push(turn.with_context(|| attack.title())?);
            }
        }
        let notes = [
            format!("Measured on {}", machine()),
            build().into(),
            format!(
                "{rounds} rounds in turns of {seconds} s: {PACE} requests/s for one App, while \
                 another client attacks another App, at the pace that is named, through the same \
                 gateway."
            ),
            "Each figure is the ratio to the same requests at the same time through a second \
             gateway on the machine, which nobody attacks: both have to do without the processors \
             that attackers and programs take."
                .into(),
            "The two change places with each round.".into(),
            "A latency counts from the moment a request is due, so the visitors' own timer is in \
             both."
                .into(),
            "The least and the greatest of the rounds are in parentheses.".into(),
            "Run it with `make bench-hostile`.".into(),
        ];
        let rows = Attack::ALL.into_iter().zip(&turns).map(|(attack, turns)| row(attack, turns));
        publish(&page, "Neighbours of the attacked", &notes, &rows.collect::<Vec<_>>())
    }
}

async fn turn(
    attack: Attack,
    attacked: &Program,
    spared: &Program,
    time: Duration,
) -> anyhow::Result<Turn> {
    let _attackers = own(&["attackers", attack.title()], &[attacked.address]).await?;
    tokio::time::sleep(RAMP).await;
    let (attacked, spared) = tokio::join!(
        paced::measure(attacked.address, PACE, time),
        paced::measure(spared.address, PACE, time),
    );
    Ok(Turn { attacked: attacked.context("attacked")?, spared: spared.context("spared")? })
}

fn row(attack: Attack, turns: &[Turn]) -> Row {
    let over = |ratio: fn(&Turn) -> f64| Figure::of(turns.iter().map(ratio));
    let p99 = over(|turn| turn.attacked.p99 / turn.spared.p99);
    let p50 = over(|turn| turn.attacked.p50 / turn.spared.p50);
    Row {
        figure: attack.title().into(),
        aim: format!("p99 ≤ {AIM:.2}"),
        measured: format!("p99 {}, p50 {}", p99.text(2), p50.text(2)),
        is_met: Some(p99.median() <= AIM),
    }
}

/// Attacks a gateway until it is killed, on one thread.
pub(crate) fn attackers(title: &str, address: SocketAddr) -> anyhow::Result<()> {
    let attack = Attack::ALL.into_iter().find(|attack| attack.title() == title);
    let target = Target {
        address,
        source: Some(IpAddr::V4(ATTACKERS)),
        host: VICTIM.into(),
        slow: SLOW.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let attack = attack.with_context(|| format!("no attack is called {title}"))?;
    runtime.block_on(press(attack, target, CancellationToken::new()));
    Ok(())
}

/// The program behind both gateways.
async fn program() -> anyhow::Result<Program> {
    let path = env::current_exe().context("find this program")?.with_file_name(PROGRAM);
    let address = free()?;
    let mut command = Command::new(path);
    command.env("LISTEN_ADDRESS", address.ip().to_string());
    command.env("PORT", address.port().to_string());
    Program::start(command, address).await
}

/// How this program, which is both gateways, was built.
fn build() -> &'static str {
    match cfg!(debug_assertions) {
        true => "The programs were built with assertions, as for tests.",
        false => "The programs were built as they are released.",
    }
}
