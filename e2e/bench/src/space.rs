//! Network namespaces of the benchmarks. They have no name: they end with this process.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::process::{Child, Command, id};
use std::thread;

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use portolan_cluster::command;

/// A network namespace.
pub(crate) struct Space {
    file: File,
}

impl Space {
    /// An empty one whose loopback is up.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let file = thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
                File::open("/proc/thread-self/ns/net").context("open a network namespace")
            });
            made.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        let space = Self { file };
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// One that exists, by its file.
    pub(crate) fn open(file: &std::path::Path) -> anyhow::Result<Self> {
        let file = File::open(file).with_context(|| format!("open {}", file.display()))?;
        Ok(Self { file })
    }

    /// Runs something in it, on a thread of its own. Sockets and processes that are made stay in
    /// it.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("enter a namespace")?;
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs something in it that waits, on a runtime of its own.
    pub(crate) fn run_async<T: Send>(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })
    }

    /// Starts a program in it.
    pub(crate) fn spawn(&self, mut program: Command) -> anyhow::Result<Child> {
        self.run(move || program.spawn().with_context(|| format!("start {program:?}")))
    }

    /// Lets `ip` do these lines in it.
    pub(crate) fn ip(&self, lines: &str) -> anyhow::Result<()> {
        self.run(|| command::feed(Command::new("ip").args(["-batch", "-"]), lines))
    }

    /// Lets it forward packets.
    pub(crate) fn forward(&self) -> anyhow::Result<()> {
        self.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward packets"))
    }

    /// Connects it to another: `here` is the link's name in this one, `there` in that one.
    pub(crate) fn connect(&self, here: &str, other: &Self, there: &str) -> anyhow::Result<()> {
        let other = format!("/proc/{}/fd/{}", id(), other.file.as_raw_fd());
        self.ip(&format!("link add {here} type veth peer name {there} netns {other}"))
    }
}
