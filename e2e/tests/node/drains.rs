//! A connection that is open while its sandbox is replaced, and while its App is deleted.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_cluster::wait;
use portolan_e2e::pods::running;
use serde_json::Value;

use crate::clients::Open;
use crate::scene::{Scene, TEAM, addresses_of};

/// An App with one sandbox, whose program says which version it is.
fn app(version: &str) -> String {
    format!(
        "
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: {{ name: talk, namespace: node }}
spec:
  image: docker.io/portolan/sample-echo:dev
  env:
  - {{ name: LISTEN_ADDRESS, value: '::' }}
  - {{ name: TCP_PORT, value: '7070' }}
  - {{ name: VERSION, value: '{version}' }}
  services:
  - name: irc
    ports: [{{ name: http, port: 8080 }}, {{ name: irc, port: 7070, type: tcp }}]
"
    )
}

/// How long a connection may be tracked whose sandbox is gone. Left alone, that would be a minute at
/// least.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// A sandbox as its slices list it.
#[derive(Debug)]
struct Listed {
    pod: String,
    address: IpAddr,
    is_ready: bool,
}

pub(crate) async fn connections_live_as_long_as_their_sandbox_and_no_longer(
    scene: &Scene,
) -> anyhow::Result<()> {
    scene.apply(&app("one"))?;
    let first = await_ready(scene, None).await?;
    let mut open = connect(scene).await?;
    scene.apply(&app("two"))?;
    let second = await_ready(scene, Some(&first.pod)).await?;
    let lists_both = || Ok(listed(scene)?.iter().any(|one| one.pod == first.pod && !one.is_ready));
    outlives(scene, &mut open, &first, lists_both).await.context("a rollout")?;
    forgotten(scene, &first).await.context("after a rollout")?;

    let mut open = connect(scene).await?;
    scene.kubectl(&["-n", TEAM, "delete", "app", "talk", "--wait=false"])?;
    let is_gone = || Ok(scene.kubectl(&["-n", TEAM, "get", "asvc", "talk-irc"]).is_err());
    outlives(scene, &mut open, &second, is_gone).await.context("a deletion")?;
    forgotten(scene, &second).await.context("after a deletion")?;
    wait::until("its slices to go", wait::PATIENCE, async || {
        let left = listed(scene)?;
        ensure!(left.is_empty(), "{left:?}");
        anyhow::Ok(())
    })
    .await
}

/// The sandbox that takes connections, once it is another than before.
async fn await_ready(scene: &Scene, before: Option<&str>) -> anyhow::Result<Listed> {
    wait::until("a new sandbox to be ready", wait::PATIENCE, async || {
        let all = listed(scene)?;
        let seen = format!("{all:?}");
        let mut ready = all.into_iter().filter(|one| one.is_ready && Some(&*one.pod) != before);
        ready.next().context(seen)
    })
    .await
}

/// From the second node, so that connections to a sandbox on the first are tracked on both.
async fn connect(scene: &Scene) -> anyhow::Result<Open> {
    let [_, node] = scene.nodes();
    wait::until("a connection", wait::PATIENCE, async || {
        let vips = addresses_of(&scene.service("talk-irc")?)?;
        node.connect(SocketAddr::new(vips[0], 7070))
    })
    .await
}

/// The connection still answers once the sandbox takes no new ones; then waits until its Pod is
/// gone.
async fn outlives(
    scene: &Scene,
    open: &mut Open,
    sandbox: &Listed,
    takes_none: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    wait::until("nothing new to be led there", wait::PATIENCE, async || {
        ensure!(takes_none()?, "{:?}", listed(scene)?);
        anyhow::Ok(())
    })
    .await?;
    // Its program has some seconds more, and ends nothing before.
    let entries = tracked(scene, sandbox)?;
    ensure!(entries > 0, "nothing is tracked to {sandbox:?}");
    open.echo().context("it was cut before its sandbox was gone")?;
    wait::until("the Pod to go", wait::PATIENCE, async || {
        let pods = running(&scene.cluster, TEAM, "portolan.dev/app=talk")?;
        let names = scene.kubectl(&["-n", TEAM, "get", "pods", "-o", "name"])?;
        ensure!(!names.contains(&sandbox.pod), "{pods:?}");
        anyhow::Ok(())
    })
    .await
}

async fn forgotten(scene: &Scene, sandbox: &Listed) -> anyhow::Result<()> {
    wait::until("its connections to be forgotten", FORGOTTEN, async || {
        let entries = tracked(scene, sandbox)?;
        ensure!(entries == 0, "{entries} entries name {sandbox:?}");
        anyhow::Ok(())
    })
    .await
}

/// How many connections the nodes track that name a sandbox.
fn tracked(scene: &Scene, sandbox: &Listed) -> anyhow::Result<usize> {
    let mut entries = 0;
    for node in scene.nodes() {
        let listing = node.output("conntrack", &["-L"])?;
        let address = format!("={} ", sandbox.address);
        entries += listing.lines().filter(|line| line.contains(&address)).count();
    }
    Ok(entries)
}

/// What the IPv4 slice of the App lists.
fn listed(scene: &Scene) -> anyhow::Result<Vec<Listed>> {
    let label = "kubernetes.io/service-name=talk-irc";
    let slices =
        scene.kubectl(&["-n", TEAM, "get", "endpointslices", "-l", label, "-o", "json"])?;
    let slices: Value = serde_json::from_str(&slices)?;
    let slices = slices["items"].as_array().context("slices")?;
    let slices = slices.iter().filter(|slice| slice["addressType"] == "IPv4");
    let endpoints = slices.filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let read = |endpoint: &Value| {
        Ok(Listed {
            pod: endpoint["targetRef"]["name"].as_str().context("a Pod")?.to_owned(),
            address: endpoint["addresses"][0].as_str().context("an address")?.parse()?,
            is_ready: endpoint["conditions"]["ready"] == true,
        })
    };
    endpoints.map(read).collect()
}
