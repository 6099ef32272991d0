//! Takes connections in: how many, from whom, and up to the point where HTTP begins.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::proxy_protocol::{self, ProxyHeaderError};
use super::{Listener, ListenerConfig, ProxyProtocol, Scheme, ServeError, connection};
use crate::buffers::Share;
use crate::host::normalize;
use crate::ingress::Shared;
use crate::metrics::Refused;
use crate::proxy::{Audience, Client, Security};
use crate::tls;

/// Pause after an accept that failed for want of file descriptors or memory: the connection stays
/// in the backlog, so trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes that wait in a TLS session for the socket: one record, which sends as fast as more of them.
/// What is not sent yet waits where it is counted.
const TLS_BUFFER_SIZE: usize = 16 * 1024;

/// What all listeners share.
#[derive(Debug)]
pub(super) struct Reception {
    pub(super) shared: Arc<Shared>,
    /// The end is near: clients are asked to go elsewhere.
    pub(super) leaving: CancellationToken,
    /// Nothing new is taken.
    pub(super) closing: CancellationToken,
    tls: Arc<ServerConfig>,
    guests: Arc<Mutex<Guests>>,
    pub(super) http: connection::Http,
}

/// How many connections there are, and from whom.
#[derive(Debug, Default)]
struct Guests {
    total: usize,
    by_client: HashMap<IpAddr, Guest>,
}

/// One address, from which there are connections.
#[derive(Debug)]
struct Guest {
    count: usize,
    share: Arc<Share>,
}

impl Reception {
    pub(super) fn new(shared: Arc<Shared>, leaving: CancellationToken) -> Result<Self, ServeError> {
        let tls = tls::server_config(Arc::clone(&shared.certificates)).map_err(ServeError::Tls)?;
        Ok(Self {
            http: connection::Http::new(&shared.core.settings),
            shared,
            leaving,
            closing: CancellationToken::new(),
            tls,
            guests: Arc::default(),
        })
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        let trusted = &self.shared.core.settings.trusted_proxies;
        trusted.iter().any(|range| range.contains(address))
    }
}

/// Accepts until closing; returns the connections still open.
pub(super) async fn accept(reception: Arc<Reception>, listener: Listener) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = reception.closing.cancelled() => return connections,
            accepted = listener.socket.accept() => accepted,
            // Ended ones are taken out as they end, or the set would grow.
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_about_one(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "Cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let metrics = &reception.shared.core.metrics;
        let Some(place) = Place::take(&reception) else {
            metrics.refused(Refused::Total);
            continue;
        };
        let reception = Arc::clone(&reception);
        let config = listener.config.clone();
        connections.spawn(async move {
            receive(&reception, &config, stream, peer, place).await;
        });
    }
}

/// Errors of a connection that was gone before it was accepted.
fn is_about_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// One connection: whom it is from, what it speaks, then its requests.
async fn receive(
    reception: &Reception,
    config: &ListenerConfig,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
) {
    // It only fails on a socket that is gone, which the next read says.
    let _ = stream.set_nodelay(true);
    let limit = reception.shared.core.settings.handshake_timeout;
    let closing = reception.closing.child_token();
    let introduction = timeout(limit, introduce(reception, config, stream, peer, place));
    let introduced = tokio::select! {
        introduced = introduction => introduced,
        () = closing.cancelled() => return,
    };
    match introduced {
        Ok(Ok(Introduced::Plain(stream, client))) => {
            connection::serve(reception, stream, client).await;
        }
        Ok(Ok(Introduced::Tls(stream, client))) => {
            connection::serve(reception, *stream, client).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "Connection was not taken");
            error.count(reception);
        }
        Err(_) => {
            tracing::debug!("Connection did not complete its handshake in time");
            reception.shared.core.metrics.handshake_failures.inc();
        }
    }
}

/// A connection of which everything is known.
enum Introduced {
    Plain(TcpStream, Client),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>, Client),
}

