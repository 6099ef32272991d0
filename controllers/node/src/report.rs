//! The NodeReport of this node: what its kernel can do, what is in the way, whether it forwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use kube::core::ObjectMeta;
use portolan_api::{ListeningPort, NodeReport, NodeReportSpec, conditions, labels};
use portolan_nft::Family;
use portolan_process::ErrorChain;
use portolan_reconcile::{Conditions, Context, ObjectKey, Observed, RunError, Writer as ApiWriter};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep};

use crate::COMPONENT;
use crate::facts::NodeFacts;
use crate::inbox::Inbox;
use crate::listening::{LISTENING_MAX, listening};
use crate::machine::Machine;
use crate::writer::{Opened, State};

/// Writes the report of one node.
pub(crate) struct Reporter {
    pub(crate) ctx: Context,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) node_name: String,
    /// Where the kernel tells of itself and of its ports: `/proc`.
    pub(crate) proc: PathBuf,
    pub(crate) node: watch::Receiver<Option<NodeFacts>>,
    pub(crate) machine: watch::Receiver<Option<Machine>>,
    pub(crate) opened: watch::Receiver<Option<Opened>>,
    pub(crate) state: watch::Receiver<State>,
}

/// How often the ports of the host are looked at: /proc tells of no change.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often the report itself is looked at: whoever deletes it tells nobody, and the garbage
/// collector does when a Node comes back as another.
const CHECK_EVERY: Duration = Duration::from_secs(180);
/// What changes together is written together, and what flaps is not written each time.
const SETTLE: Duration = Duration::from_millis(200);
/// Pause after a report that could not be written.
const PAUSE: Duration = Duration::from_secs(5);

/// What a report is made of.
#[derive(Clone, Debug, Default)]
struct Facts {
    kernel: String,
    machine: Machine,
    opened: Option<Opened>,
    listening: BTreeSet<ListeningPort>,
    state: State,
}

/// What was said last.
struct Said {
    spec: NodeReportSpec,
    /// UID of the Node that owns it; `None`: it is not there any more. The spec stays, because it
    /// tells since when conditions hold.
    owner: Option<String>,
}

/// Why a round of the reporter begins.
enum Woken {
    /// The ports of the host are due.
    Look,
    /// The report itself is.
    Check,
    /// Something else is to be said.
    Change,
}

impl Reporter {
    /// Writes until the context shuts down.
    ///
    /// # Errors
    ///
    /// None: what cannot be written is logged and tried again.
    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        let shutdown = self.ctx.shutdown();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.report() => {}
        }
        Ok(())
    }

    async fn report(&mut self) {
        let writer = self.ctx.writer(COMPONENT);
        // An agent that starts anew goes on with what the one before said, and since when.
        let mut said = self.read(&writer).await;
        let kernel = fs::read_to_string(self.proc.join("sys/kernel/osrelease")).unwrap_or_default();
        let kernel = kernel.trim().to_owned();
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut found = BTreeSet::new();
        loop {
            let woken = tokio::select! {
                _ = looks.tick() => Woken::Look,
                _ = checks.tick() => Woken::Check,
                Ok(()) = self.node.changed() => Woken::Change,
                Ok(()) = self.machine.changed() => Woken::Change,
                Ok(()) = self.opened.changed() => Woken::Change,
                Ok(()) = self.state.changed() => Woken::Change,
            };
            match woken {
                Woken::Look => found = look(&self.proc, &self.inbox.asked_over_udp(), found),
                Woken::Check => said = self.check(&writer, said).await,
                Woken::Change => sleep(SETTLE).await,
            }
            let node = self.node.borrow_and_update().clone();
            let machine = self.machine.borrow_and_update().clone();
            // Who has no Node yet has nothing that would own the report.
            let (Some(node), Some(machine)) = (node, machine) else { continue };
            let facts = Facts {
                kernel: kernel.clone(),
                machine,
                opened: *self.opened.borrow_and_update(),
                listening: found.clone(),
                state: self.state.borrow_and_update().clone(),
            };
            let observed = said.as_ref().map(|said| said.spec.conditions.as_slice());
            let spec = spec(facts, observed.unwrap_or_default(), self.ctx.now());
            if said.as_ref().is_some_and(|said| said.says(&spec, &node)) {
                continue;
            }
            let report = NodeReport { metadata: self.metadata(&node), spec: spec.clone() };
            while let Err(error) = writer.apply(&report).await {
                tracing::warn!(error = %ErrorChain(&error), "Report not written");
                sleep(PAUSE).await;
            }
            said = Some(Said { spec, owner: Some(node.uid) });
        }
    }

    async fn read(&self, writer: &ApiWriter) -> Option<Said> {
        loop {
            match writer.get::<NodeReport>(&ObjectKey::cluster(&*self.node_name)).await {
                Observed::Present(report) => return Some(Said::by(report)),
                Observed::Absent => return None,
                Observed::Unknown(why) => tracing::warn!(why, "Report not read"),
            }
            sleep(PAUSE).await;
        }
    }

    /// What the report says now, if it can be read.
    async fn check(&self, writer: &ApiWriter, said: Option<Said>) -> Option<Said> {
        match writer.get::<NodeReport>(&ObjectKey::cluster(&*self.node_name)).await {
            Observed::Present(report) => Some(Said::by(report)),
            Observed::Absent => said.map(|said| Said { owner: None, ..said }),
            Observed::Unknown(why) => {
                tracing::warn!(why, "Report not read");
                said
            }
        }
    }

    fn metadata(&self, node: &NodeFacts) -> ObjectMeta {
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.node_name.clone(),
            uid: node.uid.clone(),
            ..OwnerReference::default()
        };
        let manager = (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned());
        ObjectMeta {
            name: Some(self.node_name.clone()),
            labels: Some([manager].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        }
    }
}

