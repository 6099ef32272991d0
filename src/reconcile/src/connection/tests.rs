//! An API server that hangs: its kernel goes on acknowledging, the process says nothing more. And
//! which watches share a connection.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::*;

const SHORT: Patience =
    Patience { ping_after: Duration::from_millis(100), ping_within: Duration::from_millis(100) };

/// Much longer than [`SHORT`], and much shorter than a silent watch lasts.
const LIMIT: Duration = Duration::from_secs(20);

/// An answer with one piece of body, and no end.
struct Endless(Option<Bytes>);

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(piece) => std::task::Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => std::task::Poll::Pending,
        }
    }
}

/// An API server that offers these protocols, and the configuration for its clients.
async fn api_server(protocols: &[&[u8]], hang: CancellationToken) -> (SocketAddr, Config) {
    let _already_chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .unwrap();
    tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(acceptor.clone(), stream, hang.clone()));
        }
    });
    let mut config = Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![own.cert.der().to_vec()]);
    config.tls_server_name = Some("localhost".into());
    (address, config)
}

/// Serves one connection until it is to hang, and keeps it open from then on.
async fn serve(acceptor: TlsAcceptor, stream: TcpStream, hang: CancellationToken) {
    let stream = acceptor.accept(stream).await.unwrap();
    let answer = service_fn(async |request: Request<Incoming>| {
        let version = format!("{:?}", request.version());
        Ok::<_, Infallible>(Response::new(Endless(Some(version.into()))))
    });
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = TokioIo::new(stream);
    if !is_http2 {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, answer).await;
        return;
    }
    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let mut connection = pin!(http2.serve_connection(stream, answer));
    tokio::select! {
        _ = &mut connection => {}
        () = hang.cancelled() => std::future::pending().await,
    }
}

async fn watch(config: Config) -> (String, Body) {
    let client = ApiServer::new(config, SHORT).unwrap().client();
    let request = Request::get("/api/v1/pods?watch=true").body(Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    (String::from_utf8(first.to_vec()).unwrap(), body)
}

#[tokio::test]
async fn a_watch_on_an_api_server_that_hangs_is_broken_off() {
    let hang = CancellationToken::new();
    let (_, config) = api_server(&[b"h2", b"http/1.1"], hang.clone()).await;
    let (version, mut body) = watch(config).await;
    assert_eq!(version, "HTTP/2.0");
    let quiet = tokio::time::timeout(4 * SHORT.ping_after, body.frame()).await;
    assert!(quiet.is_err(), "a quiet watch is kept while the API server lives: {quiet:?}");
    hang.cancel();
    let broken = tokio::time::timeout(LIMIT, body.frame()).await.expect("it is noticed");
    assert!(matches!(broken, Some(Err(_))), "{broken:?}");
}

#[tokio::test]
async fn an_api_server_without_http2_is_spoken_to_all_the_same() {
    let (_, config) = api_server(&[b"http/1.1"], CancellationToken::new()).await;
    assert_eq!(watch(config).await.0, "HTTP/1.1");
}

/// Connections that lead nowhere, and for each that was made whether it is open.
fn connections() -> (Connections, Arc<Mutex<Vec<Weak<()>>>>) {
    let made = Arc::new(Mutex::new(Vec::new()));
    let connections = Connections::new({
        let made = made.clone();
        move || {
            let open = Arc::new(());
            let mut made = made.lock();
            made.push(Arc::downgrade(&open));
            let service = tower::service_fn(move |_: Request<Body>| {
                let _open = &open;
                std::future::pending::<Result<Response<Body>, BoxError>>()
            });
            Client::new(service, made.len().to_string())
        }
    });
    (connections, made)
}

/// The number of a connection, in the order in which they were made.
fn number(place: &Place) -> String {
    place.client().default_namespace().to_owned()
}

#[tokio::test]
async fn watches_share_connections_up_to_a_limit() {
    let (connections, made) = connections();
    let mut first: Vec<_> = (0..WATCHES_MAX).map(|_| connections.place()).collect();
    assert!(first.iter().all(|place| number(place) == "1"));
    let second = connections.place();
    assert_eq!(number(&second), "2", "a full connection takes no more");
    first.pop();
    first.push(connections.place());
    assert!(first.iter().all(|place| number(place) == "1"), "a place that was left is taken");

    drop(first);
    let closed = async {
        while made.lock()[0].strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, closed).await.expect("a connection that nobody uses is closed");
    assert_eq!(number(&connections.place()), "2", "one that is used has room");
    drop(second);
    assert_eq!(number(&connections.place()), "3", "the last one was closed");
}
