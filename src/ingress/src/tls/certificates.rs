//! The table of certificates and the choice by SNI.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use arc_swap::ArcSwapOption;
use webpki::EndEntityCert;

use crate::host::{HostPattern, normalize, split_label};
use crate::sharded::ShardedMap;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The chain is not PEM, or holds no certificate.
    #[error("certificate chain is not valid PEM or is empty")]
    Chain,
    /// The key is not PEM, or holds no private key.
    #[error("private key is not valid PEM or is missing")]
    Key,
    /// The key is of a kind we cannot sign with, or belongs to another certificate.
    #[error("private key cannot be used with this certificate")]
    Unusable(#[source] rustls::Error),
}

/// A certificate chain with its key.
#[derive(Clone)]
pub struct Certificate(Arc<CertifiedKey>);

impl Certificate {
    /// Reads a chain (leaf first) and its key, both PEM, as in a `kubernetes.io/tls` secret.
    ///
    /// # Errors
    ///
    /// See [`CertificateError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateError::Chain)?;
        if chain.is_empty() {
            return Err(CertificateError::Chain);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::Key)?;
        let provider = provider();
        let key =
            CertifiedKey::from_der(chain, key, &provider).map_err(CertificateError::Unusable)?;
        Ok(Self(Arc::new(key)))
    }

    /// The DNS names that it is for; none if it cannot be read.
    fn names(&self) -> BTreeSet<Box<str>> {
        let Some(leaf) = self.0.cert.first() else { return BTreeSet::new() };
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return BTreeSet::new() };
        leaf.valid_dns_names().map(|name| name.to_ascii_lowercase().into()).collect()
    }
}

/// Never shows the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// The one provider of this project, without asking what the process has installed.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Which entry of the table answers a name. Two names with equal keys share a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CertificateKey {
    Exact(Arc<str>),
    Wildcard(Arc<str>),
    Default,
}

/// Certificates by host.
#[derive(Debug)]
pub(crate) struct Certificates {
    exact: ShardedMap<Arc<str>, Certificate>,
    wildcard: ShardedMap<Arc<str>, Certificate>,
    default: ArcSwapOption<Fallback>,
}

/// The certificate for names without their own.
#[derive(Debug)]
struct Fallback {
    certificate: Certificate,
    /// What it says it is for, in the form of a normalised host; `*.` and a suffix for wildcards.
    names: BTreeSet<Box<str>>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        Self {
            exact: ShardedMap::new(),
            wildcard: ShardedMap::new(),
            default: ArcSwapOption::empty(),
        }
    }

    /// Sets or, with `None`, removes the certificate of a host. Open connections keep theirs.
    pub(crate) fn set(&self, host: &HostPattern, certificate: Option<Certificate>) {
        let (map, key) = match host {
            HostPattern::Exact(host) => (&self.exact, host),
            HostPattern::Wildcard(suffix) => (&self.wildcard, suffix),
            HostPattern::Default => {
                let default = certificate.map(Fallback::new).map(Arc::new);
                return self.default.store(default);
            }
        };
        match certificate {
            Some(certificate) => map.insert(Arc::clone(key), certificate),
            None => map.remove_if(key, |_| true),
        };
    }

    /// Whether a client that asks for a host gets a certificate that is for it: the host's own, or
    /// the default one if that names the host.
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.exact.contains(host)
            || split_label(host).is_some_and(|(_, parent)| self.wildcard.contains(parent))
            || self.default.load().as_ref().is_some_and(|default| default.is_for(host))
    }

    /// The entry that answers a normalised host; it may be the default that nobody has set.
    pub(crate) fn key_of(&self, host: &str) -> CertificateKey {
        if self.exact.contains(host) {
            return CertificateKey::Exact(host.into());
        }
        match split_label(host) {
            Some((_, parent)) if self.wildcard.contains(parent) => {
                CertificateKey::Wildcard(parent.into())
            }
            _ => CertificateKey::Default,
        }
    }

    /// Whether [`key_of`](Self::key_of) would say this key, without making one.
    pub(crate) fn is_key_of(&self, host: &str, key: &CertificateKey) -> bool {
        if self.exact.contains(host) {
            return matches!(key, CertificateKey::Exact(exact) if **exact == *host);
        }
        match split_label(host) {
            Some((_, parent)) if self.wildcard.contains(parent) => {
                matches!(key, CertificateKey::Wildcard(suffix) if **suffix == *parent)
            }
            _ => *key == CertificateKey::Default,
        }
    }

    fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = server_name.and_then(|name| {
            let host = normalize(name).ok()?;
            let parent = split_label(&host).map(|(_, parent)| parent);
            self.exact.load(&*host).or_else(|| self.wildcard.load(parent?))
        });
        by_name.map(|certificate| certificate.0).or_else(|| {
            self.default.load().as_ref().map(|default| Arc::clone(&default.certificate.0))
        })
    }
}

impl Fallback {
    fn new(certificate: Certificate) -> Self {
        let names = certificate.names();
        Self { certificate, names }
    }

    fn is_for(&self, host: &str) -> bool {
        self.names.contains(host)
            || split_label(host).is_some_and(|(_, parent)| {
                let mut wildcards = self.names.iter().filter_map(|name| name.strip_prefix("*."));
                wildcards.any(|suffix| suffix == parent)
            })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}
