//! One file for each certificate, so that none has to be kept in memory as text.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use portolan_process::ErrorChain;
use portolan_reconcile::ObjectKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Directory;
use super::file::{self, FileError, hexadecimal};

/// Where in the directory they are.
pub(super) const FOLDER: &str = "certificates";

/// Greatest size of one file: a Secret has at most 1 MiB, and JSON escapes its line feeds.
const SIZE_MAX: u64 = 3 << 20;

/// A chain and its key, as in a Secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pem {
    pub(crate) chain: String,
    pub(crate) key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    namespace: String,
    name: String,
    chain: String,
    key: String,
}

impl Directory {
    /// Keeps the certificate of a Secret. What fails is logged and counted: it is served anyway.
    pub(crate) fn keep_certificate(&self, secret: &ObjectKey, pem: Pem) {
        let ObjectKey { namespace, name } = secret.clone();
        let Pem { chain, key } = pem;
        let record = Record { namespace, name, chain, key };
        let path = self.certificate_path(secret);
        let written =
            file::write(&path, SIZE_MAX, SystemTime::now(), |records| records.add(&record));
        self.metrics.wrote(&written);
        if let Err(error) = written {
            tracing::warn!(error = %ErrorChain(&error), "Certificate not kept");
        }
    }

    /// The certificate of a Secret that an earlier process kept.
    pub(crate) fn certificate(&self, secret: &ObjectKey) -> Option<Pem> {
        let kept = self.read_certificate(secret);
        kept.unwrap_or_else(|error| {
            tracing::warn!(error = %ErrorChain(&error), "Kept certificate not used");
            None
        })
    }

    /// Nobody asks for the Secret any more.
    pub(crate) fn drop_certificate(&self, secret: &ObjectKey) {
        // One that was never kept is gone already.
        let _ = fs::remove_file(self.certificate_path(secret));
    }

    fn read_certificate(&self, secret: &ObjectKey) -> Result<Option<Pem>, FileError> {
        let Some((text, _)) = file::read(&self.certificate_path(secret), SIZE_MAX)? else {
            return Ok(None);
        };
        let record: Record = serde_json::from_slice(&text).map_err(FileError::Record)?;
        if (&record.namespace, &record.name) != (&secret.namespace, &secret.name) {
            return Err(FileError::Foreign);
        }
        Ok(Some(Pem { chain: record.chain, key: record.key }))
    }

    /// By digest: two names together may be longer than a file's name.
    fn certificate_path(&self, secret: &ObjectKey) -> PathBuf {
        let digest = Sha256::digest(format!("{}/{}", secret.namespace, secret.name));
        self.path.join(FOLDER).join(hexadecimal(&digest))
    }
}
