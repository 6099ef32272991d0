//! The gateways of a cluster, looked at without the API server: their metrics, and their processes.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::platform::NAMESPACE;
use portolan_cluster::{command, network};
use serde_json::Value;

/// One gateway that runs.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The name of its Pod.
    pub pod: String,
    /// The address of its Pod.
    pub address: IpAddr,
    container: String,
    /// The network of a node.
    node: String,
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
/// When the API server does not say, or one of them does not run yet.
pub fn of(cluster: &Cluster) -> anyhow::Result<Vec<Gateway>> {
    let mut kubectl = cluster.program("kubectl");
    kubectl.args(["--namespace", NAMESPACE, "get", "pods", "-o", "json"]);
    kubectl.args(["-l", "app.kubernetes.io/component=gateway"]);
    let list = tokio::task::block_in_place(|| command::output(&mut kubectl))?;
    let list: Value = serde_json::from_str(&list).context("a list of Pods")?;
    let pods = list["items"].as_array().into_iter().flatten();
    let staying = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    staying.map(|pod| Gateway::of(cluster, pod).context("a gateway that runs")).collect()
}

impl Gateway {
    fn of(cluster: &Cluster, pod: &Value) -> Option<Self> {
        let status = &pod["status"];
        let container = status["containerStatuses"][0]["containerID"].as_str()?;
        Some(Self {
            pod: pod["metadata"]["name"].as_str()?.to_owned(),
            address: status["podIP"].as_str()?.parse().ok()?,
            container: container.strip_prefix("containerd://")?.to_owned(),
            node: cluster.files().namespace(&network::node_name(1)),
        })
    }

    /// The sum of the samples of one metric.
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
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> anyhow::Result<String> {
        // Pods are reached by their address from a node, and not from this machine.
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net={}", network::namespace_file(&self.node).display()));
        curl.args([
            "curl",
            "-sS",
            "-f",
            "-m",
            "5",
            &format!("http://{}:9090/metrics", self.address),
        ]);
        tokio::task::block_in_place(|| command::output(&mut curl))
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

    /// Where the kernel tells of its process. The machine's own /proc knows it too, by another
    /// number than the node does.
    fn process(&self) -> anyhow::Result<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("list processes")? {
            let process = entry.context("list processes")?.path();
            let cgroups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            if cgroups.contains(&self.container) {
                found.push(process);
            }
        }
        ensure!(found.len() == 1, "{} has {} processes", self.pod, found.len());
        found.pop().context("one process")
    }
}
