//! The cgroups that a cluster's containers leave behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

const ROOT: &str = "/sys/fs/cgroup";

/// Removes the cgroup of this name, and all below it, from every hierarchy. Only empty cgroups can
/// be removed: the processes have to be gone.
///
/// # Errors
/// When one still holds a process.
pub fn remove(name: &str) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Ok(()) };
    // With version 1 there is a folder per hierarchy; with version 2 the root is the only one.
    let hierarchies = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
        let group = hierarchy.join(name);
        if group.is_dir() {
            remove_tree(&group).with_context(|| format!("remove {}", group.display()))?;
        }
    }
    Ok(())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        // A hierarchy may be mounted under two names; the first removal was enough.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
