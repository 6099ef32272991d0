//! The command line. Every option can also be set by its environment variable.

use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use portolan_controller_node::{Metrics as NodeMetrics, Settings, clean_up, start};
use portolan_process::logs::LogFormat;
use portolan_process::{AdminServer, Metrics, Readiness, Signals, Tasks};
use portolan_reconcile::{Context, ContextParts, connect, system_clock};

/// How long the process may take to end. It has nothing to finish: the table stays.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Portolan's node agent: virtual addresses and node ports of L4 services, in this node's kernel.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Which log lines are written: levels, also by target, such as `info,portolan_nft=debug`.
    #[arg(long, env = "PORTOLAN_LOG", default_value = "info")]
    pub(crate) log: String,
    /// `json` for machines or `text` for people.
    #[arg(long, env = "PORTOLAN_LOG_FORMAT", default_value = "json")]
    pub(crate) log_format: LogFormat,
    /// Name of the Node this runs on.
    #[arg(long, env = "PORTOLAN_NODE_NAME", required_unless_present = "cleanup")]
    node_name: Option<String>,
    /// Namespace of Portolan's gateways.
    #[arg(long, env = "PORTOLAN_SYSTEM_NAMESPACE", default_value = "portolan-system")]
    system_namespace: String,
    /// Service of the gateways' listeners for calls from inside the cluster.
    #[arg(long, env = "PORTOLAN_GATEWAY_SERVICE", default_value = "portolan-gateway-internal")]
    gateway_service: String,
    /// Where /metrics, /healthz and /readyz answer: on the node itself, so by default not to others.
    #[arg(long, env = "PORTOLAN_ADMIN_ADDRESS", default_value = "127.0.0.1:9462",
        value_parser = socket_address)]
    admin_address: SocketAddr,
    /// Remove what this program left in the kernel, and end.
    #[arg(long)]
    cleanup: bool,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.cleanup {
            clean_up().context("remove the table")?;
            tracing::info!("Removed the table");
            return Ok(());
        }
        // One thread for what waits; the kernel's has its own.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let node_name = self.node_name.context("no node name")?;
        let client = connect().await?;
        let (metrics, readiness) = (Metrics::new("portolan"), Readiness::new());
        let mut tasks = Tasks::new();
        let ctx = Context::new(
            client,
            ContextParts {
                metrics: metrics.clone(),
                readiness: readiness.clone(),
                shutdown: tasks.shutdown(),
                settings: portolan_reconcile::Settings::standard(&node_name),
                clock: system_clock(),
            },
        );
        let measured = metrics.register(NodeMetrics::register);
        let settings = Settings {
            node_name,
            system_namespace: self.system_namespace,
            gateway_service: self.gateway_service,
        };
        // Before anyone can ask: a process without gates is ready.
        for (name, task) in start(&ctx, settings, measured) {
            tasks.spawn(name, task);
        }
        let admin = AdminServer::bind(self.admin_address, metrics, readiness).await?;
        tasks.spawn_last("admin", |stop| admin.serve(stop));
        tasks.run(Signals::listen()?.received(), SHUTDOWN).await?;
        Ok(())
    }
}

/// An address and a port, also where a chart has put them together for IPv6 without brackets.
fn socket_address(text: &str) -> Result<SocketAddr, AddrParseError> {
    let parsed = text.parse();
    let Some((address, port)) = text.rsplit_once(':') else { return parsed };
    let joined = address.parse::<IpAddr>().ok().zip(port.parse().ok());
    joined.map_or(parsed, |(address, port)| Ok(SocketAddr::new(address, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_no_brackets() {
        for text in ["[2001:db8::10]:9462", "2001:db8::10:9462"] {
            let expected = SocketAddr::new("2001:db8::10".parse().expect("an address"), 9462);
            assert_eq!(socket_address(text), Ok(expected), "{text}");
        }
        assert_eq!(socket_address("192.0.2.1:80").map(|at| at.port()), Ok(80));
        assert!(socket_address("192.0.2.1").is_err() && socket_address("x:80").is_err());
    }
}
