//! The cluster of the outage: an App, somebody who visits it, and a look at each gateway that does
//! not go through the API server.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::platform::{self, NAMESPACE};
use portolan_cluster::{command, control_plane, network, wait};
use portolan_e2e::visitor::{ask, is_good};
use serde_json::Value;

pub(crate) const TEAM: &str = "outage";
pub(crate) const HOST: &str = "shop.portolan.test";
const LATE_HOST: &str = "late.portolan.test";
const SLEEPER_HOST: &str = "sleeper.portolan.test";

/// How long the sleeper may take to fall asleep: its drain is in it.
const SLEEP_LIMIT: Duration = Duration::from_secs(90);

/// One sandbox that is awake all the time, with fewer slots than the default, so that each gateway
/// has some of its own.
const SCALE: &str = "requestsPerInstance: 8, min: 1, max: 2";

/// How long controllers write nothing when all is done. Longer than any wait between two steps.
const REST: Duration = Duration::from_secs(5);

/// Asleep unless somebody asks.
const SLEEPER: &str = "scaleDownDelaySeconds: 1, min: 0, max: 1";

const LATE_ROUTE: &str = "
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: { name: late, namespace: outage }
spec: { host: late.portolan.test, app: shop }
";

/// A gateway's Pod, as it was before the outage.
#[derive(Debug)]
pub(crate) struct Gateway {
    address: String,
    container: String,
}

pub(crate) struct Scene {
    cluster: Cluster,
}

impl Scene {
    /// Installs Portolan and an App that answers.
    pub(crate) async fn set(cluster: Cluster) -> anyhow::Result<Self> {
        tokio::task::block_in_place(|| platform::install(&cluster, &[]))?;
        let scene = Self { cluster };
        scene.kubectl("default", &["create", "namespace", TEAM])?;
        scene.create(&platform::app(TEAM, "shop", SCALE))?;
        scene.create(&platform::app(TEAM, "sleeper", SLEEPER))?;
        let ready = ["wait", "--for=condition=Ready", "apps,routes", "--all", "--timeout=90s"];
        scene.kubectl(TEAM, &ready)?;
        let port = scene.port();
        wait::until("the App to answer", wait::PATIENCE, async || {
            let answer = ask(port, HOST).await?;
            ensure!(is_good(&answer), "{answer}");
            anyhow::Ok(())
        })
        .await?;
        Ok(scene)
    }

    pub(crate) fn create(&self, manifest: &str) -> anyhow::Result<()> {
        command::feed(self.cluster.program("kubectl").args(["create", "-f", "-"]), manifest)
    }

    pub(crate) async fn client(&self) -> anyhow::Result<kube::Client> {
        self.cluster.client().await
    }

    /// How long the first request for an App that sleeps takes.
    pub(crate) async fn wake(&self) -> anyhow::Result<Duration> {
        self.asleep().await?;
        let begun = Instant::now();
        let answer = ask(self.port(), SLEEPER_HOST).await?;
        ensure!(is_good(&answer), "{answer}");
        Ok(begun.elapsed())
    }

    async fn asleep(&self) -> anyhow::Result<()> {
        wait::until("the sleeper to sleep", SLEEP_LIMIT, async || {
            let pods = self.pods(TEAM, "portolan.dev/app=sleeper")?;
            ensure!(pods.is_empty(), "it has {} sandboxes", pods.len());
            anyhow::Ok(())
        })
        .await
    }

    pub(crate) fn port(&self) -> u16 {
        self.cluster.state().ports.http
    }

