//! Claims whose holder is gone: the second way in which a Claim goes, for Routes that nobody
//! looks after any more.
//!
//! Kubernetes does not collect a cluster-scoped object of a namespaced owner, so every Claim is
//! looked at when its holder goes, when a process starts to lead, and at each full pass.

use std::collections::BTreeSet;
use std::future::Future;

use kube::core::PartialObjectMeta;
use portolan_api::{Claim, ClaimKind, Route};
use portolan_reconcile::{
    Cache, Change, Context, Controller, Deleted, Next, ObjectKey, Observed, Pass, Reconciler,
    RunError, Target, Watch, Writer,
};

use crate::error::Error;
use crate::observe::{holder_key, is_route};
use crate::{BY_HOLDER, holder_of};

/// Deletes Claims on hosts whose Route is gone.
struct ClaimSweep {
    writer: Writer,
    claims: Cache<Claim>,
    routes: Cache<PartialObjectMeta<Route>, String>,
}

/// Runs the sweep until `ctx.shutdown` is cancelled.
pub(crate) fn run(ctx: &Context) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "claim");
    let claims = controller.primary(Watch::new().prune().index(BY_HOLDER, holder_of));
    let held = claims.clone();
    // Of a Route only its UID matters here.
    let routes = controller.watch(
        Watch::<PartialObjectMeta<Route>>::new().project(|route| route.metadata.uid),
        move |change| abandoned(change, &held),
    );
    let sweep = ClaimSweep { writer: controller.writer(), claims, routes };
    controller.run(sweep)
}

/// The Claims of a Route that went or was made again under its name.
fn abandoned(change: &Change<'_, String>, claims: &Cache<Claim>) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    let held = claims.by_index(BY_HOLDER, &change.key.to_string());
    held.iter().map(|claim| ObjectKey::of(claim.as_ref())).collect()
}

impl Reconciler for ClaimSweep {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(pass.key()) else { return Ok(Next::Settled) };
        pass.identify(claim.as_ref());
        if is_judged_here(&claim) && self.is_abandoned(&claim).await? {
            self.delete(&claim, pass).await?;
        }
        Ok(Next::Settled)
    }
}

/// Claims of other kinds, and those that somebody made for something that is no Route, stay.
fn is_judged_here(claim: &Claim) -> bool {
    claim.spec.kind == ClaimKind::Host && is_route(&claim.spec.holder.kind)
}

impl ClaimSweep {
    /// The cache may confirm a holder; only the API server may deny it.
    async fn is_abandoned(&self, claim: &Claim) -> Result<bool, Error> {
        let (holder, key) = (&claim.spec.holder, holder_key(claim));
        if self.routes.get(&key).is_some_and(|uid| *uid == holder.uid) {
            return Ok(false);
        }
        // Metadata is enough, and can be read of a Route that is malformed otherwise.
        match self.writer.get::<PartialObjectMeta<Route>>(&key).await {
            Observed::Absent => Ok(true),
            Observed::Present(live) => Ok(live.metadata.uid.as_ref() != Some(&holder.uid)),
            Observed::Unknown(why) => Err(Error::Holder { why }),
        }
    }

    async fn delete(&self, claim: &Claim, pass: &Pass) -> Result<(), Error> {
        let target = Target::at(claim);
        match self.writer.delete::<Claim>(&target).await.map_err(Error::Release)? {
            Deleted::Deleted => {
                self.claims.observe_gone(&target, pass);
                tracing::info!(host = claim.spec.value, "Claim of a route that is gone released");
                Ok(())
            }
            Deleted::Terminating(_) | Deleted::Gone => Ok(()),
            Deleted::Conflict => Err(Error::Stale),
        }
    }
}
