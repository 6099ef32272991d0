//! The gateway against nginx and HAProxy.

use std::env;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;

use crate::figures::{Figure, Row, machine, publish};
use crate::load::{self, Turn};
use crate::paced::{self, Latency};
use crate::peers;
use crate::program::Program;

/// Requests per second at which the added latency is measured.
const PACE: u32 = 1_000;

/// The gateway against nginx and HAProxy: throughput, CPU per request, added latency.
#[derive(Debug, clap::Args)]
pub(crate) struct IngressArgs {
    /// How many rounds; in each, every proxy has its turn.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of one turn.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Connections that are kept.
    #[arg(long, default_value_t = 50)]
    connections: u32,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// One round.
struct Round {
    gateway: Turn,
    nginx: Turn,
    haproxy: Turn,
    direct: Latency,
    through: Latency,
}

impl IngressArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { rounds, seconds, connections, page } = self;
        let scratch = env::temp_dir().join(format!("portolan-bench-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).context("make a scratch folder")?;
        let time = Duration::from_secs(seconds);
        let outcome = measure(&scratch, rounds, connections, time).await;
        std::fs::remove_dir_all(&scratch).context("remove the scratch folder")?;
        let notes = [
            format!("Measured on {}", machine()),
            format!(
                "{rounds} rounds in turns of {seconds} s: wrk with {connections} kept connections, \
                 a proxy and a 13-byte program share the cores."
            ),
            "Each figure is the median of the rounds with the least and the greatest.".into(),
            "Run it with `make bench-ingress`.".into(),
        ];
        publish(&page, "Ingress", &notes, &rows(&outcome?))
    }
}

async fn measure(
    scratch: &std::path::Path,
    rounds: usize,
    connections: u32,
    time: Duration,
) -> anyhow::Result<Vec<Round>> {
    let backend = own(&["backend"], &[free()?]).await?;
    let gateway = own(&["gateway"], &[free()?, backend.address]).await?;
    let nginx = peers::nginx(scratch, free()?, backend.address).await?;
    let haproxy = peers::haproxy(scratch, free()?, backend.address).await?;
    let mut measured = Vec::new();
    for number in 1..=rounds {
        let round = Round {
            gateway: load::turn(&gateway, connections, time).await.context("gateway")?,
            nginx: load::turn(&nginx, connections, time).await.context("nginx")?,
            haproxy: load::turn(&haproxy, connections, time).await.context("HAProxy")?,
            direct: paced::measure(backend.address, PACE, time).await.context("direct")?,
            through: paced::measure(gateway.address, PACE, time).await.context("through")?,
        };
        eprintln!(
            "==> round {number} of {rounds}: {:.0} requests/s, nginx {:.0}, HAProxy {:.0}",
            round.gateway.rate, round.nginx.rate, round.haproxy.rate
        );
        measured.push(round);
    }
    Ok(measured)
}

/// Starts this program in another role; the first address is where it listens.
pub(crate) async fn own(role: &[&str], addresses: &[SocketAddr]) -> anyhow::Result<Program> {
    let mut command = Command::new(env::current_exe().context("find this program")?);
    command.args(role).args(addresses.iter().map(ToString::to_string));
    Program::start(command, addresses[0]).await
}

/// A loopback port that nobody listens on.
pub(crate) fn free() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    listener.local_addr().context("read a free port")
}

fn rows(rounds: &[Round]) -> Vec<Row> {
    let over = |ratio: fn(&Round) -> f64| Figure::of(rounds.iter().map(ratio));
    let least = |figure: &str, aim: f64, ratio: Figure| Row {
        figure: figure.into(),
        aim: format!("≥ {aim:.2}"),
        measured: ratio.text(2),
        is_met: Some(ratio.median() >= aim),
    };
    let most = |figure: &str, aim: f64, unit: &str, value: Figure| Row {
        figure: figure.into(),
        aim: format!("≤ {aim:.2}{unit}"),
        measured: format!("{}{unit}", value.text(2)),
        is_met: Some(value.median() <= aim),
    };
    vec![
        least("requests/s, × nginx", 1.0, over(|r| r.gateway.rate / r.nginx.rate)),
        least("requests/s, × HAProxy", 0.9, over(|r| r.gateway.rate / r.haproxy.rate)),
        most("CPU per request, × nginx", 1.1, "", over(|r| r.gateway.cpu / r.nginx.cpu)),
        most("CPU per request, × HAProxy", 1.1, "", over(|r| r.gateway.cpu / r.haproxy.cpu)),
        most(
            "added latency at 1 000 requests/s, p50",
            0.15,
            " ms",
            over(|r| r.through.p50 - r.direct.p50),
        ),
        most(
            "added latency at 1 000 requests/s, p99",
            0.5,
            " ms",
            over(|r| r.through.p99 - r.direct.p99),
        ),
    ]
}
