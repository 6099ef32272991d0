//! All writes to Claims.

use portolan_api::Holder;
use portolan_claims::Taken;
use portolan_reconcile::Pass;

use crate::RouteReconciler;
use crate::error::Error;
use crate::plan::{Hold, Plan, Step};

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
                Step::Delete { claim, host: _, why } => {
                    self.claims.release(claim, why.as_str(), pass).await.map_err(Error::Claim)
                }
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
            outcome.failure =
                Some(Error::Claim(portolan_claims::Error::Holder { why: why.clone() }));
        }
        outcome
    }

    /// Creation is the lock: who is refused has lost, and learns who has won.
    async fn create(&self, host: &str, holder: &Holder, pass: &Pass) -> Result<Creation, Error> {
        Ok(match self.claims.take(host, holder, pass).await? {
            Taken::Won => Creation::Won,
            Taken::Lost(claim) => Creation::Lost(claim.spec.holder),
        })
    }
}
