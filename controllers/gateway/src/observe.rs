//! What is kept of Leases and Pods.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use portolan_api::{Gateway, GatewayReport, gateway, labels};
use portolan_reconcile::Target;

/// Label selector of the gateways' Pods.
pub(crate) const PODS: &str = "app.kubernetes.io/component=gateway";
/// The container that is the gateway; others may be put beside it.
const CONTAINER: &str = "gateway";

/// The Lease of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldLease {
    pub(crate) gateway: Gateway,
    /// UID of the Pod that the Lease goes with.
    pub(crate) pod: Option<String>,
    /// The Lease at the version that was seen: a renewal makes another.
    pub(crate) target: Target,
}

/// The gateway's container in a Pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Process {
    /// UID of the Pod.
    pub(crate) pod: Option<String>,
    /// The Pod, at any version.
    pub(crate) target: Target,
    /// Whether its label has visitors sent there.
    pub(crate) takes_visitors: bool,
    /// When the last process ended, in whole seconds, rounded down; `None` while one runs.
    pub(crate) ended: Option<Timestamp>,
    /// The instances that ended, the last two at most: a gateway writes its own into its
    /// container's termination message when it starts.
    pub(crate) dead: Vec<String>,
}

/// What a gateway says of others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Witness {
    /// The gateway that says it.
    pub(crate) gateway: String,
    /// The instances where nobody listens any more.
    pub(crate) unheard: Vec<String>,
}

impl Witness {
    /// `None` if it says nothing.
    pub(crate) fn of(report: GatewayReport) -> Option<Self> {
        let (gateway, unheard) = (report.spec.gateway, report.spec.unheard);
        (!unheard.is_empty()).then_some(Self { gateway, unheard })
    }

    /// The Pods of whom it speaks: of those others, and for its own word.
    pub(crate) fn concerns(&self) -> impl Iterator<Item = &str> {
        let others = self.unheard.iter().filter_map(|instance| gateway::pod_of(instance));
        others.chain([self.gateway.as_str()])
    }
}

impl HeldLease {
    /// `None` for a Lease that no gateway has taken.
    pub(crate) fn of(lease: Lease) -> Option<Self> {
        let target = Target::at(&lease);
        let mut owners = lease.metadata.owner_references.iter().flatten();
        let pod = owners.find(|owner| owner.kind == "Pod").map(|owner| owner.uid.clone());
        Some(Self { gateway: Gateway::of(lease)?, pod, target })
    }
}

impl Process {
    pub(crate) fn of(pod: Pod) -> Option<Self> {
        let target = Target::of(&pod);
        let label = pod.metadata.labels.as_ref().and_then(|all| all.get(labels::VISITORS));
        let takes_visitors = label.is_some_and(|value| value == labels::VISITORS_YES);
        let statuses = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        let gateway = statuses.into_iter().find(|status| status.name == CONTAINER);
        let dead = gateway.as_ref().map(dead).unwrap_or_default();
        let (pod, ended) = (pod.metadata.uid, gateway.and_then(ended));
        Some(Self { pod, target, takes_visitors, ended, dead })
    }
}

fn dead(status: &ContainerStatus) -> Vec<String> {
    let states = [status.state.as_ref(), status.last_state.as_ref()].into_iter().flatten();
    states.filter_map(|state| state.terminated.as_ref()?.message.clone()).collect()
}

/// While one runs, whatever ended before it: it is about to take the Lease over by itself, and a
/// clock that was put back must not make it look dead.
fn ended(status: ContainerStatus) -> Option<Timestamp> {
    let (now, before) = (status.state.unwrap_or_default(), status.last_state.unwrap_or_default());
    if now.running.is_some() {
        return None;
    }
    let ends = [now.terminated, before.terminated].into_iter().flatten();
    ends.filter_map(|end| Some(end.finished_at?.0)).max()
}
