//! Who is let in, and whom a gateway believes.

use http::{Method, Request, StatusCode};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::peers::connection::{INSTANCE, PATH};
use crate::peers::exchange::Outgoing;
use crate::peers::verify::client_config;
use crate::tls::provider;

/// Believes everybody, as an attacker does.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

type Version = &'static rustls::SupportedProtocolVersion;

fn attacker(key: Option<Arc<CertifiedKey>>, version: Version) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match key {
        Some(key) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// One gateway's certificate with another's key.
fn stolen(certificate: &Credential, key: &Credential) -> Arc<CertifiedKey> {
    let (certificate, key) = (certificate.key(), key.key());
    Arc::new(CertifiedKey::new(certificate.cert.clone(), key.key.clone()))
}

/// The client's handshake ends before the server has looked at its certificate, so what tells is
/// whether anything can be read.
async fn is_let_in(config: ClientConfig, address: SocketAddr) -> bool {
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::IpAddress(address.ip().into());
    let Ok(mut stream) = connector.connect(name, stream).await else { return false };
    // The preface of HTTP/2 is answered by the server's settings.
    if stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.is_err() {
        return false;
    }
    let mut byte = [0];
    matches!(timeout(LIMIT, stream.read(&mut byte)).await.unwrap(), Ok(1))
}

#[tokio::test]
async fn only_a_living_gateway_with_its_own_key_is_let_in() {
    let place = Place::new("b").await;
    let (known, stranger) = (Credential::generate().unwrap(), Credential::generate().unwrap());
    let certificates = vec![known.digest().to_string()];
    let peer = Peer { address: place.address, certificates, serves: true };
    place.sees([("a".into(), peer)]);
    let (v13, v12) = (&rustls::version::TLS13, &rustls::version::TLS12);
    for (why, expected, key, version) in [
        ("the right certificate", true, Some(known.key()), v13),
        ("no certificate", false, None, v13),
        ("an unknown certificate", false, Some(stranger.key()), v13),
        ("a known certificate with another key", false, Some(stolen(&known, &stranger)), v13),
        ("an unknown one with a known key", false, Some(stolen(&stranger, &known)), v13),
        ("TLS 1.2", false, Some(known.key()), v12),
    ] {
        assert_eq!(is_let_in(attacker(key, version), place.address).await, expected, "{why}");
    }
    // Its Lease has lapsed, or it has left.
    place.sees([]);
    let late = is_let_in(attacker(Some(known.key()), v13), place.address).await;
    assert!(!late, "the gateway lives no more");
    assert_eq!(place.book.begun(), 0);
}

#[tokio::test]
async fn a_gateway_believes_only_the_one_it_looks_for() {
    let (own, right) = (Credential::generate().unwrap(), Credential::generate().unwrap());
    let wrong = Credential::generate().unwrap();
    let (both, v12): (&[Version], &[Version]) =
        (&[&rustls::version::TLS13, &rustls::version::TLS12], &[&rustls::version::TLS12]);
    for (why, expected, key, versions) in [
        ("the right certificate", true, right.key(), both),
        ("an unknown certificate", false, wrong.key(), both),
        ("the right certificate with another key", false, stolen(&right, &wrong), both),
        ("TLS 1.2", false, right.key(), v12),
    ] {
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = async move {
            let (stream, _) = listener.accept().await.unwrap();
            // It is the client's judgement that counts.
            let _ = acceptor.accept(stream).await;
        };
        let config = client_config(&own, vec![right.digest().to_string()]).unwrap();
        let client = async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::IpAddress(address.ip().into());
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.is_ok()
        };
        let ((), believed) = tokio::join!(server, client);
        assert_eq!(believed, expected, "{why}");
    }
}

async fn secure(config: ClientConfig, address: SocketAddr) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn one_request_is_answered_and_for_oneself_only() {
    let place = Place::new("m").await;
    let [own, other] = [(); 2].map(|()| Credential::generate().unwrap());
    let peer = |credential: &Credential| Peer {
        address: place.address,
        certificates: vec![credential.digest().to_string()],
        serves: true,
    };
    place.sees([("a".into(), peer(&own)), ("b".into(), peer(&other)), ("z".into(), peer(&own))]);
    for (method, path, name, expected) in [
        (Method::POST, PATH, Some("b"), StatusCode::FORBIDDEN),
        (Method::POST, PATH, Some("nobody"), StatusCode::FORBIDDEN),
        (Method::POST, PATH, Some("z"), StatusCode::FORBIDDEN),
        (Method::POST, PATH, None, StatusCode::FORBIDDEN),
        (Method::GET, PATH, Some("a"), StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/", Some("a"), StatusCode::NOT_FOUND),
        (Method::POST, "/.well-known/portolan/peers/link/", Some("a"), StatusCode::NOT_FOUND),
        (Method::POST, PATH, Some("a"), StatusCode::OK),
    ] {
        let config = client_config(&own, vec![place.digest()]).unwrap();
        let stream = secure(config, place.address).await;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(&method).uri(format!("https://peer{path}"));
        if let Some(name) = name {
            request = request.header(INSTANCE, name);
        }
        // A link lives as long as both directions are open.
        let (_open, body) = Outgoing::new();
        let request = request.body(body).unwrap();
        let response = timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap();
        assert_eq!(response.status(), expected, "{method} {path} as {name:?}");
        driver.abort();
    }
    let mut begun = place.book.0.lock().begun.subscribe();
    let begun = timeout(LIMIT, begun.wait_for(|begun| !begun.is_empty())).await.unwrap().unwrap();
    assert_eq!(**begun, ["a".into()]);
}
