//! Why a pass can fail.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// Why a pass over a Route, a Domain or a Claim failed; one variant for each step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Claim on the host could not be created.
    #[error("cannot claim the host")]
    Claim(#[source] WriteError),
    /// A Claim could not be deleted.
    #[error("cannot release the claim")]
    Release(#[source] WriteError),
    /// The status could not be written.
    #[error("cannot write the status")]
    Status(#[source] WriteError),
    /// The holder of a Claim could not be read, so nothing is known about it.
    #[error("cannot read the holder of the claim: {why}")]
    Holder {
        /// What the client or the API server said.
        why: String,
    },
    /// The Claim changed between the look at it and the write.
    #[error("the claim changed meanwhile")]
    Stale,
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Claim(_) => "claim",
            Self::Release(_) => "release",
            Self::Status(_) => "status",
            Self::Holder { .. } => "holder",
            Self::Stale => "stale",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Claim(source) | Self::Release(source) | Self::Status(source) => source.retry(),
            Self::Holder { .. } | Self::Stale => Retry::Backoff,
        }
    }
}
