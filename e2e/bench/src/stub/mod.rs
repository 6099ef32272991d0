//! The whole platform with a stub in the place of the kubelet: real API server, controllers and
//! gateways, and kwok, which says of a Pod that it is ready as soon as it has a node. What is
//! measured here is the platform's share.
//!
//! Everything runs in the cluster's control machine. The addresses of the fake Pods are made local
//! there, so one program answers for all of them.

mod apps;
mod counts;
mod first;
mod routes;
mod wake;

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use portolan_api::conditions::{self, reason};
use portolan_api::{App, Route};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::{CONTROL, namespace_file};
use portolan_cluster::state::Spec;
use portolan_cluster::{command, control_plane, forward, kwok, platform, wait};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::paced::{Connection, connect};
use crate::resident::{Resident, resident};
use crate::space::Space;

pub(crate) use apps::AppsArgs;
pub(crate) use routes::RoutesArgs;
pub(crate) use wake::WakeArgs;

/// The cluster of these benchmarks.
pub(crate) const CLUSTER: &str = "bench";
/// Where everything of the benchmarks lives.
pub(crate) const NAMESPACE: &str = "bench";
/// The addresses that kwok gives to Pods.
const POD_NETWORK: &str = "10.93.0.0/16";
/// Where the program listens, on every Pod's address.
const PROGRAM_PORT: u16 = 3000;
/// The first gateway's ports; the next ones count up.
const HTTP_PORT: u16 = 8180;
const HTTPS_PORT: u16 = 8280;
const INTERNAL_PORT: u16 = 8380;
const PEER_PORT: u16 = 8480;
const ADMIN_PORT: u16 = 9191;
/// Where the controllers say what they did.
const CONTROLLER_ADMIN: &str = "127.0.0.1:9190";
/// The delay of an App that sleeps as soon as nobody needs it, in seconds.
const SLEEPS_AT_ONCE: u32 = 1;
/// As the chart has it for what serves no visitors.
pub(crate) const ONE_ARENA: (&str, &str) = ("MALLOC_ARENA_MAX", "1");
/// Starting, and settling after a change.
const LIMIT: Duration = Duration::from_secs(60);

/// A platform with a stub for a kubelet.
pub(crate) struct Stub {
    cluster: Cluster,
    gateways: u16,
}

impl Stub {
    /// Starts the cluster and, in it, as many gateways and fake nodes. What an earlier run left in
    /// the namespace of the benchmarks goes first.
    pub(crate) async fn start(gateways: u16, nodes: usize) -> anyhow::Result<Self> {
        // A cluster of its own each time: what an earlier run left in the API server counts too.
        Cluster::down(CLUSTER)?;
        let mut cluster = Cluster::ensure(CLUSTER, 1).await?;
        platform::define(&cluster)?;
        command::output(cluster.program("kubectl").args(["cordon", "node1"]))?;
        command::output(cluster.program("kubectl").args(["create", "namespace", NAMESPACE]))?;
        kwok::scale(&mut cluster, nodes).await?;
        let control = namespace_file(&cluster.files().namespace(CONTROL));
        let mut local = std::process::Command::new("nsenter");
        local.arg(format!("--net={}", control.display()));
        local.args(["ip", "route", "replace", "local", POD_NETWORK, "dev", "lo"]);
        command::output(&mut local).context("make the Pods' addresses local")?;
        let mut stub = Self { cluster, gateways };
        stub.run("program", &this()?, &["backend", &format!("0.0.0.0:{PROGRAM_PORT}")], None)?;
        let portolan = portolan()?;
        let admin = format!("--admin-address={CONTROLLER_ADMIN}");
        stub.run("controller", &portolan, &["controller", &admin], Some(ONE_ARENA))?;
        for number in 0..gateways {
            stub.run_gateway(&portolan, number)?;
        }
        for number in 0..gateways {
            stub.ready(number).await?;
        }
        Ok(stub)
    }

    fn run_gateway(&mut self, program: &Path, number: u16) -> anyhow::Result<()> {
        let name = format!("gateway{number}");
        let args = [
            "gateway".to_owned(),
            format!("--http-address=0.0.0.0:{}", HTTP_PORT + number),
            format!("--https-address=0.0.0.0:{}", HTTPS_PORT + number),
            format!("--internal-address=0.0.0.0:{}", INTERNAL_PORT + number),
            format!("--peer-port={}", PEER_PORT + number),
            format!("--admin-address=127.0.0.1:{}", ADMIN_PORT + number),
            format!("--pod-name={name}"),
            "--no-access-log".to_owned(),
        ];
        self.run(&name, program, &args.each_ref().map(String::as_str), None)
    }

