//! From a request for a sleeping App to its answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use super::{Stub, app_name, ask, asleep, host, make};
use crate::figures::{Row, machine, publish};

/// The first Apps warm caches and connections up and are not counted.
const WARM_UP: usize = 5;
/// How many are woken at once.
const AT_ONCE: usize = 100;
/// Apps may take this long until they sleep for the first time.
const SLEEP_LIMIT: Duration = Duration::from_secs(300);

/// Waking sleeping Apps, one after the other and a hundred at once.
#[derive(Debug, clap::Args)]
pub(crate) struct WakeArgs {
    /// How many are woken one after the other.
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

impl WakeArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { count, page } = self;
        let stub = Stub::start(2, 2).await?;
        let measured = stub.inside(async || measure(&stub, count).await);
        stub.end()?;
        let (single, together) = measured?;
        let notes = [
            format!("Measured on {}", machine()),
            format!(
                "Real API server, scheduler, controllers and two gateways; kwok plays the kubelet. \
                 {count} Apps one after the other, then {AT_ONCE} at once, each by one request \
                 on a new connection."
            ),
            "Run it with `make bench-wake`.".into(),
        ];
        let rows = [
            row("wake, platform's share, p50", 15.0, share(&single, 50)),
            row("wake, platform's share, p99", 60.0, share(&single, 99)),
            row(&format!("{AT_ONCE} woken at once, p95"), 1_000.0, share(&together, 95)),
        ];
        publish(&page, "Waking", &notes, &rows)
    }
}

async fn measure(stub: &Stub, count: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let client = stub.client().await?;
    let total = WARM_UP + count + AT_ONCE;
    make(&client, 0..total, total).await?;
    asleep(&client, total, SLEEP_LIMIT).await?;
    let mut single = Vec::new();
    for number in 0..WARM_UP + count {
        let took = wake(stub.gateway(0), number).await?;
        if number >= WARM_UP {
            single.push(took);
        }
    }
    // Those woken before sleep again by then, so that nothing else is going on.
    asleep(&client, total, SLEEP_LIMIT).await?;
    let mut requests = JoinSet::new();
    for number in WARM_UP + count..total {
        requests.spawn(wake(stub.gateway(u16::try_from(number % 2)?), number));
    }
    let mut together = Vec::new();
    while let Some(took) = requests.join_next().await {
        together.push(took??);
    }
    for times in [&mut single, &mut together] {
        times.sort_by(f64::total_cmp);
    }
    Ok((single, together))
}

/// Milliseconds to the whole answer.
async fn wake(gateway: std::net::SocketAddr, number: usize) -> anyhow::Result<f64> {
    let host = host(&app_name(number));
    let began = Instant::now();
    let answer = ask(gateway, &host, "/").await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    ensure!(answer.status() == 200, "{host} answered {}", answer.status());
    Ok(took)
}

/// The value that so many of 100 do not exceed.
pub(super) fn share(sorted: &[f64], of_100: usize) -> f64 {
    let place = (sorted.len() * of_100).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

pub(super) fn row(figure: &str, aim_ms: f64, measured_ms: f64) -> Row {
    Row {
        figure: figure.to_owned(),
        aim: format!("≤ {aim_ms:.0} ms"),
        measured: format!("{measured_ms:.1} ms"),
        is_met: measured_ms <= aim_ms,
    }
}
