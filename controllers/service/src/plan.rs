//! Decides the address, the node ports and the endpoints. Pure: no IO, no clock.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_api::{Claim, Holder};
use portolan_claims::HolderState;
use portolan_reconcile::{Observed, Target};

use crate::observe::{Asked, Left, Situation, Slot};
use crate::ports::{NodePort, PortPolicy};
use crate::slices::Family;
use crate::{address, slices};

/// What a pass does. The steps do not depend on one another, so one that fails does not hold the
/// others up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The writes, in order.
    pub(crate) steps: Vec<Step>,
    /// The node ports to take, once dead Claims on them are released.
    pub(crate) take: Vec<NodePort>,
    /// How the AppService stands to each node port that it asks for, once the steps are taken.
    pub(crate) ports: Vec<Standing>,
    /// The first object of somebody else that has a name which is needed here.
    pub(crate) taken: Option<Taken>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Creates the Service, which allocates the address.
    CreateService(Box<Service>),
    /// Changes the Service and leaves its addresses.
    ReplaceService(Box<Service>),
    /// Deletes a Claim, if it is still exactly what was seen; the reason is for the log.
    Release(Target, &'static str),
    /// Creates the slice of a family.
    CreateSlice(Box<EndpointSlice>),
    /// Changes a slice.
    ReplaceSlice(Box<EndpointSlice>),
    /// Deletes the slice of a family that the address no longer has.
    DeleteSlice(Target),
}

/// What a pass does about the slices of an AppService that is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Farewell {
    /// Slices of which a sandbox went.
    pub(crate) replace: Vec<EndpointSlice>,
    /// Those of which none is left, once they say so.
    pub(crate) delete: Vec<Target>,
}

/// A name that somebody else has: kind and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
}

/// How an AppService stands to a node port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The name of the AppService's port.
    pub(crate) name: String,
    /// The node port.
    pub(crate) port: NodePort,
    /// Whether it has it.
    pub(crate) hold: Hold,
    /// What else is on it although it is held.
    pub(crate) beside: Option<String>,
}

/// Whether an AppService has a node port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It does.
    Held,
    /// It will, if it is not too late.
    Taking,
    /// Another AppService does.
    Lost(Holder),
    /// Somebody reserved it by a Claim for something of this kind.
    Reserved(String),
    /// The installation does not let Apps have it; these words follow its number.
    Refused(String),
    /// Something that is not Portolan's has it: what.
    Occupied(String),
    /// It could not be found out.
    Unknown(String),
}

/// Decides what to do about an AppService.
pub(crate) fn plan(situation: &Situation, policy: &PortPolicy) -> Plan {
    let mut plan = Plan { steps: Vec::new(), take: Vec::new(), ports: Vec::new(), taken: None };
    plan_address(situation, &mut plan);
    plan_ports(situation, policy, &mut plan);
    plan_slices(situation, &mut plan);
    plan
}

/// Decides what becomes of the slices of an AppService that is gone: they stay as long as one of
/// their sandboxes does.
pub(crate) fn farewell(left: &[Left]) -> Farewell {
    let mut farewell = Farewell::default();
    for Left { family, slice, there } in left {
        let wanted = slices::farewell(slice, *family, there);
        // Of the last one too agents learn by what leaves the slice: that a slice is deleted says
        // nothing.
        if !slices::is_same(slice, &wanted) {
            farewell.replace.push(wanted);
        }
        if there.is_empty() {
            farewell.delete.push(Target::of(slice.as_ref()));
        }
    }
    farewell
}

fn plan_address(situation: &Situation, plan: &mut Plan) {
    let of = situation.service.as_ref();
    match &situation.address {
        Slot::Free => plan.steps.push(Step::CreateService(Box::new(address::new(of)))),
        Slot::Ours(live) => {
            let wanted = address::brought_up(live, of);
            if wanted != **live {
                plan.steps.push(Step::ReplaceService(Box::new(wanted)));
            }
        }
        Slot::Taken => {
            let name = of.metadata.name.clone().unwrap_or_default();
            plan.taken = Some(Taken { kind: "Service", name });
        }
        Slot::Leaving | Slot::Unknown(_) => {}
    }
}

// === node ports ===

