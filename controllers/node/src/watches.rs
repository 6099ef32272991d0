//! The watches: from the API into the index.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_api::{AppService, labels};
use portolan_reconcile::{Cache, Context, Watch};
use tokio::sync::watch;

use crate::facts::{InternalFacts, NodeFacts, ServiceFacts, SliceFacts};
use crate::inbox::Inbox;
use crate::{AgentError, AgentTask, COMPONENT, Settings};

/// The running watches.
pub(crate) struct Watches {
    services: Cache<AppService, ServiceFacts>,
    slices: Cache<EndpointSlice, SliceFacts>,
    internal: Cache<Service, InternalFacts>,
    gateways: Cache<EndpointSlice, SliceFacts>,
    node: watch::Receiver<Option<NodeFacts>>,
}

impl Watches {
    /// Starts all watches. The tasks run until the context shuts down.
    pub(crate) fn start(
        ctx: &Context,
        settings: &Settings,
        inbox: &Arc<Inbox>,
    ) -> (Self, Vec<(&'static str, AgentTask)>) {
        let mut tasks: Vec<(&'static str, AgentTask)> = Vec::new();
        let into = inbox.clone();
        let (services, task) = Watch::<AppService>::new()
            .project(|service| Some(ServiceFacts::of(&service)))
            .distinct()
            .on_change(move |change| {
                into.change(|index| index.service(change.key, change.new.cloned()));
            })
            .start(ctx, COMPONENT);
        tasks.push(("services", Box::pin(async { Ok::<_, AgentError>(task.await?) })));
        let (into, node) = (inbox.clone(), settings.node_name.clone());
        let (slices, task) = Watch::<EndpointSlice>::new()
            .labels(&format!("{}={}", labels::SLICE_MANAGED_BY, labels::SLICE_MANAGER))
            .project(move |slice| SliceFacts::of(&slice, &node))
            .distinct()
            .on_change(move |change| {
                into.change(|index| index.slice(change.key, change.old, change.new));
            })
            .start(ctx, COMPONENT);
        tasks.push(("slices", Box::pin(async { Ok::<_, AgentError>(task.await?) })));
        let into = inbox.clone();
        let (internal, task) = Watch::<Service>::new()
            .labels(&format!(
                "{}={},{}={}",
                labels::INTERNAL,
                labels::INTERNAL_HTTP,
                labels::SERVICE_PROXY,
                labels::MANAGER
            ))
            .project(|service| InternalFacts::of(&service))
            .distinct()
            .on_change(move |change| {
                into.change(|index| index.internal(change.key, change.new.cloned()));
            })
            .start(ctx, COMPONENT);
        tasks.push(("internal", Box::pin(async { Ok::<_, AgentError>(task.await?) })));
        let (into, node) = (inbox.clone(), settings.node_name.clone());
        let (gateways, task) = Watch::<EndpointSlice>::new()
            .in_namespace(&*settings.system_namespace)
            .labels(&format!("{}={}", labels::SLICE_SERVICE, settings.gateway_service))
            .project(move |slice| SliceFacts::of(&slice, &node))
            .distinct()
            .on_change(move |change| {
                into.change(|index| index.gateways(change.key, change.new.cloned()));
            })
            .start(ctx, COMPONENT);
        tasks.push(("gateways", Box::pin(async { Ok::<_, AgentError>(task.await?) })));
        let (node, task) = watch_node(ctx, &settings.node_name);
        tasks.push(("node", task));
        (Self { services, slices, internal, gateways, node }, tasks)
    }

    /// This agent's Node, `None` while there is none.
    pub(crate) fn node(&self) -> watch::Receiver<Option<NodeFacts>> {
        self.node.clone()
    }

    /// Waits until everything has been listed once.
    pub(crate) async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.internal.synced().await;
        self.gateways.synced().await;
    }
}

fn watch_node(ctx: &Context, name: &str) -> (watch::Receiver<Option<NodeFacts>>, AgentTask) {
    let (sender, node) = watch::channel(None);
    let (_, task) = Watch::<Node>::new()
        .fields(&format!("metadata.name={name}"))
        .project(|node| Some(NodeFacts::of(&node)))
        .distinct()
        .on_change(move |change| {
            // A Node that goes takes its report with it; its addresses count as long as this runs.
            if let Some(facts) = change.new {
                sender.send_replace(Some(NodeFacts::clone(facts)));
            }
        })
        .start(ctx, COMPONENT);
    (node, Box::pin(async { Ok(task.await?) }))
}
