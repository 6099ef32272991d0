//! A sandbox as the controller keeps it: the few facts of a Pod that decisions need, so that ten
//! thousand of them fit in a small process. Pure: made from a Pod by the watch's projection.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus};
use kube::ResourceExt;
use portolan_api::labels;
use portolan_reconcile::{ObjectKey, Target};
use serde::Serialize;

/// The name of the container that runs the program; all others are the user's or injected.
pub(crate) const CONTAINER: &str = "app";

/// How long a program that ended has run if something happened to it, and it did not just fail to
/// start: as long as a kubelet lets one rest that fails the second time.
const LIFE_MIN: SignedDuration = SignedDuration::from_secs(10);

/// A Pod with the pool label, whoever made it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sandbox {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    /// The pool that the label names. An index only: whose it is, `owner` says.
    pub(crate) pool: ObjectKey,
    /// UID of the controller reference.
    pub(crate) owner: Option<String>,
    pub(crate) created: Timestamp,
    /// Phase `Failed` or `Succeeded`: nothing runs in it any more, and nothing will.
    pub(crate) ended: Option<Box<End>>,
    /// Deleted by somebody and not gone yet.
    pub(crate) deleting: bool,
    /// A node has been chosen.
    pub(crate) scheduled: bool,
    /// It has an address, so a gateway may have reached it.
    pub(crate) addressed: bool,
    pub(crate) ready: bool,
    /// The annotation [`labels::SLOTS`].
    pub(crate) slots: Option<String>,
    /// The annotation [`labels::DRAIN`].
    pub(crate) drain: Option<String>,
    /// What is between it and being ready; `None` when ready, or when nothing is known yet.
    pub(crate) hurdle: Option<Box<Hurdle>>,
}

/// How a sandbox ended for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct End {
    /// Whether its program had run for [`LIFE_MIN`]: another one may fare as well. If not, its node
    /// refused it or ended it at once, and would do so again.
    pub(crate) has_lived: bool,
    /// The kubelet's reason and words.
    pub(crate) words: String,
}

/// What is between a sandbox and being ready.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) enum Hurdle {
    /// The scheduler found no node; its own words.
    Unschedulable(String),
    /// Its node has made neither volumes nor network for it, since then.
    NotSetUp { since: Timestamp },
    /// This container is not ready.
    Container(ContainerView),
    /// All containers are ready and the Pod is not: its node no longer reports.
    NodeSilent,
}

/// The container that holds a sandbox up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ContainerView {
    pub(crate) name: String,
    pub(crate) state: State,
    /// How often it was started again.
    pub(crate) restarts: i32,
    /// How it ended the last time, if it was started again since.
    pub(crate) last_exit: Option<Exit>,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) enum State {
    /// Not started; the kubelet's reason and words.
    Waiting { reason: String, message: String },
    /// Started at that time.
    Running { since: Timestamp },
    /// Ended.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    /// The kubelet's reason, such as `Error`, `OOMKilled` or `StartError`.
    pub(crate) reason: String,
    /// The last lines that the program printed, or what it wrote to its termination log.
    pub(crate) message: String,
    /// Whether it had run for [`LIFE_MIN`].
    pub(crate) has_lived: bool,
}

