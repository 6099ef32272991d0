//! Memory of a process, as proc(5) has it.

use std::fmt::Display;
use std::fs;

use anyhow::Context;

/// Resident memory of a process in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Resident {
    /// At this moment.
    pub(crate) now: f64,
    /// The most since the process began, or since [`forget_peak`].
    pub(crate) peak: f64,
}

/// What a process has in memory.
pub(crate) fn resident(pid: impl Display) -> anyhow::Result<Resident> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("read a process")?;
    Ok(Resident { now: field(&text, "VmRSS:")?, peak: field(&text, "VmHWM:")? })
}

/// Lets the peak of a process begin anew (`clear_refs`).
pub(crate) fn forget_peak(pid: impl Display) -> anyhow::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of memory")
}

/// A field in kilobytes of such a file, in bytes.
fn field(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name}"))?.parse::<f64>()? * 1024.0)
}
