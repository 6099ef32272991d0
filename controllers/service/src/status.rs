//! What an `AppService` reports. Pure: no IO, no clock.

use jiff::Timestamp;
use portolan_api::conditions::{NODE_PORTS_EXCLUSIVE, READY, reason};
use portolan_api::{AppService, AppServiceStatus, HeldNodePort, Holder};
use portolan_reconcile::{Conditions, Observed, Transition, Verdict, WriteError};

use crate::address;
use crate::apply::Outcome;
use crate::error::Error;
use crate::observe::{Situation, Slot};
use crate::plan::{Hold, Plan, Standing, Taken};
use crate::ports::NodePort;

/// What to write and to tell.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    /// The status.
    pub(crate) status: AppServiceStatus,
    /// The conditions that flipped.
    pub(crate) transitions: Vec<Transition>,
}

impl Report {
    /// Word of something that came to a node port for the first time. The framework takes the first
    /// verdict of a condition for no news, but this one is there only when there is some.
    pub(crate) fn intrusion(&self) -> Option<&Transition> {
        let mut transitions = self.transitions.iter();
        transitions.find(|one| one.type_ == NODE_PORTS_EXCLUSIVE && one.from.is_none())
    }
}

/// The condition `Ready`, before it is dated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    verdict: Verdict,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Says how the AppService is after this pass.
pub(crate) fn report(
    situation: &Situation,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> Report {
    let service = situation.service.as_ref();
    let generation = service.metadata.generation.unwrap_or_default();
    let before = service.status.clone().unwrap_or_default();
    let mut conditions = Conditions::new(&before.conditions, generation, now);
    let finding = finding(situation, plan, outcome);
    // A pass that could not find out, or tell nodes, does not speak of this generation.
    let is_told = finding.is_some() && is_told(situation, outcome);
    let observed_generation = if is_told { Some(generation) } else { before.observed_generation };
    match finding {
        Some(Finding { verdict, reason, message }) if is_contested(plan) => {
            conditions.set_naming(READY, verdict, reason, message);
        }
        Some(Finding { verdict, reason, message }) => {
            conditions.set(READY, verdict, reason, message);
        }
        None => _ = conditions.keep(READY),
    }
    let was_disputed = before.conditions.iter().any(|one| one.type_ == NODE_PORTS_EXCLUSIVE);
    match dispute(plan) {
        Dispute::With(message) => {
            conditions.set(NODE_PORTS_EXCLUSIVE, Verdict::False, reason::NODE_PORT_TAKEN, message);
        }
        Dispute::Unknown => drop(conditions.keep(NODE_PORTS_EXCLUSIVE)),
        // Said only to whom the contrary was said.
        Dispute::Nobody if was_disputed => {
            let message = "nothing else is known to use a node port that this AppService holds";
            conditions.set(NODE_PORTS_EXCLUSIVE, Verdict::True, reason::EXCLUSIVE, message);
        }
        Dispute::Nobody => {}
    }
    let (conditions, transitions) = conditions.finish();
    let node_ports: Vec<_> =
        plan.ports.iter().filter_map(|one| held(one, &before.node_ports)).collect();
    let status = AppServiceStatus {
        observed_generation,
        port_summary: service.spec.port_summary(&node_ports),
        cluster_ips: match &situation.address {
            Slot::Ours(live) => address::addresses(live),
            Slot::Unknown(_) => before.cluster_ips,
            Slot::Free | Slot::Leaving | Slot::Taken => Vec::new(),
        },
        node_ports,
        ready_endpoints: ready(situation).unwrap_or(before.ready_endpoints),
        conditions,
    };
    Report { status, transitions }
}

/// Whether the slices say where the address leads now. An epoch waits for this and for nothing else
/// here: sandboxes of the former pool are deleted then, and nodes lead to what the slices list.
fn is_told(situation: &Situation, outcome: &Outcome) -> bool {
    let are_seen = !matches!(situation.sandboxes, Some(Observed::Unknown(_)));
    // Of an address that is not known, slices are not planned. Where there is none, nothing leads
    // anywhere.
    let has_known_address = !matches!(situation.address, Slot::Unknown(_));
    let mut slices = situation.slices.values();
    let are_left = slices.any(|slot| matches!(slot, Slot::Leaving | Slot::Unknown(_)));
    are_seen && has_known_address && !are_left && !outcome.slices_lag
}

/// Who else is on a node port that is held.
enum Dispute {
    Nobody,
    With(String),
    Unknown,
}

fn dispute(plan: &Plan) -> Dispute {
    let disputed = plan.ports.iter().find_map(|one| Some((one, one.beside.as_ref()?)));
    if let Some((Standing { name, port, .. }, other)) = disputed {
        return Dispute::With(format!(
            "node port {port} (port {name}) has been taken by {other} too; it leads here still, so \
             free it there, or choose another here"
        ));
    }
    match plan.ports.iter().any(|one| matches!(one.hold, Hold::Unknown(_))) {
        true => Dispute::Unknown,
        false => Dispute::Nobody,
    }
}

/// Whether a Claim of another stands in the way. Which one, and who holds it, is news whenever it
/// is another, because there is something else to do.
fn is_contested(plan: &Plan) -> bool {
    plan.ports.iter().any(|one| matches!(one.hold, Hold::Lost(_) | Hold::Reserved(_)))
}

/// A port that is held, or of which nothing new could be found out.
fn held(standing: &Standing, before: &[HeldNodePort]) -> Option<HeldNodePort> {
    let NodePort { number, transport } = standing.port;
    let held =
        HeldNodePort { name: standing.name.clone(), port: number, transport: Some(transport) };
    let former = HeldNodePort { transport: None, ..held.clone() };
    match &standing.hold {
        Hold::Held => Some(held),
        Hold::Unknown(_) if before.contains(&former) => Some(former),
        Hold::Unknown(_) => before.contains(&held).then_some(held),
        _ => None,
    }
}

/// How many sandboxes take connections; `None`: not known.
fn ready(situation: &Situation) -> Option<i32> {
    let sandboxes = match &situation.sandboxes {
        None | Some(Observed::Absent) => return Some(0),
        Some(Observed::Unknown(_)) => return None,
        Some(Observed::Present(sandboxes)) => sandboxes,
    };
    let ready = sandboxes.iter().filter(|one| one.serving && !one.leaving);
    let ready = ready.filter(|one| !one.addresses.is_empty()).count();
    Some(i32::try_from(ready).unwrap_or(i32::MAX))
}

/// What is wrong, in the order in which a user should look; `None`: not found out.
fn finding(situation: &Situation, plan: &Plan, outcome: &Outcome) -> Option<Finding> {
    if let Some(taken) = plan.taken.as_ref().or(outcome.taken.as_ref()) {
        return Some(name_conflict(taken));
    }
    if let Some(Error::Service(source) | Error::Slice(source)) = &outcome.failure
        && let Some(refused) = refusal(source)
    {
        return Some(refused);
    }
    let mut problems = plan.ports.iter().filter_map(port_problem);
    if let Some(first) = problems.next() {
        let told = |told: Finding, next: Finding| {
            let message = format!("{}; {}", told.message, next.message);
            Finding { message, ..told }
        };
        return Some(problems.fold(first, told));
    }
    let is_open = outcome.failure.is_some()
        || plan.ports.iter().any(|one| matches!(one.hold, Hold::Unknown(_) | Hold::Taking));
    if is_open || matches!(situation.address, Slot::Unknown(_)) {
        return None;
    }
    serving(situation)
}

fn serving(situation: &Situation) -> Option<Finding> {
    let Slot::Ours(live) = &situation.address else {
        let message = "waits for the Service of a former AppService of this name to go".into();
        return Some(Finding { verdict: Verdict::False, reason: reason::STARTING, message });
    };
    let addresses = address::addresses(live).join(" and ");
    let unready = |reason, message| Finding { verdict: Verdict::False, reason, message };
    let Some(pool) = &situation.service.spec.pool else {
        let message = format!("no version is active yet; {addresses} refuses connections");
        return Some(unready(reason::NO_ACTIVE_VERSION, message));
    };
    Some(match ready(situation)? {
        0 => unready(
            reason::NO_ENDPOINTS,
            format!(
                "no sandbox of pool {pool} is ready, so {addresses} refuses connections; see the \
                 pool's conditions"
            ),
        ),
        count => Finding {
            verdict: Verdict::True,
            reason: reason::AVAILABLE,
            message: available(count, &addresses),
        },
    })
}

fn available(count: i32, addresses: &str) -> String {
    let led = AppService::ENDPOINTS_LED_MAX;
    match count {
        1 => format!("1 sandbox behind {addresses}"),
        many if usize::try_from(many).is_ok_and(|many| many > led) => {
            format!("{many} sandboxes behind {addresses}, of which each node leads to {led}")
        }
        many => format!("{many} sandboxes behind {addresses}"),
    }
}

fn name_conflict(taken: &Taken) -> Finding {
    let Taken { kind, name } = taken;
    Finding {
        verdict: Verdict::False,
        reason: reason::NAME_CONFLICT,
        message: format!(
            "{kind} {name} exists and is not Portolan's; delete it, or rename the App or its service"
        ),
    }
}

/// What the API server did not accept; `None` if it did not answer.
pub(crate) fn refusal(source: &WriteError) -> Option<Finding> {
    let answer = source.answer()?;
    // The API server has no reason of its own for this.
    let is_full = answer.contains("failed to allocate a serviceIP");
    let (reason, message) = if is_full {
        let message = "the cluster has no service address left; an administrator can add a \
                       ServiceCIDR, or Services that are not needed can be deleted";
        (reason::ADDRESSES_EXHAUSTED, message.to_owned())
    } else {
        let message = format!("the API server refused the {}: {answer}", source.kind);
        (reason::SERVICE_REFUSED, message)
    };
    Some(Finding { verdict: Verdict::False, reason, message })
}

fn port_problem(standing: &Standing) -> Option<Finding> {
    let Standing { name, port, hold, beside: _ } = standing;
    let port = format!("node port {port} (port {name})");
    let (reason, message) = match hold {
        Hold::Held | Hold::Taking | Hold::Unknown(_) => return None,
        Hold::Lost(Holder { namespace, name, .. }) => (
            reason::NODE_PORT_CONFLICT,
            format!(
                "{port} is held by AppService {namespace}/{name}; choose another, or have it \
                 released there"
            ),
        ),
        Hold::Reserved(kind) => (
            reason::NODE_PORT_CONFLICT,
            format!(
                "{port} is reserved by a Claim for a {kind}; choose another, or ask an \
                 administrator to delete the Claim"
            ),
        ),
        Hold::Refused(why) => (
            reason::NODE_PORT_RESERVED,
            format!("{port} {why}; choose another, or ask an administrator to change nodePorts"),
        ),
        Hold::Occupied(by) => {
            (reason::NODE_PORT_TAKEN, format!("{port} is taken by {by}; choose another"))
        }
    };
    Some(Finding { verdict: Verdict::False, reason, message })
}
