//! Why a pass can fail.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// Why a pass over a Route, a Domain or a Claim failed; one variant for each step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Claim on the host could not be taken, judged or released.
    #[error(transparent)]
    Claim(#[from] portolan_claims::Error),
    /// The status could not be written.
    #[error("cannot write the status")]
    Status(#[source] WriteError),
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Claim(source) => source.category(),
            Self::Status(_) => "status",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Claim(source) => source.retry(),
            Self::Status(source) => source.retry(),
        }
    }
}
