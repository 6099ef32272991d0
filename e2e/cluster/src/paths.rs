//! Where everything is: the checkout, the cache of built programs, a cluster's files.

use std::env;
use std::path::{Path, PathBuf};

/// Folders that do not belong to one cluster.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The root of the checkout.
    pub repository: PathBuf,
    /// Programs and packages that survive a fresh clone: `$XDG_CACHE_HOME/portolan`.
    pub cache: PathBuf,
}

impl Paths {
    /// Finds the folders from this crate's place in the checkout and from the environment.
    #[must_use]
    pub fn discover() -> Self {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("the crate lies two folders below the root")
            .to_path_buf();
        let cache = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"));
        Self { repository, cache: cache.join("portolan") }
    }

    /// Cargo's output folder.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.repository.join("target"), |dir| self.repository.join(dir))
    }

    /// The folder that goes on `PATH`: `kubectl`, `helm` and the other programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.target().join("cluster-bin")
    }

    /// The folder of our own image archives.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.target().join("images")
    }

    /// This crate's own folder in the checkout.
    #[must_use]
    pub fn sources(&self) -> PathBuf {
        self.repository.join("e2e/cluster")
    }
}

/// The folders of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterPaths {
    /// The cluster's name.
    pub name: String,
    /// State, sockets, certificates, logs: `/run/portolan-cluster/NAME`.
    ///
    /// Short, because a Unix socket's path ends at 108 bytes.
    pub run: PathBuf,
    /// Where the nodes mount their disks, which are in memory: `/var/tmp/portolan-cluster/NAME`.
    pub data: PathBuf,
    /// What a person uses: `target/NAME`, with the file `env`.
    pub user: PathBuf,
}

impl ClusterPaths {
    /// The folders of the cluster called `name`.
    #[must_use]
    pub fn new(paths: &Paths, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            run: Path::new("/run/portolan-cluster").join(name),
            data: Path::new("/var/tmp/portolan-cluster").join(name),
            user: paths.target().join(name),
        }
    }

    /// The folder above all clusters' run folders.
    #[must_use]
    pub fn run_root() -> &'static Path {
        Path::new("/run/portolan-cluster")
    }

    /// Certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.run.join("pki")
    }

    /// The components' logs, one file per process.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.run.join("logs")
    }

    /// The administrator's kubeconfig, for this machine's loopback.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.user.join("kubeconfig")
    }

    /// The file to source in a shell.
    #[must_use]
    pub fn env(&self) -> PathBuf {
        self.user.join("env")
    }

    /// The folder of one machine's own files.
    #[must_use]
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.run.join(machine)
    }

    /// The disk of one machine.
    #[must_use]
    pub fn disk(&self, machine: &str) -> PathBuf {
        self.data.join(machine)
    }

    /// The network namespace of one machine.
    #[must_use]
    pub fn namespace(&self, machine: &str) -> String {
        format!("portolan-{}-{machine}", self.name)
    }
}
