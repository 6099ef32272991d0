//! Certificates by name, and what plain text gets instead.

use std::net::SocketAddr;
use std::sync::Arc;

use portolan_ingress::{Certificate, HostPattern, PlainHttp, SandboxPhase, Slots};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Reply, get, h1_over, h2_over, raw};
use crate::gateway::{App, Gateway, soon};
use crate::program::Program;

struct Issued {
    der: CertificateDer<'static>,
    certificate: Certificate,
}

fn issue(name: &str) -> Issued {
    let issued = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = issued.signing_key.serialize_pem();
    let certificate = Certificate::from_pem(issued.cert.pem().as_bytes(), key.as_bytes()).unwrap();
    Issued { der: issued.cert.der().clone(), certificate }
}

async fn connect(
    address: SocketAddr,
    name: &str,
    trusted: &Issued,
    alpn: &[u8],
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    connect_to(address, name, &trusted.der, alpn).await
}

pub(crate) async fn connect_to(
    address: SocketAddr,
    name: &str,
    trusted: &CertificateDer<'static>,
    alpn: &[u8],
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    soon("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

fn host(name: &str) -> HostPattern {
    HostPattern::parse(name).unwrap()
}

async fn serving() -> (Gateway, App, Program) {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    (gateway, app, program)
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_replaced_live() {
    let (gateway, _app, _program) = serving().await;
    let (exact, wild, default) =
        (issue("shop.example"), issue("*.wild.example"), issue("default.example"));
    let set = |pattern: &str, issued: &Issued| {
        gateway.ingress.set_certificate(&host(pattern), Some(issued.certificate.clone()));
    };
    set("shop.example", &exact);
    set("*.wild.example", &wild);
    set("*", &default);
    let alpn = b"http/1.1";
    for (name, issued) in
        [("shop.example", &exact), ("a.wild.example", &wild), ("default.example", &default)]
    {
        connect(gateway.https, name, issued, alpn).await.unwrap();
    }
    assert!(connect(gateway.https, "shop.example", &default, alpn).await.is_err());

    // The old connection lives on, the next one gets the new certificate.
    let open = connect(gateway.https, "shop.example", &exact, alpn).await.unwrap();
    let renewed = issue("shop.example");
    set("shop.example", &renewed);
    assert!(connect(gateway.https, "shop.example", &exact, alpn).await.is_err());
    connect(gateway.https, "shop.example", &renewed, alpn).await.unwrap();
    let mut sender = h1_over(open).await;
    let reply = Reply::read(sender.send_request(get("/echo")).await.unwrap()).await;
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("x-forwarded-proto: https\n"), "{}", reply.body);

    gateway.ingress.set_certificate(&host("shop.example"), None);
    assert!(connect(gateway.https, "shop.example", &renewed, alpn).await.is_err());
}

#[tokio::test]
async fn http2_is_negotiated_and_hosts_keep_to_their_certificates() {
    let (gateway, _app, _program) = serving().await;
    let (shop, wild) = (issue("shop.example"), issue("*.wild.example"));
    gateway.ingress.set_certificate(&host("shop.example"), Some(shop.certificate.clone()));
    gateway.ingress.set_certificate(&host("*.wild.example"), Some(wild.certificate.clone()));
    let stream = connect(gateway.https, "shop.example", &shop, b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = h2_over(stream).await;
    let mut ask = async |uri: &str| {
        let request = http::Request::get(uri).body(crate::client::empty()).unwrap();
        Reply::read(soon("a response", sender.send_request(request)).await.unwrap()).await
    };
    assert_eq!(ask("https://shop.example/echo").await.status, 200);
    ask("https://a.wild.example/").await.assert_error(421, "misdirected");
    ask("https://nobody.example/").await.assert_error(421, "misdirected");
}

#[tokio::test]
async fn plain_text_is_redirected_where_there_is_a_certificate() {
    let (gateway, app, _program) = serving().await;
    let ask = async |request: &str| {
        let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
        raw(gateway.http, request.as_bytes()).await
    };
    let get = "GET /a?b=c HTTP/1.1\r\nHost: shop.example:80\r\n\r\n";
    assert!(ask(get).await.starts_with("HTTP/1.1 200"), "no certificate, no redirect");
    let issued = issue("shop.example");
    gateway.ingress.set_certificate(&host("shop.example"), Some(issued.certificate.clone()));
    let answer = ask(get).await;
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    assert!(answer.contains("location: https://shop.example:8443/a?b=c\r\n"), "{answer}");
    let post = "POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(post).await.starts_with("HTTP/1.1 308"), "which keeps the method and the body");
    let challenge = "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    assert!(ask(challenge).await.starts_with("HTTP/1.1 200"));
    app.route(|route| route.plain_http = PlainHttp::Serve);
    assert!(ask(get).await.starts_with("HTTP/1.1 200"), "the route says otherwise");
    app.sandbox("one", "127.0.0.1".parse().unwrap(), SandboxPhase::Ready, Slots::Unlimited);
}

#[tokio::test]
async fn and_where_the_default_certificate_names_the_host() {
    let (gateway, app, _program) = serving().await;
    app.route(|route| route.host = host("a.shop.example"));
    let check = async |name: &str, status: &str| {
        gateway.ingress.set_certificate(&host("*"), Some(issue(name).certificate));
        let get = "GET / HTTP/1.1\r\nHost: a.shop.example\r\nConnection: close\r\n\r\n";
        let answer = raw(gateway.http, get.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    };
    check("other.example", "200").await;
    check("shop.example", "200").await;
    check("*.a.shop.example", "200").await;
    check("*.example.com", "200").await;
    check("a.shop.example", "308").await;
    check("A.Shop.Example", "308").await;
    check("*.shop.example", "308").await;
    gateway.ingress.set_certificate(&host("*"), None);
    let answer = raw(gateway.http, b"GET / HTTP/1.0\r\nHost: a.shop.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200"), "there is none any more: {answer}");
}

#[test]
fn unusable_certificates_are_refused() {
    let one = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let (chain, key) = (one.cert.pem(), two.signing_key.serialize_pem());
    let error = |chain: &str, key: &str| {
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
    };
    assert!(error("", &key).contains("chain"));
    assert!(error(&chain, "").contains("private key is not valid"));
    assert!(error(&chain, &key).contains("cannot be used"));
}
