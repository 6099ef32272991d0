//! All writes of a pass. Leaves no choice open: the plan has made them all.

use k8s_openapi::api::core::v1::Service;
use portolan_reconcile::{Created, Deleted, Pass, Precondition};

use crate::error::Error;
use crate::internal::observe::Sources;
use crate::internal::plan::Plan;

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What failed first; the other Services were still made.
    pub(crate) failure: Option<Error>,
}

impl Sources {
    /// Takes the plan's steps in their order; deletes nothing once something has failed.
    ///
    /// # Cancel safety
    ///
    /// What was sent stays; the next pass starts from there.
    pub(crate) async fn apply(&self, plan: &Plan, pass: &Pass) -> Outcome {
        let Plan { create, replace, delete, taken: _, unknown } = plan;
        let unknown =
            unknown.clone().map(|why| Error::Unknown { what: "the service of a name", why });
        let mut outcome = Outcome { failure: unknown };
        for service in create {
            match self.writer.create(service).await {
                Ok(Created::Created(live)) => self.services.observe(*live, pass),
                // The cache lags; the Service wakes the App when it is seen, and is judged then.
                Ok(Created::AlreadyExists) => outcome.fail(Error::Stale("the service of a name")),
                Err(source) => outcome.fail(Error::Service(source)),
            }
        }
        for service in replace {
            match self.writer.replace::<Service>(service).await {
                Ok(Precondition::Met(live)) => self.services.observe(*live, pass),
                Ok(Precondition::Gone | Precondition::Conflict) => {
                    outcome.fail(Error::Stale("the service of a name"));
                }
                Err(source) => outcome.fail(Error::Service(source)),
            }
        }
        if outcome.failure.is_some() {
            return outcome;
        }
        for target in delete {
            match self.writer.delete::<Service>(target).await {
                Ok(Deleted::Deleted) => self.services.observe_gone(target, pass),
                Ok(_) => {}
                Err(source) => outcome.fail(Error::Service(source)),
            }
        }
        outcome
    }
}

impl Outcome {
    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }
}