    fn run(
        &mut self,
        name: &str,
        program: &Path,
        args: &[&str],
        variable: Option<(&str, &str)>,
    ) -> anyhow::Result<()> {
        let kubeconfig = control_plane::admin_kubeconfig(self.cluster.files());
        let mut env = BTreeMap::from([
            ("KUBECONFIG".to_owned(), kubeconfig.display().to_string()),
            // Beside the ports above, should the gateways talk to each other.
            ("PORTOLAN_POD_IP".to_owned(), Ipv4Addr::LOCALHOST.to_string()),
        ]);
        env.extend(variable.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let spec = Spec {
            machine: Some(CONTROL.to_owned()),
            program: program.to_owned(),
            args: args.iter().map(ToString::to_string).collect(),
            env,
        };
        self.cluster.run(&process(name), spec).with_context(|| format!("run {name}"))
    }

    /// Waits until a gateway says that it is ready.
    async fn ready(&self, number: u16) -> anyhow::Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT + number));
        self.inside(async move || {
            wait::until(&format!("gateway{number} to be ready"), LIMIT, async || {
                let answer = ask(address, "localhost", "/readyz").await?;
                ensure!(answer.status() == 200, "answered {}", answer.status());
                Ok(())
            })
            .await
        })
    }

    fn inside<T: Send>(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        Control::of(&self.cluster)?.inside(work)
    }

    /// A client for the API server, for work [`Self::inside`].
    async fn client(&self) -> anyhow::Result<Client> {
        Control::of(&self.cluster)?.client().await
    }

    /// Where a gateway answers, from inside.
    fn gateway(&self, number: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT + number % self.gateways))
    }

    /// What a process has in memory.
    fn memory(&self, name: &str) -> anyhow::Result<Resident> {
        resident(self.pid(name)?)
    }

    fn pid(&self, name: &str) -> anyhow::Result<i32> {
        let recorded = self.cluster.state().processes.get(&process(name));
        Ok(recorded.with_context(|| format!("{name} does not run"))?.id.pid)
    }

    /// Takes the cluster down.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        Cluster::down(CLUSTER)
    }
}

/// The control machine of a cluster: its network, and a way to the API server from there.
pub(crate) struct Control {
    network: Space,
    kubeconfig: PathBuf,
}

impl Control {
    pub(crate) fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let network = Space::open(&namespace_file(&cluster.files().namespace(CONTROL)))?;
        Ok(Self { network, kubeconfig: control_plane::admin_kubeconfig(cluster.files()) })
    }

    /// Runs what needs the sockets of the control machine there, on a runtime and a thread of its
    /// own.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.network.run_async(work)
    }

    /// A client for the API server, for work [`Self::inside`].
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        forward::connect(&self.kubeconfig).await
    }
}

fn process(name: &str) -> String {
    format!("bench/{name}")
}

fn this() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

/// The platform's program, built beside this one.
fn portolan() -> anyhow::Result<PathBuf> {
    let program = this()?.with_file_name("portolan");
    ensure!(program.exists(), "{} is missing; build it with --release", program.display());
    Ok(program)
}

/// Name of an App, which is also the first label of its host.
fn app_name(number: usize) -> String {
    format!("app-{number:05}")
}

fn host(name: &str) -> String {
    format!("{name}.bench.test")
}

/// An App of one service that sleeps so many seconds after nobody needs it any more.
fn app(name: &str, delay_seconds: u32) -> anyhow::Result<App> {
    let service = json!({
        "name": "web",
        "port": PROGRAM_PORT,
        "scale": { "mode": "Auto", "min": 0, "max": 3, "scaleDownDelaySeconds": delay_seconds },
        "template": { "tolerations": [{ "key": kwok::MARK, "operator": "Exists" }] },
    });
    let app = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "App",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "image": "bench.test/program:1", "services": [service] },
    });
    serde_json::from_value(app).context("word an App")
}

fn route(name: &str, app: &str) -> anyhow::Result<Route> {
    let route = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "Route",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "host": host(name), "app": app, "service": "web" },
    });
    serde_json::from_value(route).context("word a Route")
}

/// Makes Apps that sleep after so many seconds, each with a Route of its name up to `routed`,
/// several at once.
async fn make(
    client: &Client,
    numbers: std::ops::Range<usize>,
    routed: usize,
    delay_seconds: u32,
) -> anyhow::Result<()> {
    make_in_turn(client, numbers, routed, delay_seconds, async |_| Ok(())).await
}

