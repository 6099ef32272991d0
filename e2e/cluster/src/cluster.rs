//! A cluster from outside: bring it up, use it, break it, take it down.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{Api, Client};

use crate::addresses::{self, Stack};
use crate::archive::{self, Described};
use crate::certificates::Authority;
use crate::control_plane;
use crate::forward;
use crate::images::{self, Known};
use crate::machine::Machine;
use crate::network::{self, CONTROL};
use crate::node::Node;
use crate::paths::{ClusterPaths, Paths};
use crate::process;
use crate::progress::{step, step_async};
use crate::state::{Ports, Role, Spec, State};
use crate::{cgroups, command, go, packages, wait};

/// How long a component may take to answer. They need seconds; a loaded machine needs more.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How often the processes are looked at while one of them is waited for.
const DEATH_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a stopped component may take to end on its own.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The recorded name of the forwarder's process.
const FORWARDER: &str = "forward";

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    paths: Paths,
    files: ClusterPaths,
    state: State,
}

impl Cluster {
    /// Gives the running cluster of this name and size, or starts one.
    ///
    /// A cluster in which a component died is replaced; so is one of another size.
    ///
    /// # Errors
    /// When something it needs cannot be installed, built or started.
    pub async fn ensure(name: &str, nodes: u8) -> anyhow::Result<Self> {
        Self::ensure_with(name, nodes, Stack::Single).await
    }

    /// As [`Cluster::ensure`], with these IP families.
    ///
    /// # Errors
    /// As [`Cluster::ensure`].
    pub async fn ensure_with(name: &str, nodes: u8, stack: Stack) -> anyhow::Result<Self> {
        check_name(name)?;
        if !(1..=addresses::NODES_MAX).contains(&nodes) {
            bail!("a cluster has 1 to {} nodes, not {nodes}", addresses::NODES_MAX);
        }
        let paths = Paths::discover();
        packages::ensure()?;
        go::ensure(&paths)?;
        let files = ClusterPaths::new(&paths, name);
        let _lock = lock(name)?;
        if let Some(cluster) = Self::running(&paths, &files)?
            && (cluster.state.nodes, cluster.state.stack) == (nodes, stack)
        {
            cluster.write_env()?;
            return Ok(cluster);
        }
        take_down(&files)?;
        let mut cluster = Self::prepare(paths, files, nodes, stack)?;
        let name = format!("start the cluster {name} with {nodes} node(s)");
        step_async(&name, cluster.start()).await?;
        Ok(cluster)
    }

