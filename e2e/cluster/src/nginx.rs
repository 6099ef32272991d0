//! The nginx sample: Debian's own package, unpacked into an image, never installed on the host.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::archive::Image;
use crate::debian;
use crate::paths::Paths;

/// Where the package puts its program.
pub const PROGRAM: &str = "usr/sbin/nginx";

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

/// The folder that nginx is unpacked into; its program is [`PROGRAM`] in it.
///
/// # Errors
/// When the package cannot be had.
pub fn unpacked(paths: &Paths) -> anyhow::Result<PathBuf> {
    debian::unpacked(paths, "nginx", &["nginx", "nginx-common"], PROGRAM)
}
