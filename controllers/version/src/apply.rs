//! All writes: the pools of the plan, each whole.

use portolan_api::SandboxPool;
use portolan_reconcile::{Applied, ObjectKey, Pass};

use crate::VersionReconciler;
use crate::error::Error;
use crate::observe::Seen;
use crate::plan::Plan;

impl VersionReconciler {
    /// Applies every pool; one that is refused does not keep the others from being applied.
    /// Returns the first failure.
    pub(crate) async fn apply(&self, pass: &Pass, seen: &Seen, plan: &Plan) -> Result<(), Error> {
        let mut failed = None;
        for (name, desired) in &plan.pools {
            let observed = seen.pools.get(name).map(AsRef::as_ref);
            match self.writer.apply_if_changed::<SandboxPool>(desired, observed).await {
                Ok(Applied::Written(live)) => self.pools.observe(*live, pass),
                // What came between is watched, and wakes the App again.
                Ok(Applied::Unchanged | Applied::Outdated) => {}
                Err(source) => {
                    failed.get_or_insert(Error::ApplyPool { name: name.clone(), source });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The key of a pool's App.
pub(crate) fn app_of(pool: &SandboxPool) -> Option<ObjectKey> {
    Some(ObjectKey::new(pool.metadata.namespace.clone()?, pool.spec.app.clone()))
}
