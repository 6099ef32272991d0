//! `portolan gateway`: ingress and activator.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use portolan_ingress::feed::{Feed, FeedSettings, SnapshotSettings, watch_gateways};
use portolan_ingress::peers::{Absent, Peers, PeersConfig};
use portolan_ingress::report::{HeldLease, Identity, Reporter, State};
use portolan_ingress::{
    AccessLog, Cidr, Ingress, Listener, ListenerConfig, ProxyProtocol, Scheme, Settings,
};
use portolan_process::{AdminServer, Gate, Metrics, Readiness, Signals, Tasks};
use portolan_reconcile::{ApiServer, Context, ContextParts, ObjectKey, RunError, system_clock};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio::try_join;
use tokio_util::sync::CancellationToken;

/// Less than this is held within moments by a few visitors, and all others wait.
const RESPONSE_BUFFERS_MIN: u64 = 16 << 20;
/// How long the process may take to end after the last request was cut.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(4);
/// What others get in any case to give back what they do not use: a word and its answer.
const SETTLE_UP_MIN: Duration = Duration::from_secs(2);
/// How long a gateway with a snapshot waits for the API server to answer before it serves from that.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long it waits for all lists of an API server that answers.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Pause between looks at whether everything has ended.
const SETTLE_UP_LOOK: Duration = Duration::from_millis(20);

/// Run a gateway.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewayArgs {
    /// Where plain http is served.
    #[arg(long, env = "PORTOLAN_HTTP_ADDRESS", default_value = "[::]:8080")]
    http_address: SocketAddr,
    /// Where https is served.
    #[arg(long, env = "PORTOLAN_HTTPS_ADDRESS", default_value = "[::]:8443")]
    https_address: SocketAddr,
    /// Where callers inside the cluster are served, by the names of services.
    #[arg(long, env = "PORTOLAN_INTERNAL_ADDRESS", default_value = "[::]:8081")]
    internal_address: SocketAddr,
    /// What cluster DNS puts behind `.svc`.
    #[arg(long, env = "PORTOLAN_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// The https port as visitors see it, for redirects.
    #[arg(long, env = "PORTOLAN_PUBLIC_HTTPS_PORT", default_value_t = 443)]
    public_https_port: u16,
    /// Where /metrics, /healthz and /readyz answer.
    #[arg(long, env = "PORTOLAN_ADMIN_ADDRESS", default_value = "127.0.0.1:9090")]
    admin_address: SocketAddr,
    /// Namespace of Portolan's own Pods, Leases and reports.
    #[arg(long, env = "PORTOLAN_SYSTEM_NAMESPACE", default_value = "portolan-system")]
    system_namespace: String,
    /// Name of this gateway's Pod.
    #[arg(long, env = "PORTOLAN_POD_NAME")]
    pod_name: String,
    /// UID of this gateway's Pod, which owns what the gateway writes.
    #[arg(long, env = "PORTOLAN_POD_UID")]
    pod_uid: Option<String>,
    /// Address of this gateway's Pod, where other gateways reach it. Without it, they do not.
    #[arg(long, env = "PORTOLAN_POD_IP")]
    pod_ip: Option<IpAddr>,
    /// The port for other gateways.
    #[arg(long, env = "PORTOLAN_PEER_PORT", default_value_t = 8444)]
    peer_port: u16,
    /// Seconds that a certificate for other gateways is used before the next one is made.
    #[arg(long, env = "PORTOLAN_PEER_CERTIFICATE_SECONDS", default_value_t = 24 * 60 * 60,
        value_parser = clap::value_parser!(u64).range(10..))]
    peer_certificate_seconds: u64,
    /// Networks (CIDR, by commas) whose X-Forwarded-* and PROXY headers are believed.
    #[arg(long, env = "PORTOLAN_TRUSTED_PROXIES", value_delimiter = ',')]
    trusted_proxies: Vec<Cidr>,
    /// Expect a PROXY header from trusted proxies.
    #[arg(long, env = "PORTOLAN_PROXY_PROTOCOL")]
    proxy_protocol: bool,
    /// A TLS Secret of the system namespace for hosts without their own certificate.
    #[arg(long, env = "PORTOLAN_DEFAULT_CERTIFICATE")]
    default_certificate: Option<String>,
    /// Where to keep what is known for the next process of this Pod, private keys included: a
    /// directory in memory. Without it, a gateway that restarts waits for the API server.
    #[arg(long, env = "PORTOLAN_SNAPSHOT_DIRECTORY")]
    snapshot_directory: Option<PathBuf>,
    /// Greatest size of a snapshot in bytes, without certificates.
    #[arg(long, env = "PORTOLAN_SNAPSHOT_BYTES_MAX", default_value_t = 64 << 20)]
    snapshot_bytes_max: u64,
    /// The container's termination message. The name of this process is left there, by which
    /// Kubernetes lets others know that it is this one that ended.
    #[arg(long, env = "PORTOLAN_TERMINATION_MESSAGE_PATH")]
    termination_message_path: Option<PathBuf>,
    /// Bytes held at most for visitors that have not taken them, all together.
    #[arg(long, env = "PORTOLAN_RESPONSE_BUFFER_BYTES_MAX", default_value_t = 256 << 20,
        value_parser = clap::value_parser!(u64).range(RESPONSE_BUFFERS_MIN..))]
    response_buffer_bytes_max: u64,
    /// Do not log requests.
    #[arg(long, env = "PORTOLAN_NO_ACCESS_LOG")]
    no_access_log: bool,
}

