//! Ten thousand Apps: memory, writes, and how fast they become Ready.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio::try_join;

use super::counts::Writes;
use super::first::{self, First};
use super::{NAMESPACE, SLEEPS_AT_ONCE, Stub, app_name, ask, falling_asleep, host, make_in_turn};
use crate::figures::{Row, machine, publish};
use crate::resident::forget_peak;

/// Apps on one fake node at once; they sleep within seconds.
const APPS_PER_NODE: usize = 2_000;
/// How long the raw rate of writes is measured.
const RAW_TIME: Duration = Duration::from_secs(5);
/// How many Apps may be awake, or on their way. The fake kubelet has to keep up: what waits behind
/// thousands of Pods in its one queue would not be the platform's time.
const AWAKE: usize = 500;
/// How long until another App is Ready or sleeps.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the busy Apps stay awake: longer than it takes to wake all of them one after the other.
const BUSY_SLEEP_AFTER: u32 = 120;
/// All is at rest when nothing was written for so long.
const REST: Duration = Duration::from_secs(60);
/// How long until all is at rest: the API server gives Services their addresses one by one.
const REST_LIMIT: Duration = Duration::from_secs(1_800);
/// How long the busy Apps are watched.
const BUSY_TIME: Duration = Duration::from_secs(60);
const MEBIBYTE: f64 = 1_048_576.0;

/// Thousands of Apps on fake nodes: memory, API writes, Apps to Ready per second.
#[derive(Debug, clap::Args)]
pub(crate) struct AppsArgs {
    /// How many Apps.
    #[arg(long, default_value_t = 10_000)]
    apps: usize,
    /// How many of them have a Route.
    #[arg(long, default_value_t = 5_000)]
    routes: usize,
    /// How many of those are busy at once.
    #[arg(long, default_value_t = 1_000)]
    busy: usize,
    /// Seconds for which nothing happens, and nothing may be written.
    #[arg(long, default_value_t = 600)]
    idle_seconds: u64,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// What was measured.
struct Measured {
    /// Writes per second of plain objects.
    raw: f64,
    /// From the first App to the last that is Ready.
    time: Duration,
    first: First,
    /// Of all Apps, until they sleep.
    writes: Writes,
    idle: Writes,
    busy: Busy,
    controller: f64,
    gateway: f64,
    gateway_peak: f64,
}

/// What came of the busy Apps.
struct Busy {
    writes: Writes,
    /// Requests that were not answered with 200, and one of them.
    failed: u64,
    example: Option<String>,
}

impl AppsArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut stub = Stub::start(3, self.apps.div_ceil(APPS_PER_NODE) + 2).await?;
        let measured = self.measure(&mut stub).await;
        stub.end()?;
        let measured = measured?;
        let notes = [
            format!("Measured on {}", machine()),
            format!(
                "{} Apps, {} of them with a Route, at most {AWAKE} of them awake or on their way; \
                 three gateways; kwok plays {} nodes.",
                self.apps,
                self.routes,
                self.apps.div_ceil(APPS_PER_NODE) + 2
            ),
            measured.first.note(),
            format!("Writes per App until it sleeps: {}.", measured.writes.text(count(self.apps))),
            format!(
                "Writes per second with {} busy Apps: {}.",
                self.busy,
                measured.busy.writes.text(BUSY_TIME.as_secs_f64())
            ),
            format!("Writes while idle: {}.", measured.idle.text(1.0)),
            "Run it with `make bench-apps`.".into(),
        ];
        publish(&self.page, "Ten thousand Apps", &notes, &self.rows(&measured))
    }

    async fn measure(&self, stub: &mut Stub) -> anyhow::Result<Measured> {
        let (raw, time, first, writes) = stub.inside(async || {
            let client = stub.client().await?;
            let raw = raw_rate(&client).await?;
            let first = first::writes_until_ready(&client).await?;
            println!("==> {:.2} per App. {}", first.until_ready(), first.note());
            let before = Writes::read(&client).await?;
            let began = Instant::now();
            let sleeping = watch::Sender::new(0);
            let turn = async |number: usize| {
                let mut sleeping = sleeping.subscribe();
                sleeping.wait_for(|sleeping| number < sleeping + AWAKE).await?;
                Ok(())
            };
            let (routes, busy) = (self.routes, self.busy.min(self.apps));
            let making = async {
                make_in_turn(&client, 0..busy, routes, BUSY_SLEEP_AFTER, &turn).await?;
                make_in_turn(&client, busy..self.apps, routes, SLEEPS_AT_ONCE, &turn).await
            };
            let sleepers = falling_asleep(&client, self.apps, PATIENCE, &sleeping);
            let (done, ()) = try_join!(sleepers, making)?;
            let time = done - began;
            let writes = Writes::read(&client).await?.since(&before);
            Ok((raw, time, first, ours(writes, self.apps, self.routes)))
        })?;
        println!("==> {} Apps are Ready after {time:?}", self.apps);
        let idle = stub.inside(async || self.idle(stub).await)?;
        println!("==> In {} idle seconds: {}", self.idle_seconds, idle.text(1.0));
        let controller = stub.memory("controller")?.now / MEBIBYTE;
        let gateway = stub.memory("gateway0")?.now / MEBIBYTE;
        println!("==> {controller:.1} MiB in the controllers, {gateway:.1} MiB in a gateway");
        let busy = stub.inside(async || self.busy(stub).await)?;
        println!("==> {} writes in {BUSY_TIME:?} of load", busy.writes.total());
        if let Some(example) = &busy.example {
            println!("==> {} requests failed: {example}", busy.failed);
        }
        let gateway_peak = relist_peak(stub).await?;
        Ok(Measured {
            raw,
            time,
            first,
            writes,
            idle,
            busy,
            controller,
            gateway,
            gateway_peak: gateway_peak / MEBIBYTE,
        })
    }

    async fn idle(&self, stub: &Stub) -> anyhow::Result<Writes> {
        let client = stub.client().await?;
        let began = Instant::now();
        let before = Writes::settled(&client, REST, REST_LIMIT).await?;
        println!("==> At rest after {:?}", began.elapsed());
        sleep(Duration::from_secs(self.idle_seconds)).await;
        Ok(Writes::read(&client).await?.since(&before))
    }

    /// One request a second for each of the busy Apps, in turn through all gateways.
    async fn busy(&self, stub: &Stub) -> anyhow::Result<Busy> {
        let client = stub.client().await?;
        let (mut before, mut failed, mut example) = (None, 0, None);
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // They have to be awake before it counts.
        for round in 0..BUSY_TIME.as_secs() + 20 {
            second.tick().await;
            if round == 20 {
                before = Some(Writes::read(&client).await?);
            }
            let requests = (0..self.busy).map(async |number| {
                let gateway = stub.gateway(u16::try_from(number % 3)?);
                let answer = ask(gateway, &host(&app_name(number)), "/").await?;
                ensure!(answer.status() == 200, "App {number} answered {}", answer.status());
                anyhow::Ok(())
            });
            let mut requests = stream::iter(requests).buffer_unordered(64);
            while let Some(answered) = requests.next().await {
                // One of tens of thousands must not cost the figures that took an hour.
                if let Err(failure) = answered {
                    failed += 1;
                    example.get_or_insert_with(|| format!("{failure:#}"));
                }
            }
        }
        let before = before.context("the load was too short")?;
        Ok(Busy { writes: Writes::read(&client).await?.since(&before), failed, example })
    }

    fn rows(&self, measured: &Measured) -> Vec<Row> {
        let per_app = measured.first.until_ready();
        let busy = count_u64(measured.busy.writes.total()) / BUSY_TIME.as_secs_f64();
        let rate = count(self.apps) / measured.time.as_secs_f64();
        let at_most = |figure: String, aim: f64, measured: f64, unit: &str| Row {
            figure,
            aim: format!("≤ {aim:.0}{unit}"),
            measured: format!("{measured:.1}{unit}"),
            is_met: Some(measured <= aim),
        };
        vec![
            at_most("controller memory".into(), 100.0, measured.controller, " MiB"),
            at_most("gateway memory".into(), 60.0, measured.gateway, " MiB"),
            at_most(
                "gateway memory, peak of a new list".into(),
                100.0,
                measured.gateway_peak,
                " MiB",
            ),
            at_most("API writes from apply to Ready, App and Route".into(), 9.0, per_app, ""),
            at_most(
                format!("API writes in {} idle seconds", self.idle_seconds),
                0.0,
                count_u64(measured.idle.total()),
                "",
            ),
            at_most(format!("API writes per second, {} busy Apps", self.busy), 20.0, busy, ""),
            at_most(
                "requests to the busy Apps that failed".into(),
                0.0,
                count_u64(measured.busy.failed),
                "",
            ),
            Row::known(
                "Apps to Ready per second, × raw writes per second",
                format!("{rate:.0} / {:.0} = {:.3}", measured.raw, rate / measured.raw),
            ),
        ]
    }
}

