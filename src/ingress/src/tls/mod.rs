//! Certificates by server name, replaceable while connections are open.

mod certificates;

use std::sync::Arc;

use rustls::ServerConfig;

pub(crate) use certificates::provider;
pub use certificates::{Certificate, CertificateError};
pub(crate) use certificates::{CertificateKey, Certificates};

/// HTTP/2 in the list of protocols.
pub(crate) const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// TLS 1.2 and 1.3, the certificate by server name, HTTP/2 preferred.
pub(crate) fn server_config(
    certificates: Arc<Certificates>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(Arc::new(config))
}
