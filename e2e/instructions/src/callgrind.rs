//! Runs one test of this program below callgrind, and reads what it counted.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

use crate::INSIDE;

/// The function whose callees are counted, in either way of writing symbols.
const COLLECTED: &str = "*portolan_instructions*collected*";

/// Instructions of [`crate::collected`] in a test of this program.
///
/// # Panics
///
/// If valgrind is missing, the test fails in it, or nothing was counted.
#[track_caller]
pub(crate) fn count(test: &str) -> u64 {
    count_with(test, &[])
}

/// The same with more variables.
#[track_caller]
pub(crate) fn count_with(test: &str, variables: &[(&str, &str)]) -> u64 {
    let output = Output::new();
    let program = env::current_exe().expect("a running test has a program");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--demangle=no", "--read-inline-info=no"])
        .args(["--collect-atstart=no", &format!("--toggle-collect={COLLECTED}")])
        .arg(format!("--callgrind-out-file={}", output.0.display()))
        .arg(program)
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env(INSIDE, "1")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let ran = command.output().unwrap_or_else(|error| {
        panic!("run valgrind: {error}; e2e/packages.sh installs it");
    });
    let said = || {
        let streams = [&ran.stdout, &ran.stderr].map(|text| String::from_utf8_lossy(text));
        streams.join("\n")
    };
    assert!(ran.status.success(), "{test} below callgrind: {}\n{}", ran.status, said());
    let text = fs::read_to_string(&output.0).unwrap_or_default();
    match total(&text) {
        Some(total) if total > 0 => total,
        _ => panic!("{test}: callgrind counted nothing\n{}", said()),
    }
}

/// The sum over all functions and threads.
fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

/// A file of callgrind's, gone when dropped.
struct Output(PathBuf);

impl Output {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("portolan-callgrind-{}-{number}", process::id());
        Self(env::temp_dir().join(name))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Self(path) = self;
        // It is missing if valgrind did not get so far.
        let _ = fs::remove_file(path as &Path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read() {
        assert_eq!(total("events: Ir\nsummary: 9\n\nfn=(1)\n3 9\n\ntotals: 12\n"), Some(12));
        assert_eq!(total("events: Ir\n"), None);
    }
}
