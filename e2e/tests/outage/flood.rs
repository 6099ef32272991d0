//! A tenant floods the API server, and an App wakes all the same.
//!
//! The level that requests of service accounts share is made narrow first, so that a flood which
//! this machine can bear fills it. That it would harm us without a level of our own is shown by
//! taking that away.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http::{HeaderValue, Request};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client};
use portolan_api::Route;
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::wait;
use tokio::task::JoinSet;

use crate::scene::{Scene, TEAM};

/// How many requests are under way at once, each in the name of another service account: fair
/// queueing divides the level among them all.
const NOISE: usize = 60;

/// What a flood may add to a wake: the rest of the machine is busy with it, too.
const DELAY_MAX: Duration = Duration::from_secs(3);

/// Requests whose median is taken.
const SAMPLES: usize = 15;
/// How many times longer a request takes that waits in the tenant's level. It waits for the many
/// before it, and so for much more; where it waits less, the flood is none.
const SLOWER_MIN: u32 = 3;
/// How soon the API server knows of a flow schema that is gone.
const FORGET_MAX: Duration = Duration::from_secs(30);

/// The level of service accounts, with one share instead of a hundred, and nothing borrowed.
const NARROW: &str = r#"{"metadata":{"annotations":{"apf.kubernetes.io/autoupdate-spec":"false"}},
    "spec":{"limited":{
        "nominalConcurrencyShares":1,"lendablePercent":0,"borrowingLimitPercent":0}}}"#;
const LEVEL: &str = "prioritylevelconfiguration/workload-low";

pub(crate) async fn wakes_are_not_delayed(scene: &Scene) -> anyhow::Result<()> {
    let quiet = scene.wake().await?;
    scene.kubectl(TEAM, &["patch", LEVEL, "--type=merge", "-p", NARROW])?;
    let group = "--group=system:serviceaccounts:outage";
    scene.kubectl(TEAM, &["create", "rolebinding", "noise", "--clusterrole=view", group])?;
    let client = scene.client().await?;
    let noise_maker = |number| named(client.clone(), TEAM, &format!("noise-{number}"));
    let mut noise = JoinSet::new();
    for number in 0..NOISE {
        let configs: Api<ConfigMap> = Api::namespaced(noise_maker(number), TEAM);
        noise.spawn(async move {
            loop {
                // Refusals are what a flood meets; the next request follows.
                let _ = configs.list(&ListParams::default()).await;
            }
        });
    }
    let waiting = "apiserver_flowcontrol_current_inqueue_requests{";
    wait::until("the level to be full", wait::PATIENCE, async || {
        let page = scene.kubectl(TEAM, &["get", "--raw", "/metrics"])?;
        let of_level = |line: &&str| {
            line.starts_with(waiting) && line.contains("priority_level=\"workload-low\"")
        };
        let queued = page.lines().filter(of_level).filter_map(|line| line.rsplit(' ').next());
        let queued: f64 = queued.filter_map(|count| count.parse::<f64>().ok()).sum();
        ensure!(queued > 10.0, "{queued} requests wait in it");
        anyhow::Ok(())
    })
    .await?;
    let flooded = scene.wake().await.context("under the flood")?;
    let gateway = named(client, NAMESPACE, "portolan-gateway");
    let ours = median(&gateway).await?;
    let schema = scene.kubectl(TEAM, &["get", "flowschema", "portolan", "-o", "json"])?;
    scene.kubectl(TEAM, &["delete", "flowschema", "portolan"])?;
    let shared = wait::until("the flood to harm whom nothing protects", FORGET_MAX, async || {
        let shared = median(&gateway).await?;
        ensure!(shared > ours * SLOWER_MIN, "a request takes {shared:?}, and {ours:?} before");
        anyhow::Ok(shared)
    })
    .await?;
    noise.shutdown().await;
    scene.create(&schema)?;
    eprintln!("    a gateway's request takes {ours:?}, and {shared:?} without a level of its own");
    eprintln!("    a wake takes {quiet:?}, and {flooded:?} while a tenant floods the API server");
    ensure!(flooded < quiet + DELAY_MAX, "{flooded:?} is much more than {quiet:?}");
    Ok(())
}

/// How long a request takes in the middle.
async fn median(client: &Client) -> anyhow::Result<Duration> {
    let routes: Api<Route> = Api::all(client.clone());
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        routes.list(&ListParams::default()).await.context("list Routes")?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[SAMPLES / 2])
}

/// The client in the name of a service account.
fn named(client: Client, namespace: &'static str, account: &str) -> Client {
    let value = |text: &str| HeaderValue::from_str(text).expect("a name is a header value");
    let user = value(&format!("system:serviceaccount:{namespace}:{account}"));
    let all = format!("system:serviceaccounts:{namespace}");
    let groups = ["system:serviceaccounts", &all, "system:authenticated"].map(value);
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let headers = request.headers_mut();
        headers.insert("impersonate-user", user.clone());
        for group in &groups {
            headers.append("impersonate-group", group.clone());
        }
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, namespace)
}
