//! What can go wrong in a pass.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// A failed step of a pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pool could not be applied.
    #[error("apply pool {name}")]
    ApplyPool {
        /// Name of the pool.
        name: String,
        /// What the API server said.
        #[source]
        source: WriteError,
    },
    /// A version's status could not be written.
    #[error("write status of version {name}")]
    WriteStatus {
        /// Name of the version.
        name: String,
        /// What the API server said.
        #[source]
        source: WriteError,
    },
}

impl Error {
    fn source(&self) -> &WriteError {
        match self {
            Self::ApplyPool { source, .. } | Self::WriteStatus { source, .. } => source,
        }
    }
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        self.source().category()
    }

    fn retry(&self) -> Retry {
        self.source().retry()
    }
}
