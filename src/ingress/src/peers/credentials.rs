//! This gateway's key pairs and certificates: made here, changed here, never stored.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::tls::provider;

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The key or the certificate was not generated.
    #[error("no certificate could be made")]
    Generate(#[source] rcgen::Error),
    /// The key cannot be used for TLS.
    #[error("the new key cannot be used for TLS")]
    Unusable(#[source] rustls::Error),
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Credential {
    key: Arc<CertifiedKey>,
    digest: Arc<str>,
}

impl Credential {
    /// A new P-256 key with a certificate signed by itself. Names and times in it mean nothing:
    /// whose it is and for how long it is good is what the Lease says of its digest.
    pub(crate) fn generate() -> Result<Self, CredentialError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        let key = key.map_err(CredentialError::Generate)?;
        let signed = CertificateParams::default().self_signed(&key);
        let certificate = signed.map_err(CredentialError::Generate)?.der().clone();
        let digest = digest(&certificate).into();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = CertifiedKey::from_der(vec![certificate], key, &provider());
        let key = Arc::new(key.map_err(CredentialError::Unusable)?);
        Ok(Self { key, digest })
    }

    pub(crate) fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    pub(crate) fn digest(&self) -> &Arc<str> {
        &self.digest
    }
}

/// Never shows the key.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credential").field(&self.digest).finish()
    }
}

/// SHA-256 of a certificate in hexadecimal, as Leases show it.
pub(crate) fn digest(certificate: &CertificateDer<'_>) -> String {
    HEXLOWER.encode(&Sha256::digest(certificate))
}

/// When certificates change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotation {
    /// How long one is used.
    pub(crate) every: Duration,
    /// How long a published one waits until it is used: others see a Lease through a watch.
    pub(crate) settle: Duration,
}

/// The certificate in use and the digests to publish.
#[derive(Debug)]
pub(crate) struct Credentials {
    current: watch::Sender<Credential>,
    shown: watch::Sender<Vec<String>>,
    published: watch::Sender<Vec<String>>,
}

impl Credentials {
    pub(crate) fn generate() -> Result<Self, CredentialError> {
        let first = Credential::generate()?;
        Ok(Self {
            shown: watch::Sender::new(vec![first.digest.to_string()]),
            published: watch::Sender::new(Vec::new()),
            current: watch::Sender::new(first),
        })
    }

    /// The certificate for new connections.
    pub(crate) fn current(&self) -> watch::Receiver<Credential> {
        self.current.subscribe()
    }

    /// The digests to publish.
    pub(crate) fn shown(&self) -> watch::Receiver<Vec<String>> {
        self.shown.subscribe()
    }

    /// Where to enter what has been published.
    pub(crate) fn published(&self) -> watch::Sender<Vec<String>> {
        self.published.clone()
    }

    /// Changes the certificate for ever: the new one is published beside the old one, and used
    /// when others have had the time to see it. The old one stays published until the change after
    /// that, and connections that were made with it live on.
    pub(crate) async fn rotate(&self, rotation: Rotation) {
        loop {
            sleep(rotation.every).await;
            let next = match Credential::generate() {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(error = %portolan_process::ErrorChain(&error),
                        "No new certificate for other gateways");
                    continue;
                }
            };
            let old = self.current.borrow().digest.to_string();
            self.shown.send_replace(vec![old, next.digest.to_string()]);
            let is_published = |digests: &Vec<String>| digests.iter().any(|d| **d == *next.digest);
            let mut published = self.published.subscribe();
            published.wait_for(is_published).await.expect("`self` holds the sender");
            sleep(rotation.settle).await;
            self.current.send_replace(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROTATION: Rotation =
        Rotation { every: Duration::from_secs(60), settle: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_used_only_after_it_was_published() {
        let credentials = Credentials::generate().unwrap();
        let (mut current, mut shown) = (credentials.current(), credentials.shown());
        let published = credentials.published();
        let first = current.borrow_and_update().digest.to_string();
        assert_eq!(*shown.borrow_and_update(), std::slice::from_ref(&first));
        let story = async {
            shown.changed().await.unwrap();
            let both = shown.borrow_and_update().clone();
            assert_eq!(both[0], first);
            sleep(ROTATION.settle * 2).await;
            assert!(!current.has_changed().unwrap(), "nobody can know it yet");
            published.send_replace(both.clone());
            current.changed().await.unwrap();
            assert_eq!(*current.borrow_and_update().digest, both[1]);
            assert!(!shown.has_changed().unwrap(), "the old one stays known");
            shown.changed().await.unwrap();
            let later = shown.borrow_and_update().clone();
            assert_eq!(later[0], both[1]);
            assert!(!later.contains(&first));
        };
        tokio::select! {
            () = credentials.rotate(ROTATION) => {}
            () = story => {}
        }
    }

    #[test]
    fn no_key_is_shown_in_logs() {
        let credential = Credential::generate().unwrap();
        assert_eq!(format!("{credential:?}"), format!("Credential({:?})", credential.digest));
    }
}
