//! What visitors of one App notice of clients who attack another through the same gateway.
//!
//! Attackers, gateways, programs and visitors share the machine's processors, so a neighbour is
//! slower during an attack whatever the gateway does. What counts is how much slower it is than
//! beside a decoy: another gateway on the same machine, attacked in the same way.

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
/// What the neighbour's p99 may be of what it is beside a decoy.
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
    /// How many rounds; in each, every attack has its turn.
    #[arg(long, default_value_t = 5)]
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
    calm: Latency,
    decoy: Latency,
    attacked: Latency,
}

impl HostileArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { rounds, seconds, page } = self;
        let program = program().await?;
        let gateway = own(&["gateway"], &[free()?, program.address]).await?;
        let decoy = own(&["gateway"], &[free()?, program.address]).await?;
        let mut turns: Vec<Vec<Turn>> = Attack::ALL.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            eprintln!("==> round {} of {rounds}", round + 1);
            for (attack, turns) in Attack::ALL.into_iter().zip(&mut turns) {
                let time = Duration::from_secs(seconds);
                turns.push(turn(attack, [&gateway, &decoy], time, round % 2 == 0).await?);
            }
        }
        let notes = [
            format!("Measured on {}{}", machine(), build()),
            format!(
                "{rounds} rounds in turns of {seconds} s: {PACE} requests/s for one App, while \
                 another client attacks another App, at the pace that is named, through the same \
                 gateway."
            ),
            "The p99 is measured against the one beside a decoy, a second gateway on the same \
             machine that is attacked instead; both have to do without the processors that \
             attackers and gateways take."
                .into(),
            "The least and the greatest of the rounds are in parentheses.".into(),
            "Run it with `make bench-hostile`.".into(),
        ];
        let rows = Attack::ALL.into_iter().zip(&turns).map(|(attack, turns)| row(attack, turns));
        publish(&page, "Neighbours of the attacked", &notes, &rows.collect::<Vec<_>>())
    }
}

/// Measures beside the gateway's calm, the decoy's attack and the gateway's, the latter two in
/// either order: what a turn leaves behind must not always fall on the same one.
async fn turn(
    attack: Attack,
    [gateway, decoy]: [&Program; 2],
    time: Duration,
    is_decoy_first: bool,
) -> anyhow::Result<Turn> {
    let during = async |victim: &Program| {
        let _attackers = own(&["attackers", attack.title()], &[victim.address]).await?;
        tokio::time::sleep(RAMP).await;
        let latency = paced::measure(gateway.address, PACE, time).await;
        latency.with_context(|| format!("{} on {}", attack.title(), victim.address))
    };
    let calm = paced::measure(gateway.address, PACE, time).await.context("calm")?;
    let (beside, attacked) = match is_decoy_first {
        true => {
            let beside = during(decoy).await?;
            (beside, during(gateway).await?)
        }
        false => {
            let attacked = during(gateway).await?;
            (during(decoy).await?, attacked)
        }
    };
    Ok(Turn { calm, decoy: beside, attacked })
}

fn row(attack: Attack, turns: &[Turn]) -> Row {
    let over = |ratio: fn(&Turn) -> f64| Figure::of(turns.iter().map(ratio));
    let p99 = over(|turn| turn.attacked.p99 / turn.decoy.p99);
    let p50 = over(|turn| turn.attacked.p50 / turn.decoy.p50);
    let calm = over(|turn| turn.attacked.p99 / turn.calm.p99);
    Row {
        figure: attack.title().into(),
        aim: format!("p99 ≤ {AIM:.2}"),
        measured: format!(
            "{}, p50 {:.2}; without any attack p99 × {:.2}",
            p99.text(2),
            p50.median(),
            calm.median()
        ),
        is_met: p99.median() <= AIM,
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

/// What is to be known of how this program was built.
fn build() -> &'static str {
    match cfg!(debug_assertions) {
        true => " Built with assertions and without full optimisation.",
        false => "",
    }
}
