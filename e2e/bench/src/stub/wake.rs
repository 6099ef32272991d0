//! From a request for a sleeping App to its answer.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use portolan_api::labels;
use portolan_cluster::wait;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{LIMIT, NAMESPACE, Stub, app_name, ask, asleep, host, is_ready_pod, make};
use crate::figures::{Row, machine, publish};

/// The first Apps warm caches and connections up and are not counted.
const WARM_UP: usize = 5;
/// How many are woken at once.
const AT_ONCE: usize = 100;
/// From one wake to the next: what follows from one is over then.
const PACE: Duration = Duration::from_millis(250);
/// Longer than all of those take that are woken one after the other, so that none of them goes to
/// sleep meanwhile.
const SLEEPS_AFTER: u32 = 60;
/// Apps may take this long until one more of them sleeps.
const SLEEP_LIMIT: Duration = Duration::from_secs(120);

/// Waking sleeping Apps, one after the other and a hundred at once.
#[derive(Debug, clap::Args)]
pub(crate) struct WakeArgs {
    /// How many are woken one after the other; at most 200.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=200))]
    count: u16,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// When somebody who watches saw what became of a sandbox.
#[derive(Clone, Copy, Debug, Default)]
struct Sighted {
    made: Option<Instant>,
    placed: Option<Instant>,
    ready: Option<Instant>,
}

/// Sandboxes by their App.
type Sightings = Arc<Mutex<HashMap<String, Sighted>>>;

/// Milliseconds from the request, in order.
#[derive(Default)]
struct Measured {
    single: Vec<f64>,
    made: Vec<f64>,
    placed: Vec<f64>,
    ready: Vec<f64>,
    together: Vec<f64>,
}

impl WakeArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { count, page } = self;
        let stub = Stub::start(2, 2).await?;
        let measured = stub.inside(async || measure(&stub, count.into()).await);
        stub.end()?;
        let measured = measured?;
        let notes = [
            format!("Measured on {}", machine()),
            format!(
                "Real API server, scheduler, controllers and two gateways; kwok plays the kubelet. \
                 {count} Apps one after the other, {} ms apart, then {AT_ONCE} at once, each by \
                 one request on a new connection. What became of the sandbox is when a watch of \
                 the benchmark saw it.",
                PACE.as_millis()
            ),
            "Run it with `make bench-wake`.".into(),
        ];
        let step =
            |figure: &str, times: &[f64]| Row::known(figure, format!("{:.1} ms", share(times, 50)));
        let rows = [
            row("wake, platform's share, p50", 15.0, share(&measured.single, 50)),
            row("wake, platform's share, p99", 60.0, share(&measured.single, 99)),
            step("of it, until the sandbox is made, p50", &measured.made),
            step("until the scheduler has placed it", &measured.placed),
            step("until the stub says that it is ready", &measured.ready),
            row(&format!("{AT_ONCE} woken at once, p95"), 1_000.0, share(&measured.together, 95)),
        ];
        publish(&page, "Waking", &notes, &rows)
    }
}

async fn measure(stub: &Stub, count: usize) -> anyhow::Result<Measured> {
    let client = stub.client().await?;
    let total = WARM_UP + count + AT_ONCE;
    make(&client, 0..total, total, SLEEPS_AFTER).await?;
    asleep(&client, total, SLEEP_LIMIT).await?;
    let sightings = Sightings::default();
    let watch = look(client.clone(), sightings.clone());
    let mut measured = Measured::default();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..WARM_UP + count {
        pace.tick().await;
        let began = Instant::now();
        let took = wake(stub.gateway(0), number).await?;
        // The gateway may have asked the sandbox itself before anybody said that it is ready.
        let [made, placed, ready] = wait::until("the sandbox to be seen", LIMIT, async || {
            let seen = sightings.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = seen.get(&app_name(number)).context("nothing is seen")?;
            let moments = seen.made.zip(seen.placed).zip(seen.ready).context("it is not ready")?;
            let ((made, placed), ready) = moments;
            anyhow::Ok([made, placed, ready].map(|moment| (moment - began).as_secs_f64() * 1e3))
        })
        .await?;
        if number >= WARM_UP {
            measured.single.push(took);
            measured.made.push(made);
            measured.placed.push(placed);
            measured.ready.push(ready);
        }
    }
    watch.abort();
    // Those woken before sleep again by then, so that nothing else is going on.
    asleep(&client, total, SLEEP_LIMIT).await?;
    let mut requests = JoinSet::new();
    for number in WARM_UP + count..total {
        requests.spawn(wake(stub.gateway(u16::try_from(number % 2)?), number));
    }
    while let Some(took) = requests.join_next().await {
        measured.together.push(took??);
    }
    let Measured { single, made, placed, ready, together } = &mut measured;
    for times in [single, made, placed, ready, together] {
        times.sort_by(f64::total_cmp);
    }
    Ok(measured)
}

/// Notes when sandboxes are first seen to have come how far.
fn look(client: Client, sightings: Sightings) -> JoinHandle<()> {
    tokio::spawn(async move {
        let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
        let config = Config::default().labels(labels::POOL);
        let mut events = pin!(watcher(pods, config).default_backoff());
        while let Some(event) = events.next().await {
            let now = Instant::now();
            // What is interrupted is begun again.
            let Ok(Event::InitApply(pod) | Event::Apply(pod)) = event else { continue };
            let Some(app) = pod.labels().get(labels::APP) else { continue };
            let mut sightings = sightings.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = sightings.entry(app.clone()).or_default();
            seen.made.get_or_insert(now);
            if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
                seen.placed.get_or_insert(now);
            }
            if is_ready_pod(&pod) {
                seen.ready.get_or_insert(now);
            }
        }
    })
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
        is_met: Some(measured_ms <= aim_ms),
    }
}
