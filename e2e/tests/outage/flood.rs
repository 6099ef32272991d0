//! A tenant floods the API server, and an App wakes all the same.
//!
//! The level that requests of service accounts share is made narrow first, so that a flood which
//! this machine can bear fills it.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::{HeaderValue, Request};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client};
use portolan_cluster::wait;
use tokio::task::JoinSet;

use crate::scene::{Scene, TEAM};

/// How many requests are under way at once, each in the name of another service account: fair
/// queueing divides the level among them all.
const NOISE: usize = 60;

/// What a flood may add to a wake: the rest of the machine is busy with it, too.
const DELAY_MAX: Duration = Duration::from_secs(3);

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
    let mut noise = JoinSet::new();
    for number in 0..NOISE {
        let configs: Api<ConfigMap> = Api::namespaced(noisy(client.clone(), number), TEAM);
        noise.spawn(async move {
            loop {
                // Refusals are what a flood meets; the next request follows.
                let _ = configs.list(&ListParams::default()).await;
            }
        });
    }
    let waiting = "apiserver_flowcontrol_current_inqueue_requests{";
    wait::until("the level to be full", Duration::from_secs(20), async || {
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
    noise.shutdown().await;
    eprintln!("    a wake takes {quiet:?}, and {flooded:?} while a tenant floods the API server");
    ensure!(flooded < quiet + DELAY_MAX, "{flooded:?} is much more than {quiet:?}");
    Ok(())
}

/// The client in the name of a service account of the tenant.
fn noisy(client: Client, number: usize) -> Client {
    let user = format!("system:serviceaccount:{TEAM}:noise-{number}");
    let user = HeaderValue::from_str(&user).expect("a name is a header value");
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let headers = request.headers_mut();
        headers.insert("impersonate-user", user.clone());
        for group in ["system:serviceaccounts", "system:serviceaccounts:outage"] {
            headers.append("impersonate-group", HeaderValue::from_static(group));
        }
        headers.append("impersonate-group", HeaderValue::from_static("system:authenticated"));
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, TEAM)
}
