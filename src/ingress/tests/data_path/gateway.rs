//! A gateway under test, and the feed's part.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use portolan_ingress::{
    AccessLog, Activation, AppProtocol, Concurrency, HostPattern, Ingress, Listener,
    ListenerConfig, Metrics, PlainHttp, PoolConfig, PoolDemand, PoolId, PoolName, Probe,
    ProxyProtocol, RouteConfig, RouteId, RouteTimeouts, SandboxConfig, SandboxId, SandboxPhase,
    Scheme, ServiceKey, Settings, Slots,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long anything may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Gateway {
    pub(crate) ingress: Ingress,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) internal: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Gateway {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::standard();
        settings.access_log = AccessLog::Off;
        settings.lame_duck = Duration::ZERO;
        change(&mut settings);
        let metrics = Arc::new(Metrics::new());
        let ingress = Ingress::new(settings, Arc::clone(&metrics));
        Self::serve(ingress, metrics, true)
    }

    /// A gateway whose feed has not read everything yet.
    pub(crate) fn unsynced() -> Self {
        let mut settings = Settings::standard();
        settings.lame_duck = Duration::ZERO;
        let metrics = Arc::new(Metrics::new());
        let ingress = Ingress::new(settings, Arc::clone(&metrics));
        Self::serve(ingress, metrics, false)
    }

    fn serve(ingress: Ingress, metrics: Arc<Metrics>, is_synced: bool) -> Self {
        let listen = |scheme| {
            let config = ListenerConfig { scheme, proxy_protocol: ProxyProtocol::FromTrusted };
            Listener::bind("127.0.0.1:0".parse().unwrap(), config).unwrap()
        };
        let listeners =
            [Scheme::Http { https_port: Some(8443) }, Scheme::Https, Scheme::Internal].map(listen);
        let [http, https, internal] =
            [0, 1, 2].map(|place: usize| listeners[place].local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let served = {
            let (ingress, shutdown) = (ingress.clone(), shutdown.clone());
            tokio::spawn(async move { ingress.serve(listeners.into(), shutdown).await.unwrap() })
        };
        if is_synced {
            ingress.mark_synced();
        }
        Self { ingress, metrics, http, https, internal, shutdown, served }
    }

    /// A gateway that serves `shop.example` from one sandbox.
    pub(crate) fn serving(program: SocketAddr, slots: Slots) -> (Self, App) {
        let gateway = Self::start();
        let app = gateway.app("shop", program.port());
        app.sandbox("one", program.ip(), SandboxPhase::Ready, slots);
        (gateway, app)
    }

    /// Routes `<name>.example` to an app with one pool and no sandbox.
    pub(crate) fn app(&self, name: &str, port: u16) -> App {
        let app = App::new(self, name);
        app.route(|_| {});
        app.configure(&app.pool, port, |_| {});
        app.activate(1, &app.pool);
        app
    }

    /// Begins to shut down.
    pub(crate) fn shut_down(&self) {
        self.shutdown.cancel();
    }

    /// Waits for the end of shutting down.
    pub(crate) async fn ended(self) {
        self.shutdown.cancel();
        soon("the gateway ends", self.served).await.unwrap();
    }

    /// The value of one metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.exposition();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is in\n{text}")).parse().unwrap()
    }

    /// The names and labels of all that is counted.
    pub(crate) fn series(&self) -> BTreeSet<String> {
        let text = self.exposition();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect()
    }

    /// The metrics as text.
    fn exposition(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }
}

/// One app with one service, as the feed sees it.
pub(crate) struct App {
    ingress: Ingress,
    pub(crate) service: ServiceKey,
    pub(crate) pool: PoolId,
}

impl App {
    pub(crate) fn new(gateway: &Gateway, name: &str) -> Self {
        let service =
            ServiceKey { namespace: "team-a".into(), app: name.into(), service: "web".into() };
        Self { ingress: gateway.ingress.clone(), service, pool: mk_pool(name, "uid-1") }
    }

    pub(crate) fn route(&self, change: impl FnOnce(&mut RouteConfig)) {
        let id = RouteId { namespace: "team-a".into(), name: Arc::clone(&self.service.app) };
        let mut config = RouteConfig {
            host: HostPattern::Exact(format!("{}.example", self.service.app).into()),
            service: self.service.clone(),
            timeouts: RouteTimeouts::standard(),
            request_body_max: None,
            plain_http: PlainHttp::Redirect,
        };
        change(&mut config);
        self.ingress.upsert_route(id, &config);
    }

    /// Gives the service its name inside the cluster, `<app>-web.team-a`.
    pub(crate) fn name(&self) {
        let name = format!("{}-web.team-a", self.service.app);
        self.ingress.set_service_name(&name, Some(&self.service));
    }

    pub(crate) fn configure(&self, pool: &PoolId, port: u16, change: impl FnOnce(&mut PoolConfig)) {
        let mut config = PoolConfig {
            port,
            protocol: AppProtocol::Http1,
            probe: Probe::Tcp { port },
            concurrency: Concurrency::Soft,
        };
        change(&mut config);
        self.ingress.upsert_pool(pool, config);
    }

    pub(crate) fn activate(&self, epoch: u64, pool: &PoolId) {
        let activation = Activation { app_uid: "app-uid".into(), epoch, pool: pool.name.clone() };
        self.ingress.activate(&self.service, activation);
    }

    pub(crate) fn sandbox(&self, name: &str, address: IpAddr, phase: SandboxPhase, slots: Slots) {
        self.sandbox_in(&self.pool, name, address, phase, slots);
    }

    pub(crate) fn sandbox_in(
        &self,
        pool: &PoolId,
        name: &str,
        address: IpAddr,
        phase: SandboxPhase,
        slots: Slots,
    ) {
        let id = mk_sandbox(name);
        let config = SandboxConfig { id, address: Some(address), phase, slots };
        self.ingress.upsert_sandbox(pool, &config);
    }

    pub(crate) fn demand(&self) -> PoolDemand {
        self.demand_of(&self.pool)
    }

    pub(crate) fn demand_of(&self, pool: &PoolId) -> PoolDemand {
        let all = self.ingress.demand();
        all.into_iter().find(|demand| demand.pool == *pool).expect("the pool is known")
    }

    /// Waits until so many requests wait and run.
    pub(crate) async fn reaches(&self, queued: u32, running: u32) {
        self.reaches_in(&self.pool, queued, running).await;
    }

    pub(crate) async fn reaches_in(&self, pool: &PoolId, queued: u32, running: u32) {
        until(&format!("{queued} queued, {running} running"), || {
            let demand = self.demand_of(pool);
            ((demand.queued, demand.running) == (queued, running)).then_some(()).ok_or(demand)
        })
        .await;
    }
}

pub(crate) fn mk_pool(name: &str, uid: &str) -> PoolId {
    let name = PoolName { namespace: "team-a".into(), name: name.into() };
    PoolId { uid: format!("{}-{uid}", name.name).into(), name }
}

pub(crate) fn mk_sandbox(name: &str) -> SandboxId {
    SandboxId { name: name.into(), uid: format!("{name}-uid").into() }
}

/// Waits for a future that should be ready at once.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(SOON, future).await.unwrap_or_else(|_| panic!("awaited for {SOON:?}: {what}"))
}

/// Looks again and again until it sees what is awaited.
pub(crate) async fn until<E: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + SOON;
    loop {
        match look() {
            Ok(()) => return,
            Err(seen) => {
                assert!(Instant::now() < deadline, "awaited: {what}; last seen: {seen:?}");
                sleep(Duration::from_millis(2)).await;
            }
        }
    }
}
