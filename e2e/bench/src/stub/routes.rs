//! From an applied Route to the first answer for its host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use portolan_api::Route;
use tokio::time::sleep;

use super::wake::{row, share};
use super::{
    Connection, NAMESPACE, SLEEPS_AT_ONCE, Stub, app_name, apply_route, ask, asleep, connect, host,
    make, route, send,
};
use crate::figures::{Row, machine, publish};

/// How often an answer is asked for.
const LOOK_INTERVAL: Duration = Duration::from_micros(500);
/// The App behind all Routes is asked first, so that no wake is measured.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);

/// A Route applied beside thousands of others, until its host answers.
#[derive(Debug, clap::Args)]
pub(crate) struct RoutesArgs {
    /// How many Routes there are.
    #[arg(long, default_value_t = 3_000)]
    routes: usize,
    /// How many are applied, one after the other.
    #[arg(long, default_value_t = 300)]
    count: usize,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

impl RoutesArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { routes, count, page } = self;
        let stub = Stub::start(1, 1).await?;
        let measured = stub.inside(async || measure(&stub, routes, count).await);
        stub.end()?;
        let times = measured?;
        let notes = [
            format!("Measured on {}", machine()),
            format!(
                "{count} Routes applied one after the other beside {routes}, each from the answer \
                 of the API server to the first answer of its host, asked every 0.5 ms on a kept \
                 connection."
            ),
            "Run it with `make bench-routes`.".into(),
        ];
        let half = format!("{:.1} ms", share(&times, 50));
        let rows = [
            row("route applied → first answer, p99", 30.0, share(&times, 99)),
            Row::known("route applied → first answer, p50", half),
        ];
        publish(&page, "Routes", &notes, &rows)
    }
}

async fn measure(stub: &Stub, count: usize, applied: usize) -> anyhow::Result<Vec<f64>> {
    let client = stub.client().await?;
    make(&client, 0..1, 1, SLEEPS_AT_ONCE).await?;
    asleep(&client, 1, SETTLE_LIMIT).await?;
    let target = app_name(0);
    let routes: Api<Route> = Api::namespaced(client.clone(), NAMESPACE);
    for number in 1..count {
        let name = format!("other-{number}");
        let route = route(&name, &target)?;
        routes.create(&PostParams::default(), &route).await.context("make a Route")?;
    }
    let last = host(&format!("other-{}", count - 1));
    let mut connection = connect(stub.gateway(0)).await?;
    until_answered(&mut connection, &last).await?;
    let mut times = Vec::new();
    for number in 0..applied {
        let name = format!("new-{number}");
        // Keeps the App awake: what is measured is the way of a Route.
        ask(stub.gateway(0), &host(&target), "/").await?;
        apply_route(&client, &name, &target).await?;
        let began = Instant::now();
        until_answered(&mut connection, &host(&name)).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        routes.delete(&name, &DeleteParams::default()).await.context("delete a Route")?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

async fn until_answered(connection: &mut Connection, host: &str) -> anyhow::Result<()> {
    use http_body_util::BodyExt;
    let began = Instant::now();
    loop {
        let answer = send(connection, host, "/").await?;
        let status = answer.status();
        answer.into_body().collect().await.context("read an answer")?;
        if status == 200 {
            return Ok(());
        }
        ensure!(began.elapsed() < SETTLE_LIMIT, "{host} answers {status}");
        sleep(LOOK_INTERVAL).await;
    }
}
