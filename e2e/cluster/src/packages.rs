//! The Debian packages a cluster needs, installed when missing.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::progress;

/// A package and a file that is there when it is installed.
const PACKAGES: [(&str, &str); 9] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/ptp"),
    ("nftables", "/usr/sbin/nft"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("iproute2", "/usr/sbin/ip"),
    ("binutils", "/usr/bin/strip"),
    ("gcc", "/usr/bin/gcc"),
    ("curl", "/usr/bin/curl"),
];

/// Installs what is missing.
///
/// The host's own containerd service, should the package bring one to life, is left alone and is
/// never used: clusters start instances of their own.
///
/// # Errors
/// When `apt-get` fails.
pub fn ensure() -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    progress::step(&format!("install {}", missing.join(" ")), || {
        // The package lists may be older than the mirror; a failed update alone is no failure.
        if let Err(error) = command::output(Command::new("apt-get").args(["update", "-q"])) {
            eprintln!("    {error:#}");
        }
        command::output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-qy", "--no-install-recommends"])
                .args(&missing),
        )?;
        Ok(())
    })
}
