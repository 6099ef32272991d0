//! All writes to Claims.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portolan_api::{Claim, ClaimKind, ClaimSpec, Holder, labels, names};
use portolan_reconcile::{Created, Deleted, Observed, Pass, Target};

use crate::error::Error;
use crate::observe::claim_key;
use crate::plan::{Hold, Plan, Reason, Step};
use crate::{RouteReconciler, policy};

/// What became of a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What became of the creation of the Claim on the host; `None`: it was not tried, or it is
    /// not known.
    pub(crate) created: Option<Creation>,
    /// Why the steps were not all taken.
    pub(crate) failure: Option<Error>,
}

/// What became of the creation of a Claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Creation {
    /// The Route holds its host now.
    Won,
    /// Another was first; this is the holder.
    Lost(Holder),
}

impl RouteReconciler {
    /// Takes the plan's steps in their order, up to the first that fails or is lost.
    pub(crate) async fn apply(&self, plan: &Plan, pass: &Pass) -> Outcome {
        let Plan { steps, hold, look_again: _ } = plan;
        let mut outcome = Outcome::default();
        for step in steps {
            let taken = match step {
                Step::Delete { claim, host, why } => self.delete(claim, host, *why, pass).await,
                Step::Create { host, holder } => match self.create(host, holder, pass).await {
                    Ok(creation) => {
                        let lost = matches!(creation, Creation::Lost(_));
                        outcome.created = Some(creation);
                        if lost {
                            return outcome;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = taken {
                outcome.failure = Some(error);
                return outcome;
            }
        }
        if let Hold::Undecided(why) = hold {
            outcome.failure = Some(Error::Holder { why: why.clone() });
        }
        outcome
    }

    async fn delete(
        &self,
        claim: &Target,
        host: &str,
        why: Reason,
        pass: &Pass,
    ) -> Result<(), Error> {
        match self.writer.delete::<Claim>(claim).await.map_err(Error::Release)? {
            Deleted::Deleted => {
                self.claims.observe_gone(claim, pass);
                tracing::info!(host, why = why.as_str(), "Claim released");
                Ok(())
            }
            // A finalizer of somebody else keeps it; whether the host is free the create will see.
            Deleted::Terminating(_) | Deleted::Gone => Ok(()),
            Deleted::Conflict => Err(Error::Stale),
        }
    }

    /// Creation is the lock: who is refused has lost, and reads who has won.
    async fn create(&self, host: &str, holder: &Holder, pass: &Pass) -> Result<Creation, Error> {
        match self.writer.create(&claim(host, holder)).await.map_err(Error::Claim)? {
            Created::Created(claim) => {
                self.claims.observe(*claim, pass);
                tracing::info!(host, "Host claimed");
                Ok(Creation::Won)
            }
            Created::AlreadyExists => match self.writer.get::<Claim>(&claim_key(host)).await {
                Observed::Present(there) => Ok(judge(there, host, holder)),
                Observed::Absent => Err(Error::Stale),
                Observed::Unknown(why) => Err(Error::Holder { why }),
            },
        }
    }
}

/// Whether the Claim that is there already is the one that was to be created.
fn judge(there: Claim, host: &str, holder: &Holder) -> Creation {
    if policy::is_claim_on(&there, host) && there.spec.holder == *holder {
        Creation::Won
    } else {
        Creation::Lost(there.spec.holder)
    }
}

fn claim(host: &str, holder: &Holder) -> Claim {
    let managed_by = (labels::MANAGED_BY.into(), labels::MANAGER.into());
    Claim {
        metadata: ObjectMeta {
            name: Some(names::claim(ClaimKind::Host, host)),
            labels: Some([managed_by].into()),
            ..ObjectMeta::default()
        },
        spec: ClaimSpec { kind: ClaimKind::Host, value: host.into(), holder: holder.clone() },
    }
}
