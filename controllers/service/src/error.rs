//! Why a pass can fail.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// Why a pass over an `AppService` failed; one variant for each step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Service that gives it its address could not be created or changed.
    #[error("cannot write the service")]
    Service(#[source] WriteError),
    /// A node port could not be taken, judged or released.
    #[error(transparent)]
    Claim(#[from] portolan_claims::Error),
    /// Its endpoints could not be written.
    #[error("cannot write the endpoints")]
    Slice(#[source] WriteError),
    /// The status could not be written.
    #[error("cannot write the status")]
    Status(#[source] WriteError),
    /// Something that decides could not be read.
    #[error("cannot see {what}: {why}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// What the cache, the client or the API server said.
        why: String,
    },
    /// An object changed between the look at it and the write.
    #[error("{0} changed meanwhile")]
    Stale(&'static str),
    /// Each round of the pass found something else to write.
    #[error("the plan does not come to rest")]
    Restless,
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Service(_) => "service",
            Self::Claim(source) => source.category(),
            Self::Slice(_) => "slice",
            Self::Status(_) => "status",
            Self::Unknown { .. } => "unknown",
            Self::Stale(_) => "stale",
            Self::Restless => "restless",
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Service(source) | Self::Slice(source) | Self::Status(source) => source.retry(),
            Self::Claim(source) => source.retry(),
            Self::Unknown { .. } | Self::Stale(_) | Self::Restless => Retry::Backoff,
        }
    }
}
