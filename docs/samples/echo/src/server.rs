//! The listeners, and how they end.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pages::Pages;
use crate::streams;

/// How long to rest after `accept` failed, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen. Port 0 picks a free one.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// Address of all ports.
    pub address: IpAddr,
    /// HTTP/1.1 and HTTP/2 without TLS.
    pub http: u16,
    /// TCP echo; `None`: not at all.
    pub tcp: Option<u16>,
    /// UDP echo; `None`: not at all.
    pub udp: Option<u16>,
}

/// Why [`Server::serve`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, and all connections ended in time.
    Drained,
    /// It was told to stop, and connections were cut at the drain limit.
    Cut,
    /// A visitor asked for a crash, with this exit code.
    Crashed(u8),
}

/// The program, listening.
#[derive(Debug)]
pub struct Server {
    http: TcpListener,
    tcp: Option<TcpListener>,
    udp: Option<UdpSocket>,
    pages: Arc<Pages>,
}

impl Server {
    /// Opens all ports. `version` and `sandbox` are what answers are marked with.
    ///
    /// # Errors
    ///
    /// What the kernel says about the first address that cannot be had.
    pub async fn bind(listen: Listen, version: &str, sandbox: &str) -> io::Result<Self> {
        let at = |port| SocketAddr::new(listen.address, port);
        Ok(Self {
            http: TcpListener::bind(at(listen.http)).await?,
            tcp: match listen.tcp {
                Some(port) => Some(TcpListener::bind(at(port)).await?),
                None => None,
            },
            udp: match listen.udp {
                Some(port) => Some(UdpSocket::bind(at(port)).await?),
                None => None,
            },
            pages: Arc::new(Pages::new(version, sandbox)),
        })
    }

    /// The addresses of HTTP, TCP and UDP, in this order.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn addresses(&self) -> io::Result<(SocketAddr, Option<SocketAddr>, Option<SocketAddr>)> {
        let tcp = self.tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let udp = self.udp.as_ref().map(UdpSocket::local_addr).transpose()?;
        Ok((self.http.local_addr()?, tcp, udp))
    }

    /// Serves until `stop` is cancelled, then lets what runs end for up to `drain`.
    ///
    /// # Errors
    ///
    /// When the UDP socket fails; a failing `accept` is tried again.
    pub async fn serve(self, stop: CancellationToken, drain: Duration) -> io::Result<Ended> {
        let Self { http, tcp, udp, pages } = self;
        let connections = Connections::new(Arc::clone(&pages), stop.clone());
        let datagrams = async {
            match udp {
                Some(socket) => streams::echo_datagrams(socket, stop.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(datagrams);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                result = &mut datagrams => { result?; break; }
                code = pages.crashed() => {
                    connections.cut.cancel();
                    return Ok(Ended::Crashed(code));
                }
                stream = accept(Some(&http)) => connections.http(stream),
                stream = accept(tcp.as_ref()) => connections.tcp(stream),
            }
        }
        drop((http, tcp));
        Ok(connections.end(drain).await)
    }
}

/// The connections that are open.
struct Connections {
    pages: Arc<Pages>,
    /// Tells WebSockets to say goodbye.
    stop: CancellationToken,
    tasks: TaskTracker,
    graceful: GracefulShutdown,
    /// Ends every task where it stands.
    cut: CancellationToken,
}

impl Connections {
    fn new(pages: Arc<Pages>, stop: CancellationToken) -> Self {
        let (tasks, graceful) = (TaskTracker::new(), GracefulShutdown::new());
        Self { pages, stop, tasks, graceful, cut: CancellationToken::new() }
    }

    fn http(&self, stream: TcpStream) {
        let (pages, tasks) = (Arc::clone(&self.pages), self.tasks.clone());
        let (stop, cut) = (self.stop.clone(), self.cut.clone());
        let service = service_fn(move |request| {
            let (pages, tasks) = (Arc::clone(&pages), tasks.clone());
            let (stop, cut) = (stop.clone(), cut.clone());
            async move {
                let upgraded = |serving| drop(tasks.spawn(until(cut, serving)));
                Ok::<_, Infallible>(pages.answer(request, stop, upgraded).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        builder.http2().timer(TokioTimer::new()).enable_connect_protocol();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection.into_owned());
        self.spawn(async move {
            // How a connection ends is the visitor's affair.
            let _ = connection.await;
        });
    }

    fn tcp(&self, stream: TcpStream) {
        self.spawn(async move {
            let _ = streams::echo_stream(stream).await;
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(until(self.cut.clone(), task));
    }

    async fn end(self, drain: Duration) -> Ended {
        let Self { tasks, graceful, cut, .. } = self;
        tasks.close();
        let ended = async { tokio::join!(graceful.shutdown(), tasks.wait()) };
        if tokio::time::timeout(drain, ended).await.is_ok() {
            return Ended::Drained;
        }
        cut.cancel();
        tasks.wait().await;
        Ended::Cut
    }
}

/// The next connection; never, where there is no listener.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it a small answer waits for the peer's acknowledgement.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                eprintln!("Connection not accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn until(cut: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = cut.cancelled() => {}
        () = task => {}
    }
}
