//! The cluster under attack: one App that is attacked, one that is slow, and their neighbour.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::CONTROL;
use portolan_cluster::{addresses, command, platform, wait};
use portolan_e2e::pods::{self, Running};
use portolan_hostile::{Attack, Tally, Target, press};
use portolan_soak::inside::Inside;
use portolan_soak::load::{Load, Visitors};

pub(crate) const TEAM: &str = "hostile";
const NEIGHBOUR: &str = "neighbour.portolan.test";
const VICTIM: &str = "victim.portolan.test";
const SLOW: &str = "slow.portolan.test";

const NODE_PORT: u16 = 30_080;
/// Gateways see clients' own addresses, so that attackers and visitors are not one client to them.
const VALUES: [&str; 3] = [
    "gateway.service.type=NodePort",
    "gateway.service.httpNodePort=30080",
    "gateway.service.externalTrafficPolicy=Local",
];

/// How many neighbours ask per second.
const RATE: u32 = 100;

/// The three Apps. The victim takes bodies of up to a mebibyte; the slow one serves one request at a
/// time, and has but one sandbox.
const APPS: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: hostile }
---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: { name: neighbour, namespace: hostile }
spec:
  image: docker.io/portolan/sample-echo:dev
  services:
  - name: web
    port: 8080
    scale: { mode: Auto, requestsPerInstance: 200, min: 1, max: 1 }
---
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: { name: neighbour, namespace: hostile }
spec: { host: neighbour.portolan.test, app: neighbour }
---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: { name: victim, namespace: hostile }
spec:
  image: docker.io/portolan/sample-echo:dev
  services:
  - name: web
    port: 8080
    scale: { mode: Auto, requestsPerInstance: 200, min: 1, max: 1 }
---
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: { name: victim, namespace: hostile }
spec: { host: victim.portolan.test, app: victim, maxBodyBytes: 1048576 }
---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: { name: slow, namespace: hostile }
spec:
  image: docker.io/portolan/sample-echo:dev
  services:
  - name: web
    port: 8080
    scale: { mode: Auto, requestsPerInstance: 1, min: 1, max: 1 }
---
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: { name: slow, namespace: hostile }
spec: { host: slow.portolan.test, app: slow }
";

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) gateways: Vec<Running>,
}

/// What an attack came to, for those who made it and for the others.
pub(crate) struct Outcome {
    pub(crate) attackers: Tally,
    pub(crate) neighbours: portolan_soak::load::Tally,
    /// The greatest memory of any gateway, in bytes.
    pub(crate) memory: u64,
    /// Connections of all gateways at the end of the attack.
    pub(crate) connections: f64,
    /// Requests that wait for a slot in all gateways at the end of the attack.
    pub(crate) queued: f64,
    /// Requests that found no room to wait, ever.
    pub(crate) turned_away: f64,
}

impl Scene {
    pub(crate) async fn set(cluster: Cluster) -> anyhow::Result<Self> {
        tokio::task::block_in_place(|| platform::install(&cluster, &VALUES))?;
        let scene = Self { gateways: pods::gateways(&cluster)?, cluster };
        ensure!(scene.gateways.len() == 2, "{:?}", scene.gateways);
        command::feed(scene.cluster.program("kubectl").args(["apply", "-f", "-"]), APPS)?;
        let mut kubectl = scene.cluster.program("kubectl");
        kubectl.args(["--namespace", TEAM, "wait", "--for=condition=Ready"]);
        kubectl.args(["apps,routes", "--all", "--timeout=90s"]);
        tokio::task::block_in_place(|| command::output(&mut kubectl))?;
        wait::until("all Routes to be known", wait::PATIENCE, async || {
            for gateway in &scene.gateways {
                let routes = gateway.metric("portolan_routes")?;
                ensure!(routes >= 3.0, "{} knows {routes}", gateway.name);
            }
            anyhow::Ok(())
        })
        .await?;
        Ok(scene)
    }

    /// Attacks for a while, and lets the neighbour's visitors come meanwhile.
    pub(crate) async fn attack(&self, attack: Attack, time: Duration) -> anyhow::Result<Outcome> {
        for gateway in &self.gateways {
            gateway.forget_peak()?;
        }
        let visitors = Load::start(&self.cluster, self.neighbours())?;
        let target = self.victim();
        let attackers =
            Inside::start(&self.cluster, CONTROL, move |stop| press(attack, target, stop))?;
        tokio::time::sleep(time).await;
        let connections = self.connections();
        let queued = self.sum("portolan_requests_queued");
        let attackers = attackers.end().await.context("the attackers")?;
        let neighbours = visitors.end().await.context("the visitors")?;
        let mut memory = 0;
        for gateway in &self.gateways {
            memory = memory.max(gateway.memory()?.peak);
        }
        let turned_away = self.sum("portolan_errors_total{code=\"queue_full\"}")?;
        let (connections, queued) = (connections?, queued?);
        Ok(Outcome { attackers, neighbours, memory, connections, queued, turned_away })
    }

    /// The neighbour's visitors for a while, and nobody else.
    pub(crate) async fn calm(&self, time: Duration) -> anyhow::Result<portolan_soak::load::Tally> {
        let visitors = Load::start(&self.cluster, self.neighbours())?;
        tokio::time::sleep(time).await;
        visitors.end().await
    }

    /// Connections of all gateways.
    pub(crate) fn connections(&self) -> anyhow::Result<f64> {
        self.sum("portolan_connections")
    }

    /// The sum of a metric of all gateways.
    fn sum(&self, metric: &str) -> anyhow::Result<f64> {
        self.gateways.iter().map(|gateway| gateway.metric(metric)).sum()
    }

    fn neighbours(&self) -> Visitors {
        Visitors { address: door(), host: NEIGHBOUR.to_owned(), rate: RATE }
    }

    fn victim(&self) -> Target {
        Target {
            address: door(),
            source: Some(IpAddr::V4(addresses::CONTROL)),
            host: VICTIM.to_owned(),
            slow: SLOW.to_owned(),
        }
    }
}

/// Where everybody comes in.
pub(crate) fn door() -> SocketAddr {
    SocketAddr::from((addresses::node(1), NODE_PORT))
}
