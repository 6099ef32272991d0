//! The internal names of http-only services: a Service for each, without endpoints.
//!
//! Kubernetes allocates its address and cluster DNS answers its name; node agents lead the address
//! to the gateways, which know the name as a host. So a gateway that comes or goes costs no write
//! here.
//!
//! A service with an address of its own has a Service of the same name, made for its AppService.
//! A service that changes between the two waits for the other Service to go, and the deletion
//! wakes it.

mod apply;
mod observe;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Service;
use kube::runtime::events::EventType;
use portolan_api::conditions::reason;
use portolan_api::{App, AppVersion};
use portolan_reconcile::{
    Change, Context, Controller, Events, Next, ObjectKey, Pass, Reconciler, RunError, Watch,
};

use crate::error::Error;
use crate::internal::observe::{BY_NAME, BY_OWNER, Named, Names, Sources};
use crate::internal::plan::Plan;
use crate::status;

/// Runs the controller of internal names until `ctx.shutdown` is cancelled.
pub(crate) fn run(ctx: &Context) -> impl Future<Output = Result<(), RunError>> + Send + use<> {
    let mut controller = Controller::new(ctx, "internal");
    let apps = controller.primary(Watch::<App>::new().pack());
    let versions = controller.watch(
        Watch::<AppVersion>::new()
            .project(|version| Some(Names::of(&version)))
            .distinct()
            .index(BY_NAME, Names::keys),
        |change| change.each(|names| [names.app.clone()]),
    );
    let known = versions.clone();
    let services = controller.watch(
        Watch::<Service>::new()
            .project(|service| Some(Named::of(service)))
            .distinct()
            .index(BY_OWNER, |named| named.owner.as_ref().map(|owner| owner.uid.clone())),
        move |change: &Change<'_, Named>| {
            let wanting = known.by_index(BY_NAME, &change.key.to_string());
            let mut woken: BTreeSet<_> = wanting.iter().map(|names| names.app.clone()).collect();
            woken.extend(change.each(Named::app));
            woken
        },
    );
    let (writer, events) = (controller.writer(), controller.events());
    let sources = Sources { writer, apps, versions, services };
    controller.run(NameReconciler { sources, events, told: Mutex::default() })
}

/// Keeps the Services of internal names.
struct NameReconciler {
    sources: Sources,
    events: Events,
    /// What each App was told of names that it cannot have, so that it is told once.
    told: Mutex<BTreeMap<ObjectKey, BTreeSet<Note>>>,
}

/// What an App is told: the reason and the message of an Event.
type Note = (&'static str, String);

impl Reconciler for NameReconciler {
    type Error = Error;

    async fn reconcile(&self, pass: &Pass) -> Result<Next, Error> {
        // What an App that goes has made, the garbage collector removes.
        let app = self.sources.apps.unpack(pass.key());
        let Some(app) = app.filter(|app| app.metadata.deletion_timestamp.is_none()) else {
            self.news(pass.key(), BTreeSet::new());
            return Ok(Next::Settled);
        };
        pass.identify(app.as_ref());
        let situation = self.sources.observe(&app);
        let plan = plan::plan(&app, &situation);
        let outcome = self.sources.apply(&plan, pass).await;
        for (reason, note) in self.news(pass.key(), notes(&plan, outcome.failure.as_ref())) {
            self.events.publish(app.as_ref(), EventType::Warning, "Reconcile", reason, &note);
        }
        match outcome.failure {
            Some(failure) => Err(failure),
            None => Ok(Next::Settled),
        }
    }
}

impl NameReconciler {
    /// What of this the App was not told when it was last looked at.
    fn news(&self, app: &ObjectKey, notes: BTreeSet<Note>) -> Vec<Note> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.remove(app).unwrap_or_default();
        let news = notes.difference(&before).cloned().collect();
        if !notes.is_empty() {
            told.insert(app.clone(), notes);
        }
        news
    }
}

/// Why http services of the App have no address inside the cluster: somebody else's Service has
/// the name, or the API server does not take ours.
fn notes(plan: &Plan, failure: Option<&Error>) -> BTreeSet<Note> {
    let taken = plan.taken.iter().map(|name| {
        let note = format!(
            "Service {name} is not this App's, so its http service of that name has no address \
             inside the cluster"
        );
        (reason::NAME_CONFLICT, note)
    });
    let refused = match failure {
        Some(Error::Service(source)) if source.refusal().is_some() => status::refusal(source),
        _ => None,
    };
    let refused = refused.map(|finding| {
        let note =
            format!("an http service has no address inside the cluster: {}", finding.message);
        (finding.reason, note)
    });
    taken.chain(refused).collect()
}
