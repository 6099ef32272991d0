//! What runs, on disk: enough to end it, and to start one process again as it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::addresses::Stack;
use crate::machine::{Machine, detached};
use crate::paths::ClusterPaths;
use crate::process::ProcessId;

/// The loopback ports of this machine that lead into the cluster.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ports {
    /// The API server.
    pub api: u16,
    /// The ingress, plain.
    pub http: u16,
    /// The ingress, TLS.
    pub https: u16,
}

/// How to start one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Where it runs; `None` is this host, outside of every machine.
    pub machine: Option<String>,
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables beside the inherited ones.
    pub env: BTreeMap<String, String>,
}

/// A process, and how it was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recorded {
    /// How to start it again.
    pub spec: Spec,
    /// The process of the last start.
    pub id: ProcessId,
    /// Whether the cluster is broken without it.
    #[serde(default)]
    pub role: Role,
}

/// What a process is to its cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A cluster without it is broken.
    #[default]
    Essential,
    /// Something beside the cluster, such as kwok.
    Extra,
}

/// A cluster's record. Written after every step, so that a run that was killed can be cleaned up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The machine's boot in which this was written.
    pub boot: String,
    /// How many nodes the cluster has.
    pub nodes: u8,
    /// The IP families it has.
    #[serde(default)]
    pub stack: Stack,
    /// Set at the end of `up`; without it the cluster is a ruin.
    pub complete: bool,
    /// The way in from this host.
    pub ports: Ports,
    /// Machines by name.
    pub machines: BTreeMap<String, ProcessId>,
    /// Processes by name, `node1/kubelet`.
    pub processes: BTreeMap<String, Recorded>,
}

impl State {
    /// Reads the record; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not ours.
    pub fn load(cluster: &ClusterPaths) -> anyhow::Result<Option<Self>> {
        let path = file(cluster);
        match fs::read(&path) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes)
                    .with_context(|| format!("read the record {}", path.display()))?;
                Ok(Some(state))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes the record. It replaces the old one as a whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, cluster: &ClusterPaths) -> anyhow::Result<()> {
        let path = file(cluster);
        let draft = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).context("write down the record")?;
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Starts a process and records it.
    ///
    /// # Errors
    /// When its machine is unknown or gone, or the program cannot be started.
    pub fn start(
        &mut self,
        cluster: &ClusterPaths,
        name: &str,
        role: Role,
        spec: Spec,
    ) -> anyhow::Result<()> {
        let mut command = std::process::Command::new(&spec.program);
        let log = log_file(cluster, name)?;
        command.args(&spec.args).envs(&spec.env);
        command.stdout(log.try_clone().context("share the log")?).stderr(log);
        let id = match &spec.machine {
            Some(machine) => self.machine(machine)?.start(command),
            None => detached(&mut command),
        }
        .with_context(|| format!("start {name}"))?;
        self.processes.insert(name.to_owned(), Recorded { spec, id, role });
        self.save(cluster)
    }

    /// The running machine called `name`.
    ///
    /// # Errors
    /// When the cluster has no such machine.
    pub fn machine(&self, name: &str) -> anyhow::Result<Machine> {
        let known = || self.machines.keys().cloned().collect::<Vec<_>>().join(", ");
        let holder = self
            .machines
            .get(name)
            .with_context(|| format!("no machine is called {name}; there are: {}", known()))?;
        Ok(Machine::of(*holder))
    }
}

fn file(cluster: &ClusterPaths) -> PathBuf {
    cluster.run.join("state.json")
}

/// Opens a process's log at its end: a restart continues it.
fn log_file(cluster: &ClusterPaths, name: &str) -> anyhow::Result<File> {
    let path = cluster.logs().join(format!("{}.log", name.replace('/', "-")));
    fs::create_dir_all(cluster.logs()).context("make the folder of the logs")?;
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}
