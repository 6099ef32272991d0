//! The cluster that things are done to: Portolan with two gateways, and an App that is visited.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::{namespace_file, node_name};
use portolan_cluster::platform::{self, NAMESPACE};
use portolan_cluster::{addresses, command, wait};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::astray::Astray;
use crate::extent::Extent;
use crate::load::{Load, Visitors};
use crate::report::{Outcome, Report};
use crate::streams::{Cut, Departures, Kept, Streams};

/// The namespace of the Apps.
pub(crate) const TEAM: &str = "soak";
/// The host that is visited.
pub(crate) const HOST: &str = "shop.portolan.test";
/// Where a node lets visitors in.
pub(crate) const NODE_PORT: u16 = 30_080;
/// Values that hold for every release of the chart.
const VALUES: [&str; 2] = ["gateway.service.type=NodePort", "gateway.service.httpNodePort=30080"];
/// Selects the gateways' Pods.
pub(crate) const GATEWAYS: &str = "app.kubernetes.io/component=gateway";
/// Selects the controllers' Pods.
pub(crate) const CONTROLLERS: &str = "app.kubernetes.io/component=controller";
/// How long a gateway that leaves lets a stream go on.
const GATEWAY_DRAIN: Duration = Duration::from_secs(60);
/// How long a sandbox that Portolan takes away does.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a sandbox that somebody else deletes does: then its program is asked to end, and what
/// becomes of its streams is the program's affair.
const PRE_STOP: Duration = Duration::from_secs(5);
/// How long visitors may wait while something is done: far longer than any of them should, and
/// shorter than what lasts until the next thing is done.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How often Pods are looked at. A departure is noticed late by as much.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How late a departure may be noticed while the machine is busy.
const NOTICE_MAX: Duration = Duration::from_secs(2);

/// A cluster with Portolan and the App `shop` on it.
#[derive(Debug)]
pub struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) pods: Pods,
    watcher: JoinHandle<()>,
    astray: Astray,
}

/// What is known of the Pods, kept up to date.
#[derive(Clone, Debug)]
pub(crate) struct Pods {
    gateways: watch::Receiver<Vec<IpAddr>>,
    departures: Arc<Mutex<Departures>>,
}

/// A container that runs.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) pod: String,
    pub(crate) address: IpAddr,
    /// How often its container was started again. A kubelet waits longer each time.
    pub(crate) restarts: i32,
    node: String,
    container: String,
}

/// Visitors and streams while something is done.
#[derive(Debug)]
pub(crate) struct Trial {
    begun: Instant,
    load: Load,
    streams: Option<Streams>,
    pods: Pods,
    astray: Astray,
    astray_before: usize,
}

