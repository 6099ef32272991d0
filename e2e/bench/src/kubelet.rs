//! A wake on the real kubelet, beside a bare Pod of the same program on the same node.
//!
//! The bare Pod has the spec of the App's sandbox, probe and all, and is timed from its creation to
//! the moment a watch shows it Ready: as soon as anybody could send it a request. The wake is timed
//! from the request to the first byte of its answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use portolan_api::{App, Route, labels};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::{addresses, command, platform, wait};
use serde_json::{from_value, json};
use tokio::time::timeout;

use crate::figures::{Figure, Row, machine, publish};
use crate::stub::{CLUSTER, Control, NAMESPACE, ask, asleep, is_ready_pod};

/// Where the node lets visitors in.
const NODE_PORT: u16 = 30_080;
/// Values of the chart that lead there.
const VALUES: [&str; 2] = ["gateway.service.type=NodePort", "gateway.service.httpNodePort=30080"];
/// The App, and the first label of its host.
const NAME: &str = "wake";
/// The Pod beside it.
const BARE: &str = "bare";
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A wake on the real kubelet, beside a bare Pod.
#[derive(Debug, clap::Args)]
pub(crate) struct KubeletArgs {
    /// How often each is started; in turns.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// Seconds of one round.
#[derive(Debug, Clone, Copy)]
struct Round {
    wake: f64,
    bare: f64,
}

impl KubeletArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { rounds, page } = self;
        Cluster::down(CLUSTER)?;
        let cluster = Cluster::ensure(CLUSTER, 1).await?;
        tokio::task::block_in_place(|| platform::install(&cluster, &VALUES))?;
        command::output(cluster.program("kubectl").args(["create", "namespace", NAMESPACE]))?;
        let control = Control::of(&cluster)?;
        let measured = control.inside(async || measure(&control.client().await?, rounds).await);
        Cluster::down(CLUSTER)?;
        publish(&page, "Waking on a real kubelet", &notes(rounds), &rows(&measured?))
    }
}

fn notes(rounds: usize) -> Vec<String> {
    vec![
        format!("Measured on {}", machine()),
        "The programs were built with assertions, as for tests.".into(),
        format!(
            "{rounds} rounds on one real node with containerd, the two in turns: an App asleep \
             from the request to the first byte, and a bare Pod with the spec of its sandbox from \
             its creation to Ready. The image is on the node."
        ),
        "Run it with `make bench-kubelet`.".into(),
    ]
}

fn rows(rounds: &[Round]) -> Vec<Row> {
    let ratio = Figure::of(rounds.iter().map(|round| round.wake / round.bare));
    let wake = Figure::of(rounds.iter().map(|round| round.wake));
    let bare = Figure::of(rounds.iter().map(|round| round.bare));
    vec![Row {
        figure: "first byte of a wake, × Ready of a bare Pod".into(),
        aim: "≤ 1.00".into(),
        measured: format!("{}: {} s, {} s", ratio.text(2), wake.text(2), bare.text(2)),
        is_met: Some(ratio.median() <= 1.0),
    }]
}

async fn measure(client: &Client, rounds: usize) -> anyhow::Result<Vec<Round>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let apps: Api<App> = Api::namespaced(client.clone(), NAMESPACE);
    apps.create(&PostParams::default(), &app()?).await.context("make an App")?;
    let routes: Api<Route> = Api::namespaced(client.clone(), NAMESPACE);
    routes.create(&PostParams::default(), &route()?).await.context("make a Route")?;
    rested(client, &pods).await?;
    // The first ones warm the node up, and one of them is the pattern of the bare Pod.
    wake().await?;
    let selector = ListParams::default().labels(labels::POOL);
    let sandbox = pods.list(&selector).await.context("list Pods")?.items.into_iter().next();
    let pattern = bare(&sandbox.context("the App woke, and has no Pod")?);
    start_bare(&pods, &pattern).await?;
    let mut measured = Vec::new();
    for number in 0..rounds {
        rested(client, &pods).await?;
        let is_first = number % 2 == 0;
        let before = if is_first { None } else { Some(start_bare(&pods, &pattern).await?) };
        rested(client, &pods).await?;
        let wake = wake().await?;
        rested(client, &pods).await?;
        let bare = match before {
            Some(bare) => bare,
            None => start_bare(&pods, &pattern).await?,
        };
        println!("    round {}: {wake:.2} s, bare {bare:.2} s", number + 1);
        measured.push(Round { wake, bare });
    }
    Ok(measured)
}

/// Waits until the App sleeps and nothing runs or ends.
async fn rested(client: &Client, pods: &Api<Pod>) -> anyhow::Result<()> {
    asleep(client, 1, LIMIT).await?;
    wait::until("no Pods", LIMIT, async || {
        let left = pods.list_metadata(&ListParams::default()).await.context("list Pods")?;
        ensure!(left.items.is_empty(), "{} are left", left.items.len());
        anyhow::Ok(())
    })
    .await
}

/// Seconds from a request for the sleeping App to its answer.
async fn wake() -> anyhow::Result<f64> {
    let gateway = (addresses::node(1), NODE_PORT).into();
    let began = Instant::now();
    let answer = timeout(LIMIT, ask(gateway, &host(), "/whoami")).await.context("no answer")??;
    let took = began.elapsed().as_secs_f64();
    ensure!(answer.status() == 200, "answered {}", answer.status());
    Ok(took)
}

/// Seconds from the creation of the bare Pod until it is Ready. It is gone when this returns.
async fn start_bare(pods: &Api<Pod>, pattern: &Pod) -> anyhow::Result<f64> {
    let is_ready = |pod: Option<&Pod>| pod.is_some_and(is_ready_pod);
    let ready = await_condition(pods.clone(), BARE, is_ready);
    let began = Instant::now();
    pods.create(&PostParams::default(), pattern).await.context("make a bare Pod")?;
    timeout(LIMIT, ready).await.context("the bare Pod is not ready")??;
    let took = began.elapsed().as_secs_f64();
    pods.delete(BARE, &DeleteParams::default().grace_period(1)).await.context("delete a Pod")?;
    Ok(took)
}

/// A Pod that runs what the sandbox does, and that nobody looks after.
fn bare(sandbox: &Pod) -> Pod {
    let metadata = ObjectMeta { name: Some(BARE.into()), ..ObjectMeta::default() };
    let mut spec = sandbox.spec.clone();
    if let Some(spec) = &mut spec {
        // The scheduler's share is in both.
        spec.node_name = None;
    }
    Pod { metadata, spec, status: None }
}

fn host() -> String {
    format!("{NAME}.bench.test")
}

fn app() -> anyhow::Result<App> {
    let probe = json!({ "httpGet": { "path": "/health", "port": 8080 }, "periodSeconds": 1 });
    let service = json!({
        "name": "web",
        "port": 8080,
        "scale": { "mode": "Auto", "min": 0, "max": 1, "scaleDownDelaySeconds": 1 },
        "health": { "readiness": probe },
    });
    let app = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "App",
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": { "image": "docker.io/portolan/sample-echo:dev", "services": [service] },
    });
    from_value(app).context("word an App")
}

fn route() -> anyhow::Result<Route> {
    let route = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "Route",
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": { "host": host(), "app": NAME, "service": "web" },
    });
    from_value(route).context("word a Route")
}
