//! Claims: how a controller takes, judges and releases what only one object can have.
//!
//! A host and a node port have one holder each, and a `Claim` named after the thing says which.
//! The controllers of the kinds that hold such things share this crate, so that there is one
//! answer to when a Claim may go. It deliberately does not know who should have a thing: whether
//! to take, to wait or to give up is each controller's plan.
//!
//! Entry points: [`Realm`] says what is claimed by which kind, [`Claims`] reads and writes, and
//! [`sweep`] is a small controller that deletes the Claims of holders that are gone.
//!
//! Invariants:
//!
//! - A Claim is created, never changed; who is answered 409 has lost. So a thing has one holder at
//!   any time, whatever two leaders or two passes believe.
//! - A Claim is deleted only as exactly the object that was seen (UID and resource version).
//! - A cache may confirm a holder; only the API server may deny it.

mod error;
mod holder;
mod sweep;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_api::{Claim, ClaimKind, ClaimSpec, Holder, labels, names};
use portolan_reconcile::{
    Cache, Created, Deleted, ObjectKey, Observed, Packed, Pass, Target, Watch, Writer,
};

pub use error::Error;
pub use holder::{HolderState, confirmed, holder_key, is_holder, judged};
pub use sweep::sweep;

/// Claims by `namespace/name` of their holder.
const BY_HOLDER: &str = "holder";

/// What is claimed, and by objects of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Realm {
    /// What is claimed.
    pub kind: ClaimKind,
    /// The kind of the holders, such as `Route`.
    pub holder: &'static str,
}

/// What came of taking a thing.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// It is held now.
    Won,
    /// Another was first; this is its Claim.
    Lost(Box<Claim>),
}

impl Realm {
    /// The key of the Claim on a thing.
    pub fn key(self, value: &str) -> ObjectKey {
        ObjectKey::cluster(names::claim(self.kind, value))
    }

    /// Whether this Claim is on that thing. Its name alone does not say so: anybody who may create
    /// Claims may give them any name.
    pub fn is_on(self, claim: &Claim, value: &str) -> bool {
        claim.spec.kind == self.kind && claim.spec.value == value
    }

    /// Whether the Claim is one of this kind by a holder of this kind. All others were made by
    /// hand, and stay.
    pub fn has(self, claim: &Claim) -> bool {
        claim.spec.kind == self.kind && claim.spec.holder.kind == self.holder
    }

    /// An object as a Claim names it.
    pub fn holder(self, object: &impl Resource) -> Holder {
        let meta = object.meta();
        Holder {
            kind: self.holder.into(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }

    /// A watch of all Claims in which [`Claims`] finds those of a holder.
    pub fn watch(self) -> Watch<Claim, Packed<Claim>> {
        Watch::new().pack().index(BY_HOLDER, move |claim: &Packed<Claim>| {
            let claim = claim.unpack();
            self.has(&claim).then(|| holder_key(&claim).to_string())
        })
    }

    /// The Claim of that holder on that thing.
    pub fn claim(self, value: &str, holder: &Holder) -> Claim {
        let managed_by = (labels::MANAGED_BY.into(), labels::MANAGER.into());
        let kind = match self.kind {
            ClaimKind::Host => "Host",
            ClaimKind::NodePort => "NodePort",
        };
        Claim {
            metadata: ObjectMeta {
                name: Some(names::claim(self.kind, value)),
                labels: Some([managed_by, (labels::CLAIM_KIND.into(), kind.into())].into()),
                ..ObjectMeta::default()
            },
            spec: ClaimSpec { kind: self.kind, value: value.into(), holder: holder.clone() },
        }
    }
}

/// The Claims of one realm, as a controller of their holders reads and writes them.
pub struct Claims {
    realm: Realm,
    writer: Writer,
    cache: Cache<Claim, Packed<Claim>>,
}

impl Claims {
    /// From the cache of a [`Realm::watch`].
    pub fn new(realm: Realm, writer: Writer, cache: Cache<Claim, Packed<Claim>>) -> Self {
        Self { realm, writer, cache }
    }

    /// The Claim that has the name for this thing; [`Realm::is_on`] says whether it is on it.
    pub fn named(&self, value: &str) -> Option<Arc<Claim>> {
        self.cache.unpack(&self.realm.key(value))
    }

    /// The Claims that this very object holds.
    pub fn held_by(&self, holder: &impl Resource) -> Vec<Arc<Claim>> {
        let mut held = self.cache.unpack_by_index(BY_HOLDER, &ObjectKey::of(holder).to_string());
        held.retain(|claim| is_holder(holder, claim));
        held
    }

    /// Takes in a Claim that was read from the API server in this pass.
    pub fn observe(&self, claim: Claim, pass: &Pass) {
        self.cache.observe(claim, pass);
    }

    /// Creation is the lock: who is refused has lost, and reads who has won. That may be itself, by
    /// a creation of which it never learned; the cache has such a Claim afterwards like one that
    /// was created here.
    ///
    /// # Errors
    ///
    /// [`Error::Take`], [`Error::Holder`] when the winner could not be read, and [`Error::Stale`]
    /// when it was gone again.
    pub async fn take(&self, value: &str, holder: &Holder, pass: &Pass) -> Result<Taken, Error> {
        let wanted = self.realm.claim(value, holder);
        match self.writer.create(&wanted).await.map_err(Error::Take)? {
            Created::Created(claim) => {
                self.cache.observe(*claim, pass);
                tracing::info!(value, "Claimed");
                Ok(Taken::Won)
            }
            Created::AlreadyExists => {
                match self.writer.get::<Claim>(&self.realm.key(value)).await {
                    // One that is being deleted holds until it is gone, which the watch shows.
                    Observed::Present(there) if there.spec == wanted.spec => {
                        self.cache.observe(there, pass);
                        Ok(Taken::Won)
                    }
                    Observed::Present(there) => Ok(Taken::Lost(Box::new(there))),
                    Observed::Absent => Err(Error::Stale),
                    Observed::Unknown(why) => Err(Error::Holder { why }),
                }
            }
        }
    }

    /// Deletes a Claim if it is still exactly what was seen; `why` is for the log.
    ///
    /// # Errors
    ///
    /// [`Error::Release`], and [`Error::Stale`] when it is not.
    pub async fn release(&self, claim: &Target, why: &str, pass: &Pass) -> Result<(), Error> {
        match self.writer.delete::<Claim>(claim).await.map_err(Error::Release)? {
            Deleted::Deleted => {
                self.cache.observe_gone(claim, pass);
                tracing::info!(claim = claim.key.name, why, "Claim released");
                Ok(())
            }
            // A finalizer of somebody else keeps it; whether the thing is free a creation sees.
            Deleted::Terminating(_) | Deleted::Gone => Ok(()),
            Deleted::Conflict => Err(Error::Stale),
        }
    }
}
