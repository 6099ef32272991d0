//! The command line. Every option can also be set by its environment variable.

use clap::{Parser, Subcommand};
use portolan_process::logs::LogFormat;

use crate::controller::ControllerArgs;
use crate::crds::CrdsArgs;
use crate::gateway::GatewayArgs;

/// Portolan, an application platform for Kubernetes.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How the process logs.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// Which log lines are written: levels, also by target, such as `info,portolan_ingress=debug`.
    #[arg(long, global = true, env = "PORTOLAN_LOG", default_value = "info")]
    pub(crate) log: String,
    /// `json` for machines or `text` for people.
    #[arg(long, global = true, env = "PORTOLAN_LOG_FORMAT", default_value = "json")]
    pub(crate) log_format: LogFormat,
}

/// What to be.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run controllers.
    Controller(ControllerArgs),
    /// Run a gateway.
    Gateway(GatewayArgs),
    /// Print the CRDs, or write them to a folder.
    Crds(CrdsArgs),
}
