//! What the feed knew, on disk: it carries a gateway whose container restarts while the API server
//! is away.
//!
//! The directory belongs to one Pod and goes with it. It holds one file of everything but
//! certificates, written again after a change, and one file for each certificate, written when its
//! Secret comes. All of them are whole or refused: see `file`.
//!
//! Entry points: [`Directory::open`], then [`Directory::load`], [`Keeper::run`] and
//! [`Directory::certificate`]. What was loaded seeds the watches, so that the first complete list
//! of the API server corrects it object by object.

mod certificates;
mod file;
mod format;
mod keeper;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use portolan_process::ErrorChain;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::certificates::Pem;
pub(crate) use self::file::FileError;
pub(crate) use self::format::Kept;
pub(crate) use self::keeper::{Caches, Keeper};

/// The file with everything but certificates.
const STATE: &str = "state";

/// How old a snapshot may be: how long nobody may have vouched for it. A Pod's address is used
/// again for another one sooner or later, and after this time it may be a stranger's.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// Where and how a snapshot is kept.
#[derive(Debug, Clone)]
pub struct SnapshotSettings {
    /// The directory; it is made if it is missing. It will hold private keys.
    pub directory: PathBuf,
    /// UID of this gateway's Pod: the snapshot of another Pod is not used, because it holds the
    /// slots of that one.
    pub pod_uid: Option<String>,
    /// Greatest size of the file in bytes; the directory needs room for two of them beside the
    /// certificates.
    pub size_max: u64,
}

/// The directory of one Pod's snapshot. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    path: Arc<Path>,
    pod_uid: Option<Arc<str>>,
    size_max: u64,
    metrics: SnapshotMetrics,
}

/// A snapshot that may be used.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) kept: Kept,
    /// When its writer last saw everything.
    pub(crate) vouched: Timestamp,
}

impl Directory {
    /// Opens the directory. It is not fatal if that fails: a gateway without a snapshot serves.
    pub(crate) fn open(settings: &SnapshotSettings) -> Option<Self> {
        let path: Arc<Path> = settings.directory.as_path().into();
        if let Err(error) = std::fs::create_dir_all(path.join(certificates::FOLDER)) {
            tracing::error!(path = %path.display(), %error, "Snapshot directory not usable");
            return None;
        }
        let metrics = SnapshotMetrics::default();
        let pod_uid = settings.pod_uid.as_deref().map(Into::into);
        Some(Self { path, pod_uid, size_max: settings.size_max, metrics })
    }

    /// The snapshot of an earlier process of this Pod. Anything wrong with it is logged, counted,
    /// and as if there were none.
    pub(crate) fn load(&self, now: SystemTime) -> Option<Loaded> {
        let loaded = self.read(now);
        let result = match &loaded {
            Ok(Some(_)) => "loaded",
            Ok(None) => "absent",
            Err(_) => "refused",
        };
        self.metrics.loads.get_or_create(&ResultLabel { result }).inc();
        match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "Snapshot not used");
                None
            }
        }
    }

    fn read(&self, now: SystemTime) -> Result<Option<Loaded>, FileError> {
        let Some((text, vouched)) = file::read(&self.path.join(STATE), self.size_max)? else {
            return Ok(None);
        };
        // The clock may have been set back; a time to come is no age.
        let age = now.duration_since(vouched).unwrap_or_default();
        if age > AGE_MAX {
            return Err(FileError::TooOld { age });
        }
        let kept = format::parse(&text, self.pod_uid.as_deref())?;
        let vouched = Timestamp::try_from(vouched).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Some(Loaded { kept, vouched }))
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

/// What became of a load or a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, Default)]
struct SnapshotMetrics {
    loads: Family<ResultLabel, Counter>,
    writes: Family<ResultLabel, Counter>,
    size: Gauge,
}

impl SnapshotMetrics {
    fn register(&self, registry: &mut Registry) {
        let help = "Snapshots read at the start: loaded, absent or refused";
        registry.register("snapshot_loads", help, self.loads.clone());
        let help = "Snapshots and certificates written, or failed to be";
        registry.register("snapshot_writes", help, self.writes.clone());
        let help = "Size of the snapshot, without certificates";
        registry.register_with_unit("snapshot_size", help, Unit::Bytes, self.size.clone());
    }

    fn wrote(&self, result: &Result<u64, FileError>) {
        let result = if result.is_ok() { "written" } else { "failed" };
        self.writes.get_or_create(&ResultLabel { result }).inc();
    }
}
