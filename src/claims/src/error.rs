//! Why a Claim could not be taken, judged or released.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// Why a Claim could not be taken, judged or released; one variant for each step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be created.
    #[error("cannot take the claim")]
    Take(#[source] WriteError),
    /// It could not be deleted.
    #[error("cannot release the claim")]
    Release(#[source] WriteError),
    /// Its holder could not be read, so nothing is known about it.
    #[error("cannot read the holder of the claim: {why}")]
    Holder {
        /// What the client or the API server said.
        why: String,
    },
    /// It changed between the look at it and the write.
    #[error("the claim changed meanwhile")]
    Stale,
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Take(_) => "claim",
            Self::Release(_) => "release",
            Self::Holder { .. } => "holder",
            Self::Stale => "stale",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Take(source) | Self::Release(source) => source.retry(),
            Self::Holder { .. } | Self::Stale => Retry::Backoff,
        }
    }
}