fn plan_ports(situation: &Situation, policy: &PortPolicy, plan: &mut Plan) {
    let mut seen: BTreeSet<NodePort> = BTreeSet::new();
    for asked in &situation.asked {
        let hold = if seen.insert(asked.port) {
            stand(asked, policy, plan)
        } else {
            Hold::Occupied("another port of this AppService".into())
        };
        // What was free when it was taken stays ours, whoever comes later: connections flow. But
        // the other does not get what it expects, so it is told.
        let beside = if hold == Hold::Held { occupant(asked) } else { None };
        plan.ports.push(Standing { name: asked.name.clone(), port: asked.port, hold, beside });
    }
    let asked: BTreeSet<_> = seen.iter().map(|port| port.value()).collect();
    let dropped = situation.held.iter().filter(|claim| !asked.contains(&claim.spec.value));
    plan.steps.extend(dropped.map(|claim| release(claim, "port is no longer asked for")));
}

fn stand(asked: &Asked, policy: &PortPolicy, plan: &mut Plan) -> Hold {
    let claim = asked.claim.as_ref();
    if let Some(why) = policy.refusal(asked.port) {
        if let Some((claim, HolderState::Own)) = claim {
            plan.steps.push(release(claim, "port is reserved"));
        }
        return Hold::Refused(why);
    }
    let dead = match claim {
        Some((_, HolderState::Own)) => return Hold::Held,
        Some((claim, HolderState::Asks)) => return Hold::Lost(claim.spec.holder.clone()),
        Some((claim, HolderState::Reserved)) => {
            return Hold::Reserved(claim.spec.holder.kind.clone());
        }
        Some((_, HolderState::Unknown(why))) => return Hold::Unknown(why.clone()),
        Some((claim, HolderState::Gone)) => Some((claim, "holder is gone")),
        Some((claim, HolderState::Left)) => Some((claim, "holder asks for another port")),
        None => None,
    };
    if let Some(occupant) = occupant(asked) {
        return Hold::Occupied(occupant);
    }
    plan.steps.extend(dead.map(|(claim, why)| release(claim, why)));
    plan.take.push(asked.port);
    Hold::Taking
}

fn occupant(asked: &Asked) -> Option<String> {
    if let Some(service) = asked.services.first() {
        return Some(format!("Service {service}"));
    }
    let (first, others) = asked.nodes.split_first()?;
    Some(match others.len() {
        0 => format!("a process on node {first}"),
        more => format!("processes on node {first} and {more} more"),
    })
}

fn release(claim: &Claim, why: &'static str) -> Step {
    Step::Release(Target::at(claim), why)
}

// === endpoints ===

fn plan_slices(situation: &Situation, plan: &mut Plan) {
    let Slot::Ours(live) = &situation.address else { return };
    let sandboxes = match &situation.sandboxes {
        Some(Observed::Present(sandboxes)) => sandboxes.as_slice(),
        None | Some(Observed::Absent) => &[],
        Some(Observed::Unknown(_)) => return,
    };
    let of = situation.service.as_ref();
    // They go on until their Pods are gone, and agents must know when that is.
    let sandboxes = &[sandboxes, situation.former.as_slice()].concat();
    let addresses = address::addresses(live);
    let addresses = addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    let families: BTreeSet<_> = addresses.map(Family::of).collect();
    for (family, slot) in &situation.slices {
        match slot {
            Slot::Ours(live) if !families.contains(family) => {
                plan.steps.push(Step::DeleteSlice(Target::of(live.as_ref())));
            }
            Slot::Ours(live) => {
                let wanted = slices::brought_up(live, of, *family, sandboxes);
                if !slices::is_same(live, &wanted) {
                    plan.steps.push(Step::ReplaceSlice(Box::new(wanted)));
                }
            }
            _ if !families.contains(family) => {}
            Slot::Free => {
                let wanted = slices::new(of, *family, sandboxes);
                plan.steps.push(Step::CreateSlice(Box::new(wanted)));
            }
            Slot::Taken => {
                let name = family.slice(of.metadata.name.as_deref().unwrap_or_default());
                plan.taken.get_or_insert(Taken { kind: "EndpointSlice", name });
            }
            Slot::Leaving | Slot::Unknown(_) => {}
        }
    }
}
