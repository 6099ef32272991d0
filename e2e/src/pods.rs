//! The Pods of Portolan and of its Apps, looked at without the API server: their metrics, and
//! their processes.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::{command, network};
use serde_json::Value;

/// A Pod of one container that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The node that it runs on.
    pub node: String,
    uid: String,
    container: String,
    /// The network of a node, from which Pods are reached by their address.
    network: PathBuf,
    /// Where the node's containerd listens.
    containerd: PathBuf,
}

/// The memory that one process holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub now: u64,
    /// The most since the peak was last forgotten.
    pub peak: u64,
}

/// The gateways that are not on their way out.
///
/// # Errors
/// As [`running`].
pub fn gateways(cluster: &Cluster) -> anyhow::Result<Vec<Running>> {
    running(cluster, NAMESPACE, "app.kubernetes.io/component=gateway")
}

/// The Pods that a label selector matches and that are not on their way out, in the order of their
/// names.
///
/// # Errors
/// When the API server does not say, or one of them does not run yet.
pub fn running(cluster: &Cluster, namespace: &str, selector: &str) -> anyhow::Result<Vec<Running>> {
    let mut kubectl = cluster.program("kubectl");
    kubectl.args(["--namespace", namespace, "get", "pods", "-o", "json", "-l", selector]);
    let list = tokio::task::block_in_place(|| command::output(&mut kubectl))?;
    let list: Value = serde_json::from_str(&list).context("a list of Pods")?;
    let pods = list["items"].as_array().into_iter().flatten();
    let staying = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    staying.map(|pod| Running::of(cluster, pod).context("a Pod that runs")).collect()
}

impl Running {
    fn of(cluster: &Cluster, pod: &Value) -> Option<Self> {
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        let node = pod["spec"]["nodeName"].as_str()?;
        let container = status["containerStatuses"][0]["containerID"].as_str()?;
        let nodes = cluster.nodes();
        let first = cluster.files().namespace(&network::node_name(1));
        Some(Self {
            name: metadata["name"].as_str()?.to_owned(),
            address: status["podIP"].as_str()?.parse().ok()?,
            node: node.to_owned(),
            uid: metadata["uid"].as_str()?.to_owned(),
            container: container.strip_prefix("containerd://")?.to_owned(),
            network: network::namespace_file(&first),
            containerd: nodes.iter().find(|known| known.name() == node)?.containerd_socket(),
        })
    }

    /// What tells it from any other Pod.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The sum of the samples of one metric, which may be named with all its labels.
    ///
    /// # Errors
    /// When it does not answer, or a sample is no number.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let page = self.metrics()?;
        let samples = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then_some(value)
        });
        let numbers = samples.map(|value| value.parse::<f64>().context("a sample"));
        numbers.sum()
    }

    /// All its metrics, as they are scraped.
    fn metrics(&self) -> anyhow::Result<String> {
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net={}", self.network.display()))
            .args(["curl", "-sS", "-f", "-m", "5"]);
        curl.arg(format!("http://{}:9090/metrics", self.address));
        tokio::task::block_in_place(|| command::output(&mut curl))
    }

    /// Ends its process as by `kill -9`; the Pod stays, and its container is started again.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal("SIGKILL")
    }

    /// The same, but asks it to end.
    ///
    /// # Errors
    /// When it does not run any more.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal("SIGTERM")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&self.containerd).args(["--namespace", "k8s.io"]);
        ctr.args(["tasks", "kill", "--signal", signal, &self.container]);
        tokio::task::block_in_place(|| command::output(&mut ctr)).map(drop)
    }

    /// The memory that its process holds.
    ///
    /// # Errors
    /// When it does not run, or the kernel does not say.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status =
            fs::read_to_string(self.process()?.join("status")).context("read its status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|size| size * 1024)
        };
        let now = field("VmRSS:").context("its memory")?;
        Ok(Memory { now, peak: field("VmHWM:").context("its greatest memory")? })
    }

    /// Lets the peak begin anew from what it holds now.
    ///
    /// # Errors
    /// When it does not run.
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        // proc_pid_clear_refs(5): 5 sets the peak to the present size.
        fs::write(self.process()?.join("clear_refs"), "5").context("forget its greatest memory")
    }

    /// Where the kernel tells of its process. This machine knows it by another number than the
    /// node does, so it is found by its control group.
    ///
    /// # Errors
    /// When it does not run, or is more than one.
    pub fn process(&self) -> anyhow::Result<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("list processes")? {
            let process = entry.context("list processes")?.path();
            let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            if groups.contains(&self.container) {
                found.push(process);
            }
        }
        ensure!(found.len() == 1, "{} has {} processes", self.name, found.len());
        found.pop().context("one process")
    }
}