/// The same, each when its turn has come.
async fn make_in_turn(
    client: &Client,
    numbers: std::ops::Range<usize>,
    routed: usize,
    delay_seconds: u32,
    turn: impl AsyncFn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    use futures::stream;
    let apps: Api<App> = Api::namespaced(client.clone(), NAMESPACE);
    let routes: Api<Route> = Api::namespaced(client.clone(), NAMESPACE);
    let (apps, routes, turn) = (&apps, &routes, &turn);
    let mut made = stream::iter(numbers)
        .map(async |number| {
            turn(number).await?;
            let name = app_name(number);
            apps.create(&PostParams::default(), &app(&name, delay_seconds)?)
                .await
                .context("make an App")?;
            if number < routed {
                let route = route(&name, &name)?;
                routes.create(&PostParams::default(), &route).await.context("make a Route")?;
            }
            anyhow::Ok(())
        })
        .buffer_unordered(32);
    while let Some(made) = made.next().await {
        made?;
    }
    Ok(())
}

/// Waits until so many Apps are Ready and their sandboxes sleep, and gives when the last of them
/// became Ready. It follows a watch: listing all of them again and again would be most of what the
/// API server does.
///
/// It fails when no other App became Ready or fell asleep for as long as `patience`.
pub(crate) async fn asleep(
    client: &Client,
    count: usize,
    patience: Duration,
) -> anyhow::Result<Instant> {
    falling_asleep(client, count, patience, &watch::Sender::new(0)).await
}

/// The same; `sleeping` gets how many sleep.
async fn falling_asleep(
    client: &Client,
    count: usize,
    patience: Duration,
    sleeping: &watch::Sender<usize>,
) -> anyhow::Result<Instant> {
    let apps: Api<App> = Api::namespaced(client.clone(), NAMESPACE);
    let mut events = pin!(watcher(apps, watcher::Config::default()).default_backoff());
    let (mut ready, mut asleep) = (HashSet::new(), HashSet::new());
    let (mut all_ready, mut progress) = (None, Instant::now());
    while asleep.len() < count {
        let event = timeout_at(progress + patience, events.next()).await;
        let event = event.map_err(|_| {
            anyhow!(
                "{} of {count} Apps sleep, and nothing else happened in {patience:?}",
                asleep.len()
            )
        })?;
        match event.context("the watch ended")? {
            Ok(Event::InitApply(app) | Event::Apply(app)) => {
                let said = ready_reason(&app);
                if said.is_some() && ready.insert(app.name_any()) {
                    progress = Instant::now();
                    if ready.len() == count {
                        all_ready = Some(progress);
                    }
                    if ready.len().is_multiple_of(1_000) {
                        println!("    {} of {count} Apps were Ready", ready.len());
                    }
                }
                if said != Some(reason::ASLEEP) {
                    asleep.remove(&app.name_any());
                } else if asleep.insert(app.name_any()) {
                    progress = Instant::now();
                    sleeping.send_replace(asleep.len());
                    if asleep.len().is_multiple_of(1_000) {
                        println!("    {} of {count} Apps sleep", asleep.len());
                    }
                }
            }
            Ok(Event::Delete(app)) => drop(asleep.remove(&app.name_any())),
            // It begins again by itself, with a pause.
            Ok(Event::Init | Event::InitDone) | Err(_) => {}
        }
    }
    all_ready.context("all sleep, and one was never Ready")
}

/// Why an App is Ready, if it is.
fn ready_reason(app: &App) -> Option<&str> {
    let mut all = app.status.iter().flat_map(|status| &status.conditions);
    let ready = all.find(|one| one.type_ == conditions::READY && one.status == "True");
    ready.map(|condition| condition.reason.as_str())
}

/// Whether the kubelet, or who plays it, says that a Pod is ready.
pub(crate) fn is_ready_pod(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Applies a Route, as `kubectl apply --server-side` does.
async fn apply_route(client: &Client, name: &str, app: &str) -> anyhow::Result<()> {
    let routes: Api<Route> = Api::namespaced(client.clone(), NAMESPACE);
    let patch = Patch::Apply(route(name, app)?);
    routes.patch(name, &PatchParams::apply("bench"), &patch).await.context("apply a Route")?;
    Ok(())
}

/// One request on a connection of its own.
pub(crate) async fn ask(
    address: SocketAddr,
    host: &str,
    path: &str,
) -> anyhow::Result<Response<Bytes>> {
    let mut connection = connect(address).await?;
    let answer = send(&mut connection, host, path).await?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.context("read an answer")?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

async fn send(
    connection: &mut Connection,
    host: &str,
    path: &str,
) -> anyhow::Result<Response<Incoming>> {
    let request = Request::get(path).header(http::header::HOST, host).body(Empty::new())?;
    connection.send_request(request).await.context("send a request")
}
