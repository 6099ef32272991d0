//! Arguments and what they do.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use portolan_cluster::addresses::Stack;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::images::Known;
use portolan_cluster::paths::{ClusterPaths, Paths};
use portolan_cluster::progress::{step, step_async};
use portolan_cluster::state::State;
use portolan_cluster::{forward, go, kwok, logs, packages, platform};

/// A real Kubernetes on this machine, in namespaces of its own.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install the packages and build the programs that a cluster needs.
    Deps,
    /// Start a cluster; a running one of the same size is left alone.
    Up {
        #[command(flatten)]
        cluster: Name,
        /// How many nodes, 1 to 200.
        #[arg(long, env = "NODES", default_value_t = 1)]
        nodes: u8,
        /// Its IP families.
        #[arg(long, value_enum, default_value_t)]
        stack: Stack,
    },
    /// Take a cluster down.
    Down {
        /// The cluster; without it, every cluster of this machine.
        #[arg(long)]
        name: Option<String>,
    },
    /// Put image archives into every node.
    Load {
        #[command(flatten)]
        cluster: Name,
        /// Archives in the OCI layout or of `docker save`.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Build images of ours into target/images.
    Image {
        /// Which; without any, all.
        images: Vec<Known>,
    },
    /// Load our images and install or upgrade the charts.
    Install {
        #[command(flatten)]
        cluster: Name,
        /// Words for Helm's `--set`.
        #[arg(long = "set")]
        values: Vec<String>,
    },
    /// Give the cluster fake nodes, for tests with thousands of Pods.
    Kwok {
        #[command(flatten)]
        cluster: Name,
        /// How many; 0 ends the fake nodes.
        #[arg(long)]
        nodes: usize,
    },
    /// Collect all logs into one folder.
    Logs {
        #[command(flatten)]
        cluster: Name,
    },
    /// Print the lines to source in a shell.
    Env {
        #[command(flatten)]
        cluster: Name,
    },
    /// Say what runs.
    Status {
        #[command(flatten)]
        cluster: Name,
    },
    /// Forward loopback ports into the cluster. `up` runs this by itself.
    #[command(hide = true)]
    Forward {
        #[command(flatten)]
        cluster: Name,
    },
}

#[derive(Debug, clap::Args)]
struct Name {
    /// The cluster: lower case letters and digits.
    #[arg(long, default_value = "demo")]
    name: String,
}

impl Args {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { command } = self;
        match command {
            Action::Deps => {
                packages::ensure()?;
                go::ensure(&Paths::discover())
            }
            Action::Up { cluster, nodes, stack } => {
                let cluster = Cluster::ensure_with(&cluster.name, nodes, stack).await?;
                println!("source {}", cluster.files().env().display());
                Ok(())
            }
            Action::Down { name } => down(name),
            Action::Load { cluster, archives } => load(&cluster.name, &archives),
            Action::Image { images } => build(images),
            Action::Install { cluster, values } => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                platform::install(&Cluster::open(&cluster.name)?, &values)
            }
            Action::Kwok { cluster, nodes } => {
                let mut cluster = Cluster::open(&cluster.name)?;
                step_async("set the fake nodes", kwok::scale(&mut cluster, nodes)).await
            }
            Action::Logs { cluster } => {
                println!("{}", logs::collect(&cluster.name)?.display());
                Ok(())
            }
            Action::Env { cluster } => {
                print!("{}", Cluster::open(&cluster.name)?.env());
                Ok(())
            }
            Action::Status { cluster } => status(&cluster.name),
            Action::Forward { cluster } => forward_ports(&cluster.name).await,
        }
    }
}

fn down(name: Option<String>) -> anyhow::Result<()> {
    let names = match name {
        Some(name) => vec![name],
        None => Cluster::names()?,
    };
    for name in names {
        Cluster::down(&name)?;
    }
    Ok(())
}

fn load(name: &str, archives: &[PathBuf]) -> anyhow::Result<()> {
    let cluster = Cluster::open(name)?;
    for archive in archives {
        let title = format!("load {} into {name}", archive.display());
        let described = step(&title, || cluster.load(archive))?;
        for image in described.names {
            println!("{image}");
        }
    }
    Ok(())
}

fn build(mut images: Vec<Known>) -> anyhow::Result<()> {
    let paths = Paths::discover();
    if images.is_empty() {
        images.extend(Known::CLUSTER.into_iter().chain(Known::PLATFORM));
    }
    for image in images {
        println!("{}", image.ensure(&paths)?.display());
    }
    Ok(())
}

fn status(name: &str) -> anyhow::Result<()> {
    let cluster = Cluster::open(name)?;
    for (name, recorded) in &cluster.state().processes {
        println!("{:>8}  {name}", recorded.id.pid);
    }
    Ok(())
}

/// Runs before the cluster is complete, so it reads the record alone.
async fn forward_ports(name: &str) -> anyhow::Result<()> {
    let files = ClusterPaths::new(&Paths::discover(), name);
    let Some(state) = State::load(&files)? else {
        anyhow::bail!("the cluster {name} was never started");
    };
    forward::run(&files, state.ports).await
}