    /// The running cluster of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        check_name(name)?;
        let paths = Paths::discover();
        let files = ClusterPaths::new(&paths, name);
        Self::running(&paths, &files)?.with_context(|| {
            format!("the cluster {name} is not up; `portolan-cluster up --name {name}` starts it")
        })
    }

    /// Takes a cluster down, whatever state it is in. No cluster is no error.
    ///
    /// # Errors
    /// When a process survives or a namespace cannot be removed.
    pub fn down(name: &str) -> anyhow::Result<()> {
        check_name(name)?;
        let files = ClusterPaths::new(&Paths::discover(), name);
        let _lock = lock(name)?;
        step(&format!("take the cluster {name} down"), || take_down(&files))
    }

    /// The names of all clusters that left something on this machine.
    ///
    /// # Errors
    /// When the folder of the clusters cannot be read.
    pub fn names() -> anyhow::Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(ClusterPaths::run_root()) else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.context("list the clusters")?;
            if entry.path().is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Its folders.
    #[must_use]
    pub fn files(&self) -> &ClusterPaths {
        &self.files
    }

    /// The record of what runs.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A client with an administrator's rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        forward::connect(&self.files.kubeconfig()).await
    }

    /// The names of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.state.nodes)
            .map(|number| Node::new(&self.files, number, self.state.stack))
            .collect()
    }

    /// A command that runs one of the cluster's programs (`kubectl`, `helm`) on this cluster.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.paths.programs().join(name));
        command.env("KUBECONFIG", self.files.kubeconfig());
        command
    }

    /// The words before a command that make it run as a host outside the cluster.
    #[must_use]
    pub fn outside(&self) -> Vec<String> {
        let namespace = self.files.namespace(network::OUTSIDE);
        vec![
            "nsenter".to_owned(),
            format!("--net={}", network::namespace_file(&namespace).display()),
        ]
    }

    /// Puts an image archive into every node that does not have this content yet.
    ///
    /// # Errors
    /// When the file is no image archive or containerd refuses it.
    pub fn load(&self, archive: &Path) -> anyhow::Result<Described> {
        let described = archive::describe(archive)?;
        for node in self.nodes() {
            self.import(&node, archive, &described)
                .with_context(|| format!("load {} into {}", archive.display(), node.name()))?;
        }
        Ok(described)
    }

    /// Ends one process as by `kill -9`, and leaves it ended.
    ///
    /// # Errors
    /// When the cluster has no such process or it survives.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let _lock = self.refresh()?;
        let id = self.recorded(name)?.id;
        id.signal(nix::sys::signal::Signal::SIGKILL)?;
        id.wait_gone(STOP_GRACE)
    }

    /// Asks one process to end, and leaves it ended.
    ///
    /// # Errors
    /// When the cluster has no such process or it survives.
    pub fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let _lock = self.refresh()?;
        self.recorded(name)?.id.end(STOP_GRACE)
    }

    /// Starts a stopped or killed process again, as it was.
    ///
    /// # Errors
    /// When the cluster has no such process or it cannot be started.
    pub fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let _lock = self.refresh()?;
        let recorded = self.recorded(name)?.clone();
        recorded.id.end(STOP_GRACE)?;
        self.state.start(&self.files, name, recorded.role, recorded.spec)
    }

    /// Stops the API server. What runs keeps running.
    ///
    /// # Errors
    /// As [`Cluster::stop`].
    pub fn stop_api_server(&mut self) -> anyhow::Result<()> {
        self.stop(control_plane::API_SERVER)
    }

    /// Starts the API server again and waits until it answers.
    ///
    /// # Errors
    /// As [`Cluster::restart`], or when it does not answer in time.
    pub async fn start_api_server(&mut self) -> anyhow::Result<()> {
        self.restart(control_plane::API_SERVER)?;
        self.wait_for_api().await
    }

    /// Starts or replaces a process beside the cluster's own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self, name: &str, spec: Spec) -> anyhow::Result<()> {
        let _lock = self.refresh()?;
        if let Some(old) = self.state.processes.get(name) {
            old.id.end(STOP_GRACE)?;
        }
        self.state.start(&self.files, name, Role::Extra, spec)
    }

    /// Ends a process that [`Cluster::run`] started, for good.
    ///
    /// # Errors
    /// When the cluster has no such process or it survives.
    pub fn forget(&mut self, name: &str) -> anyhow::Result<()> {
        let _lock = self.refresh()?;
        self.recorded(name)?.id.end(STOP_GRACE)?;
        self.state.processes.remove(name);
        self.state.save(&self.files)
    }

    /// Whether a process is known and runs.
    #[must_use]
    pub fn is_running(&self, name: &str) -> bool {
        self.state.processes.get(name).is_some_and(|recorded| recorded.id.is_alive())
    }

    /// The processes the cluster is broken without, and that do not run.
    #[must_use]
    pub fn dead(&self) -> Vec<&str> {
        let processes = self.state.processes.iter();
        let essential = processes.filter(|(_, entry)| entry.role == Role::Essential);
        essential.filter(|(_, entry)| !entry.id.is_alive()).map(|(name, _)| name.as_str()).collect()
    }

    /// Takes the lock and reads the record again: another test may have restarted something.
    fn refresh(&mut self) -> anyhow::Result<File> {
        let lock = lock(&self.files.name)?;
        if let Some(state) = State::load(&self.files)? {
            self.state = state;
        }
        Ok(lock)
    }

    fn recorded(&self, name: &str) -> anyhow::Result<&crate::state::Recorded> {
        self.state.processes.get(name).with_context(|| {
            let known: Vec<_> = self.state.processes.keys().map(String::as_str).collect();
            format!("no process is called {name}; there are: {}", known.join(", "))
        })
    }

    /// The cluster as recorded, if all of it runs.
    fn running(paths: &Paths, files: &ClusterPaths) -> anyhow::Result<Option<Self>> {
        let Some(state) = State::load(files)? else { return Ok(None) };
        if !state.complete || state.boot != process::boot_id()? {
            return Ok(None);
        }
        let cluster = Self { paths: paths.clone(), files: files.clone(), state };
        let dead = cluster.dead();
        if !dead.is_empty() {
            eprintln!("    the cluster {} has lost {}", files.name, dead.join(", "));
            return Ok(None);
        }
        Ok(Some(cluster))
    }

    /// Makes the machines and writes every file, without starting a component.
    fn prepare(paths: Paths, files: ClusterPaths, nodes: u8, stack: Stack) -> anyhow::Result<Self> {
        for folder in [&files.run, &files.data, &files.user] {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let state = State {
            boot: process::boot_id()?,
            nodes,
            stack,
            complete: false,
            ports: free_ports()?,
            machines: Default::default(),
            processes: Default::default(),
        };
        state.save(&files)?;
        let mut cluster = Self { paths, files, state };
        network::create(&cluster.files, nodes, stack)?;
        cluster.boot(CONTROL, &control_plane::mounts(&cluster.files))?;
        let authority = Authority::create(&cluster.files.pki())?;
        control_plane::write_identities(&cluster.files, &authority, cluster.state.ports)?;
        for node in cluster.nodes() {
            cluster.boot(node.name(), &node.mounts())?;
            node.write_files(&authority)?;
        }
        Ok(cluster)
    }

    fn boot(&mut self, name: &str, mounts: &[crate::machine::Mount]) -> anyhow::Result<()> {
        let pause = images::pause(&self.paths)?;
        let machine = Machine::boot(&self.files.namespace(name), &pause, mounts)
            .with_context(|| format!("boot the machine {name}"))?;
        self.state.machines.insert(name.to_owned(), machine.holder());
        self.state.save(&self.files)
    }

    async fn start(&mut self) -> anyhow::Result<()> {
        self.start_forwarder()?;
        let mut control =
            control_plane::processes(&self.paths, &self.files, self.state.stack).into_iter();
        // etcd and the API server first: the others would only ask in vain.
        for (name, spec) in control.by_ref().take(2) {
            self.start_essential(name, spec)?;
        }
        let nodes = self.nodes();
        let mut later = Vec::new();
        for node in &nodes {
            let mut processes = node.processes(&self.paths).into_iter();
            let (name, spec) = processes.next().expect("a node's first process is containerd");
            self.start_essential(&name, spec)?;
            later.extend(processes);
        }
        self.load_cluster_images(&nodes).await?;
        self.wait_for_api().await?;
        for (name, spec) in control {
            self.start_essential(name, spec)?;
        }
        for (name, spec) in later {
            self.start_essential(&name, spec)?;
        }
        self.install_dns().await?;
        self.state.complete = true;
        self.state.save(&self.files)?;
        self.write_env()
    }

    fn start_essential(&mut self, name: &str, spec: Spec) -> anyhow::Result<()> {
        self.state.start(&self.files, name, Role::Essential, spec)
    }

    fn start_forwarder(&mut self) -> anyhow::Result<()> {
        let program = forwarder_program(&self.paths)?;
        let name = self.files.name.clone();
        let args = ["forward", "--name", &name].map(ToOwned::to_owned).to_vec();
        let spec = Spec { machine: None, program, args, env: Default::default() };
        self.start_essential(FORWARDER, spec)
    }

    async fn load_cluster_images(&self, nodes: &[Node]) -> anyhow::Result<()> {
        let mut archives = Vec::new();
        for image in Known::CLUSTER {
            archives.push(image.ensure(&self.paths)?);
        }
        for node in nodes {
            let socket = node.containerd_socket();
            let awaited = format!("containerd on {}", node.name());
            self.component(&awaited, async || Ok(UnixStream::connect(&socket).map(drop)?)).await?;
        }
        for archive in archives {
            self.load(&archive)?;
        }
        Ok(())
    }

    fn import(&self, node: &Node, archive: &Path, described: &Described) -> anyhow::Result<()> {
        let stamps = self.files.machine(node.name()).join("images");
        fs::create_dir_all(&stamps).context("make the folder of the stamps")?;
        let key = described.names.join("+").replace(['/', ':'], "_");
        let stamp = stamps.join(if key.is_empty() { &described.digest } else { &key });
        if fs::read_to_string(&stamp).is_ok_and(|have| have == described.digest) {
            return Ok(());
        }
        let socket = node.containerd_socket();
        let machine = self.state.machine(node.name())?;
        machine.enter(|| {
            let mut ctr = Command::new("ctr");
            ctr.arg("--address").arg(socket).args(["--namespace", "k8s.io", "images", "import"]);
            command::output(ctr.arg(archive))
        })?;
        fs::write(&stamp, &described.digest).context("note the image")
    }

    /// Waits for a component, but not any longer once a process has ended.
    async fn component(
        &self,
        awaited: &str,
        probe: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        tokio::select! {
            result = wait::until(awaited, START_LIMIT, probe) => result,
            name = self.first_death() => {
                let logs = self.files.logs();
                bail!("{name} ended while waiting for {awaited}; its log is in {}", logs.display())
            }
        }
    }

    async fn first_death(&self) -> String {
        loop {
            if let Some(name) = self.dead().first() {
                return (*name).to_owned();
            }
            tokio::time::sleep(DEATH_LOOK_INTERVAL).await;
        }
    }

    async fn wait_for_api(&self) -> anyhow::Result<()> {
        let client = self.client().await?;
        self.component("the API server", async || {
            let ready = http_get("/readyz")?;
            client.request_text(ready).await.map(drop).map_err(anyhow::Error::from)
        })
        .await
    }

    async fn install_dns(&self) -> anyhow::Result<()> {
        let manifest = include_str!("../manifests/coredns.yaml");
        let mut apply = self.program("kubectl");
        apply.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        command::feed(&mut apply, manifest).context("install the cluster's DNS")?;
        let client = self.client().await?;
        let nodes = Api::<NodeObject>::all(client.clone());
        let wanted = usize::from(self.state.nodes);
        self.component("every node to be ready", async || {
            let nodes = nodes.list(&Default::default()).await?.items;
            let ready = nodes.iter().filter(|node| is_ready(node)).count();
            if ready == wanted { Ok(()) } else { bail!("{ready} of {wanted} nodes ready") }
        })
        .await?;
        let deployments = Api::<Deployment>::namespaced(client, "kube-system");
        self.component("the cluster's DNS", async || {
            let status = deployments.get("coredns").await?.status.unwrap_or_default();
            match status.ready_replicas {
                Some(1..) => Ok(()),
                _ => bail!("no replica is ready"),
            }
        })
        .await
    }

    fn write_env(&self) -> anyhow::Result<()> {
        let path = self.files.env();
        fs::write(&path, self.env()).with_context(|| format!("write {}", path.display()))
    }

    /// The lines to source in a shell.
    #[must_use]
    pub fn env(&self) -> String {
        let addresses: Vec<_> =
            (1..=self.state.nodes).map(|number| addresses::node(number).to_string()).collect();
        let ports = self.state.ports;
        format!(
            "export KUBECONFIG='{kubeconfig}'\n\
             export PATH='{programs}':\"$PATH\"\n\
             export PORTOLAN_HTTP='http://127.0.0.1:{http}'\n\
             export PORTOLAN_HTTPS='https://127.0.0.1:{https}'\n\
             export PORTOLAN_NODES='{nodes}'\n\
             export PORTOLAN_OUTSIDE='{outside}'\n",
            kubeconfig = self.files.kubeconfig().display(),
            programs = self.paths.programs().display(),
            http = ports.http,
            https = ports.https,
            nodes = addresses.join(" "),
            outside = self.outside().join(" "),
        )
    }
}

