//! All writes of a pass but the status. Leaves no choice open: the plan has made them all.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Resource;
use portolan_claims::Taken as ClaimTaken;
use portolan_reconcile::{Created, Deleted, ObjectKey, Observed, Pass, Precondition, Target};

use crate::REALM;
use crate::error::Error;
use crate::observe::Sources;
use crate::plan::{Farewell, Plan, Step, Taken};
use crate::ports::NodePort;
use crate::slices::belongs;
use crate::view::Belongs;
use portolan_api::AppService;

/// How many node ports are taken at once. Who loses one is told once all are decided.
const TAKEN_AT_ONCE: usize = 16;

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Something is otherwise now than what the plan was made from, so another look is due.
    pub(crate) changed: bool,
    /// A name turned out to be somebody else's.
    pub(crate) taken: Option<Taken>,
    /// What failed first; the other steps were still taken.
    pub(crate) failure: Option<Error>,
    /// A slice is not known to say what it should. Apart from the failure, which may be another
    /// step's.
    pub(crate) slices_lag: bool,
}

impl Outcome {
    /// Takes in what became of a slice.
    fn add_slice(&mut self, done: Result<Done, Error>) {
        // One that turned out to be ours says what it did before until the next look.
        self.slices_lag |= matches!(done, Ok(Done::Changed) | Err(_));
        self.add(done);
    }

    fn add(&mut self, done: Result<Done, Error>) {
        match done {
            Ok(Done::Changed) => self.changed = true,
            Ok(Done::Reported) => {}
            Ok(Done::Taken(taken)) => {
                self.taken.get_or_insert(taken);
            }
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
    }
}

impl Sources {
    /// Takes the plan's steps in their order, and then the node ports, in any.
    ///
    /// # Cancel safety
    ///
    /// What was sent stays; the next pass starts from there.
    pub(crate) async fn apply(&self, plan: &Plan, of: &AppService, pass: &Pass) -> Outcome {
        let Plan { steps, take, ports: _, taken: _ } = plan;
        let mut outcome = Outcome::default();
        for step in steps {
            let done = self.take_step(step, of, pass).await;
            match step {
                Step::CreateSlice(_) | Step::ReplaceSlice(_) | Step::DeleteSlice(_) => {
                    outcome.add_slice(done);
                }
                Step::CreateService(_) | Step::ReplaceService(_) | Step::Release(..) => {
                    outcome.add(done);
                }
            }
        }
        let ports = take.iter().copied().map(|port| self.take_port(port, of, pass));
        let mut ports = stream::iter(ports).buffer_unordered(TAKEN_AT_ONCE);
        while let Some(done) = ports.next().await {
            outcome.add(done);
        }
        outcome
    }

    /// Takes the steps that remain when an AppService is gone.
    ///
    /// # Errors
    ///
    /// The first that failed; the others were still taken.
    pub(crate) async fn clear_up(&self, farewell: &Farewell, pass: &Pass) -> Result<(), Error> {
        let Farewell { replace, delete } = farewell;
        let mut outcome = Outcome::default();
        for slice in replace {
            outcome.add(self.replace_slice(slice, pass).await);
        }
        for slice in delete {
            outcome.add(self.delete_slice(slice, pass).await);
        }
        outcome.failure.map_or(Ok(()), Err)
    }

    async fn take_step(&self, step: &Step, of: &AppService, pass: &Pass) -> Result<Done, Error> {
        match step {
            Step::CreateService(service) => self.create_service(service, of, pass).await,
            Step::ReplaceService(service) => {
                let written = self.writer.replace::<Service>(service).await;
                let live = met(written.map_err(Error::Service)?, "the service")?;
                self.services.observe(live, pass);
                Ok(Done::Changed)
            }
            Step::Release(claim, why) => {
                self.claims.release(claim, why, pass).await?;
                Ok(Done::Changed)
            }
            Step::CreateSlice(slice) => self.create_slice(slice, of, pass).await,
            Step::ReplaceSlice(slice) => self.replace_slice(slice, pass).await,
            Step::DeleteSlice(slice) => self.delete_slice(slice, pass).await,
        }
    }

