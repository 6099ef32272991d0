//! What to report. Pure, and called on every path, also after a failed write.
//!
//! `Ready` of a pool, by what is wanted and what is there:
//!
//! | situation | Ready | reason |
//! |---|---|---|
//! | role Retired | True | `Retired` |
//! | nothing wanted | True | `Asleep` |
//! | all wanted are ready | True | `Available` |
//! | the least number is ready, more are starting | True | `Available` |
//! | the least number is ready, others fail | True | `Degraded`, with the cause |
//! | some are ready, fewer than the least number | False | `Degraded`, with the cause |
//! | the same of a candidate, and nothing fails | Unknown | `Starting` |
//! | none is ready, and something fails | False | the cause |
//! | none is ready, nothing fails | Unknown | `Starting` |
//!
//! The least number is `scale.min` or the floor, at least one; for a candidate all that it wants.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portolan_api::{PoolRole, SandboxPoolStatus, conditions, conditions::reason, labels};
use portolan_reconcile::{Conditions, Transition, Verdict};

use crate::{
    apply::Outcome,
    diagnosis::{self, Diagnosis},
    observe::Situation,
    plan::{Members, Plan},
    sandbox::Sandbox,
    setback::Setback,
};

/// When a name that a stranger has is followed by another.
const RENAME_AFTER: SignedDuration = SignedDuration::from_secs(1);

/// What to report, and when to look again for a better word.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) status: SandboxPoolStatus,
    pub(crate) transitions: Vec<Transition>,
    /// It is not worth a write of its own yet.
    pub(crate) may_wait: bool,
    /// When time alone changes the report.
    pub(crate) next: Option<Timestamp>,
}

