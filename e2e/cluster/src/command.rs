//! Running other programs, with errors that say what failed and what it printed.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; the message carries its standard error.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = shown(command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("start `{shown}`"))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed, {}: {}", output.status, printed.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end with `input` on its standard input.
///
/// # Errors
/// As [`output`].
pub fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let shown = shown(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    // A program that fails early closes its end; its own message says more than the broken pipe.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("wait for `{shown}`"))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed, {}: {}", output.status, printed.trim());
    }
    written.with_context(|| format!("write to `{shown}`"))
}

/// Runs a program whose output the user should see as it comes.
///
/// # Errors
/// When it cannot be started or fails.
pub fn visible(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed, {status}");
    }
    Ok(())
}

fn shown(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}
