//! From a socket to requests: accept, PROXY header, TLS, connection limits, shutdown.

//!
//! - [`accept`]: takes connections in, within their limits.
//! - [`proxy_protocol`]: for whom a balancer makes a connection.
//! - [`connection`]: serves one connection to its end.
//! - [`transport`]: its bytes, with a finger on its pulse.

mod accept;
mod connection;
mod proxy_protocol;
mod transport;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use portolan_process::bindable;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::accept::Reception;
use crate::ingress::Shared;

pub(crate) use self::accept::Place;

/// How long a client that is gone without a word keeps its connection, and with it a slot: one whose
/// network is gone closes nothing, and an event stream or a WebSocket may be silent for an hour. It
/// is [`Settings::write_stall`](crate::Settings::write_stall) seen from below, where what nobody
/// acknowledges still fits the kernel's buffer.
const GONE: Duration = Duration::from_secs(60);
/// Silence before the kernel asks a client for a sign of life, and the pause until it asks again:
/// three questions may be lost before the client is gone.
const ASK_AFTER: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Bytes that wait in the kernel beyond what is on its way: what a client that reads slowly makes it
/// hold, instead of up to 4 MiB. A quarter of this costs large downloads a tenth.
const UNSENT_MAX: u32 = 512 * 1024;

/// How one listener treats its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Plain text or TLS.
    pub scheme: Scheme,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP/1.1 and HTTP/2 with prior knowledge, in plain text.
    Http {
        /// Port in redirects to `https`, as seen from outside; `None`: hosts are never redirected.
        https_port: Option<u16>,
    },
    /// TLS 1.2 and 1.3 with HTTP/2 or HTTP/1.1 by ALPN.
    Https,
    /// As `Http`, for callers inside the cluster: only the names of services are answered here,
    /// and those are answered nowhere else.
    Internal,
}

/// Whether a PROXY header (version 1 or 2) comes before everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// None is looked for.
    Off,
    /// Required from [`Settings::trusted_proxies`](crate::Settings::trusted_proxies), not looked
    /// for from others.
    FromTrusted,
}

/// A bound socket and how to treat its connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    config: ListenerConfig,
}

impl Listener {
    /// Binds an address. Several processes may share it (`SO_REUSEPORT`), so that a new one can
    /// take over before the old one ends.
    ///
    /// If it cannot be bound, what is [`bindable`] instead is.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn bind(address: SocketAddr, config: ListenerConfig) -> io::Result<Self> {
        let none = io::Result::Err(io::ErrorKind::AddrNotAvailable.into());
        let choices = bindable(address).into_iter();
        let socket = choices.fold(none, |tried, address| tried.or_else(|_| bound(address)))?;
        // Bursts of connections are short; the kernel cuts this to its own limit.
        socket.listen(4096)?;
        Ok(Self { socket: TcpListener::from_std(socket.into())?, config })
    }

    /// The address it listens on, with the port the system chose if none was given.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        // A switch of the machine says otherwise on some.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Connections have what their listener has (tcp(7)), so this costs none of them a call.
    let asking = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AGAIN);
    socket.set_tcp_keepalive(&asking)?;
    socket.set_tcp_user_timeout(Some(GONE))?;
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS provider refuses the protocol versions we ask for.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// Serves until `shutdown`, asks clients to go elsewhere for a while, then drains.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    listeners: Vec<Listener>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let reception = Arc::new(Reception::new(Arc::clone(shared), shutdown)?);
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        acceptors.spawn(accept::accept(Arc::clone(&reception), listener));
    }
    reception.leaving.cancelled().await;
    shared.leave();
    sleep(shared.core.settings.lame_duck).await;
    reception.closing.cancel();
    let mut connections = acceptors.join_all().await;
    let drained = async {
        for connections in &mut connections {
            while connections.join_next().await.is_some() {}
        }
        shared.core.streams_ended().await;
    };
    if timeout(shared.core.settings.drain, drained).await.is_err() {
        tracing::info!("Drain limit reached, cutting what still runs");
    }
    for connections in &mut connections {
        connections.shutdown().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::SockRef;
    use tokio::net::TcpStream;

    use super::*;
    use crate::settings::Settings;

    #[tokio::test]
    async fn a_client_that_is_gone_without_a_word_is_noticed() {
        let config = ListenerConfig {
            scheme: Scheme::Http { https_port: None },
            proxy_protocol: ProxyProtocol::Off,
        };
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), config).expect("a socket");
        let address = listener.local_addr().expect("its address");
        let (client, accepted) =
            tokio::join!(TcpStream::connect(address), listener.socket.accept());
        let (_client, (accepted, _)) = (client.expect("connected"), accepted.expect("accepted"));
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), ASK_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), ASK_AGAIN);
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(GONE));
        assert_eq!(socket.tcp_notsent_lowat().expect("an option"), UNSENT_MAX);
        assert_eq!(Settings::standard().write_stall, GONE);
    }

    #[tokio::test]
    async fn one_listener_is_reached_over_both_families() {
        let config =
            ListenerConfig { scheme: Scheme::Internal, proxy_protocol: ProxyProtocol::Off };
        let any = (Ipv6Addr::UNSPECIFIED, 0).into();
        let listener = Listener::bind(any, config).expect("a socket");
        let port = listener.local_addr().expect("its address").port();
        let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        for address in addresses {
            TcpStream::connect((address, port)).await.expect("it is reached");
        }
    }
}