    async fn take_port(&self, port: NodePort, of: &AppService, pass: &Pass) -> Result<Done, Error> {
        let taken = self.claims.take(&port.value(), &REALM.holder(of), pass).await?;
        if let ClaimTaken::Lost(claim) = taken {
            self.claims.observe(*claim, pass);
        }
        Ok(Done::Changed)
    }

    async fn replace_slice(&self, slice: &EndpointSlice, pass: &Pass) -> Result<Done, Error> {
        let written = self.writer.replace::<EndpointSlice>(slice).await;
        let live = met(written.map_err(Error::Slice)?, "the endpoints")?;
        self.slices.observe(live, pass);
        // What it says is in the situation already.
        Ok(Done::Reported)
    }

    async fn delete_slice(&self, slice: &Target, pass: &Pass) -> Result<Done, Error> {
        let deleted = self.writer.delete::<EndpointSlice>(slice).await;
        if deleted.map_err(Error::Slice)? == Deleted::Deleted {
            self.slices.observe_gone(slice, pass);
        }
        Ok(Done::Reported)
    }

    async fn create_service(
        &self,
        service: &Service,
        of: &AppService,
        pass: &Pass,
    ) -> Result<Done, Error> {
        match self.writer.create(service).await.map_err(Error::Service)? {
            Created::Created(live) => {
                tracing::info!("Address allocated");
                self.services.observe(*live, pass);
                Ok(Done::Changed)
            }
            Created::AlreadyExists => {
                let there = self.writer.get::<Service>(&ObjectKey::of(service)).await;
                let name = taken("Service", service);
                let live = whose(there, |live| Belongs::of(live, of), name, "the service")?;
                Ok(live.map_or_else(
                    |done| done,
                    |live| {
                        self.services.observe(live, pass);
                        Done::Changed
                    },
                ))
            }
        }
    }

    async fn create_slice(
        &self,
        slice: &EndpointSlice,
        of: &AppService,
        pass: &Pass,
    ) -> Result<Done, Error> {
        match self.writer.create(slice).await.map_err(Error::Slice)? {
            Created::Created(live) => {
                self.slices.observe(*live, pass);
                Ok(Done::Reported)
            }
            Created::AlreadyExists => {
                let there = self.writer.get::<EndpointSlice>(&ObjectKey::of(slice)).await;
                let name = taken("EndpointSlice", slice);
                let live = whose(there, |live| belongs(live, of), name, "the endpoints")?;
                Ok(live.map_or_else(
                    |done| done,
                    |live| {
                        self.slices.observe(live, pass);
                        Done::Changed
                    },
                ))
            }
        }
    }
}

/// What came of a step.
enum Done {
    /// The next look sees something else.
    Changed,
    /// The situation says it already.
    Reported,
    /// Somebody else has the name.
    Taken(Taken),
}

/// The object that has a name already, if it is ours; else what that means.
fn whose<K>(
    there: Observed<K>,
    belongs: impl FnOnce(&K) -> Belongs,
    name: Taken,
    what: &'static str,
) -> Result<Result<K, Done>, Error> {
    match there {
        Observed::Present(live) => match belongs(&live) {
            Belongs::Here => Ok(Ok(live)),
            Belongs::Former => Err(Error::Stale(what)),
            Belongs::Elsewhere => Ok(Err(Done::Taken(name))),
        },
        Observed::Absent => Err(Error::Stale(what)),
        Observed::Unknown(why) => Err(Error::Unknown { what, why }),
    }
}

fn taken(kind: &'static str, object: &impl Resource) -> Taken {
    Taken { kind, name: object.meta().name.clone().unwrap_or_default() }
}

fn met<K>(written: Precondition<K>, what: &'static str) -> Result<K, Error> {
    match written {
        Precondition::Met(live) => Ok(*live),
        Precondition::Gone | Precondition::Conflict => Err(Error::Stale(what)),
    }
}
