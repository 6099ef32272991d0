//! From the data plane to Kubernetes: this gateway's Lease and its two `GatewayReport`s.
//!
//! A gateway writes nothing else, and never on a request path. What waits (requests without a
//! sandbox) is reported at once; what only goes up and down is reported at leisure, so that
//! busy Apps cost no writes of their own.
//!
//! Entry point: [`Reporter`]. Invariant: an epoch is reported only after the ingress follows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use portolan_api::{CertificateReport, EpochReport};
use portolan_reconcile::ObjectKey;
use tokio::sync::Notify;

mod book;
mod identity;
mod lease;
mod writer;

pub use identity::Identity;
pub use lease::{HeldLease, Shown};
pub use writer::{Reporter, Unheard};

/// The component name in metrics and field managers.
const COMPONENT: &str = "gateway";
/// Pause after a write that failed: the API server is away or overloaded.
const PAUSE: Duration = Duration::from_millis(500);

/// What this gateway follows and what it cannot use. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct State {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Parts>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Parts {
    epochs: BTreeMap<ObjectKey, i64>,
    certificates: BTreeMap<ObjectKey, CertificateReport>,
}

impl State {
    /// This gateway follows the epoch of an App that has not settled.
    pub(crate) fn follow(&self, app: &ObjectKey, epoch: u64) {
        let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
        let before = self.shared.state.lock().epochs.insert(app.clone(), epoch);
        if before != Some(epoch) {
            self.shared.changed.notify_one();
        }
    }

    /// The App has settled or gone: nobody waits for this gateway's word any more.
    pub(crate) fn forget(&self, app: &ObjectKey) {
        // No wake: an entry too many does no harm, and goes with the next report.
        self.shared.state.lock().epochs.remove(app);
    }

    /// What there is to complain of about a Secret, or that it is well.
    pub(crate) fn certificate(&self, secret: &ObjectKey, complaint: Option<CertificateReport>) {
        let mut state = self.shared.state.lock();
        let before = match &complaint {
            Some(complaint) => state.certificates.insert(secret.clone(), complaint.clone()),
            None => state.certificates.remove(secret),
        };
        if before == complaint {
            return;
        }
        self.shared.changed.notify_one();
        // The default certificate has no Route whose condition would say it.
        match complaint {
            Some(CertificateReport { reason, message, .. }) => {
                tracing::warn!(%secret, reason, message, "Certificate cannot be used");
            }
            None => tracing::info!(%secret, "Certificate can be used again"),
        }
    }

    /// Waits for a change that somebody waits to hear of.
    async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    fn epochs(&self) -> Vec<EpochReport> {
        let state = self.shared.state.lock();
        let entries = state.epochs.iter().map(|(app, epoch)| EpochReport {
            namespace: app.namespace.clone(),
            name: app.name.clone(),
            epoch: *epoch,
        });
        entries.collect()
    }

    fn certificates(&self) -> Vec<CertificateReport> {
        self.shared.state.lock().certificates.values().cloned().collect()
    }
}
