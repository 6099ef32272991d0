//! All writes but the status: the new version, the NetworkPolicy, the versions that go.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use portolan_api::AppVersion;
use portolan_reconcile::{Applied, Created, Deleted, ObjectKey, Pass, Target};

use crate::AppReconciler;
use crate::error::Error;
use crate::observe::Seen;
use crate::plan::Plan;

impl AppReconciler {
    /// Performs the plan. The version comes first: the rest follows from it on a later pass.
    pub(crate) async fn apply(&self, pass: &Pass, seen: &Seen, plan: &Plan) -> Result<(), Error> {
        let Plan {
            create,
            policy,
            prune,
            wanted: _,
            activation: _,
            settled_epoch: _,
            wanted_since: _,
            look_again: _,
        } = plan;
        if let Some(version) = create {
            self.create_version(pass, version).await?;
        }
        self.apply_policy(pass, policy, seen.policy.as_ref()).await?;
        for (name, uid) in prune {
            self.delete_version(pass, name, uid).await?;
        }
        Ok(())
    }

    async fn create_version(&self, pass: &Pass, version: &AppVersion) -> Result<(), Error> {
        match self.writer.create(version).await.map_err(Error::CreateVersion)? {
            Created::Created(live) => self.versions.observe(*live, pass),
            // The watch will show whose it is.
            Created::AlreadyExists => {}
        }
        Ok(())
    }

    async fn apply_policy(
        &self,
        pass: &Pass,
        policy: &NetworkPolicy,
        observed: Option<&Arc<NetworkPolicy>>,
    ) -> Result<(), Error> {
        let observed = observed.map(AsRef::as_ref);
        let applied = self.writer.apply_if_changed(policy, observed).await;
        match applied.map_err(Error::ApplyPolicy)? {
            Applied::Written(live) => self.policies.observe(*live, pass),
            Applied::Unchanged => {}
        }
        Ok(())
    }

    async fn delete_version(&self, pass: &Pass, name: &str, uid: &str) -> Result<(), Error> {
        let key = ObjectKey::new(pass.key().namespace.clone(), name);
        let target = Target { key, uid: uid.into(), resource_version: None };
        match self.writer.delete::<AppVersion>(&target).await.map_err(Error::PruneVersion)? {
            Deleted::Terminating(live) => self.versions.observe(*live, pass),
            Deleted::Deleted | Deleted::Gone => self.versions.observe_gone(&target, pass),
            Deleted::Conflict => {}
        }
        Ok(())
    }
}
