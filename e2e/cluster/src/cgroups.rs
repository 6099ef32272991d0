//! The cgroups that killed containers leave behind.
//!
//! Without a hierarchy per quality of service a kubelet names no parent, so containerd puts each
//! container at `/NAMESPACE/ID`, side by side with those of every other node of the machine. Only
//! a node's own containers are removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;

const ROOT: &str = "/sys/fs/cgroup";
/// containerd's namespace of the containers that a kubelet asked for.
const NAMESPACE: &str = "k8s.io";

/// The ids of the containers that a containerd with this state folder has or had.
#[must_use]
pub fn containers(state: &Path) -> Vec<String> {
    let bundles = state.join("io.containerd.runtime.v2.task").join(NAMESPACE);
    let Ok(entries) = fs::read_dir(bundles) else {
        return Vec::new(); // it never ran one
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Removes the containers' cgroups from every hierarchy. Their processes have to be gone.
///
/// # Errors
/// When one still holds a process.
pub fn remove(containers: &[String]) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Ok(()) };
    // With version 1 there is a folder per hierarchy; with version 2 the root is the only one.
    let hierarchies = entries.flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
        let parent = hierarchy.join(NAMESPACE);
        for container in containers {
            let group = parent.join(container);
            remove_tree(&group).with_context(|| format!("remove {}", group.display()))?;
        }
        // It stays as long as another cluster has containers there.
        let _others = fs::remove_dir(parent);
    }
    Ok(())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    match fs::read_dir(group) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    match fs::remove_dir(group) {
        // A hierarchy may be mounted under two names; the first removal was enough.
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// A cgroup that goes while it is read gives "no such device".
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}