/// Ends everything of a cluster and removes its files.
fn take_down(files: &ClusterPaths) -> anyhow::Result<()> {
    let state = State::load(files)?;
    if let Some(state) = state.filter(|state| process::boot_id().is_ok_and(|id| id == state.boot)) {
        let machines: Vec<_> = state.machines.values().map(|holder| Machine::of(*holder)).collect();
        for machine in &machines {
            machine.kill()?;
        }
        for machine in &machines {
            machine.wait_gone()?;
        }
        for (name, recorded) in &state.processes {
            recorded.id.end(STOP_GRACE).with_context(|| format!("end {name}"))?;
        }
    }
    network::remove(files)?;
    remove_cgroups(files)?;
    absent_after(&files.run, fs::remove_dir_all(&files.run))?;
    absent_after(&files.data, fs::remove_dir_all(&files.data))?;
    absent_after(&files.kubeconfig(), fs::remove_file(files.kubeconfig()))?;
    absent_after(&files.env(), fs::remove_file(files.env()))
}

fn remove_cgroups(files: &ClusterPaths) -> anyhow::Result<()> {
    let Ok(machines) = fs::read_dir(&files.run) else { return Ok(()) };
    let machines = machines.flatten().map(|machine| machine.path());
    let states = machines.map(|machine| cgroups::containers(&machine.join("containerd")));
    cgroups::remove(&states.flatten().collect::<Vec<_>>())
}

