//! The programs that come from Go modules, built when their sources changed.
//!
//! A binary is kept in the cache under the hash of everything that decides about it, so a fresh
//! clone on a warm machine builds nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::command;
use crate::paths::Paths;
use crate::progress;

/// The version of Kubernetes, as the module pins it. The programs report it to clients.
const KUBERNETES: &str = "v1.36.3";

/// A program built from one Go module.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The module's folder below this crate's, and the binary's name.
    name: &'static str,
    /// The names it is called under.
    links: &'static [&'static str],
    /// How long a build takes with an empty cache, for the one who waits.
    duration: &'static str,
    /// Without C the binary is static and can be an image by itself.
    cgo: bool,
}

/// All of them.
pub const PROGRAMS: [Program; 3] = [
    Program {
        name: "kubernetes",
        links: &[
            "etcd",
            "helm",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ],
        duration: "7 minutes",
        cgo: true,
    },
    Program { name: "coredns", links: &["coredns"], duration: "2 minutes", cgo: false },
    Program { name: "kwok", links: &["kwok"], duration: "1 minute", cgo: false },
];

/// Builds what is missing, and points the folder of programs at it.
///
/// # Errors
/// When a build fails or the cache cannot be written.
pub fn ensure(paths: &Paths) -> anyhow::Result<()> {
    let folder = paths.programs();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for program in &PROGRAMS {
        let binary = program.ensure(paths)?;
        for link in program.links {
            point(&folder.join(link), &binary)?;
        }
    }
    Ok(())
}

impl Program {
    fn ensure(&self, paths: &Paths) -> anyhow::Result<PathBuf> {
        let module = paths.sources().join(self.name);
        let cached = paths.cache.join("go").join(self.key(&module)?);
        let binary = cached.join(self.name);
        if binary.exists() {
            return Ok(binary);
        }
        let title = format!("build {} (about {} with an empty cache)", self.name, self.duration);
        progress::step(&title, || {
            fs::create_dir_all(&cached).with_context(|| format!("make {}", cached.display()))?;
            // Built beside its place: an interrupted build leaves nothing that looks finished.
            let draft = cached.join("draft");
            command::visible(self.go_build(&module).arg("-o").arg(&draft).arg("."))?;
            fs::rename(&draft, &binary).with_context(|| format!("place {}", binary.display()))
        })?;
        Ok(binary)
    }

    fn go_build(&self, module: &Path) -> Command {
        let mut go = Command::new("go");
        go.current_dir(module).env("CGO_ENABLED", if self.cgo { "1" } else { "0" }).args([
            "build",
            "-mod=readonly",
            "-trimpath",
            "-ldflags",
            &flags(),
        ]);
        go
    }

    /// Hashes the module's files, the flags and the compiler's version.
    fn key(&self, module: &Path) -> anyhow::Result<String> {
        let compiler = command::output(Command::new("go").arg("version"))
            .context("Go 1.26 is needed to build the test cluster's programs")?;
        let mut hash = Sha256::new();
        hash.update(compiler.as_bytes());
        hash.update(flags().as_bytes());
        for file in ["go.mod", "go.sum", "main.go"] {
            let path = module.join(file);
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            hash.update(&text);
        }
        let digest = data_encoding::HEXLOWER.encode(&hash.finalize());
        Ok(format!("{}-{}", self.name, &digest[..16]))
    }
}

fn flags() -> String {
    let version = "k8s.io/component-base/version";
    format!(
        "-s -w -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor=1 \
         -X {version}.gitMinor=36"
    )
}

fn point(link: &Path, binary: &Path) -> anyhow::Result<()> {
    if fs::read_link(link).is_ok_and(|now| now == binary) {
        return Ok(());
    }
    // A rename replaces the old link in one step: a shell never finds the name missing.
    let draft = link.with_extension("new");
    fs::remove_file(&draft).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    symlink(binary, &draft)
        .and_then(|()| fs::rename(&draft, link))
        .with_context(|| format!("link {}", link.display()))
}
