//! The images that a cluster, the demo and the tests need, built when their programs changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};

use crate::archive::Image;
use crate::command;
use crate::irc;
use crate::nginx;
use crate::paths::Paths;

/// The certificates a program trusts, in this machine and in an image.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Known {
    /// Holds a Pod's namespaces.
    Pause,
    /// The cluster's DNS.
    #[value(name = "coredns")]
    CoreDns,
    /// The `portolan` program.
    Portolan,
    /// The node agent.
    PortolanNode,
    /// The multi-port sample.
    SampleEcho,
    /// nginx from Debian.
    SampleNginx,
    /// ngIRCd from Debian.
    SampleIrc,
}

impl Known {
    /// What a cluster cannot start without.
    pub const CLUSTER: [Self; 2] = [Self::Pause, Self::CoreDns];
    /// What the platform and its samples need.
    pub const PLATFORM: [Self; 5] =
        [Self::Portolan, Self::PortolanNode, Self::SampleEcho, Self::SampleNginx, Self::SampleIrc];

    /// The image's short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::CoreDns => "coredns",
            Self::Portolan => "portolan",
            Self::PortolanNode => "portolan-node",
            Self::SampleEcho => "sample-echo",
            Self::SampleNginx => "sample-nginx",
            Self::SampleIrc => "sample-irc",
        }
    }

    /// Builds the archive if its program is newer than it, and returns its path.
    ///
    /// # Errors
    /// When the program was not built yet or the archive cannot be written.
    pub fn ensure(self, paths: &Paths) -> anyhow::Result<PathBuf> {
        let folder = paths.images();
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let archive = folder.join(format!("{}.tar", self.name()));
        let sources = self.sources(paths)?;
        let stamp = archive.with_extension("stamp");
        let wanted = fingerprint(&sources)?;
        if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
            return Ok(archive);
        }
        self.build(paths, &sources[0])
            .and_then(|image| image.write(&archive))
            .with_context(|| format!("build the image {}", self.name()))?;
        fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
        Ok(archive)
    }

    /// The files that decide whether the archive is up to date; the first is the main one.
    fn sources(self, paths: &Paths) -> anyhow::Result<Vec<PathBuf>> {
        let cargo = |program: &str| paths.target().join("debug").join(program);
        let sources = match self {
            Self::Pause => vec![pause(paths)?],
            Self::CoreDns => {
                let program = fs::canonicalize(paths.programs().join("coredns"));
                vec![program.context("find coredns; `portolan-cluster deps` builds it")?]
            }
            Self::Portolan => vec![cargo("portolan")],
            Self::PortolanNode => vec![cargo("portolan-node")],
            Self::SampleEcho => vec![cargo("portolan-sample-echo")],
            Self::SampleNginx => {
                let sample = paths.repository.join("docs/samples/nginx");
                vec![sample.join("nginx.conf"), sample.join("index.html")]
            }
            Self::SampleIrc => vec![paths.repository.join("docs/samples/irc/ngircd.conf")],
        };
        if let Some(missing) = sources.iter().find(|source| !source.exists()) {
            bail!("{} does not exist; `make build` makes it", missing.display());
        }
        Ok(sources)
    }

    fn build(self, paths: &Paths, source: &Path) -> anyhow::Result<Image> {
        let mut image = Image::new(self.name());
        match self {
            Self::Pause => {
                image.copy(source, "/pause", 0o755);
                image.entrypoint(&["/pause"]);
            }
            Self::CoreDns => {
                image.copy(source, "/coredns", 0o755);
                image.entrypoint(&["/coredns"]);
            }
            // The agent loads libnftnl and libmnl, which come with the other libraries.
            Self::Portolan | Self::PortolanNode | Self::SampleEcho => {
                let program = format!("/{}", self.name());
                let stripped = paths.images().join(format!("{}.stripped", self.name()));
                strip(source, &stripped)?;
                image.program(&stripped, &program)?;
                if Path::new(TRUSTED).exists() {
                    image.copy(Path::new(TRUSTED), TRUSTED, 0o644);
                }
                image.entrypoint(&[&program]);
            }
            Self::SampleNginx => nginx::fill(&mut image, paths, source)?,
            Self::SampleIrc => irc::fill(&mut image, paths, source)?,
        }
        Ok(image)
    }
}

/// The program that holds namespaces open, compiled when its source is newer.
///
/// # Errors
/// When there is no C compiler.
pub fn pause(paths: &Paths) -> anyhow::Result<PathBuf> {
    let source = paths.sources().join("pause/pause.c");
    let program = paths.programs().join("pause");
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if changed(&program).is_none() || changed(&program) < changed(&source) {
        command::output(
            Command::new("gcc")
                .args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"])
                .arg(&program)
                .arg(&source),
        )?;
    }
    Ok(program)
}

/// Copies a program without the tables only a debugger reads: they are most of its size.
fn strip(program: &Path, stripped: &Path) -> anyhow::Result<()> {
    command::output(
        Command::new("strip").arg("--strip-debug").arg("-o").args([stripped, program]),
    )?;
    Ok(())
}

/// Size and time of files: enough to see a new build, without reading it.
fn fingerprint(sources: &[PathBuf]) -> anyhow::Result<String> {
    let mut lines = String::new();
    for path in sources {
        let data = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
        let changed = data.modified().context("read the time of the last change")?;
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        lines += &format!("{} {} {}\n", path.display(), data.len(), changed.as_nanos());
    }
    Ok(lines)
}
