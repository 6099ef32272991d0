//! All writes but the status: the new version, the NetworkPolicy, the AppServices, what goes.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use portolan_api::{AppService, AppVersion};
use portolan_reconcile::{Applied, Created, Deleted, ObjectKey, Pass, Precondition, Target};

use crate::AppReconciler;
use crate::error::Error;
use crate::l4::Addresses;
use crate::observe::Seen;
use crate::plan::Plan;

impl AppReconciler {
    /// Performs the plan. The version comes first: the rest follows from it on a later pass.
    pub(crate) async fn apply(&self, pass: &Pass, seen: &Seen, plan: &Plan) -> Result<(), Error> {
        let Plan {
            create,
            policy,
            prune,
            addresses,
            wanted: _,
            activation: _,
            withheld: _,
            settled_epoch: _,
            wanted_since: _,
            look_again: _,
        } = plan;
        if let Some(version) = create {
            self.create_version(pass, version).await?;
        }
        self.apply_policy(pass, policy, seen.policy.as_ref()).await?;
        let Addresses { create, replace, delete, is_followed: _, is_needed: _ } = addresses;
        let is_whole = self.write_services(pass, create, replace).await?;
        for (name, uid) in prune {
            self.delete_version(pass, name, uid).await?;
        }
        // Last, so that no address goes in a pass in which anything came out otherwise.
        for target in delete.iter().filter(|_| is_whole) {
            self.delete_service(pass, target).await?;
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
            // What came between is watched, and wakes the App again.
            Applied::Unchanged | Applied::Outdated => {}
        }
        Ok(())
    }

    /// Makes and changes AppServices. One that fails does not hold up the others. Says whether
    /// all came out as planned: where not, the watch shows what came between.
    async fn write_services(
        &self,
        pass: &Pass,
        create: &[AppService],
        replace: &[AppService],
    ) -> Result<bool, Error> {
        let (mut is_whole, mut failed) = (true, None);
        for service in create {
            match self.writer.create(service).await {
                Ok(Created::Created(live)) => self.services.observe(*live, pass),
                Ok(Created::AlreadyExists) => is_whole = false,
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        for service in replace {
            match self.writer.replace(service).await {
                Ok(Precondition::Met(live)) => self.services.observe(*live, pass),
                Ok(Precondition::Gone | Precondition::Conflict) => is_whole = false,
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        failed.map_or(Ok(is_whole), |error| Err(Error::WriteService(error)))
    }

    async fn delete_service(&self, pass: &Pass, target: &Target) -> Result<(), Error> {
        match self.writer.delete::<AppService>(target).await.map_err(Error::DeleteService)? {
            Deleted::Terminating(live) => self.services.observe(*live, pass),
            Deleted::Deleted | Deleted::Gone => self.services.observe_gone(target, pass),
            Deleted::Conflict => {}
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
