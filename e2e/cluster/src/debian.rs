//! Programs from Debian's packages, unpacked into the cache and never installed on the host: a
//! package that is installed may start its service.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::command;
use crate::paths::Paths;

/// Downloads and unpacks `packages` once into one folder, which the cache keeps under `name`, and
/// returns that folder. `program` is a file in it that must be there then.
///
/// # Errors
/// When a package cannot be had or does not hold the program.
pub fn unpacked(
    paths: &Paths,
    name: &str,
    packages: &[&str],
    program: &str,
) -> anyhow::Result<PathBuf> {
    let root = paths.cache.join(name);
    if root.join(program).exists() {
        return Ok(root);
    }
    let draft = paths.cache.join(format!("{name}.draft"));
    if draft.exists() {
        fs::remove_dir_all(&draft).context("remove an interrupted download")?;
    }
    fs::create_dir_all(&draft).with_context(|| format!("make {}", draft.display()))?;
    for package in packages {
        command::output(Command::new("apt-get").current_dir(&draft).args(["download", package]))?;
    }
    let files = fs::read_dir(&draft).context("list the packages")?;
    let archives: Vec<PathBuf> = files
        .filter_map(|file| file.ok().map(|file| file.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    for archive in archives {
        command::output(Command::new("dpkg-deb").arg("-x").args([&archive, &draft]))?;
    }
    if !draft.join(program).exists() {
        bail!("the packages {} hold no {program}", packages.join(" "));
    }
    fs::rename(&draft, &root).with_context(|| format!("place {}", root.display()))?;
    Ok(root)
}
