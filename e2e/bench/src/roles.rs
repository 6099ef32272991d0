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

/// Serves one Route to one sandbox, which is always ready, without the access log: the peers
/// write none either.
pub(crate) async fn gateway(address: SocketAddr, sandbox: SocketAddr) -> anyhow::Result<()> {
    let settings = Settings { access_log: AccessLog::Off, ..Settings::standard() };
    let ingress = Ingress::new(settings, Arc::new(Metrics::new()));
    feed(&ingress, sandbox)?;
    let config = ListenerConfig {
        scheme: Scheme::Http { https_port: None },
        proxy_protocol: ProxyProtocol::Off,
    };
    let listener = Listener::bind(address, config).context("bind the gateway")?;
    ingress.serve(vec![listener], CancellationToken::new()).await.context("serve")
}

fn feed(ingress: &Ingress, sandbox: SocketAddr) -> anyhow::Result<()> {
    let namespace: Arc<str> = "bench".into();
    let service =
        ServiceKey { namespace: namespace.clone(), app: "bench".into(), service: "web".into() };
    let name = PoolName { namespace: namespace.clone(), name: "bench-web".into() };
    let pool = PoolId { name: name.clone(), uid: "pool".into() };
    let config = PoolConfig {
        port: sandbox.port(),
        protocol: AppProtocol::Http1,
        probe: Probe::Tcp { port: sandbox.port() },
        concurrency: Concurrency::Soft,
    };
    ingress.upsert_pool(&pool, config);
    ingress.activate(&service, Activation { app_uid: "app".into(), epoch: 1, pool: name });
    let ready = SandboxConfig {
        id: SandboxId { name: "bench-web-0-1".into(), uid: "sandbox".into() },
        address: Some(sandbox.ip()),
        phase: SandboxPhase::Ready,
        slots: Slots::Unlimited,
    };
    ingress.upsert_sandbox(&pool, &ready);
    let route = RouteConfig {
        host: HostPattern::parse(HOST)?,
        service,
        timeouts: RouteTimeouts::standard(),
        request_body_max: None,
        plain_http: PlainHttp::Serve,
    };
    ingress.upsert_route(RouteId { namespace, name: "bench".into() }, &route);
    ingress.mark_synced();
    Ok(())
}
