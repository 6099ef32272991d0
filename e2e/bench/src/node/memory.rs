//! Memory of the kernel for a table, by a control group of the one who makes it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where version 1 of control groups has memory, and where version 2 has all.
const FIRST: &str = "/sys/fs/cgroup/memory";
const SECOND: &str = "/sys/fs/cgroup";

/// A control group that counts what the kernel allocates for its processes. Removed when dropped;
/// its processes have to have ended by then.
pub(super) struct Group {
    folder: PathBuf,
}

impl Group {
    /// A new one, with a process.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let parent = if Path::new(FIRST).exists() { FIRST } else { SECOND };
        let folder = Path::new(parent).join(format!("portolan-bench-{pid}"));
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let group = Self { folder };
        fs::write(group.folder.join("cgroup.procs"), pid.to_string()).context("join a group")?;
        Ok(group)
    }

    /// Bytes that the kernel holds for it.
    pub(super) fn kernel(&self) -> anyhow::Result<f64> {
        let first = fs::read_to_string(self.folder.join("memory.kmem.usage_in_bytes"));
        let bytes = match first {
            Ok(bytes) => bytes,
            Err(_) => {
                let text = fs::read_to_string(self.folder.join("memory.stat"));
                let text = text.context("read the memory of a control group")?;
                let line = text.lines().find_map(|line| line.strip_prefix("kernel "));
                line.context("the kernel's memory is not counted")?.to_owned()
            }
        };
        bytes.trim().parse().context("understand a number of bytes")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            eprintln!("could not remove {}: {error}", self.folder.display());
        }
    }
}