impl GatewayArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let listeners = self.listeners()?;
        let settings = self.settings();
        let cut_after = settings.cut_after();
        let api = ApiServer::find().await?;
        let (metrics, readiness) = (Metrics::new("portolan"), Readiness::new());
        let mut tasks = Tasks::new();
        let ctx = Context::new(
            api.client(),
            ContextParts {
                metrics: metrics.clone(),
                readiness: readiness.clone(),
                shutdown: tasks.shutdown(),
                settings: portolan_reconcile::Settings::standard(&self.pod_name),
                clock: system_clock(),
            },
        );
        let measured = metrics.register(|registry| {
            let measured = Arc::new(portolan_ingress::Metrics::new());
            measured.register(registry);
            measured
        });
        let ingress = Ingress::new(settings, measured);
        // Before anyone can ask: a process without gates is ready.
        let gate = readiness.gate("gateway.caches");
        let admin = AdminServer::bind(self.admin_address, metrics.clone(), readiness).await?;
        tasks.spawn_last("admin", |stop| admin.serve(stop));
        let identity = Identity::new(
            self.system_namespace.clone(),
            self.pod_name.clone(),
            self.pod_uid.clone(),
            ctx.now(),
        );
        self.leave_name(&identity);
        let peers = self.peers(&identity, &ingress).await?;
        let lease = HeldLease::new(&ctx, &identity, peers.as_ref().map(Peers::shown));
        let held = Held { tried: lease.tried(), taken: lease.taken() };
        let square = ingress.clone();
        let is_square = move || square.is_square();
        // Its last word comes when nothing runs any more: until then, switches wait for this
        // gateway.
        tasks.spawn_last("lease", |drained: CancellationToken| lease.keep(drained, is_square));
        let links = peers.as_ref().map(|peers| (peers.unheard(), peers.absent()));
        let (unheard, absent) = links.unzip();
        if let Some(peers) = peers {
            metrics.register(|registry| peers.register(registry));
            self.keep_links(&mut tasks, &ctx, peers);
        }
        tasks.spawn("leave", settle_up(ingress.clone(), ctx.shutdown(), cut_after));
        let state = State::default();
        // To the end: who waits here for a sandbox is served by one that gets its address only
        // now, and a switch need not wait for this gateway if it is told of it.
        let to_the_end = ctx.until(tasks.drained());
        let (feed, watches) =
            Feed::start(&to_the_end, &ingress, &state, self.feed(&identity, api, absent));
        watches.into_iter().for_each(|(name, watch)| tasks.spawn_last(name, |_| watch));
        let reporter = Reporter::new(&to_the_end, identity, ingress.clone(), state, unheard, &feed);
        tasks.spawn_last("report", |_| reporter.run());
        metrics.register(|registry| feed.register(registry));
        let (fed, stop) = (ingress.clone(), ctx.shutdown());
        let (begin, begins) = oneshot::channel();
        tasks.spawn("sync", async move {
            become_ready(gate, begin, &feed, &fed, held, stop).await;
            Ok::<(), RunError>(())
        });
        let shutdown = tasks.shutdown();
        tasks.spawn("ingress", async move {
            // Connections wait in the listeners meanwhile. An error is the shutdown.
            let _ = begins.await;
            ingress.serve(listeners, shutdown).await
        });
        tasks.run(Signals::listen()?.received(), cut_after + SHUTDOWN_MARGIN).await?;
        Ok(())
    }

    /// Where this gateway meets others; `None` where nobody could reach it.
    async fn peers(
        &self,
        identity: &Identity,
        ingress: &Ingress,
    ) -> anyhow::Result<Option<Peers<Ingress>>> {
        let Some(ip) = self.pod_ip else { return Ok(None) };
        let address = SocketAddr::new(ip, self.peer_port);
        let listener = TcpListener::bind(address).await;
        let config = PeersConfig {
            listener: listener.with_context(|| format!("listen on {address}"))?,
            address,
            certificate_lifetime: Duration::from_secs(self.peer_certificate_seconds),
        };
        Ok(Some(Peers::new(identity.clone(), config, ingress.clone())?))
    }

    /// Before it takes its Lease: whatever ends it, it can be told from the process that follows.
    fn leave_name(&self, identity: &Identity) {
        let Some(path) = &self.termination_message_path else { return };
        if let Err(error) = std::fs::write(path, &*identity.instance) {
            tracing::warn!(%error, path = %path.display(), "Name not left for others");
        }
    }

    fn listeners(&self) -> anyhow::Result<Vec<Listener>> {
        let proxy_protocol = match self.proxy_protocol {
            true => ProxyProtocol::FromTrusted,
            false => ProxyProtocol::Off,
        };
        let http = Scheme::Http { https_port: Some(self.public_https_port) };
        // Callers inside come without a balancer.
        [
            (self.http_address, http, proxy_protocol),
            (self.https_address, Scheme::Https, proxy_protocol),
            (self.internal_address, Scheme::Internal, ProxyProtocol::Off),
        ]
        .into_iter()
        .map(|(address, scheme, proxy_protocol)| {
            Listener::bind(address, ListenerConfig { scheme, proxy_protocol })
                .with_context(|| format!("listen on {address}"))
        })
        .collect()
    }

    fn settings(&self) -> Settings {
        let access_log = match self.no_access_log {
            true => AccessLog::Off,
            false => AccessLog::On,
        };
        Settings {
            trusted_proxies: self.trusted_proxies.clone(),
            cluster_domain: self.cluster_domain.trim_matches('.').to_ascii_lowercase().into(),
            access_log,
            response_buffers_max: self.response_buffer_bytes_max,
            ..Settings::standard()
        }
    }

    /// To the end: while this gateway drains it still lends, also to those that come.
    fn keep_links(&self, tasks: &mut Tasks, ctx: &Context, peers: Peers<Ingress>) {
        tasks.spawn_last("peers", |drained| {
            let ctx = ctx.until(drained.clone());
            let (gateways, watch) = watch_gateways(&ctx, &self.system_namespace);
            async { try_join!(watch, peers.run(gateways, drained)).map(drop) }
        });
    }

    fn feed(
        &self,
        identity: &Identity,
        api: ApiServer,
        absent: Option<watch::Receiver<Absent>>,
    ) -> FeedSettings {
        FeedSettings {
            identity: identity.clone(),
            default_certificate: self
                .default_certificate
                .clone()
                .map(|name| ObjectKey::new(self.system_namespace.clone(), name)),
            snapshot: self.snapshot_directory.clone().map(|directory| SnapshotSettings {
                directory,
                pod_uid: self.pod_uid.clone(),
                size_max: self.snapshot_bytes_max,
            }),
            connections: api.connections(),
            absent,
        }
    }
}

