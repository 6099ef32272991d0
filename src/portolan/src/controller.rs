//! `portolan controller`: the reconciliation controllers, all or some of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use jiff::SignedDuration;
use portolan_process::{AdminServer, Metrics, Readiness, Signals, Tasks};
use portolan_reconcile::{Context, ContextParts, LeaseSettings, Settings, connect, system_clock};
use {
    portolan_controller_app as app, portolan_controller_gateway as gateway,
    portolan_controller_pool as pool, portolan_controller_route as route,
    portolan_controller_service as service, portolan_controller_version as version,
};

/// How long passes may run on after a signal.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Run controllers. Several replicas elect a leader for each kind.
#[derive(Debug, clap::Args)]
pub(crate) struct ControllerArgs {
    /// Run only these, separated by commas; absent: all.
    #[arg(long, env = "PORTOLAN_ONLY", value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Where /metrics, /healthz and /readyz answer.
    #[arg(long, env = "PORTOLAN_ADMIN_ADDRESS", default_value = "127.0.0.1:9090")]
    admin_address: SocketAddr,
    /// Namespace of Portolan's own Pods, Leases and reports.
    #[arg(long, env = "PORTOLAN_SYSTEM_NAMESPACE", default_value = "portolan-system")]
    system_namespace: String,
    /// Service account of the gateways, named to users who must let it read a Secret.
    #[arg(long, env = "PORTOLAN_GATEWAY_SERVICE_ACCOUNT", default_value = "portolan-gateway")]
    gateway_service_account: String,
    /// Name of this process in Leases and Events: the Pod's.
    #[arg(long, env = "PORTOLAN_POD_NAME", default_value = "portolan-controller")]
    pod_name: String,
    /// How many pools may verify a new version at once in the whole cluster.
    #[arg(long, env = "PORTOLAN_VERIFYING_LIMIT", default_value_t = 64)]
    verifying_limit: usize,
    /// Seconds that a sandbox may finish what runs on it before it is stopped.
    #[arg(long, env = "PORTOLAN_DRAIN_SECONDS", default_value_t = 30)]
    drain_seconds: u32,
    /// Node ports that Apps may have: ports and ranges, separated by commas.
    #[arg(long, env = "PORTOLAN_NODE_PORTS_ALLOWED", default_value = "1-65535")]
    node_ports_allowed: service::PortRanges,
    /// Node ports that no App gets, even if allowed: what nodes and their cluster use.
    #[arg(
        long,
        env = "PORTOLAN_NODE_PORTS_RESERVED",
        default_value = "22,80,443,2379-2380,4789,6081,6443,8443,8472,10250-10259,30000-32767,51820-51821"
    )]
    node_ports_reserved: service::PortRanges,
}

/// A controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Kind {
    /// Apps and their versions' activation.
    App,
    /// Versions and their pools.
    Version,
    /// Pools and their sandboxes.
    Pool,
    /// Routes, Claims of hosts, and Domains.
    Route,
    /// Leases of gateways that ended without a word.
    Gateway,
    /// Addresses, node ports and endpoints of services that are not only http.
    Service,
}

impl ControllerArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self {
            only,
            admin_address,
            system_namespace,
            gateway_service_account,
            pod_name,
            verifying_limit,
            drain_seconds,
            node_ports_allowed,
            node_ports_reserved,
        } = self;
        let node_ports =
            service::PortPolicy { allowed: node_ports_allowed, reserved: node_ports_reserved };
        let client = connect().await?;
        let (metrics, readiness) = (Metrics::new("portolan"), Readiness::new());
        let mut tasks = Tasks::new();
        let lease = Some(LeaseSettings::standard(&system_namespace));
        let parts = ContextParts {
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            shutdown: tasks.shutdown(),
            settings: Settings { lease, ..Settings::standard(pod_name) },
            clock: system_clock(),
        };
        let ctx = Context::new(client, parts);
        let kinds: BTreeSet<_> = match only.is_empty() {
            true => Kind::value_variants().iter().copied().collect(),
            false => only.into_iter().collect(),
        };
        for kind in kinds {
            let system_namespace = system_namespace.clone();
            match kind {
                Kind::App => {
                    tasks.spawn("app", app::run(&ctx, app::Settings { system_namespace }));
                }
                Kind::Version => {
                    let settings = version::Settings { verifying_limit };
                    tasks.spawn("version", version::run(&ctx, settings));
                }
                Kind::Pool => {
                    let settings = pool::Settings {
                        drain_limit: SignedDuration::from_secs(drain_seconds.into()),
                        ..pool::Settings::standard(system_namespace)
                    };
                    tasks.spawn("pool", pool::run(&ctx, settings));
                }
                Kind::Route => {
                    let gateway_service_account = gateway_service_account.clone();
                    let settings = route::Settings { system_namespace, gateway_service_account };
                    tasks.spawn("route", route::run(&ctx, settings));
                }
                Kind::Gateway => {
                    let settings = gateway::Settings { system_namespace };
                    tasks.spawn("gateway", gateway::run(&ctx, settings));
                }
                Kind::Service => {
                    let settings = service::Settings { node_ports: node_ports.clone() };
                    tasks.spawn("service", service::run(&ctx, settings));
                }
            }
        }
        let admin = AdminServer::bind(admin_address, metrics, readiness).await?;
        tasks.spawn_last("admin", |stop| admin.serve(stop));
        tasks.run(Signals::listen()?.received(), SHUTDOWN_GRACE).await?;
        Ok(())
    }
}
