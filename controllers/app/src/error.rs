//! What can go wrong in a pass.

use portolan_reconcile::{ReconcileError, Retry, WriteError};

/// A failed step of a pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The new version could not be made.
    #[error("create version")]
    CreateVersion(#[source] WriteError),
    /// The NetworkPolicy could not be applied.
    #[error("apply network policy")]
    ApplyPolicy(#[source] WriteError),
    /// An AppService could not be made or changed.
    #[error("write app service")]
    WriteService(#[source] WriteError),
    /// An AppService that is not needed any more could not be deleted.
    #[error("delete app service")]
    DeleteService(#[source] WriteError),
    /// A version beyond the history limit could not be deleted.
    #[error("prune version")]
    PruneVersion(#[source] WriteError),
    /// The status could not be written.
    #[error("write status")]
    WriteStatus(#[source] WriteError),
}

impl Error {
    fn write(&self) -> &WriteError {
        match self {
            Self::CreateVersion(source)
            | Self::ApplyPolicy(source)
            | Self::WriteService(source)
            | Self::DeleteService(source)
            | Self::PruneVersion(source)
            | Self::WriteStatus(source) => source,
        }
    }

    /// What the API server refuses of what the App needs, and why, in its words.
    pub(crate) fn refusal(&self) -> Option<String> {
        let (Self::CreateVersion(source) | Self::ApplyPolicy(source) | Self::WriteService(source)) =
            self
        else {
            return None;
        };
        let answer = source.refusal()?;
        Some(format!("the API server refuses the {}: {answer}", source.kind))
    }
}

impl ReconcileError for Error {
    fn category(&self) -> &'static str {
        self.write().category()
    }

    fn retry(&self) -> Retry {
        self.write().retry()
    }
}
