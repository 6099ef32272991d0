//! All writes of a pass but the status. Leaves no choice open: the plan has made them all.
//!
//! New sandboxes, the number of replicas and the changes of existing sandboxes are sent at the same
//! time: a visitor waits for the first, and none of them needs another to have come first. Every
//! answer goes into the caches, so that the next pass reads what this one wrote.

use futures::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use portolan_api::{SandboxPool, conditions::reason, labels};
use portolan_reconcile::{
    Created, Deleted, ObjectKey, Observed, Pass, Precondition, Target, WriteError, Writer,
};
use serde_json::{Value, json};

use crate::{
    error::Error,
    observe::{Caches, Situation},
    plan::{Deletion, Grant, Mark, NewSandbox, Plan},
    pod,
    sandbox::Sandbox,
    setback::Setback,
    settings::Settings,
};

/// Writes of one pass in flight at once.
const PARALLEL: usize = 16;
/// Sandboxes created before the first answer is known; each time all of them are accepted, twice
/// as many follow. So what the API server refuses is asked for a few times, not a thousand.
const FIRST_BATCH: usize = 8;

/// What came of the writes.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Sandboxes that exist now and did not before.
    pub(crate) created: usize,
    /// The greatest incarnation that is used up; zero if none was.
    pub(crate) incarnation: i64,
    /// Why the API server refused a sandbox, in its own words. The pool's owner must act, so it is
    /// reported and not an error of ours.
    pub(crate) refused: Option<String>,
    /// A name was taken by a stranger, or nothing could be learnt of who has it.
    pub(crate) name_taken: bool,
    /// The pool's generation after `spec.replicas` was written, if nothing but that write is
    /// between it and the generation that the plan saw.
    pub(crate) generation: Option<i64>,
    /// What failed first; the other writes were still made.
    pub(crate) error: Option<Error>,
}

/// What the writes need.
pub(crate) struct Applier<'a> {
    pub(crate) writer: &'a Writer,
    pub(crate) caches: &'a Caches,
    pub(crate) settings: &'a Settings,
    pub(crate) pass: &'a Pass,
}

