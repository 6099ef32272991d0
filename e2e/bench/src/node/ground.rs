//! A real API server, and beside its cluster a node of the benchmarks' own: a namespace on the
//! cluster's network, with a client and two sandboxes behind it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kube::Client;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::{CONTROL, LAB, namespace_file};
use portolan_cluster::{command, control_plane, forward, platform};

use crate::resident::{Resident, resident};
use crate::space::Space;
use crate::stub::ONE_ARENA;

/// Namespace of all objects.
pub(super) const NAMESPACE: &str = "bench";
/// The Node that the agent is of: one of the cluster's, though it runs elsewhere.
pub(super) const NODE: &str = "node1";
/// Where the two sandboxes are.
pub(super) const SANDBOXES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 95, 2, 2), Ipv4Addr::new(10, 95, 3, 2)];
/// The node's address in the cluster's network, beyond those of its nodes.
const ADDRESS: &str = "10.90.0.250/24";
/// Where the agent says how it is.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9462);
/// How long the agent may take to list and program everything, and how often it is asked.
const READY_LIMIT: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The cluster and the node.
pub(super) struct Ground {
    cluster: Cluster,
    /// Where the API server is, and who asks it.
    pub(super) control: Space,
    /// Where the agent is.
    pub(super) node: Space,
    pub(super) client: Space,
    pub(super) sandboxes: [Space; 2],
}

/// A running agent. It ends when dropped, and what it programmed with it.
pub(super) struct Agent<'a> {
    ground: &'a Ground,
    child: Child,
}

impl Ground {
    /// A cluster of this name, new: what an earlier run left in the API server would count too.
    pub(super) async fn start(name: &str) -> anyhow::Result<Self> {
        Cluster::down(name)?;
        let cluster = Cluster::ensure(name, 1).await?;
        platform::define(&cluster)?;
        command::output(cluster.program("kubectl").args(["create", "namespace", NAMESPACE]))?;
        let open = |machine| Space::open(&namespace_file(&cluster.files().namespace(machine)));
        let (control, lab) = (open(CONTROL)?, open(LAB)?);
        let ground = Self {
            control,
            node: Space::new()?,
            client: Space::new()?,
            sandboxes: [Space::new()?, Space::new()?],
            cluster,
        };
        let Self { node, client, sandboxes: [one, two], .. } = &ground;
        node.forward()?;
        node.connect("eth0", &lab, "v-bench")?;
        lab.ip("link set v-bench master br0\nlink set v-bench up\n")?;
        node.ip(&format!("address add {ADDRESS} dev eth0\nlink set eth0 up\n"))?;
        for (number, other) in [(1, client), (2, one), (3, two)] {
            let link = format!("n{number}");
            node.connect(&link, other, "eth0")?;
            node.ip(&format!(
                "address add 10.95.{number}.1/24 dev {link}\n\
                 link set {link} up\n"
            ))?;
            other.ip(&format!(
                "address add 10.95.{number}.2/24 dev eth0\n\
                 link set eth0 up\n\
                 route add default via 10.95.{number}.1\n"
            ))?;
        }
        Ok(ground)
    }

    /// A client for the API server, for work in [`Self::control`].
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        forward::connect(&self.kubeconfig()).await
    }

    fn kubeconfig(&self) -> PathBuf {
        control_plane::admin_kubeconfig(self.cluster.files())
    }

    /// Takes the cluster down.
    pub(super) fn end(self) -> anyhow::Result<()> {
        Cluster::down(&self.cluster.files().name)
    }
}

impl<'a> Agent<'a> {
    /// Starts the agent on a node without a table, and waits until it has programmed everything.
    pub(super) fn start(ground: &'a Ground) -> anyhow::Result<Self> {
        let mut command = program()?;
        command.arg(format!("--node-name={NODE}"));
        command.args(["--log=warn", "--log-format=text"]);
        command.env("KUBECONFIG", ground.kubeconfig());
        command.env(ONE_ARENA.0, ONE_ARENA.1);
        let agent = Self { ground, child: ground.node.spawn(command)? };
        let begun = Instant::now();
        while !agent.ask("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            ensure!(begun.elapsed() < READY_LIMIT, "the agent is not ready");
            sleep(LOOK_INTERVAL);
        }
        Ok(agent)
    }

    /// A figure of its own, from its metrics.
    pub(super) fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = self.ask("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no metric {name}"))?.trim().parse().context("a number")
    }

    pub(super) fn resident(&self) -> anyhow::Result<Resident> {
        resident(self.child.id())
    }

    fn ask(&self, path: &str) -> anyhow::Result<String> {
        self.ground.node.run(|| {
            let mut stream = TcpStream::connect(ADMIN)?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let mut command = program()?;
        command.arg("--cleanup").arg("--log=warn");
        let status = self.ground.node.spawn(command)?.wait()?;
        ensure!(status.success(), "the table could not be removed: {status}");
        Ok(())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("could not end the agent: {error:#}");
        }
    }
}

/// The agent's program, built beside this one.
fn program() -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("find this program")?;
    let program = program.with_file_name("portolan-node");
    ensure!(program.exists(), "{} is missing; `make bench-build` builds it", program.display());
    Ok(Command::new(program))
}