/// When this gateway leaves: lends what it does not use until nothing of its own runs any more,
/// for at most `limit`. Then it asks for what it lent, gives back what it borrowed, and waits until
/// nothing is owed.
///
/// Not sooner: what comes home is nobody's until the Lease says that this gateway has left, and
/// visitors of the others would wait as long as a stream goes on here.
async fn settle_up(
    ingress: Ingress,
    stop: CancellationToken,
    limit: Duration,
) -> Result<(), RunError> {
    stop.cancelled().await;
    let end = Instant::now() + limit;
    if timeout_at(end, seen(|| ingress.is_idle())).await.is_err() {
        tracing::warn!("Requests were cut off");
    }
    ingress.call_home();
    let end = end.max(Instant::now() + SETTLE_UP_MIN);
    if timeout_at(end, seen(|| ingress.is_square())).await.is_err() {
        tracing::warn!("Not everything that was lent has come back");
    }
    Ok(())
}

/// Looks until something is so. It is asked for once in a life, at its end, and so looked at and not
/// told.
async fn seen(is_so: impl Fn() -> bool) {
    let mut looks = interval(SETTLE_UP_LOOK);
    while !is_so() {
        looks.tick().await;
    }
}

/// What the Lease does.
struct Held<T, H> {
    /// The first try to take it has ended; whether it was taken.
    tried: T,
    /// It is held.
    taken: H,
}