/// That a file was not there is as good as that it was removed.
fn absent_after(path: &Path, removal: std::io::Result<()>) -> anyhow::Result<()> {
    match removal {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// One program at a time changes a cluster; another waits here.
fn lock(name: &str) -> anyhow::Result<File> {
    let root = ClusterPaths::run_root();
    fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
    let path = root.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn check_name(name: &str) -> anyhow::Result<()> {
    // The name is part of namespaces, paths of sockets and cgroups.
    let fits = (1..=16).contains(&name.len());
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !fits || !plain {
        bail!("a cluster's name is 1 to 16 lower case letters and digits, not {name:?}");
    }
    Ok(())
}

fn free_ports() -> anyhow::Result<Ports> {
    // All three are held until all are known, so that no two are the same.
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port");
    let (api, http, https) = (bind()?, bind()?, bind()?);
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    Ok(Ports { api: port(&api)?, http: port(&http)?, https: port(&https)? })
}

/// The forwarder is this crate's own program, whoever links the library.
fn forwarder_program(paths: &Paths) -> anyhow::Result<PathBuf> {
    let program = paths.target().join("debug/portolan-cluster");
    if !program.exists() {
        bail!("{} does not exist; `cargo build -p portolan-cluster` makes it", program.display());
    }
    Ok(program)
}

/// Whether a node's condition `Ready` is true.
#[must_use]
pub fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn http_get(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).context("form a request")
}
