//! The way from this machine's loopback into the cluster's namespaces.
//!
//! The listeners are on the host, the dialling happens on a thread inside a namespace; only the
//! sockets meet. The host's network is not touched.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use k8s_openapi::api::core::v1::Service;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::addresses;
use crate::control_plane::API_PORT;
use crate::network::{self, CONTROL};
use crate::paths::ClusterPaths;
use crate::state::Ports;

/// The Service whose ports 80 and 443 are the ingress.
const INGRESS: (&str, &str) = ("portolan-system", "portolan-gateway");
/// How long the ingress' address is believed: a chart installed later is seen soon.
const ADDRESS_LIFE: Duration = Duration::from_secs(1);
/// Connections that wait for the dialling thread; more are refused by waiting in `accept`.
const DIALS_MAX: usize = 1024;
/// How long a dial may take. Inside one machine only a missing peer takes time.
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// Forwards until the process is ended.
///
/// # Errors
/// When a port is taken or a namespace is gone.
pub async fn run(cluster: &ClusterPaths, ports: Ports) -> anyhow::Result<()> {
    let control = Dialler::start(cluster, CONTROL)?;
    let node = Dialler::start(cluster, &network::node_name(1))?;
    let api = SocketAddr::from((addresses::CONTROL, API_PORT));
    let ingress = |port| Target::Ingress(Ingress::new(cluster.kubeconfig(), port));
    tokio::try_join!(
        listen(ports.api, Target::Fixed(api), &control),
        listen(ports.http, ingress(80), &node),
        listen(ports.https, ingress(443), &node),
    )?;
    Ok(())
}

enum Target {
    Fixed(SocketAddr),
    Ingress(Ingress),
}

/// Accepts for ever; one connection's trouble is its own.
async fn listen(port: u16, mut target: Target, dialler: &Dialler) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .with_context(|| format!("listen on port {port}"))?;
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                eprintln!("accept on port {port}: {error}");
                // Out of descriptors, most likely: they come back only with time.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let address = match &mut target {
            Target::Fixed(address) => Ok(*address),
            Target::Ingress(ingress) => ingress.address().await,
        };
        match address {
            Ok(address) => dialler.dial(client, address).await?,
            // Dropping the connection is the answer: nothing is there to give a better one.
            Err(error) => eprintln!("port {port}: {error:#}"),
        }
    }
}

/// Finds the ingress through the API, since its chart may come and go.
struct Ingress {
    kubeconfig: PathBuf,
    port: u16,
    client: Option<Client>,
    known: Option<(Instant, IpAddr)>,
}

impl Ingress {
    fn new(kubeconfig: PathBuf, port: u16) -> Self {
        Self { kubeconfig, port, client: None, known: None }
    }

    async fn address(&mut self) -> anyhow::Result<SocketAddr> {
        if let Some((_, address)) = self.known.filter(|(at, _)| at.elapsed() < ADDRESS_LIFE) {
            return Ok(SocketAddr::from((address, self.port)));
        }
        match self.look_up().await {
            Ok(address) => self.known = Some((Instant::now(), address)),
            // An API server that is down does not move the ingress.
            Err(error) if self.known.is_some() => eprintln!("keep the old address: {error:#}"),
            Err(error) => return Err(error),
        }
        let (_, address) = self.known.expect("it was found just now or before");
        Ok(SocketAddr::from((address, self.port)))
    }

    async fn look_up(&mut self) -> anyhow::Result<IpAddr> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(connect(&self.kubeconfig).await?).clone(),
        };
        let (namespace, name) = INGRESS;
        let services = Api::<Service>::namespaced(client, namespace);
        let service = tokio::time::timeout(DIAL_LIMIT, services.get(name))
            .await
            .map_err(|_| anyhow!("the API server does not answer"))?
            .with_context(|| format!("find the service {namespace}/{name}"))?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        address.parse().with_context(|| format!("the service {name} has no address"))
    }
}

/// Connects to the cluster of a kubeconfig file.
///
/// # Errors
/// When the file is not readable or names no cluster.
pub async fn connect(kubeconfig: &std::path::Path) -> anyhow::Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .context("understand the kubeconfig")?;
    Client::try_from(config).context("make a client")
}

/// A thread inside a network namespace that connects what it is given.
struct Dialler {
    queue: mpsc::Sender<(std::net::TcpStream, SocketAddr)>,
}

impl Dialler {
    fn start(cluster: &ClusterPaths, machine: &str) -> anyhow::Result<Self> {
        let namespace = cluster.namespace(machine);
        let file = File::open(network::namespace_file(&namespace))
            .with_context(|| format!("open the network namespace {namespace}"))?;
        let (queue, mut dials) = mpsc::channel::<(std::net::TcpStream, SocketAddr)>(DIALS_MAX);
        thread::Builder::new()
            .name(format!("dial-{machine}"))
            .spawn(move || -> anyhow::Result<()> {
                // Before the runtime exists: each socket it makes belongs to this namespace.
                setns(file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    while let Some((client, address)) = dials.recv().await {
                        tokio::spawn(relay(client, address));
                    }
                });
                Ok(())
            })
            .context("start the dialling thread")?;
        Ok(Self { queue })
    }

    async fn dial(&self, client: TcpStream, address: SocketAddr) -> anyhow::Result<()> {
        let client = client.into_std().context("take the connection over")?;
        self.queue.send((client, address)).await.map_err(|_| anyhow!("the dialling thread ended"))
    }
}

/// Copies both ways; the end of one direction is passed on without ending the other.
async fn relay(client: std::net::TcpStream, address: SocketAddr) {
    let copied = async {
        let mut client = TcpStream::from_std(client)?;
        let mut server = tokio::time::timeout(DIAL_LIMIT, TcpStream::connect(address))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await
    };
    if let Err(error) = copied.await {
        eprintln!("{address}: {error}");
    }
}