/// Without what the user writes, and the scheduler's Event for each Pod.
fn ours(writes: Writes, apps: usize, routes: usize) -> Writes {
    let (apps, routes) = (apps as u64, routes as u64);
    let events = writes.get("pods").min(apps);
    writes.less("apps", apps).less("routes", routes).less("events", events)
}

/// How many small objects the API server takes per second, 32 at a time.
async fn raw_rate(client: &Client) -> anyhow::Result<f64> {
    let objects: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let began = Instant::now();
    let writes = stream::iter(0_u32..).map(async |number| {
        let object =
            json!({ "metadata": { "name": format!("raw-{number}") }, "data": { "a": "b" } });
        objects.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        anyhow::Ok(())
    });
    let mut written = 0_u32;
    let mut writes = std::pin::pin!(writes.buffer_unordered(32));
    while began.elapsed() < RAW_TIME {
        writes.next().await.context("the writes ended")??;
        written += 1;
    }
    Ok(f64::from(written) / began.elapsed().as_secs_f64())
}

/// The API server is replaced, so that every watch begins anew; the peak of a gateway meanwhile.
async fn relist_peak(stub: &mut Stub) -> anyhow::Result<f64> {
    forget_peak(stub.pid("gateway0")?)?;
    stub.cluster.stop_api_server()?;
    stub.cluster.start_api_server().await?;
    // Watches come back within their longest pause, and list again.
    sleep(Duration::from_secs(45)).await;
    Ok(stub.memory("gateway0")?.peak)
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn count_u64(number: u64) -> f64 {
    number as f64
}