/// Why a connection was closed before its first request.
#[derive(Debug, thiserror::Error)]
enum IntroductionError {
    #[error("PROXY header was refused")]
    ProxyHeader(#[from] ProxyHeaderError),
    #[error("client has too many connections")]
    TooMany,
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
}

impl IntroductionError {
    fn count(&self, reception: &Reception) {
        let metrics = &reception.shared.core.metrics;
        match self {
            Self::ProxyHeader(_) => metrics.refused(Refused::ProxyHeader),
            Self::TooMany => metrics.refused(Refused::Client),
            Self::Tls(_) => {
                metrics.handshake_failures.inc();
            }
        }
    }
}

async fn introduce(
    reception: &Reception,
    config: &ListenerConfig,
    mut stream: TcpStream,
    peer: SocketAddr,
    mut place: Place,
) -> Result<Introduced, IntroductionError> {
    let is_balancer = reception.is_trusted(peer.ip());
    let mut address = peer.ip();
    if is_balancer
        && config.proxy_protocol == ProxyProtocol::FromTrusted
        && let Some(source) = proxy_protocol::read(&mut stream).await?
    {
        address = source;
    }
    // Whoever a balancer vouches for is a client as any other; the balancer itself is not limited.
    let is_trusted = reception.is_trusted(address);
    if !is_trusted && !place.assign(reception, address) {
        return Err(IntroductionError::TooMany);
    }
    let shared = Arc::clone(&reception.shared);
    let (audience, https_port) = match config.scheme {
        Scheme::Http { https_port } => (Audience::Public, https_port),
        Scheme::Internal => (Audience::Internal, None),
        Scheme::Https => {
            let stream = TlsAcceptor::from(Arc::clone(&reception.tls))
                .accept_with(stream, |session| session.set_buffer_limit(Some(TLS_BUFFER_SIZE)))
                .await
                .map_err(IntroductionError::Tls)?;
            let (_, session) = stream.get_ref();
            let certificate = session
                .server_name()
                .and_then(|name| normalize(name).ok())
                .map(|name| shared.certificates.key_of(&name));
            let is_h2 = session.alpn_protocol() == Some(tls::ALPN_H2);
            let security = Security::Tls { certificate };
            let audience = Audience::Public;
            let client = Client::new(shared, address, is_trusted, audience, security, place);
            if is_h2 {
                client.pulse.set_h2();
            }
            return Ok(Introduced::Tls(Box::new(stream), client));
        }
    };
    let security = Security::Plain { https_port };
    let client = Client::new(shared, address, is_trusted, audience, security, place);
    Ok(Introduced::Plain(stream, client))
}

/// A connection's place under the limits, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    guests: Arc<Mutex<Guests>>,
    client: Option<(IpAddr, Arc<Share>)>,
}

impl Place {
    /// `None`: there are too many connections.
    fn take(reception: &Reception) -> Option<Self> {
        let mut guests = reception.guests.lock();
        if guests.total >= reception.shared.core.settings.connections_max {
            return None;
        }
        guests.total += 1;
        reception.shared.core.metrics.connections.inc();
        Some(Self {
            shared: Arc::clone(&reception.shared),
            guests: Arc::clone(&reception.guests),
            client: None,
        })
    }

    /// Counts it for a client; `false`: that one has too many.
    fn assign(&mut self, reception: &Reception, client: IpAddr) -> bool {
        let client = household(client);
        let mut guests = self.guests.lock();
        let core = &reception.shared.core;
        let guest = guests
            .by_client
            .entry(client)
            .or_insert_with(|| Guest { count: 0, share: Arc::new(Share::new(Arc::clone(core))) });
        if guest.count >= core.settings.connections_per_client_max {
            return false;
        }
        guest.count += 1;
        self.client = Some((client, Arc::clone(&guest.share)));
        true
    }

    /// What is held for the client as a whole; `None`: it speaks for many.
    pub(crate) fn share(&self) -> Option<Arc<Share>> {
        self.client.as_ref().map(|(_, share)| Arc::clone(share))
    }
}

/// Whom an address is counted for. One of IPv6 is one of as many as its holder likes: what is given
/// to one place is a prefix of 64 bits.
fn household(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.guests.lock();
        guests.total -= 1;
        if let Some((client, _)) = &self.client
            && let Some(guest) = guests.by_client.get_mut(client)
        {
            guest.count -= 1;
            if guest.count == 0 {
                guests.by_client.remove(client);
            }
        }
        self.shared.core.metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_ipv6_is_one_client_and_an_address_of_ipv4_another() {
        let counted = |text: &str| household(text.parse().expect("an address")).to_string();
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:2::9"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:3::9"), "2001:db8:1:3::");
        assert_eq!(counted("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(counted("192.0.2.8"), "192.0.2.8");
    }
}