/// The verdict, its reason and its message.
type Ready = (Verdict, &'static str, String);

/// Computes the status after a pass.
pub(crate) fn status(
    situation: &Situation,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> Report {
    let pool = &situation.pool;
    let observed = pool.status.clone().unwrap_or_default();
    let view = View::of(situation, plan, outcome, now);
    let generation = outcome.generation.or(pool.metadata.generation).unwrap_or_default();
    let mut conditions = Conditions::new(&observed.conditions, generation, now);
    let (verdict, reason, message) = view.ready();
    conditions.set(conditions::READY, verdict, reason, message);
    let (conditions, transitions) = conditions.finish();
    let renamed = outcome.name_taken.then(|| now.checked_add(RENAME_AFTER).ok()).flatten();
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let status = SandboxPoolStatus {
        observed_generation: Some(generation),
        replicas: view.standing,
        ready_replicas: view.ready,
        draining_replicas: view.draining,
        selector: Some(format!("{}={name}", labels::POOL)),
        incarnation: observed.incarnation.max(situation.incarnation).max(outcome.incarnation),
        last_activity: plan.decision.last_activity.map(Time),
        conditions,
    };
    // A name that a stranger has is known from the status alone.
    let may_wait = !outcome.name_taken && is_progress(pool.status.as_ref(), &status);
    let next = [view.next, renamed].into_iter().flatten().min();
    Report { status, transitions, may_wait, next }
}

/// Whether this is only word of sandboxes that start, or that have started in a pool that was well
/// before. It may wait: who waits for a sandbox does not read of it here. What failed before, and
/// the end of a long start, are told at once; a version's activation may wait for a pool that has
/// a new spec; and nothing may count as ready that no longer is.
fn is_progress(observed: Option<&SandboxPoolStatus>, desired: &SandboxPoolStatus) -> bool {
    let ready = |status: &SandboxPoolStatus| status.conditions.first().map(|c| c.status.clone());
    let said = observed.and_then(ready);
    let was_ready = observed.map_or(0, |status| status.ready_replicas);
    let starts = ready(desired).as_deref() == Some("Unknown") && said.as_deref() != Some("False");
    let grew = observed.is_some_and(|observed| {
        said.as_deref() == Some("True")
            && desired.conditions.first().is_some_and(|ready| ready.reason == reason::AVAILABLE)
            && desired.observed_generation == observed.observed_generation
            && desired.replicas > observed.replicas
    });
    observed != Some(desired) && (starts || grew) && desired.ready_replicas >= was_ready
}

/// The pool as it is after the plan's writes.
struct View {
    role: PoolRole,
    wanted: i32,
    /// As many as must be ready for the pool to count as serving.
    least: i32,
    standing: i32,
    ready: i32,
    /// Marked, and not deleted yet.
    draining: i32,
    /// Marked or terminating.
    leaving: usize,
    /// What stands in the way of new sandboxes.
    setback: Option<Setback>,
    /// The worst failure among the standing: reason and message.
    failure: Option<(&'static str, String)>,
    /// What one of those that are starting waits for.
    note: Option<String>,
    next: Option<Timestamp>,
}

impl View {
    fn of(situation: &Situation, plan: &Plan, outcome: &Outcome, now: Timestamp) -> Self {
        let spec = &situation.pool.spec;
        let members = Members::of(situation);
        let stays = |sandbox: &&&Sandbox| {
            plan.mark.iter().all(|mark| mark.target.uid != sandbox.uid)
                && plan.delete.iter().all(|deletion| deletion.target.uid != sandbox.uid)
        };
        let staying: Vec<&Sandbox> = members.standing.iter().filter(stays).copied().collect();
        let gone = members.standing.len() - staying.len();
        let leaving = gone + members.draining.len() + members.terminating.len();
        let is_deleted = |sandbox: &&&Sandbox| {
            plan.delete.iter().any(|deletion| deletion.target.uid == sandbox.uid)
        };
        let drained = members.draining.iter().filter(is_deleted).count();
        let draining = plan.mark.len() + members.draining.len() - drained;
        let ready = staying.iter().filter(|sandbox| sandbox.ready).count();
        let wanted = plan.decision.wanted;
        let least = match spec.role {
            PoolRole::Candidate => wanted,
            _ => spec.scale.min.max(spec.floor.unwrap_or_default()).max(1).min(wanted),
        };
        let mut view = Self {
            role: spec.role,
            wanted,
            least,
            standing: length(staying.len() + outcome.created),
            ready: length(ready),
            draining: length(draining),
            leaving,
            setback: outcome.setback(situation, plan, now),
            failure: None,
            note: None,
            next: None,
        };
        for sandbox in staying.iter().filter(|sandbox| !sandbox.ready) {
            view.consider(diagnosis::diagnose(sandbox, &spec.sandbox, now));
        }
        if let Some(setback) = view.setback.as_ref().filter(|_| view.ready < view.wanted) {
            let due = if setback.until > now { setback.until } else { setback.overcome() };
            view.next = Some(view.next.map_or(due, |next| next.min(due)));
        }
        view
    }

    fn consider(&mut self, diagnosis: Diagnosis) {
        match diagnosis {
            Diagnosis::Starting { note, until } => {
                self.note = self.note.take().or(note);
                self.next = [self.next, until].into_iter().flatten().min();
            }
            Diagnosis::Failing { reason, message } => {
                let known = self.failure.as_ref().map(|(known, _)| diagnosis::rank(known));
                if known.is_none_or(|known| diagnosis::rank(reason) < known) {
                    self.failure = Some((reason, message));
                }
            }
        }
    }

    fn ready(&self) -> Ready {
        if self.role == PoolRole::Retired {
            let message = match self.leaving {
                0 => "no version that serves uses this pool".to_owned(),
                count => format!("no version that serves uses this pool; {count} drain"),
            };
            return (Verdict::True, reason::RETIRED, message);
        }
        if self.wanted == 0 {
            let message = "no requests; the first one wakes it".to_owned();
            return (Verdict::True, reason::ASLEEP, message);
        }
        let count = format!("{} of {} sandboxes ready", self.ready, self.wanted);
        if self.ready >= self.wanted {
            return (Verdict::True, reason::AVAILABLE, count);
        }
        let serves = self.ready >= self.least;
        match (self.cause(), self.ready) {
            (None, _) if serves => (Verdict::True, reason::AVAILABLE, count),
            (None, 0) => {
                let message = self.note.clone().unwrap_or(format!("{count}, the rest starting"));
                (Verdict::Unknown, reason::STARTING, message)
            }
            (None, _) => {
                // What has yet to show itself does not fail because it is not there yet.
                let (verdict, reason) = match self.role {
                    PoolRole::Candidate => (Verdict::Unknown, reason::STARTING),
                    _ => (Verdict::False, reason::DEGRADED),
                };
                (verdict, reason, format!("{count}, the rest starting"))
            }
            (Some((reason, message)), 0) => (Verdict::False, reason, message),
            (Some((reason, message)), _) => {
                let message = format!("{count}; {reason}: {message}");
                (Verdict::from(serves), reason::DEGRADED, message)
            }
        }
    }

    /// A setback comes first: it says why there is nothing else to diagnose.
    fn cause(&self) -> Option<(&'static str, String)> {
        let setback = self.setback.as_ref().map(|one| (one.reason, one.message.clone()));
        setback.or_else(|| self.failure.clone())
    }
}

fn length(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