    /// Kills the API server. If it ended in order it would first withdraw its address from the
    /// Service that Pods reach it by, and the test would measure how soon kube-proxy looks again.
    pub(crate) fn kill_api_server(&mut self) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| self.cluster.kill(control_plane::API_SERVER))
    }

    pub(crate) async fn start_api_server(&mut self) -> anyhow::Result<()> {
        self.cluster.start_api_server().await
    }

    pub(crate) fn gateways(&self) -> anyhow::Result<Vec<Gateway>> {
        let pods = self.pods(NAMESPACE, "app.kubernetes.io/component=gateway")?;
        let gateway = |pod: &Value| {
            let status = &pod["status"];
            let container = status["containerStatuses"][0]["containerID"].as_str()?;
            let container = container.strip_prefix("containerd://")?.to_owned();
            Some(Gateway { address: status["podIP"].as_str()?.to_owned(), container })
        };
        pods.iter().map(|pod| gateway(pod).context("a gateway that runs")).collect()
    }

    /// The UIDs of the App's sandboxes, in order.
    pub(crate) fn sandboxes(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.pods(TEAM, "portolan.dev/app=shop")?;
        let mut uids: Vec<_> = pods.iter().map(|pod| pod["metadata"]["uid"].to_string()).collect();
        uids.sort();
        Ok(uids)
    }

    /// Since when each of the App's sandboxes is as ready as it is.
    pub(crate) fn ready_since(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.pods(TEAM, "portolan.dev/app=shop")?;
        let conditions = pods.iter().filter_map(|pod| pod["status"]["conditions"].as_array());
        let ready = conditions.flatten().filter(|condition| condition["type"] == "Ready");
        Ok(ready.map(ToString::to_string).collect())
    }

    /// What all controllers have written since they started, by controller and verb.
    pub(crate) fn writes(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut writes = self.counts("controller", "portolan_reconcile_api_writes_total")?;
        writes.retain(|labels, _| !labels.contains("verb=\"event\""));
        Ok(writes)
    }

    /// The same when nothing has been written for a while.
    pub(crate) async fn settled_writes(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.asleep().await?;
        let mut last = (self.writes()?, Instant::now());
        wait::until("the controllers to rest", SLEEP_LIMIT, async || {
            let writes = self.writes()?;
            if writes != last.0 {
                last = (writes.clone(), Instant::now());
            }
            ensure!(last.1.elapsed() > REST, "{writes:?}, and more to come");
            anyhow::Ok(writes)
        })
        .await
    }

    /// How often the watches of controllers have listed everything, and how many watches there are.
    pub(crate) fn lists(&self) -> anyhow::Result<(u64, u64)> {
        let all = self.counts("controller", "portolan_reconcile_watch_lists_total")?;
        let watches = self.pages("controller")?;
        let watches = watches
            .iter()
            .map(|page| samples(page, "portolan_reconcile_watch_lists_total").count() as u64);
        Ok((all.values().sum(), watches.sum()))
    }

    /// A counter of all Pods of a component, by its labels.
    fn counts(&self, component: &str, name: &str) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        for page in self.pages(component)? {
            for (labels, value) in samples(&page, name) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "counters are whole and not negative"
                )]
                let value = value as u64;
                *counts.entry(labels.to_owned()).or_default() += value;
            }
        }
        Ok(counts)
    }

    /// The metrics of every Pod of a component.
    fn pages(&self, component: &str) -> anyhow::Result<Vec<String>> {
        let selector = format!("app.kubernetes.io/component={component}");
        let pods = self.pods(NAMESPACE, &selector)?;
        let addresses = pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str());
        addresses.map(|to| self.fetch(&["-f", &format!("http://{to}:9090/metrics")])).collect()
    }

    /// The sum of a gateway's samples of one metric.
    pub(crate) fn metric(&self, gateway: &Gateway, name: &str) -> anyhow::Result<f64> {
        let page = self.fetch(&["-f", &format!("http://{}:9090/metrics", gateway.address)])?;
        Ok(samples(&page, name).map(|(_, value)| value).sum())
    }

    /// For how many seconds a gateway may have missed something.
    pub(crate) fn stale(&self, gateway: &Gateway) -> anyhow::Result<f64> {
        self.metric(gateway, "portolan_cache_stale_seconds")
    }

    /// How one gateway answers a request for a host.
    pub(crate) fn status(&self, gateway: &Gateway, host: &str) -> anyhow::Result<u16> {
        let host = format!("Host: {host}");
        self.code(&["-H", &host, &format!("http://{}:8080/health", gateway.address)])
    }

    /// How one gateway answers its readiness probe.
    pub(crate) fn readiness(&self, gateway: &Gateway) -> anyhow::Result<u16> {
        self.code(&[&format!("http://{}:9090/readyz", gateway.address)])
    }

    /// Ends a gateway's process as by `kill -9`; its Pod stays.
    pub(crate) fn kill(&self, gateway: &Gateway) -> anyhow::Result<()> {
        let node = self.cluster.nodes().into_iter().next().context("a node")?;
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(node.containerd_socket()).args(["--namespace", "k8s.io"]);
        ctr.args(["tasks", "kill", "--signal", "SIGKILL", &gateway.container]);
        command::output(&mut ctr).map(drop)
    }

    /// A Route that is made is served, and one that is deleted is denied, by each gateway.
    pub(crate) async fn changes_arrive(
        &self,
        gateways: &[Gateway],
        limit: Duration,
    ) -> anyhow::Result<()> {
        command::feed(self.cluster.program("kubectl").args(["apply", "-f", "-"]), LATE_ROUTE)?;
        self.all_answer(gateways, 200, limit).await.context("a new Route")?;
        self.kubectl(TEAM, &["delete", "route", "late"])?;
        self.all_answer(gateways, 404, limit).await.context("a deleted Route")
    }

    async fn all_answer(
        &self,
        gateways: &[Gateway],
        expected: u16,
        limit: Duration,
    ) -> anyhow::Result<()> {
        for gateway in gateways {
            wait::until("every gateway to know", limit, async || {
                let status = self.status(gateway, LATE_HOST)?;
                ensure!(status == expected, "{status}");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(())
    }

    fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
        let list = self.kubectl(namespace, &["get", "pods", "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&list).context("a list of Pods")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    pub(crate) fn kubectl(&self, namespace: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut kubectl = self.cluster.program("kubectl");
        kubectl.args(["--namespace", namespace]).args(arguments);
        tokio::task::block_in_place(|| command::output(&mut kubectl))
    }

    fn code(&self, arguments: &[&str]) -> anyhow::Result<u16> {
        let words = ["-o", "/dev/null", "-w", "%{http_code}"];
        let code = self.fetch(&[&words, arguments].concat())?;
        code.trim().parse().with_context(|| format!("{code} is no status"))
    }

    /// What `curl` prints on the node, where Pods are reached by their address.
    fn fetch(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let namespace = network::namespace_file(&self.cluster.files().namespace("node1"));
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net={}", namespace.display())).args(["curl", "-sS", "-m", "5"]);
        tokio::task::block_in_place(|| command::output(curl.args(arguments)))
    }
}

/// The samples of a metric: labels and value.
fn samples<'a>(page: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> + 'a {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_it = labels.is_empty() || labels.starts_with('{');
        is_it.then_some((labels, value.parse().ok()?))
    })
}
