//! A machine of the cluster: a process that holds a network, a mount and a pid namespace.
//!
//! Everything that runs on the machine runs in its namespaces. That makes the end simple and safe:
//! when the holder, process 1 of the pid namespace, is killed, the kernel kills all others there,
//! containers included, and every mount goes with the last of them. Nothing can be left behind by
//! a crash of this program, and no process outside can be hit.
//!
//! Namespaces are entered by a thread that ends afterwards, so that the rest of the program stays
//! where it was.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

use crate::command;
use crate::network;
use crate::process::ProcessId;

/// How long the kernel may take to end all processes of a machine.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A mount that only the machine sees.
#[derive(Debug, Clone)]
pub enum Mount {
    /// An empty file system in memory at this path.
    Memory(PathBuf),
    /// The first path, to be seen at the second.
    Bind(PathBuf, PathBuf),
}

/// A running machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    holder: ProcessId,
}

impl Machine {
    /// Starts a machine in an existing network namespace. `pause` is the program that holds it.
    ///
    /// # Errors
    /// When a namespace or a mount cannot be made.
    pub fn boot(namespace: &str, pause: &Path, mounts: &[Mount]) -> anyhow::Result<Self> {
        let net = File::open(network::namespace_file(namespace))
            .with_context(|| format!("open the network namespace {namespace}"))?;
        let holder = aside(|| {
            setns(&net, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
                .context("make a mount and a pid namespace")?;
            // The host's mounts stay visible, later ones included; ours never reach the host.
            let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
                .context("detach the machine's mounts from the host's")?;
            let flags = MsFlags::MS_REC | MsFlags::MS_SHARED;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
                .context("share the machine's mounts with its containers")?;
            for entry in mounts {
                perform(entry)?;
            }
            // The first process in the new pid namespace is its process 1.
            // The caller's streams are not its business: a pipe would stay open as long as it.
            let mut holder = Command::new(pause);
            let holder = spawn(holder.stdout(Stdio::null()).stderr(Stdio::null()))?;
            command::output(Command::new("mount").args(["-t", "proc", "proc", "/proc"]))?;
            Ok(holder)
        })?;
        Ok(Self { holder: adopt(holder).context("hold the machine")? })
    }

    /// The machine whose holder was recorded earlier.
    #[must_use]
    pub fn of(holder: ProcessId) -> Self {
        Self { holder }
    }

    /// The process that holds the machine.
    #[must_use]
    pub fn holder(&self) -> ProcessId {
        self.holder
    }

    /// Runs `work` on a thread inside the machine: what it starts belongs to the machine.
    ///
    /// `work` itself must not start threads: the kernel refuses them while the pid namespace for
    /// children differs from the thread's own.
    ///
    /// # Errors
    /// When the machine is gone, or with the error of `work`.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        if !self.holder.is_alive() {
            return Err(anyhow!("the machine is gone: its process {} ended", self.holder.pid));
        }
        let open = |kind: &str| {
            let path = format!("/proc/{}/ns/{kind}", self.holder.pid);
            File::open(&path).with_context(|| format!("open {path}"))
        };
        let (net, pid, mnt) = (open("net")?, open("pid")?, open("mnt")?);
        aside(move || {
            unshare(CloneFlags::CLONE_FS).context("leave the shared file system state")?;
            setns(net, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
            setns(pid, CloneFlags::CLONE_NEWPID).context("enter the pid namespace")?;
            setns(mnt, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
            work()
        })
    }

    /// Starts a program that outlives this one.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self, mut command: Command) -> anyhow::Result<ProcessId> {
        // The pid is the host's, and inside the machine /proc knows its own pids only: the identity
        // is read out here.
        let child = self.enter(|| spawn(&mut command))?;
        adopt(child).with_context(|| format!("{} ended at once", program(&command)))
    }

    /// Begins to end the machine and all that runs on it.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub fn kill(&self) -> anyhow::Result<()> {
        // Asking first is useless: the holder's end is what kills the others.
        self.holder.signal(Signal::SIGKILL)
    }

    /// Waits until nothing of the machine runs any more.
    ///
    /// # Errors
    /// When the kernel cannot end its processes in time.
    pub fn wait_gone(&self) -> anyhow::Result<()> {
        self.holder.wait_gone(END_LIMIT).context("end a machine")
    }
}

/// Starts a program in a process group of its own, so that ^C in the caller's terminal spares it.
///
/// # Errors
/// When the program cannot be started.
pub fn detached(command: &mut Command) -> anyhow::Result<ProcessId> {
    let child = spawn(command)?;
    adopt(child).with_context(|| format!("{} ended at once", program(command)))
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    let child = command.stdin(Stdio::null()).process_group(0).spawn();
    child.with_context(|| format!("start {}", program(command)))
}

/// Keeps a child from staying behind as a zombie when it ends before this program does: a pid
/// namespace with a zombie in it never ends. After this program its own parent takes over.
fn adopt(mut child: Child) -> anyhow::Result<ProcessId> {
    let id = ProcessId::of(child.id());
    thread::spawn(move || child.wait());
    id
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Runs `work` on a thread of its own and waits for it.
fn aside<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(anyhow!("the entering thread panicked")))
    })
}

fn perform(entry: &Mount) -> anyhow::Result<()> {
    match entry {
        Mount::Memory(path) => {
            fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("mount memory at {}", path.display()))
        }
        Mount::Bind(from, to) => {
            for path in [from, to] {
                fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
            }
            mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("mount {} at {}", from.display(), to.display()))
        }
    }
}
