//! Why a pass of the pool controller fails.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// One variant for each kind of write.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the caches know of the pool could not be used.
    #[error("read the pool: {0}")]
    Unknown(String),
    /// `spec.replicas` could not be written.
    #[error("set the number of replicas")]
    Replicas(#[source] WriteError),
    /// A sandbox could not be created.
    #[error("create a sandbox")]
    Create(#[source] WriteError),
    /// The slots of a sandbox could not be written.
    #[error("grant slots")]
    Grant(#[source] WriteError),
    /// A sandbox could not be marked as draining.
    #[error("mark a sandbox as draining")]
    Mark(#[source] WriteError),
    /// A sandbox could not be deleted.
    #[error("delete a sandbox")]
    Delete(#[source] WriteError),
    /// The status could not be written.
    #[error("write the status")]
    Status(#[source] WriteError),
}

impl Error {
    fn write(&self) -> Option<&WriteError> {
        match self {
            Self::Unknown(_) => None,
            Self::Replicas(source)
            | Self::Create(source)
            | Self::Grant(source)
            | Self::Mark(source)
            | Self::Delete(source)
            | Self::Status(source) => Some(source),
        }
    }
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        self.write().map_or("pool_unknown", WriteError::category)
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Unknown(_) => Retry::WaitForChange,
            other => other.write().map_or(Retry::Backoff, WriteError::retry),
        }
    }
}
