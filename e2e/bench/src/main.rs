//! Benchmarks: Portolan beside its peers, in the same run.
//!
//! These machines are shared and noisy, so no figure stands alone: every row is the ratio to a
//! peer, measured in turns within one run, as the median over the rounds. `make bench` writes the
//! table to `docs/benchmarks.md`.

mod figures;
mod hostile;
mod ingress;
mod kubelet;
mod load;
mod node;
mod paced;
mod peers;
mod program;
mod resident;
mod roles;
mod space;
mod stub;

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

/// Benchmarks: Portolan beside its peers, in the same run.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What to run.
#[derive(Debug, Subcommand)]
enum Command {
    /// The gateway against nginx and HAProxy: throughput, CPU per request, added latency.
    Ingress(ingress::IngressArgs),
    /// A neighbour's latency while others are attacked through the same gateway.
    Hostile(hostile::HostileArgs),
    /// Waking sleeping Apps, one after the other and a hundred at once.
    Wake(stub::WakeArgs),
    /// A Route applied beside thousands of others, until its host answers.
    Routes(stub::RoutesArgs),
    /// Thousands of Apps on fake nodes: memory, API writes, Apps to Ready per second.
    Apps(stub::AppsArgs),
    /// A wake on the real kubelet, beside a bare Pod of the same program.
    Kubelet(kubelet::KubeletArgs),
    /// The node's data plane beside kube-proxy's rules, and the agent beside an API server.
    Node(node::NodeArgs),
    /// The program behind the proxies; started by the benchmarks.
    #[command(hide = true)]
    Backend {
        /// Where it listens.
        address: SocketAddr,
    },
    /// The gateway's data plane with a few Apps; started by the benchmarks.
    #[command(hide = true)]
    Gateway {
        /// Where it listens.
        address: SocketAddr,
        /// The one sandbox of all of them.
        sandbox: SocketAddr,
    },
    /// Clients who mean harm; started by the benchmarks.
    #[command(hide = true)]
    Attackers {
        /// What they do.
        attack: String,
        /// Whom they attack.
        address: SocketAddr,
    },
}

fn main() -> anyhow::Result<()> {
    let Args { command } = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Ingress(args) => runtime.block_on(args.run()),
        Command::Hostile(args) => runtime.block_on(args.run()),
        Command::Wake(args) => runtime.block_on(args.run()),
        Command::Routes(args) => runtime.block_on(args.run()),
        Command::Apps(args) => runtime.block_on(args.run()),
        Command::Kubelet(args) => runtime.block_on(args.run()),
        Command::Node(args) => runtime.block_on(args.run()),
        Command::Backend { address } => roles::backend(address),
        Command::Attackers { attack, address } => hostile::attackers(&attack, address),
        Command::Gateway { address, sandbox } => runtime.block_on(roles::gateway(address, sandbox)),
    }
}
