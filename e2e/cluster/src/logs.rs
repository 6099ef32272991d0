//! Everything a person may want to read after a failure, in one folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::cluster::Cluster;
use crate::command;
use crate::paths::{ClusterPaths, Paths};

/// What the API is asked, and the file the answer goes to.
const QUESTIONS: [(&str, &[&str]); 5] = [
    ("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
    ("nodes.txt", &["describe", "nodes"]),
    ("pods.txt", &["get", "pods", "-A", "-o", "wide"]),
    ("pods.yaml", &["get", "pods", "-A", "-o", "yaml"]),
    ("portolan.yaml", &["get", "portolan", "-A", "-o", "yaml"]),
];

/// Copies the components' and containers' logs and the API's view into `target/NAME/logs`, and
/// returns that folder. A cluster that is half up gives what it has.
///
/// # Errors
/// When the folder cannot be written, or nothing of the cluster is left.
pub fn collect(name: &str) -> anyhow::Result<PathBuf> {
    let files = ClusterPaths::new(&Paths::discover(), name);
    let folder = files.user.join("logs");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    copy(&files.logs(), &folder)
        .with_context(|| format!("collect the logs of {name}, which may never have been up"))?;
    if let Ok(cluster) = Cluster::open(name) {
        for (file, question) in QUESTIONS {
            let text = ask(cluster.program("kubectl").args(question));
            fs::write(folder.join(file), text).with_context(|| format!("write {file}"))?;
        }
    }
    Ok(folder)
}

/// An answer or, as the file's content, why there is none.
fn ask(command: &mut Command) -> String {
    command::output(command.arg("--request-timeout=10s"))
        .unwrap_or_else(|error| format!("{error:#}\n"))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().context("tell files from folders")?.is_dir() {
            copy(&path, &target)?;
        } else if let Err(error) = fs::copy(&path, &target) {
            // A container that ends meanwhile takes its log with it.
            eprintln!("    {}: {error}", path.display());
        }
    }
    Ok(())
}
