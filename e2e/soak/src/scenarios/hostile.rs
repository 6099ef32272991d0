//! Clients who mean harm, and the visitors of another App through the same gateways.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_cluster::network::OUTSIDE;
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::{addresses, wait};
use portolan_hostile::{Attack, Target, press};

use crate::extent::Extent;
use crate::get::get;
use crate::inside::Inside;
use crate::report::Report;
use crate::scene::{GATEWAYS, NODE_PORT, Scene, TEAM};

/// How soon an App answers again when those who attacked it have gone: at once, but for a machine
/// that has thousands of connections to end.
const ANSWERS_AGAIN: Duration = Duration::from_secs(15);

pub(super) async fn hostile(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    scene.apply(&[app("victim", 200), app("slow", 1)].concat())?;
    let words = ["wait", "--for=condition=Ready", "apps,routes", "-l", "soak=victim"];
    scene.team(&[&words[..], &[wait::KUBECTL_PATIENCE]].concat()).await?;
    let before = restarts(scene).await?;
    let outcome = scene
        .visited(extent, async |scene| {
            for _ in 0..extent.passes {
                for attack in Attack::ALL {
                    endure(scene, attack, extent.attack).await.context(attack.title())?;
                }
            }
            Ok(())
        })
        .await?;
    let what = format!("{} kinds of attack, {} times", Attack::ALL.len(), extent.passes);
    let mut report = Report::unnoticed(what, &outcome);
    // One that took more memory than it may have would have been ended.
    let after = restarts(scene).await?;
    if before != after {
        report.faults.push(format!("the gateways were {before:?} and are {after:?}"));
    }
    scene.team(&["delete", "apps,routes", "-l", "soak=victim"]).await?;
    Ok(report)
}

/// Attacks for a while; then the App that was attacked has to answer.
async fn endure(scene: &Scene, attack: Attack, time: Duration) -> anyhow::Result<()> {
    let target =
        Target { address: back_door(), source: None, host: host("victim"), slow: host("slow") };
    let attackers = Inside::start(&scene.cluster, OUTSIDE, move |stop| press(attack, target, stop));
    let attackers = attackers?;
    tokio::time::sleep(time).await;
    let tally = attackers.end().await?;
    ensure!(tally.opened > 0, "nobody attacked: {tally:?}");
    wait::until("the attacked App to answer", ANSWERS_AGAIN, async || {
        let asking = async |_| get(back_door(), &host("victim"), "/").await;
        Inside::start(&scene.cluster, OUTSIDE, asking)?.end().await?
    })
    .await?;
    Ok(())
}

/// The gateways with how often their containers were started again.
async fn restarts(scene: &Scene) -> anyhow::Result<Vec<(String, i32)>> {
    let gateways = scene.running(NAMESPACE, GATEWAYS).await?;
    Ok(gateways.into_iter().map(|gateway| (gateway.pod, gateway.restarts)).collect())
}

/// Where attackers come in. A gateway sees the address of the node by which somebody came, so they
/// are another client to it than the visitors, who come by the other one.
fn back_door() -> SocketAddr {
    SocketAddr::from((addresses::node(2), NODE_PORT))
}

fn host(app: &str) -> String {
    format!("{app}.portolan.test")
}

/// An App with one sandbox, and its Route. It takes bodies of up to a mebibyte.
fn app(name: &str, requests: u32) -> String {
    let host = host(name);
    format!(
        "
---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: {{ name: {name}, namespace: {TEAM}, labels: {{ soak: victim }} }}
spec:
  image: docker.io/portolan/sample-echo:dev
  services:
  - name: web
    port: 8080
    scale: {{ mode: Auto, requestsPerInstance: {requests}, min: 1, max: 1 }}
---
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: {{ name: {name}, namespace: {TEAM}, labels: {{ soak: victim }} }}
spec: {{ host: {host}, app: {name}, maxBodyBytes: 1048576 }}
"
    )
}
