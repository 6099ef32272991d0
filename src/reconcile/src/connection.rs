//! The connections to the API server.
//!
//! A process has one, for all its requests and the watches of whole kinds ([`ApiServer::client`]).
//! Watches of which there is one for each object have their own ([`Connections`]).

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::middleware::{AuthLayer, BaseUriLayer, ExtraHeadersLayer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ConfigExt as _};
use kube::config::InferConfigError;
use kube::{Client, Config};
use parking_lot::Mutex;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tower::limit::ConcurrencyLimitLayer;
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

/// How many watches of single objects share a connection at most. An API server lets a connection
/// carry 100 streams if it was not told otherwise, and whatever comes after them waits without a
/// word, behind watches for ever. Half of that: a stream that ended here may not have ended there,
/// and a balancer in front may allow less.
const WATCHES_MAX: usize = 50;

/// How many requests on such a connection may wait for the head of their answer at once. Each that
/// finds no connection begins to make one, though all but one are in vain, and these watches begin
/// together. Not one alone, because one that hangs would hold up the rest.
const UNANSWERED_MAX: usize = 4;

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

/// Where the API server is and how it is spoken to: everything about a connection that can be
/// wrong before one is made.
pub struct ApiServer {
    https: HttpsConnector<HttpConnector>,
    patience: Patience,
    base_uri: BaseUriLayer,
    auth: Option<AuthLayer>,
    headers: ExtraHeadersLayer,
    namespace: String,
}

/// Connections for watches of which there is one for each object, apart from that of all else.
/// Clones share them.
///
/// A connection is made when all others are full, and closed when its last watch has left it.
#[derive(Clone)]
pub struct Connections {
    make: Arc<dyn Fn() -> Client + Send + Sync>,
    /// Those that are in use, the oldest first; also some that are not any more.
    open: Arc<Mutex<Vec<Weak<Client>>>>,
}

/// The place of one watch on a connection, to be kept until the watch has ended.
pub struct Place(Arc<Client>);

// === impl ApiServer ===

impl ApiServer {
    /// The one of the Pod's service account, else of the kubeconfig.
    ///
    /// # Errors
    /// Any of [`ConnectError`]. That it does not answer is none.
    pub async fn find() -> Result<Self, ConnectError> {
        // One provider for the whole process, chosen before anything makes a connection.
        let _already_chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config =
            Config::infer().await.map_err(|error| ConnectError::Config(Box::new(error)))?;
        Self::new(config, PATIENCE)
    }

    /// A client with a connection of its own.
    ///
    /// Kube's own would wait half a minute for a connection and for ever on one that is dead. This
    /// one speaks HTTP/2 wherever the API server does: all its requests and watches share one
    /// connection, which is looked after.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn client(&self) -> Client {
        self.limited_client(None)
    }

    /// Connections for watches of which there is one for each object.
    pub fn connections(self) -> Connections {
        Connections::new(move || self.limited_client(Some(UNANSWERED_MAX)))
    }

    fn new(config: Config, patience: Patience) -> Result<Self, ConnectError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        tcp.set_keepalive(Some(KEEPALIVE_AFTER));
        tcp.set_keepalive_interval(Some(KEEPALIVE_EVERY));
        tcp.set_keepalive_retries(Some(KEEPALIVE_TRIES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        Ok(Self {
            https: secured(&config, tcp)?,
            patience,
            base_uri: config.base_uri_layer(),
            auth: config.auth_layer().map_err(Box::new)?,
            headers: config.extra_headers_layer().map_err(Box::new)?,
            namespace: config.default_namespace,
        })
    }

    /// `unanswered_max`: requests that wait for the head of their answer at once; `None`: any.
    fn limited_client(&self, unanswered_max: Option<usize>) -> Client {
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(self.patience.ping_after)
            .http2_keep_alive_timeout(self.patience.ping_within)
            .http2_keep_alive_while_idle(true)
            .build(self.https.clone());
        let retry = RetryPolicy::new(RETRY_MIN, RETRY_MAX, RETRIES, true);
        let retry = retry.expect("the least delay is above zero and below the greatest");
        let service = ServiceBuilder::new()
            .layer(&self.base_uri)
            .layer(RetryLayer::new(retry))
            // One for all clients, so that a token is read anew once.
            .option_layer(self.auth.as_ref())
            .layer(&self.headers)
            .map_err(BoxError::from)
            // Innermost: who rests before another try holds up nobody.
            .option_layer(unanswered_max.map(ConcurrencyLimitLayer::new))
            .service::<legacy::Client<_, Body>>(http);
        Client::new(service, self.namespace.clone())
    }
}

// === impl Connections ===

impl Connections {
    /// Connections that are made by a function: each client it returns has another one.
    pub fn new(make: impl Fn() -> Client + Send + Sync + 'static) -> Self {
        Self { make: Arc::new(make), open: Arc::default() }
    }

    /// A place for one more watch: on the oldest connection that has one, else on a new one.
    pub fn place(&self) -> Place {
        let mut open = self.open.lock();
        open.retain(|client| client.strong_count() > 0);
        // Places are taken under the lock only, so none is taken twice.
        let mut free = open.iter().filter(|client| client.strong_count() < WATCHES_MAX);
        if let Some(client) = free.find_map(Weak::upgrade) {
            return Place(client);
        }
        let client = Arc::new((self.make)());
        open.push(Arc::downgrade(&client));
        Place(client)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("open", &self.open.lock().len()).finish_non_exhaustive()
    }
}

// === impl Place ===

impl Place {
    /// A client for the watch, on this connection.
    pub fn client(&self) -> Client {
        Client::clone(&self.0)
    }
}

/// A client from the Pod's service account, else from the kubeconfig; see [`ApiServer::client`].
///
/// # Errors
/// Any of [`ConnectError`]. That the API server does not answer is none.
pub async fn connect() -> Result<Client, ConnectError> {
    Ok(ApiServer::find().await?.client())
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
