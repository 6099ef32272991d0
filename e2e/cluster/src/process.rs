//! Processes by identity: a pid that was given to another process is never signalled.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How often a process that should end is looked at. Short: components end within milliseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// One process, distinguished from any later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid on the host.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// Reads the identity of a running process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let pid = i32::try_from(pid).context("a pid fits 31 bits")?;
        match observe(pid)? {
            Some(seen) => Ok(Self { pid, started: seen.started }),
            None => bail!("process {pid} is gone"),
        }
    }

    /// Whether this very process still runs. A zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(observe(self.pid), Ok(Some(seen)) if seen.started == self.started && !seen.zombie)
    }

    /// Sends a signal, if this very process still runs.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal process {}", self.pid)),
        }
    }

    /// Waits until the process is gone.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait_gone(&self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                bail!("process {} still runs after {limit:?}", self.pid);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Ends the process: asks first, and kills it when it has not followed within `grace`.
    ///
    /// # Errors
    /// When it survives both.
    pub fn end(&self, grace: Duration) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait_gone(grace).is_ok() {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        self.wait_gone(Duration::from_secs(10))
    }
}

/// Tells one boot of the machine from another: after a reboot no recorded process is ours.
///
/// # Errors
/// When the kernel does not say.
pub fn boot_id() -> anyhow::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    Ok(id.trim().to_owned())
}

struct Seen {
    started: u64,
    zombie: bool,
}

fn observe(pid: i32) -> io::Result<Option<Seen>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        // ESRCH: the process went between opening and reading the file.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::ESRCH as i32) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Fields are counted from behind the command, which may itself hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<Seen> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    // proc(5): the state is field 3, the start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some(Seen { started, zombie: matches!(state, "Z" | "X") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let fields = (4..=21).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let seen = parse_stat(&format!("7 (a) b) S {fields} 4242 9")).unwrap();
        assert_eq!(seen.started, 4242);
        assert!(!seen.zombie);
    }

    #[test]
    fn a_reused_pid_is_not_the_same_process() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let other = ProcessId { started: own.started + 1, ..own };
        assert!(!other.is_alive());
        other.signal(Signal::SIGKILL).unwrap();
    }
}
