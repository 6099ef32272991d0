//! The nginx sample: Debian's own package, unpacked into an image, never installed on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::archive::Image;
use crate::command;
use crate::paths::Paths;

/// Where the package puts its program.
const PROGRAM: &str = "usr/sbin/nginx";

/// Fills `image` with nginx, the sample's configuration and its page.
///
/// # Errors
/// When the package cannot be had.
pub fn fill(image: &mut Image, paths: &Paths, configuration: &Path) -> anyhow::Result<()> {
    let root = unpacked(paths)?;
    let sample = configuration.parent().context("the configuration lies in a folder")?;
    image.program(&root.join(PROGRAM), "/usr/sbin/nginx")?;
    image.copy(&root.join("etc/nginx/mime.types"), "/etc/nginx/mime.types", 0o644);
    image.copy(configuration, "/etc/nginx/nginx.conf", 0o644);
    image.copy(&sample.join("index.html"), "/srv/index.html", 0o644);
    image.entrypoint(&["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/nginx/nginx.conf"]);
    Ok(())
}

/// Downloads and unpacks the package once; the cache keeps it.
fn unpacked(paths: &Paths) -> anyhow::Result<PathBuf> {
    let root = paths.cache.join("nginx");
    if root.join(PROGRAM).exists() {
        return Ok(root);
    }
    let draft = paths.cache.join("nginx.draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).context("remove an interrupted download")?;
    }
    fs::create_dir_all(&draft).with_context(|| format!("make {}", draft.display()))?;
    for package in ["nginx", "nginx-common"] {
        command::output(Command::new("apt-get").current_dir(&draft).args(["download", package]))?;
    }
    let files = fs::read_dir(&draft).context("list the packages")?;
    let packages: Vec<PathBuf> = files
        .filter_map(|file| file.ok().map(|file| file.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    for package in packages {
        command::output(Command::new("dpkg-deb").arg("-x").args([&package, &draft]))?;
    }
    if !draft.join(PROGRAM).exists() {
        bail!("Debian's nginx package holds no {PROGRAM}");
    }
    fs::rename(&draft, &root).with_context(|| format!("place {}", root.display()))?;
    Ok(root)
}
