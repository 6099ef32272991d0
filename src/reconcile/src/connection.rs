//! The connection to the API server.

use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt as _};
use kube::config::InferConfigError;
use kube::{Client, Config};
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// How long a connection may take to be made. Shorter than any Lease: where the address is not
/// reachable for a moment, the next attempt has to come in time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A connection on which nothing happens is asked for a sign of life after this time,
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
/// and then this often,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
/// this many times. Without it, a watch over a connection whose other end has vanished, with its
/// machine or on a load balancer, stays silent for minutes as if nothing changed.
const KEEPALIVE_TRIES: u32 = 3;

/// The same for a connection on which something was sent.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// When a connection is taken for dead although the other end's kernel acknowledges what is sent: an
/// API server that hangs, or a load balancer in front of one that is gone. Only HTTP/2's pings are
/// answered by the process itself; without them its watches stay silent for minutes as if nothing
/// changed.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Silence after which it is asked for a sign of life.
    ping_after: Duration,
    /// The time it has to give one.
    ping_within: Duration,
}

/// Longer than an API server pauses that is merely busy; together what Kubernetes' own clients let
/// pass before they ask.
const PATIENCE: Patience =
    Patience { ping_after: Duration::from_secs(15), ping_within: Duration::from_secs(15) };

/// A request that an API server refuses because it has too much to do is sent again, later by
/// these, but for no more than some seconds: who waits for it decides then.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
const RETRIES: u32 = 5;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a service account nor a kubeconfig says where the API server is.
    #[error("find the API server")]
    Config(#[source] Box<InferConfigError>),
    /// What they say cannot be used.
    #[error("prepare the connection to the API server")]
    Client(#[from] Box<kube::Error>),
    /// The name that its certificate is to have is none.
    #[error("read the name of the API server")]
    Name(#[from] InvalidDnsNameError),
}

/// A client from the Pod's service account, else from the kubeconfig.
///
/// Kube's own would wait half a minute for a connection and for ever on one that is dead. This one
/// speaks HTTP/2 wherever the API server does: all requests and watches share one connection, which
/// is looked after.
///
/// # Errors
/// Any of [`ConnectError`]. That the API server does not answer is none.
pub async fn connect() -> Result<Client, ConnectError> {
    // One provider for the whole process, chosen before anything makes a connection.
    let _already_chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::infer().await.map_err(|error| ConnectError::Config(Box::new(error)))?;
    client(config, PATIENCE)
}

fn client(config: Config, patience: Patience) -> Result<Client, ConnectError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    tcp.set_keepalive(Some(KEEPALIVE_AFTER));
    tcp.set_keepalive_interval(Some(KEEPALIVE_EVERY));
    tcp.set_keepalive_retries(Some(KEEPALIVE_TRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    let http = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(patience.ping_after)
        .http2_keep_alive_timeout(patience.ping_within)
        .http2_keep_alive_while_idle(true)
        .build(secured(&config, tcp)?);
    let retry = RetryPolicy::new(RETRY_MIN, RETRY_MAX, RETRIES, true);
    let retry = retry.expect("the least delay is above zero and below the greatest");
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(retry))
        .option_layer(config.auth_layer().map_err(Box::new)?)
        .layer(config.extra_headers_layer().map_err(Box::new)?)
        .map_err(BoxError::from)
        .service::<legacy::Client<_, Body>>(http);
    Ok(Client::new(service, config.default_namespace))
}

/// TLS as kube sets it up, but for HTTP/2, which kube does not offer.
fn secured(
    config: &Config,
    tcp: HttpConnector,
) -> Result<HttpsConnector<HttpConnector>, ConnectError> {
    let tls = config.rustls_client_config().map_err(Box::new)?;
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = ServerName::try_from(name.clone())?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(https.enable_http1().enable_http2().wrap_connector(tcp))
}

#[cfg(test)]
mod tests;
