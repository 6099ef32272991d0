//! `portolan controller`: the reconciliation controllers, all or some of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use jiff::SignedDuration;
use portolan_process::{AdminServer, Metrics, Readiness, Signals, Tasks};
use portolan_reconcile::{Context, ContextParts, LeaseSettings, Settings, connect, system_clock};
use {
    portolan_controller_app as app, portolan_controller_pool as pool,
    portolan_controller_route as route, portolan_controller_version as version,
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
        } = self;
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
            }
        }
        let admin = AdminServer::bind(admin_address, metrics, readiness).await?;
        tasks.spawn_last("admin", |stop| admin.serve(stop));
        tasks.run(Signals::listen()?.received(), SHUTDOWN_GRACE).await?;
        Ok(())
    }
}