impl Sandbox {
    /// Keeps what is needed of a Pod; `None` for one without the pool label.
    pub(crate) fn of(mut pod: Pod) -> Option<Self> {
        let pool = pod.labels().get(labels::POOL)?.clone();
        let status = pod.status.take().unwrap_or_default();
        let key = ObjectKey::of(&pod);
        let annotation = |name: &str| pod.annotations().get(name).cloned();
        let ready = condition(&status, "Ready").is_some_and(|ready| ready.status == "True");
        let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        Some(Self {
            pool: ObjectKey::new(key.namespace.clone(), pool),
            uid: pod.uid().unwrap_or_default(),
            owner: owner.map(|owner| owner.uid.clone()),
            created: pod.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            ended: end(&status).map(Box::new),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            scheduled: pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()),
            addressed: status.pod_ip.as_ref().is_some_and(|address| !address.is_empty()),
            ready,
            slots: annotation(labels::SLOTS),
            drain: annotation(labels::DRAIN),
            hurdle: if ready { None } else { hurdle(&status).map(Box::new) },
            key,
        })
    }

    /// What writes are addressed to: this Pod and no later one of its name.
    pub(crate) fn target(&self) -> Target {
        Target { key: self.key.clone(), uid: self.uid.clone(), resource_version: None }
    }
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn end(status: &PodStatus) -> Option<End> {
    if !matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return None;
    }
    let mut containers = status.container_statuses.iter().flatten();
    let state = containers.find(|one| one.name == CONTAINER).and_then(|one| one.state.as_ref());
    let has_lived = state.is_some_and(|state| match exit(state) {
        // So the kubelet calls what it finds gone, after it was away itself.
        Some(exit) => exit.has_lived || exit.reason == "ContainerStatusUnknown",
        None => state.running.is_some(),
    });
    let words = [status.reason.as_deref(), status.message.as_deref()].into_iter().flatten();
    let words: Vec<_> = words.filter(|words| !words.is_empty()).collect();
    Some(End { has_lived, words: words.join(": ") })
}

fn hurdle(status: &PodStatus) -> Option<Hurdle> {
    let unschedulable = condition(status, "PodScheduled").filter(|scheduled| {
        scheduled.status == "False" && scheduled.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        return Some(Hurdle::Unschedulable(condition.message.clone().unwrap_or_default()));
    }
    let unset = condition(status, "PodReadyToStartContainers").filter(|one| one.status == "False");
    if let Some(since) = unset.and_then(|condition| condition.last_transition_time.as_ref()) {
        return Some(Hurdle::NotSetUp { since: since.0 });
    }
    if let Some(container) = pending_init(status).or_else(|| unready(status)) {
        return Some(Hurdle::Container(view(container)));
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    (!containers.is_empty()).then_some(Hurdle::NodeSilent)
}

/// The first init container that has neither done its work nor, as a sidecar, begun it.
fn pending_init(status: &PodStatus) -> Option<&ContainerStatus> {
    status.init_container_statuses.iter().flatten().find(|container| {
        let done = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        done.is_none_or(|done| done.exit_code != 0) && container.started != Some(true)
    })
}

/// The program if it is not ready, else whatever else is not: a sidecar somebody injected.
fn unready(status: &PodStatus) -> Option<&ContainerStatus> {
    let unready = || status.container_statuses.iter().flatten().filter(|one| !one.ready);
    unready().find(|one| one.name == CONTAINER).or_else(|| unready().next())
}

fn view(container: &ContainerStatus) -> ContainerView {
    let state = container.state.clone().unwrap_or_default();
    ContainerView {
        name: container.name.clone(),
        restarts: container.restart_count,
        last_exit: container.last_state.as_ref().and_then(exit),
        state: match (exit(&state), state.running) {
            (Some(exit), _) => State::Exited(exit),
            (None, Some(running)) => State::Running {
                since: running.started_at.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            },
            (None, None) => {
                let waiting = state.waiting.unwrap_or_default();
                State::Waiting {
                    reason: waiting.reason.unwrap_or_default(),
                    message: waiting.message.unwrap_or_default(),
                }
            }
        },
    }
}

fn exit(state: &ContainerState) -> Option<Exit> {
    let ended = state.terminated.as_ref()?;
    let (started, finished) = (ended.started_at.as_ref(), ended.finished_at.as_ref());
    let lived = started.zip(finished).map(|(from, to)| to.0.duration_since(from.0));
    Some(Exit {
        has_lived: lived.is_some_and(|lived| lived >= LIFE_MIN),
        code: ended.exit_code,
        reason: ended.reason.clone().unwrap_or_default(),
        message: ended.message.clone().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
