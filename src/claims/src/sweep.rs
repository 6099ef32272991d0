//! Claims whose holder is gone: the second way in which a Claim goes, for holders that nobody
//! looks after any more.
//!
//! Kubernetes does not collect a cluster-scoped object of a namespaced owner, so every Claim is
//! looked at when its holder goes, when a process starts to lead, and at each full pass.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;

use kube::Resource;
use kube::core::PartialObjectMeta;
use portolan_api::Claim;
use portolan_reconcile::{
    Cache, Change, Controller, Next, ObjectKey, Observed, Packed, Pass, Reconciler, RunError,
    Target, Watch, Writer,
};

use crate::{BY_HOLDER, Claims, Error, Realm, holder_key};

/// Deletes Claims whose holder, of kind `K`, is gone.
struct Sweep<K> {
    realm: Realm,
    writer: Writer,
    claims: Claims,
    holders: Cache<PartialObjectMeta<K>, String>,
}

/// Runs a controller without watches as one that sweeps the Claims of a realm, until its process
/// shall stop. `K` is the kind of the holders.
///
/// # Errors
///
/// [`RunError`] when one of the controller's own tasks ended unasked.
pub fn sweep<K>(
    mut controller: Controller,
    realm: Realm,
) -> impl Future<Output = Result<(), RunError>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let cache = controller.primary(realm.watch());
    let held = cache.clone();
    // Of a holder only its UID matters here.
    let holders = controller.watch(
        Watch::<PartialObjectMeta<K>>::new().project(|holder| holder.metadata.uid),
        move |change| abandoned(change, &held),
    );
    let writer = controller.writer();
    let claims = Claims::new(realm, writer.clone(), cache);
    controller.run(Sweep { realm, writer, claims, holders })
}

/// The Claims of a holder that went or was made again under its name.
fn abandoned(
    change: &Change<'_, String>,
    claims: &Cache<Claim, Packed<Claim>>,
) -> BTreeSet<ObjectKey> {
    if change.old == change.new {
        return BTreeSet::new();
    }
    claims.keys_by_index(BY_HOLDER, &change.key.to_string()).into_iter().collect()
}

impl<K> Reconciler for Sweep<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let Some(claim) = self.claims.cache.unpack(pass.key()) else { return Ok(Next::Settled) };
        pass.identify(claim.as_ref());
        if self.realm.has(&claim) && self.is_abandoned(&claim).await? {
            self.claims.release(&Target::at(claim.as_ref()), "holder is gone", pass).await?;
        }
        Ok(Next::Settled)
    }
}

impl<K> Sweep<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    /// The cache may confirm a holder; only the API server may deny it.
    async fn is_abandoned(&self, claim: &Claim) -> Result<bool, Error> {
        let (holder, key) = (&claim.spec.holder, holder_key(claim));
        if self.holders.get(&key).is_some_and(|uid| *uid == holder.uid) {
            return Ok(false);
        }
        // Metadata is enough, and can be read of a holder that is malformed otherwise.
        match self.writer.get::<PartialObjectMeta<K>>(&key).await {
            Observed::Absent => Ok(true),
            Observed::Present(live) => Ok(live.metadata.uid.as_ref() != Some(&holder.uid)),
            Observed::Unknown(why) => Err(Error::Holder { why }),
        }
    }
}
