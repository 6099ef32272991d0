//! The version controller: from an App's versions to its pools.
//!
//! One pass looks at an App with all its versions, because a pool belongs to every version that
//! uses it and its owners are applied whole. It decides what each pool is for (serving, being
//! verified, draining) and how it scales; it does not know Pods, and never writes how many are
//! wanted: that is the pool controller's. Which version serves is the app controller's word, read
//! from `status.activation`.
//!
//! Entry point: [`run`]. Invariants: an owner of a pool is dropped only after a live read says it
//! is gone; a pool that gateways may still send to keeps its role until all of them report the
//! switch.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use jiff::SignedDuration;
use portolan_api::{App, AppVersion, SandboxPool};
use portolan_reconcile::{
    Cache, Context, Controller, Events, Next, ObjectKey, Packed, Pass, Progress, Queue, Reconciler,
    RunError, StatusWrite, Target, Verdict, Watch, Writer,
};

mod apply;
mod error;
mod observe;
mod plan;
mod status;
#[cfg(test)]
mod tests;
mod verifying;

pub use error::Error;

use observe::{AppFacts, BY_APP};
use verifying::Verifying;

/// How long a version may be on its way before it says so: most serve sooner.
const PROGRESS_LIMIT: SignedDuration = SignedDuration::from_secs(3);

/// What an installation chooses.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many pools may verify at once in the whole cluster.
    pub verifying_limit: usize,
}

/// Runs the version controller until the context shuts down.
///
/// # Errors
///
/// When a watch task or the lease ends unasked.
pub fn run(
    ctx: &Context,
    settings: Settings,
) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "version");
    let verifying = Arc::new(Verifying::new(settings.verifying_limit));
    let apps = controller.primary(Watch::<App>::new().project(AppFacts::of));
    let of = |version: &Packed<AppVersion>| app_of_version(&version.unpack());
    let versions = controller.watch(
        Watch::<AppVersion>::new()
            .pack()
            .index(BY_APP, move |version| of(version).map(|key| key.to_string())),
        move |change| change.each(of),
    );
    let counted = verifying.clone();
    let pools = controller.watch(
        Watch::<SandboxPool>::new()
            .pack()
            .index(BY_APP, |pool| apply::app_of(&pool.unpack()).map(|key| key.to_string())),
        move |change| {
            // Each side is read once: it is text.
            let read = |pool: &Arc<Packed<SandboxPool>>| {
                let pool = pool.unpack();
                (apply::app_of(&pool), observe::is_verifying(&pool))
            };
            let (old_app, was) = change.old.map(read).unwrap_or_default();
            let (new_app, is) = change.new.map(read).unwrap_or_default();
            let mut keys: BTreeSet<_> = old_app.iter().chain(&new_app).cloned().collect();
            let app = if change.new.is_some() { new_app } else { old_app };
            if let Some(app) = app {
                keys.extend(counted.note(&app, was, is));
            }
            keys
        },
    );
    let (writer, events, queue) = (controller.writer(), controller.events(), controller.queue());
    let progress = Progress::new(PROGRESS_LIMIT);
    controller.run(VersionReconciler {
        writer,
        events,
        queue,
        apps,
        versions,
        pools,
        verifying,
        progress,
    })
}

struct VersionReconciler {
    writer: Writer,
    events: Events,
    queue: Queue,
    apps: Cache<App, AppFacts>,
    versions: Cache<AppVersion, Packed<AppVersion>>,
    pools: Cache<SandboxPool, Packed<SandboxPool>>,
    verifying: Arc<Verifying>,
    progress: Progress,
}

impl Reconciler for VersionReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        let seen = self.observe(pass.key()).await;
        let plan = plan::plan(&seen);
        let outcome = self.apply(pass, &seen, &plan).await;
        self.take_turns(pass.key(), plan.is_waiting);
        let late_from = observe::late_from(&seen);
        let is_late = late_from.is_some_and(|from| from <= pass.now());
        self.wake(self.verifying.mark_late(pass.key(), is_late));
        let reported = self.report(pass, &seen, &plan).await;
        let due = late_from.filter(|_| !is_late).map_or(Next::Settled, Next::At);
        outcome.and(reported).map(|next| next.earliest(due, pass.now()))
    }
}

impl VersionReconciler {
    /// Waits for a place to verify, or does so no more, and wakes those whose turn it is.
    fn take_turns(&self, app: &ObjectKey, is_waiting: bool) {
        let turns = match is_waiting {
            true => self.verifying.wait(app),
            false => self.verifying.leave(app),
        };
        self.wake(turns);
    }

    fn wake(&self, turns: Vec<ObjectKey>) {
        turns.into_iter().for_each(|app| self.queue.add(app));
    }

    /// Writes the status of the versions where it differs; says when what may wait is due.
    async fn report(
        &self,
        pass: &Pass,
        seen: &observe::Seen,
        plan: &plan::Plan,
    ) -> Result<Next, Error> {
        let mut next = Next::Settled;
        for (name, (desired, transitions)) in status::status(seen, plan, pass.now()) {
            let Some(version) = seen.versions.get(&name) else { continue };
            let key = ObjectKey::of(version.as_ref());
            if status::is_progress(version.status.as_ref(), &desired)
                && let Some(due) = self.progress.wait(&key, pass.now())
            {
                next = next.earliest(Next::At(due), pass.now());
                continue;
            }
            let target = Target::of(version.as_ref());
            let write = self
                .writer
                .apply_status::<AppVersion, _>(&target, &desired, version.status.as_ref())
                .await
                .map_err(|source| Error::WriteStatus { name, source })?;
            self.progress.done(&key);
            if let StatusWrite::Written(live) = write {
                self.versions.observe(*live, pass);
                // Its owner follows the App; of a version only what went wrong is news.
                let bad: Vec<_> =
                    transitions.into_iter().filter(|t| t.to == Verdict::False).collect();
                self.events.publish_transitions(version.as_ref(), "Verify", &bad);
            }
        }
        Ok(next)
    }
}

fn app_of_version(version: &AppVersion) -> Option<ObjectKey> {
    Some(ObjectKey::new(version.metadata.namespace.clone()?, version.spec.app.clone()))
}
