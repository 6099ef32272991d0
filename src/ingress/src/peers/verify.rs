//! Who may speak to whom: both ends know each other's certificate by its digest.
//!
//! No authority signs anything here and no name or date in a certificate is read. A certificate is
//! trusted if a gateway that lives shows its digest in its Lease, and nothing else is: the API
//! server, whose admission lets a gateway write its own Lease only, is the authority. That the other
//! end holds the key is proven by its signature on the handshake, as ever.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
};

use crate::peers::credentials::{Credential, digest};
use crate::peers::roster::Roster;
use crate::tls::{ALPN_H2, provider};

/// For a connection to one gateway, which shows one of these `certificates`.
pub(crate) fn client_config(
    own: &Credential,
    certificates: Vec<String>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Known::Of(certificates)))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key())));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session would not ask who the other end is.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For a connection from any gateway of the roster.
pub(crate) fn server_config(own: &Credential, roster: Arc<Roster>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Known::OfAny(roster)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.key())));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificates that are trusted on one connection.
#[derive(Debug)]
enum Known {
    /// Those of one gateway.
    Of(Vec<String>),
    /// Those of all that live. Which of them it is, the request says, and that is checked again.
    OfAny(Arc<Roster>),
}

impl Known {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let digest = digest(certificate);
        let is_known = match self {
            Self::Of(certificates) => certificates.contains(&digest),
            Self::OfAny(roster) => roster.knows(&digest),
        };
        match is_known {
            true => Ok(()),
            false => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }
}

/// Not reached: TLS 1.2 is not offered. Should it ever be, nothing is valid under it.
fn refuse_tls12() -> Error {
    PeerIncompatible::Tls12NotOffered.into()
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Known {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