/// Begins to serve and opens the gate as soon as this gateway can answer, and closes it when it
/// leaves.
///
/// Without a snapshot the gate opens when everything has been read and the Lease is held; until
/// then, callers are told that it is too early. With one, and an API server that does not answer,
/// it opens at once: that may last long, and the Lease of the process before counts. A gateway that
/// has served stays ready while its caches are stale.
async fn become_ready(
    mut gate: Gate,
    begin: oneshot::Sender<()>,
    feed: &Feed,
    ingress: &Ingress,
    held: Held<impl Future<Output = bool>, impl Future<Output = ()>>,
    stop: CancellationToken,
) {
    let is_restored = feed.is_restored();
    if is_restored {
        tokio::select! {
            () = stop.cancelled() => return,
            () = up_to_date(held.tried, feed.synced()) => gate.open(),
        }
        tracing::info!("Serving what a snapshot said, or newer");
    }
    // Only the shutdown drops the other end.
    let _ = begin.send(());
    tokio::select! {
        () = stop.cancelled() => return,
        () = feed.synced() => ingress.mark_synced(),
    }
    tokio::select! {
        () = stop.cancelled() => return,
        () = held.taken => gate.open(),
    }
    tracing::info!("Serving");
    stop.cancelled().await;
    gate.close();
}

/// Waits until what a snapshot said has been brought up to date, or nobody can do so. While this
/// gateway was away an API server that answers may have switched Apps without it, and given what it
/// knew as a sandbox to somebody else.
async fn up_to_date(tried: impl Future<Output = bool>, synced: impl Future<Output = ()>) {
    if timeout(ANSWER_LIMIT, tried).await == Ok(true) {
        // An error is a list that takes very long: better old than nothing.
        let _ = timeout(LIST_LIMIT, synced).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOYMENT: &str =
        include_str!("../../../charts/portolan/templates/gateway/deployment.yaml");

    /// The first number after a word of the chart, in seconds.
    fn seconds(word: &str) -> Duration {
        let (_, after) = DEPLOYMENT.split_once(word).expect("the chart says how long");
        let digits = after.trim_start().split(|char: char| !char.is_ascii_digit()).next();
        Duration::from_secs(digits.and_then(|digits| digits.parse().ok()).expect("a number"))
    }

    async fn waited(tried: Option<(u64, bool)>, synced: Option<u64>) -> Duration {
        let after = async |milliseconds: Option<u64>| match milliseconds {
            Some(time) => tokio::time::sleep(Duration::from_millis(time)).await,
            None => std::future::pending().await,
        };
        let begun = Instant::now();
        let is_held = async {
            after(tried.map(|(time, _)| time)).await;
            tried.is_some_and(|(_, is_held)| is_held)
        };
        up_to_date(is_held, after(synced)).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_served_when_it_is_up_to_date_or_nobody_can_say() {
        let milliseconds = Duration::from_millis;
        assert_eq!(waited(Some((20, true)), Some(300)).await, milliseconds(320));
        assert_eq!(waited(Some((20, false)), Some(300)).await, milliseconds(20));
        assert_eq!(waited(Some((20, false)), None).await, milliseconds(20));
        assert_eq!(waited(None, None).await, ANSWER_LIMIT);
        assert_eq!(waited(Some((20, true)), None).await, milliseconds(20) + LIST_LIMIT);
    }

    #[test]
    fn kubelets_wait_until_a_gateway_has_settled_up() {
        let settings = Settings::standard();
        assert!(settings.drain >= settings.wait, "nobody who waits is cut off");
        let cut_after = settings.cut_after();
        assert!(SETTLE_UP_MIN < SHUTDOWN_MARGIN);
        let ended = seconds("sleep: { seconds:") + cut_after + SHUTDOWN_MARGIN;
        assert!(ended < seconds("terminationGracePeriodSeconds:"), "{ended:?}");
    }
}
