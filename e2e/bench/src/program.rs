//! A program that is being measured: started, watched for its CPU time, and ended with the run.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use portolan_cluster::wait;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Clock ticks per second in `/proc`; the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long a program may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A running program. It and its children end when dropped.
pub(crate) struct Program {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Program {
    /// Starts a program and waits until it listens.
    pub(crate) async fn start(mut command: Command, address: SocketAddr) -> anyhow::Result<Self> {
        let name = format!("{:?}", command.as_std().get_program());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A group of its own, so that workers do not outlive their master.
        let child = command.process_group(0).spawn();
        let child = child.with_context(|| format!("start {name}"))?;
        let program = Self { child, address };
        wait::until(&format!("{name} to listen on {address}"), START_LIMIT, async || {
            TcpStream::connect(address).await.map(drop)
        })
        .await?;
        Ok(program)
    }

    /// CPU time that it and its children have used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("the program has ended")?;
        let ticks: u64 = family(pid)?.into_iter().filter_map(ticks).sum();
        #[expect(clippy::cast_precision_loss, reason = "a benchmark runs for minutes")]
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Some(leader) = self.child.id() else { return };
        let mut kill = std::process::Command::new("kill");
        if let Err(error) = kill.args(["-KILL", "--", &format!("-{leader}")]).status() {
            eprintln!("could not end {leader}: {error}");
        }
    }
}

/// The process and its children.
fn family(pid: u32) -> anyhow::Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .context("read the children of a program")?;
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    Ok(std::iter::once(pid).chain(children).collect())
}

/// User and system time of a process (proc(5), fields 14 and 15 of `stat`).
fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}