impl Said {
    fn by(report: NodeReport) -> Self {
        let mut owners = report.metadata.owner_references.into_iter().flatten();
        let owner = owners.find(|owner| owner.kind == "Node").map(|owner| owner.uid);
        Self { spec: report.spec, owner }
    }

    fn says(&self, spec: &NodeReportSpec, node: &NodeFacts) -> bool {
        self.spec == *spec && self.owner.as_ref() == Some(&node.uid)
    }
}

/// What listens now, or what did if that cannot be told.
fn look(
    proc: &Path,
    asked: &BTreeSet<u16>,
    before: BTreeSet<ListeningPort>,
) -> BTreeSet<ListeningPort> {
    listening(proc, asked).unwrap_or_else(|error| {
        tracing::warn!(%error, "Ports of the host not read");
        before
    })
}

fn spec(facts: Facts, observed: &[Condition], now: Timestamp) -> NodeReportSpec {
    let Facts { kernel, machine, opened, listening, state } = facts;
    let mut conditions = Conditions::new(observed, 0, now);
    let (holds, reason, message) = ready(&state, &machine);
    conditions.set(conditions::READY, holds, reason, message);
    let (conditions, _) = conditions.finish();
    // A report has no generation to speak of: it is its own spec.
    let conditions = conditions
        .into_iter()
        .map(|condition| Condition { observed_generation: None, ..condition })
        .collect();
    NodeReportSpec {
        kernel,
        features: features(opened.as_ref(), &machine),
        addresses: machine.ground.addresses.iter().map(ToString::to_string).collect(),
        listening: listening.into_iter().take(LISTENING_MAX).collect(),
        conditions,
    }
}

/// Names of what the kernel and the machine can do, sorted.
fn features(opened: Option<&Opened>, machine: &Machine) -> Vec<String> {
    let kernel = opened.map(|opened| opened.features).unwrap_or_default();
    let filters = opened.and_then(|opened| opened.filters);
    let features = [
        ("BridgedPods", !machine.ground.bridged.is_empty()),
        ("ConntrackFilters", filters == Some(true)),
        ("Conntrack", filters.is_some()),
        ("CountedElements", kernel.counts_elements),
        ("DefaultRouteIPv4", machine.default_routes.contains(&Family::V4)),
        ("DefaultRouteIPv6", machine.default_routes.contains(&Family::V6)),
        ("NamedElements", kernel.names_elements),
        ("OwnedTables", kernel.owned_tables),
        ("ProvenCommits", kernel.proves_commits),
    ];
    let names = features.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned());
    BTreeSet::from_iter(names).into_iter().collect()
}

fn ready(state: &State, machine: &Machine) -> (bool, &'static str, String) {
    use conditions::reason;
    match state {
        State::Starting => {
            (false, reason::STARTING, "services are read; nothing is programmed yet".into())
        }
        State::Programmed if machine.ground.addresses.is_empty() => (
            true,
            reason::PROGRAMMED,
            "services are forwarded; none of the Node's InternalIPs and ExternalIPs is on this \
             machine, so node ports do not answer here"
                .into(),
        ),
        State::Programmed if machine.default_routes.is_empty() => (
            true,
            reason::PROGRAMMED,
            "services are forwarded; this node has no default route, so its own processes reach \
             virtual addresses only if another route covers them"
                .into(),
        ),
        State::Programmed => {
            (true, reason::PROGRAMMED, "services are forwarded as they should be".into())
        }
        State::Refused { count, example } => (
            false,
            reason::PARTLY_PROGRAMMED,
            format!("the kernel refuses {count} of the ports and addresses, such as {example}"),
        ),
        State::Foreign(why) => (
            false,
            reason::FOREIGN_TABLE,
            format!("{why}; see who made it (nft list table inet portolan), and delete it"),
        ),
        State::Failed(why) => (
            false,
            reason::UNPROGRAMMABLE,
            format!("{why}; connections that were forwarded before still are"),
        ),
    }
}

#[cfg(test)]
mod tests;