impl Applier<'_> {
    /// Performs the plan. Fails only through [`Outcome::error`].
    ///
    /// # Cancel safety
    ///
    /// What was sent stays; the next pass starts from there.
    pub(crate) async fn apply(&self, situation: &Situation, plan: &Plan) -> Outcome {
        let Plan { replicas, create, grant, mark, delete, .. } = plan;
        let pool = &situation.pool;
        let (created, generation, grants, marks, deletions) = futures::join!(
            self.create_all(pool, create),
            self.set_replicas(pool, *replicas),
            each(grant.iter().map(|grant| self.grant(grant)).collect()),
            each(mark.iter().map(|mark| self.mark(mark)).collect()),
            each(delete.iter().map(|deletion| self.delete(deletion)).collect()),
        );
        let mut outcome = created;
        let (generation, unset) = split(generation);
        outcome.generation = generation.flatten();
        let errors = [outcome.error.take(), unset, grants.err(), marks.err(), deletions.err()];
        outcome.error = errors.into_iter().flatten().next();
        outcome
    }

    async fn set_replicas(
        &self,
        pool: &SandboxPool,
        replicas: Option<i32>,
    ) -> Result<Option<i64>, Error> {
        let Some(replicas) = replicas else { return Ok(None) };
        let fields = json!({ "spec": { "replicas": replicas } });
        let written = self.writer.apply_fields(&Target::of(pool), &fields).await;
        match written.map_err(Error::Replicas)? {
            Precondition::Met(live) => {
                let live: SandboxPool = *live;
                let next = pool.metadata.generation.map(|seen| seen.saturating_add(1));
                let generation = live.metadata.generation.filter(|live| Some(*live) == next);
                self.caches.pools.observe(live, self.pass);
                Ok(generation)
            }
            Precondition::Gone | Precondition::Conflict => Ok(None),
        }
    }

    async fn create_all(&self, pool: &SandboxPool, new: &[NewSandbox]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut rest = new;
        let mut batch = FIRST_BATCH;
        while !rest.is_empty() && outcome.error.is_none() && outcome.refused.is_none() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let creations: Vec<_> = now.iter().map(|new| self.create(pool, new)).collect();
            let mut created = stream::iter(creations).buffer_unordered(PARALLEL);
            while let Some(result) = created.next().await {
                outcome.note(result);
            }
            (rest, batch) = (later, batch * 2);
        }
        outcome
    }

    /// The incarnation that is used up, and whether a sandbox of ours has it.
    async fn create(&self, pool: &SandboxPool, new: &NewSandbox) -> Result<(i64, bool), Error> {
        let pod = pod::render(pool, new, self.settings);
        match self.writer.create(&pod).await.map_err(Error::Create)? {
            Created::Created(pod) => {
                self.caches.sandboxes.observe(*pod, self.pass);
                Ok((new.incarnation, true))
            }
            Created::AlreadyExists => {
                Ok((new.incarnation, self.adopt_view(pool, &ObjectKey::of(&pod)).await))
            }
        }
    }

    /// A name that is taken, by an earlier leader of ours or by a stranger: a live look decides
    /// whether it counts, and either way the name is not tried again.
    async fn adopt_view(&self, pool: &SandboxPool, key: &ObjectKey) -> bool {
        let Observed::Present(pod) = self.writer.get::<Pod>(key).await else { return false };
        let view = Sandbox::of(pod.clone());
        let ours = view.is_some_and(|sandbox| sandbox.owner == pool.metadata.uid);
        if ours {
            self.caches.sandboxes.observe(pod, self.pass);
        }
        ours
    }

    async fn grant(&self, grant: &Grant) -> Result<(), Error> {
        let Grant { target, slots } = grant;
        self.annotate(target, &json!({ labels::SLOTS: slots })).await.map_err(Error::Grant)
    }

    async fn mark(&self, mark: &Mark) -> Result<(), Error> {
        let Mark { target, epoch, reason, slots } = mark;
        let mut annotations = json!({
            labels::DRAIN: epoch.to_string(),
            labels::DRAIN_REASON: reason.as_str(),
        });
        if let Some(slots) = slots {
            annotations[labels::SLOTS] = Value::String(slots.clone());
        }
        self.annotate(target, &annotations).await.map_err(Error::Mark)
    }

    async fn annotate(&self, target: &Target, annotations: &Value) -> Result<(), WriteError> {
        let fields = json!({ "metadata": { "annotations": annotations } });
        match self.writer.apply_fields::<Pod, _>(target, &fields).await? {
            Precondition::Met(pod) => self.caches.sandboxes.observe(*pod, self.pass),
            Precondition::Gone => self.caches.sandboxes.observe_gone(target, self.pass),
            // Another Pod has the name; the watch brings it.
            Precondition::Conflict => {}
        }
        Ok(())
    }

    async fn delete(&self, deletion: &Deletion) -> Result<(), Error> {
        let Deletion { target, reason } = deletion;
        tracing::debug!(sandbox = %target.key, ?reason, "Deleting sandbox");
        match self.writer.delete::<Pod>(target).await.map_err(Error::Delete)? {
            Deleted::Terminating(pod) => self.caches.sandboxes.observe(*pod, self.pass),
            Deleted::Deleted | Deleted::Gone => {
                self.caches.sandboxes.observe_gone(target, self.pass);
            }
            Deleted::Conflict => {}
        }
        Ok(())
    }
}

impl Outcome {
    /// What stands in the way of new sandboxes after this pass.
    pub(crate) fn setback(
        &self,
        situation: &Situation,
        plan: &Plan,
        now: Timestamp,
    ) -> Option<Setback> {
        let before = plan.setback.as_ref();
        if let Some(answer) = &self.refused {
            let message = format!("the API server refuses new sandboxes: {answer}");
            let setback = Setback::new(before, reason::POD_REFUSED, message, now);
            return Some(setback.of_crowd(situation.sandboxes.len() + self.created));
        }
        // One that was made is not refused.
        let is_over = |one: &&Setback| self.created > 0 && one.reason == reason::POD_REFUSED;
        before.filter(|one| !is_over(one)).cloned()
    }

    fn note(&mut self, result: Result<(i64, bool), Error>) {
        match result {
            Ok((incarnation, ours)) => {
                self.created += usize::from(ours);
                self.name_taken |= !ours;
                self.incarnation = self.incarnation.max(incarnation);
            }
            Err(error) => match refusal(&error) {
                Some(answer) => self.refused = Some(answer.to_owned()),
                None => _ = self.error.get_or_insert(error),
            },
        }
    }
}

/// The API server's words if it refused the sandbox for what it is. Being forbidden to create any
/// Pod at all is a defect of the installation.
fn refusal(error: &Error) -> Option<&str> {
    let Error::Create(source) = error else { return None };
    source.refusal().filter(|answer| !answer.contains("cannot create resource \"pods\""))
}

/// Does all of them, some at a time; the first error, after all were tried.
async fn each<F>(writes: Vec<F>) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let writes = stream::iter(writes).buffer_unordered(PARALLEL);
    let results: Vec<Result<(), Error>> = writes.collect().await;
    results.into_iter().collect()
}

fn split<T>(result: Result<T, Error>) -> (Option<T>, Option<Error>) {
    match result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    }
}
