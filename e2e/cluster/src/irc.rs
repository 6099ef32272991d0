//! The IRC sample: Debian's own ngIRCd, unpacked into an image, never installed on the host.

use std::path::Path;

use crate::archive::Image;
use crate::debian;
use crate::paths::Paths;

/// Where the package puts its program.
const PROGRAM: &str = "usr/sbin/ngircd";
/// Where the program is told to look for its configuration.
const CONFIGURATION: &str = "/etc/ngircd/ngircd.conf";

/// Fills `image` with ngIRCd and the sample's configuration.
///
/// # Errors
/// When the packages cannot be had.
pub fn fill(image: &mut Image, paths: &Paths, configuration: &Path) -> anyhow::Result<()> {
    let root = debian::unpacked(paths, "ngircd", &["ngircd", "libident"], PROGRAM)?;
    image.unpacked_program(&root, PROGRAM)?;
    image.copy(configuration, CONFIGURATION, 0o644);
    image.entrypoint(&["/usr/sbin/ngircd", "--nodaemon", "--config", CONFIGURATION]);
    Ok(())
}
