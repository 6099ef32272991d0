//! Which gateways there are: the Leases of the system's namespace.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use portolan_api::Gateway;
use portolan_reconcile::{Context, Watch};
use tokio::sync::Notify;

use crate::feed::{COMPONENT, FeedTask};
use crate::peers::Gateways;

/// Watches them. The task runs until the context shuts down and must be joined by the caller.
///
/// They are no part of what is served, so nobody waits for them to be read and no snapshot keeps
/// them: without them, a gateway has the slots that were granted to it and no others.
pub fn watch_gateways(ctx: &Context, namespace: &str) -> (Gateways, FeedTask) {
    let changed = Arc::new(Notify::new());
    let told = Arc::clone(&changed);
    let (cache, task) = Watch::<Lease>::new()
        .in_namespace(namespace)
        .labels(Gateway::SELECTOR)
        .project(Gateway::of)
        .on_change(move |change| {
            let (old, new) = (change.old.map(Arc::as_ref), change.new.map(Arc::as_ref));
            let is_known = |old: &Gateway, new: &Gateway| old.peer == new.peer;
            let is_same = old.zip(new).is_some_and(|(old, new)| is_known(old, new));
            if !is_same || !Gateway::is_renewal(old, new) {
                told.notify_one();
            }
        })
        .start(ctx, COMPONENT);
    let (clock, ends) = (ctx.clock(), ctx.shutdown());
    (Gateways { cache, changed, clock, ends }, Box::pin(task))
}
