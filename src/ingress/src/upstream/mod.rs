//! Connections to one sandbox: made, kept, shared, ended.
//!
//! - [`h1`]: one request at a time per connection; a stack of unused ones.
//! - [`h2`]: one connection for all requests.
//! - [`flight`]: one request on its connection, with its slot, to the end of the response.
//! - [`request`]: the body on its way to the sandbox.
//! - [`gap`]: the longest pause of either body.

mod flight;
mod gap;
mod h1;
mod h2;
mod request;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::core::Core;
use crate::model::AppProtocol;

pub(crate) use flight::{Backing, DownloadError, Flight, SendError, UpstreamBody, hang_up, leave};
pub(crate) use h1::{READ_SIZE, Switched, is_out_of_reach};
pub(crate) use request::{Outgoing, RequestBody, UploadState};

/// Silence before the kernel asks a sandbox for a sign of life, the pause until it asks again, and
/// how many questions may be lost before the sandbox is gone.
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_secs(5);
const QUESTIONS: u32 = 3;

/// One sandbox's port.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    protocol: AppProtocol,
    idle: h1::Idle,
    shared: h2::Shared,
}

/// A connection that a request may be sent on.
#[derive(Debug)]
pub(crate) enum Connection {
    H1(h1::Connection),
    H2(h2::Sender),
}

impl Connection {
    /// Whether more was read together with the head of a response over HTTP/1.1.
    fn came_with_head(&self) -> bool {
        matches!(self, Self::H1(connection) if connection.came_with_head())
    }

    /// Whether a response over HTTP/1.1 has ended; others are asked themselves.
    fn has_ended(&self) -> bool {
        matches!(self, Self::H1(connection) if connection.has_ended())
    }

    /// Most room for a read over HTTP/1.1 from now on.
    pub(crate) fn limit_reads(&mut self, size_max: usize) {
        if let Self::H1(connection) = self {
            connection.limit_reads(size_max);
        }
    }

    /// Bytes of a response over HTTP/1.1 to come, if that is known.
    fn length(&self) -> Option<u64> {
        match self {
            Self::H1(connection) => connection.length(),
            Self::H2(_) => None,
        }
    }
}

/// What went wrong on a connection, whatever it speaks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    H1(#[from] h1::WireError),
    #[error(transparent)]
    H2(#[from] hyper::Error),
}

impl ExchangeError {
    /// Whether the sandbox is out of reach: its node is gone, or the way there. What it does
    /// nobody knows.
    fn is_out_of_reach(&self) -> bool {
        match self {
            Self::H1(error) => error.is_out_of_reach(),
            // A ping was not answered.
            Self::H2(error) => error.is_timeout(),
        }
    }

    /// Whether the sandbox answered, and not in HTTP.
    fn is_protocol(&self) -> bool {
        match self {
            Self::H1(error) => error.is_protocol(),
            Self::H2(error) => error.is_parse(),
        }
    }

    /// Whether it is our request that was not whole.
    fn is_upload(&self) -> bool {
        match self {
            Self::H1(error) => error.is_upload(),
            Self::H2(error) => error.is_user(),
        }
    }
}

/// No connection could be made, so nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect to the sandbox")]
    Io(#[source] io::Error),
    #[error("sandbox did not accept the connection in time")]
    Timeout,
    #[error("HTTP handshake with the sandbox failed")]
    Handshake(#[source] hyper::Error),
}

impl Upstream {
    pub(crate) const fn new(address: SocketAddr, protocol: AppProtocol) -> Self {
        Self { address, protocol, idle: h1::Idle::new(), shared: h2::Shared::new() }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) const fn protocol(&self) -> AppProtocol {
        self.protocol
    }

    /// An unused connection, or a new one.
    ///
    /// # Cancel safety
    ///
    /// A connection being made is dropped.
    pub(crate) async fn connect(
        &self,
        core: &Arc<Core>,
        protocol: AppProtocol,
    ) -> Result<Connection, ConnectError> {
        match protocol {
            AppProtocol::Http1 => match self.idle.take() {
                Some(connection) => Ok(Connection::H1(connection)),
                None => h1::Connection::open(self, core).await.map(Connection::H1),
            },
            AppProtocol::H2c => self.shared.sender(self.address, core).await.map(Connection::H2),
        }
    }
}

async fn dial(address: SocketAddr, core: &Core) -> Result<TcpStream, ConnectError> {
    let stream = timeout(core.settings.connect_timeout, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::Timeout)?
        .map_err(ConnectError::Io)?;
    prepare(&stream);
    Ok(stream)
}

/// What fails here fails only on a socket that is gone, which the next write says.
fn prepare(stream: &TcpStream) {
    // Heads and small bodies are written apart; waiting for an acknowledgement between them would
    // cost up to 40 ms.
    let _ = stream.set_nodelay(true);
    // A sandbox whose node is gone closes nothing, and a WebSocket may be silent for an hour.
    let asking =
        TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AGAIN).with_retries(QUESTIONS);
    let _ = SockRef::from(stream).set_tcp_keepalive(&asking);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sandbox_that_is_gone_without_a_word_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("a connection");
        prepare(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), ASK_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), ASK_AGAIN);
        assert_eq!(socket.tcp_keepalive_retries().expect("an option"), QUESTIONS);
    }
}