impl Scene {
    /// Starts a cluster of two nodes, installs Portolan, and waits until the App answers.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn set(name: &str) -> anyhow::Result<Self> {
        Cluster::down(name)?;
        let cluster = Cluster::ensure(name, 2).await?;
        tokio::task::block_in_place(|| platform::install(&cluster, &VALUES))?;
        let (pods, watcher) = Pods::watch(cluster.client().await?);
        let node = namespace_file(&cluster.files().namespace(&node_name(1)));
        let astray = tokio::task::block_in_place(|| Astray::start(node))?;
        let scene = Self { cluster, pods, watcher, astray };
        scene.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {TEAM} }}\n"))?;
        scene.apply(&shop("one", ""))?;
        scene.apply(ROUTE)?;
        scene.ready("shop").await?;
        scene
            .team(&["wait", "--for=condition=Ready", "route/shop", wait::KUBECTL_PATIENCE])
            .await?;
        Ok(scene)
    }

    /// Visitors from outside, and streams, who come while `deed` is done; what they noticed.
    pub(crate) async fn visited(
        &mut self,
        extent: &Extent,
        deed: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Outcome> {
        let trial = self.open(extent, extent.streams).await?;
        let done = deed(self).await;
        let outcome = trial.end().await?;
        done?;
        Ok(outcome)
    }

    pub(crate) async fn open(&self, extent: &Extent, streams: usize) -> anyhow::Result<Trial> {
        let visitors =
            Visitors { address: self.address(), host: HOST.to_owned(), rate: extent.rate };
        // What was done before excuses nothing: a Pod that still leaves is noted again.
        *self.pods.departures.lock().unwrap_or_else(PoisonError::into_inner) =
            Departures::default();
        let mut gateways = self.pods.gateways.clone();
        gateways.wait_for(|gateways| gateways.len() >= 2).await.context("look at the Pods")?;
        let streams = match streams {
            0 => None,
            count => Some(Streams::open(&self.cluster, HOST, count, gateways)?),
        };
        let load = Load::start(&self.cluster, visitors)?;
        let (pods, astray) = (self.pods.clone(), self.astray.clone());
        let astray_before = tokio::task::block_in_place(|| astray.count())?;
        Ok(Trial { begun: Instant::now(), load, streams, pods, astray, astray_before })
    }

    /// Where visitors come in.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((addresses::node(1), NODE_PORT))
    }

    /// Installs the charts of this checkout with further values.
    pub(crate) fn install(&self, values: &[&str]) -> anyhow::Result<()> {
        let values: Vec<_> = VALUES.iter().chain(values).copied().collect();
        tokio::task::block_in_place(|| platform::install(&self.cluster, &values))
    }

    pub(crate) fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let mut kubectl = self.cluster.program("kubectl");
        kubectl.args(["--namespace", TEAM, "apply", "-f", "-"]);
        tokio::task::block_in_place(|| command::feed(&mut kubectl, manifest))
    }

    /// Waits until an App is ready for what was last applied.
    pub(crate) async fn ready(&self, app: &str) -> anyhow::Result<()> {
        let app = format!("app/{app}");
        let words = ["wait", "--for=condition=Ready", &app, "--timeout=120s"];
        self.team(&words).await.map(drop)
    }

    /// `kubectl` in the namespace of the Apps.
    pub(crate) async fn team(&self, words: &[&str]) -> anyhow::Result<String> {
        self.kubectl(TEAM, words).await
    }

    /// `kubectl` in the namespace of Portolan.
    pub(crate) async fn system(&self, words: &[&str]) -> anyhow::Result<String> {
        self.kubectl(NAMESPACE, words).await
    }

    pub(crate) async fn kubectl(&self, namespace: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut kubectl = self.cluster.program("kubectl");
        kubectl.args(["--namespace", namespace]).args(words);
        tokio::task::spawn_blocking(move || command::output(&mut kubectl)).await?
    }

    /// `helm` in the namespace of Portolan.
    pub(crate) async fn helm(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut helm = self.cluster.program("helm");
        helm.args(["--namespace", NAMESPACE]).args(words);
        tokio::task::spawn_blocking(move || command::output(&mut helm)).await?
    }

    /// The Pods of a selector that run and are not on their way out, by name.
    pub(crate) async fn running(
        &self,
        namespace: &str,
        selector: &str,
    ) -> anyhow::Result<Vec<Running>> {
        let pods = Api::<Pod>::namespaced(self.cluster.client().await?, namespace);
        let pods = pods.list(&ListParams::default().labels(selector)).await.context("list Pods")?;
        let mut running: Vec<_> = pods.items.iter().filter_map(Running::of).collect();
        running.sort_by(|a, b| a.pod.cmp(&b.pod));
        Ok(running)
    }

    /// Ends a container as by `kill -9`.
    pub(crate) fn kill(&self, victim: &Running) -> anyhow::Result<()> {
        let node = self.cluster.nodes().into_iter().find(|node| node.name() == victim.node);
        let socket = node.context("the node of the Pod")?.containerd_socket();
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(socket).args(["--namespace", "k8s.io", "tasks", "kill"]);
        ctr.args(["--signal", "SIGKILL", &victim.container]);
        tokio::task::block_in_place(|| command::output(&mut ctr)).map(drop)
    }

    /// What `curl` prints on a node, where Pods are reached by their address.
    pub(crate) async fn fetch(&self, url: &str) -> anyhow::Result<String> {
        let namespace = namespace_file(&self.cluster.files().namespace(&node_name(1)));
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net={}", namespace.display()));
        curl.args(["curl", "-sS", "-f", "-m", "5", url]);
        tokio::task::spawn_blocking(move || command::output(&mut curl)).await?
    }

    /// The gateway to be ended by force: one that the kubelet starts again at once.
    pub(crate) async fn victim(&self) -> anyhow::Result<Running> {
        let gateways = self.running(NAMESPACE, GATEWAYS).await?;
        gateways.into_iter().min_by_key(|gateway| gateway.restarts).context("a gateway")
    }

    /// The process that holds the Lease of a gateway; empty when none does.
    pub(crate) async fn holder(&self, gateway: &Running) -> anyhow::Result<String> {
        let words = ["get", "lease", &gateway.pod, "--ignore-not-found"];
        let words = [&words[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat();
        self.system(&words).await
    }

    /// The gateway that was ended most often: the kubelet lets it rest before it starts it again.
    pub(crate) async fn frequent_victim(&self) -> anyhow::Result<Running> {
        let gateways = self.running(NAMESPACE, GATEWAYS).await?;
        gateways.into_iter().max_by_key(|gateway| gateway.restarts).context("a gateway")
    }

    /// Waits until two gateways are ready, and those before them have gone.
    pub(crate) async fn two_gateways(&self) -> anyhow::Result<()> {
        wait::until("two gateways", wait::PATIENCE, async || {
            let gateways = self.pods.gateways();
            ensure!(gateways.len() == 2, "{gateways:?} are ready");
            let all = self.system(&["get", "pods", "-l", GATEWAYS, "-o", "name"]).await?;
            let count = all.lines().count();
            ensure!(count == 2, "there are {count}");
            anyhow::Ok(())
        })
        .await
    }

    /// Takes the cluster down.
    ///
    /// # Errors
    /// When something of it survives.
    pub fn strike(self) -> anyhow::Result<()> {
        self.watcher.abort();
        Cluster::down(&self.cluster.files().name)
    }
}

impl Trial {
    /// Who begins to visit when.
    pub(crate) async fn end(self) -> anyhow::Result<Outcome> {
        let tally = self.load.end().await?;
        let Kept { never, cuts } = match self.streams {
            Some(streams) => streams.close().await?,
            None => Kept::default(),
        };
        let departures = self.pods.departures();
        let is_early = |cut: &&Cut| departures.is_early(cut, NOTICE_MAX);
        let early = cuts.iter().filter(is_early).cloned().collect();
        let (begun, took) = (self.begun, self.begun.elapsed());
        let counted = tokio::task::block_in_place(|| self.astray.count())?;
        let (wait_max, astray) = (WAIT_MAX, counted - self.astray_before);
        Ok(Outcome { begun, took, tally, cuts: cuts.len(), early, never, wait_max, astray })
    }
}

impl Pods {
    fn watch(client: kube::Client) -> (Self, JoinHandle<()>) {
        let (ready, gateways) = watch::channel(Vec::new());
        let departures = Arc::<Mutex<Departures>>::default();
        let noted = Arc::clone(&departures);
        let watcher = tokio::spawn(async move {
            loop {
                // While the API server is away, what was known stays.
                if let Ok(pods) = look(&client).await {
                    note(&pods, &mut noted.lock().unwrap_or_else(PoisonError::into_inner));
                    let now = ready_gateways(&pods);
                    ready.send_if_modified(|before| {
                        let is_new = *before != now;
                        *before = now;
                        is_new
                    });
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        });
        (Self { gateways, departures }, watcher)
    }

    /// The addresses of the gateways that are ready and stay.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        self.gateways.borrow().clone()
    }

    /// The same, to be watched.
    pub(crate) fn watched(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.gateways.clone()
    }

    fn departures(&self) -> Departures {
        self.departures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was ended by force: its streams may be cut at once.
    pub(crate) fn note_killed(&self, victim: &Running) {
        let mut departures = self.departures.lock().unwrap_or_else(PoisonError::into_inner);
        departures.killed.push((victim.address.to_string(), Instant::now()));
    }
}

async fn look(client: &kube::Client) -> anyhow::Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for namespace in [NAMESPACE, TEAM] {
        let api = Api::<Pod>::namespaced(client.clone(), namespace);
        let listed = tokio::time::timeout(NOTICE_MAX, api.list(&ListParams::default())).await;
        pods.extend(listed.context("no answer")??.items);
    }
    Ok(pods)
}

fn note(pods: &[Pod], departures: &mut Departures) {
    for pod in pods {
        let is_marked = pod.annotations().contains_key("portolan.dev/drain");
        if pod.metadata.deletion_timestamp.is_none() && !is_marked {
            continue;
        }
        let is_sandbox = pod.labels().contains_key("portolan.dev/pool");
        let limit = match (is_sandbox, is_marked) {
            (false, _) => GATEWAY_DRAIN,
            (true, false) => PRE_STOP,
            (true, true) => DRAIN,
        };
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        for who in [Some(pod.name_any()), address].into_iter().flatten() {
            departures.leaving.entry(who).or_insert_with(|| (Instant::now(), limit));
        }
    }
}

fn ready_gateways(pods: &[Pod]) -> Vec<IpAddr> {
    let is_ready = |pod: &&Pod| {
        let status = pod.status.as_ref();
        let mut conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let gateways = pods.iter().filter(|pod| {
        let component = pod.labels().get("app.kubernetes.io/component");
        component.is_some_and(|component| component == "gateway")
            && pod.metadata.deletion_timestamp.is_none()
    });
    let address = |pod: &Pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok();
    let addresses: BTreeSet<_> = gateways.filter(is_ready).filter_map(address).collect();
    addresses.into_iter().collect()
}

impl Running {
    fn of(pod: &Pod) -> Option<Self> {
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let status = pod.status.as_ref()?;
        let container = status.container_statuses.as_ref()?.first()?;
        container.state.as_ref()?.running.as_ref()?;
        let id = container.container_id.as_ref()?.strip_prefix("containerd://")?;
        Some(Self {
            pod: pod.name_any(),
            address: status.pod_ip.as_ref()?.parse().ok()?,
            restarts: container.restart_count,
            node: pod.spec.as_ref()?.node_name.clone()?,
            container: id.to_owned(),
        })
    }
}

/// The App that is visited, in a version of its own; `extra` are further fields of its service.
pub(crate) fn shop(version: &str, extra: &str) -> String {
    format!(
        "
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: {{ name: shop, namespace: {TEAM} }}
spec:
  image: docker.io/portolan/sample-echo:dev
  env: [{{ name: VERSION, value: \"{version}\" }}]
  services:
  - name: web
    port: 8080
    scale: {{ mode: Auto, requestsPerInstance: 300, min: 1, max: 3 }}
{extra}"
    )
}

const ROUTE: &str = "
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: { name: shop, namespace: soak }
spec: { host: shop.portolan.test, app: shop }
";

impl Report {
    /// What was noticed of `what`, with the verdict that nobody may have noticed anything.
    pub(crate) fn unnoticed(what: String, outcome: &Outcome) -> Self {
        Self::judged(what, outcome, |_| false)
    }
}
