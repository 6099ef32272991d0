//! Two nodes, an App with one sandbox that is visited all the time, and one that sleeps unless
//! somebody asks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::platform::{self, NAMESPACE};
use portolan_cluster::{addresses, command, wait};
use portolan_e2e::pods::{self, Running};
use portolan_e2e::visitor::{ask, is_good};
use portolan_soak::load::{Load, Tally, Visitors};
use serde_json::Value;

pub(crate) const TEAM: &str = "drain";
pub(crate) const SHOP: &str = "shop.portolan.test";
pub(crate) const SLEEPER: &str = "sleeper.portolan.test";

const NODE_PORT: u16 = 30_080;
const VALUES: [&str; 2] = ["gateway.service.type=NodePort", "gateway.service.httpNodePort=30080"];

/// How many visit the shop per second.
const RATE: u32 = 100;

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
}

impl Scene {
    pub(crate) async fn set(cluster: Cluster) -> anyhow::Result<Self> {
        tokio::task::block_in_place(|| platform::install(&cluster, &VALUES))?;
        let scene = Self { cluster };
        scene.kubectl("default", &["create", "namespace", TEAM])?;
        scene.deploy("shop", "requestsPerInstance: 200, min: 1, max: 1").await?;
        scene.deploy("sleeper", "scaleDownDelaySeconds: 1, min: 0, max: 1").await?;
        Ok(scene)
    }

    /// An App of the sample program with a Route, once it is ready and every gateway knows it.
    pub(crate) async fn deploy(&self, name: &str, scale: &str) -> anyhow::Result<()> {
        self.apply(&platform::app(TEAM, name, scale))?;
        self.ready()?;
        self.all_know(&[&platform::host(name)]).await
    }

    fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let mut kubectl = self.cluster.program("kubectl");
        command::feed(kubectl.args(["apply", "-f", "-"]), manifest)
    }

    /// Waits until Apps answer at these hosts.
    pub(crate) async fn all_know(&self, hosts: &[&str]) -> anyhow::Result<()> {
        let port = self.cluster.state().ports.http;
        for host in hosts {
            wait::until("every App to answer", wait::PATIENCE, async || {
                let answer = ask(port, host).await?;
                ensure!(is_good(&answer), "{answer}");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until there are two gateways, one on each node in their order, and none that leaves.
    pub(crate) async fn two_gateways(&self) -> anyhow::Result<[Running; 2]> {
        wait::until("a gateway on each node", wait::PATIENCE, async || {
            let component = "app.kubernetes.io/component=gateway";
            let words =
                ["rollout", "status", "deployment/portolan-gateway", wait::KUBECTL_PATIENCE];
            self.kubectl(NAMESPACE, &words)?;
            let all = self.kubectl(NAMESPACE, &["get", "pods", "-l", component, "-o", "name"])?;
            ensure!(all.lines().count() == 2, "{all}");
            let mut gateways = pods::gateways(&self.cluster)?;
            gateways.sort_by(|a, b| a.node.cmp(&b.node));
            let nodes: Vec<_> = gateways.iter().map(|gateway| gateway.node.clone()).collect();
            ensure!(nodes == ["node1", "node2"], "gateways on {nodes:?}");
            Ok(<[_; 2]>::try_from(gateways).expect("two nodes, two gateways"))
        })
        .await
    }

    /// Waits until both Apps and their Routes are ready.
    pub(crate) fn ready(&self) -> anyhow::Result<()> {
        let words = ["wait", "--for=condition=Ready", "apps,routes", "--all", "--timeout=90s"];
        self.kubectl(TEAM, &words).map(drop)
    }

    /// What the shop's visitors met while `deed` was done. All of them were answered.
    pub(crate) async fn visited(
        &mut self,
        deed: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Tally> {
        let visitors = Visitors { address: door(), host: SHOP.to_owned(), rate: RATE };
        let load = Load::start(&self.cluster, visitors)?;
        let done = deed(self).await;
        let tally = load.end().await?;
        done?;
        let failed = tally.failures.len();
        ensure!(failed == 0, "{failed} visitors failed, the first: {:?}", tally.failures[0]);
        ensure!(tally.asked() > 0, "nobody asked");
        Ok(tally)
    }

    /// How long the first request for the App that sleeps takes.
    pub(crate) async fn wake(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let answer = ask(self.cluster.state().ports.http, SLEEPER).await?;
        ensure!(is_good(&answer), "{answer}");
        Ok(begun.elapsed())
    }

    /// Waits until the App that sleeps has no sandbox, not even one on its way out.
    pub(crate) async fn asleep(&self) -> anyhow::Result<()> {
        wait::until("the sleeper to sleep", wait::PATIENCE, async || {
            let words = ["get", "pods", "-l", "portolan.dev/app=sleeper", "-o", "name"];
            let pods = self.kubectl(TEAM, &words)?;
            ensure!(pods.trim().is_empty(), "{pods}");
            anyhow::Ok(())
        })
        .await
    }

    /// The shop's only sandbox.
    pub(crate) fn sandbox(&self) -> anyhow::Result<Running> {
        let mut pods = pods::running(&self.cluster, TEAM, "portolan.dev/app=shop")?;
        ensure!(pods.len() == 1, "{pods:?}");
        pods.pop().context("one sandbox")
    }

    /// The controller that leads in one matter, such as `pool`.
    pub(crate) fn leader(&self, matter: &str) -> anyhow::Result<Running> {
        let lease = format!("portolan-{matter}");
        let lease = self.kubectl(NAMESPACE, &["get", "lease", &lease, "-o", "json"])?;
        let lease: Value = serde_json::from_str(&lease).context("a Lease")?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let controllers = "app.kubernetes.io/component=controller";
        let controllers = pods::running(&self.cluster, NAMESPACE, controllers)?;
        let leader = controllers.into_iter().find(|pod| holder.contains(&pod.name));
        leader.with_context(|| format!("{holder:?} leads, which is no controller"))
    }

    pub(crate) fn kubectl(&self, namespace: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut kubectl = self.cluster.program("kubectl");
        kubectl.args(["--namespace", namespace]).args(words);
        tokio::task::block_in_place(|| command::output(&mut kubectl))
    }
}

/// Where visitors come in.
pub(crate) fn door() -> SocketAddr {
    SocketAddr::from((addresses::node(2), NODE_PORT))
}
