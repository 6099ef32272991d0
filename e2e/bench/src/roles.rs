//! The processes that the benchmarks start of this program itself.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portolan_ingress::{
    AccessLog, Activation, AppProtocol, Concurrency, HostPattern, Ingress, Listener,
    ListenerConfig, Metrics, PlainHttp, PoolConfig, PoolId, PoolName, Probe, ProxyProtocol,
    RouteConfig, RouteId, RouteTimeouts, SandboxConfig, SandboxId, SandboxPhase, Scheme,
    ServiceKey, Settings, Slots,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The host that every proxy routes.
pub(crate) const HOST: &str = "bench.test";
/// The host of an App that is attacked.
pub(crate) const VICTIM: &str = "victim.test";
/// The host of an App that serves one request at a time.
pub(crate) const SLOW: &str = "slow.test";
/// Bytes that a request for the victim may have.
const BODY: u64 = 1 << 20;
/// What the program answers: small, so that the proxies' own work is what is measured.
const ANSWER: Bytes = Bytes::from_static(b"Hello, world!");

/// Answers every request with the same 13 bytes, on one thread.
pub(crate) fn backend(address: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.context("bind the backend")?;
        loop {
            let (stream, _) = listener.accept().await.context("accept")?;
            stream.set_nodelay(true)?;
            let answer = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(ANSWER)))
            });
            // A connection that its peer breaks off is the peer's business.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    })
}

/// One App of the gateway under measure.
struct App {
    name: &'static str,
    host: &'static str,
    slots: Slots,
    request_body_max: Option<u64>,
}

const APPS: [App; 3] = [
    App { name: "bench", host: HOST, slots: Slots::Unlimited, request_body_max: None },
    App { name: "victim", host: VICTIM, slots: Slots::Unlimited, request_body_max: Some(BODY) },
    App { name: "slow", host: SLOW, slots: Slots::Limited(1), request_body_max: None },
];

/// Serves each Route to one sandbox, which is always ready, without the access log: the peers
/// write none either.
pub(crate) async fn gateway(address: SocketAddr, sandbox: SocketAddr) -> anyhow::Result<()> {
    let settings = Settings { access_log: AccessLog::Off, ..Settings::standard() };
    let ingress = Ingress::new(settings, Arc::new(Metrics::new()));
    for app in &APPS {
        feed(&ingress, app, sandbox)?;
    }
    ingress.mark_synced();
    let config = ListenerConfig {
        scheme: Scheme::Http { https_port: None },
        proxy_protocol: ProxyProtocol::Off,
    };
    let listener = Listener::bind(address, config).context("bind the gateway")?;
    ingress.serve(vec![listener], CancellationToken::new()).await.context("serve")
}

fn feed(ingress: &Ingress, app: &App, sandbox: SocketAddr) -> anyhow::Result<()> {
    let namespace: Arc<str> = "bench".into();
    let service =
        ServiceKey { namespace: namespace.clone(), app: app.name.into(), service: "web".into() };
    let name = PoolName { namespace: namespace.clone(), name: format!("{}-web", app.name).into() };
    let pool = PoolId { name: name.clone(), uid: format!("{}-pool", app.name).into() };
    let config = PoolConfig {
        port: sandbox.port(),
        protocol: AppProtocol::Http1,
        probe: Probe::Tcp { port: sandbox.port() },
        concurrency: Concurrency::Soft,
    };
    ingress.upsert_pool(&pool, config);
    ingress.activate(&service, Activation { app_uid: app.name.into(), epoch: 1, pool: name });
    let sandbox_name = format!("{}-web-0-1", app.name);
    let ready = SandboxConfig {
        id: SandboxId { name: sandbox_name.as_str().into(), uid: sandbox_name.as_str().into() },
        address: Some(sandbox.ip()),
        phase: SandboxPhase::Ready,
        slots: app.slots,
    };
    ingress.upsert_sandbox(&pool, &ready);
    let route = RouteConfig {
        host: HostPattern::parse(app.host)?,
        service,
        timeouts: RouteTimeouts::standard(),
        request_body_max: app.request_body_max,
        plain_http: PlainHttp::Serve,
    };
    ingress.upsert_route(RouteId { namespace, name: app.name.into() }, &route);
    Ok(())
}
