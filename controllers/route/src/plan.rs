//! Decides who holds a host. Pure: no IO, no clock.

use std::time::Duration;

use jiff::Timestamp;
use portolan_api::{Claim, Holder, Route};
use portolan_claims::HolderState;
use portolan_reconcile::Target;
use serde::Serialize;

use crate::REALM;
use crate::observe::Situation;
use crate::policy::{self, Denial, DomainRule, Request};

/// How long a Route leaves a free host to an older one of its namespace before it looks whether
/// the older one has taken it. A pass takes milliseconds; this only matters when the older Route
/// goes before its first pass, which no Claim tells us.
const DEFERENCE: Duration = Duration::from_secs(2);

/// What a pass does, in order; a step is taken only when all before it were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// The writes.
    pub(crate) steps: Vec<Step>,
    /// How the Route stands to its host once the steps are done.
    pub(crate) hold: Hold,
    /// When to look again although nothing may have changed.
    pub(crate) look_again: Option<Duration>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Step {
    /// Deletes a Claim, if it is still exactly what was seen.
    Delete {
        /// The Claim, with UID and resource version.
        claim: Target,
        /// The host it holds.
        host: String,
        /// Why it may go.
        why: Reason,
    },
    /// Creates the Claim on the host.
    Create {
        /// The host.
        host: String,
        /// The Route.
        holder: Holder,
    },
}

/// Why a Claim may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Reason {
    /// Its holder does not exist any more.
    HolderGone,
    /// Its holder asks for another host now.
    HolderLeft,
    /// Its holder is younger than this Route of the same namespace.
    Outranked,
    /// This Route holds it and asks for another host now.
    HostChanged,
    /// This Route holds it and a Domain gives it to others now.
    Denied,
}

impl Reason {
    /// For logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::HolderGone => "holder is gone",
            Self::HolderLeft => "holder asks for another host",
            Self::Outranked => "an older route of the namespace asks for the host",
            Self::HostChanged => "the route asks for another host",
            Self::Denied => "a domain gives the host to others",
        }
    }
}

/// How a Route stands to its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Hold {
    /// It holds it.
    Ours,
    /// Another does, or comes first.
    Lost(Rival),
    /// Its namespace may not have it.
    Denied(Denial),
    /// Whether the Claim that is in the way still counts could not be found out.
    Undecided(String),
}

/// Who holds a host instead; what the losing namespace may know of it.
///
/// The names of another namespace's objects are not told to a tenant, the namespace is: somebody
/// has to be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Rival {
    /// A Route of the same namespace: its name.
    Sibling(String),
    /// A Route of another namespace: that namespace.
    Namespace(String),
    /// Something that is no Route: its kind.
    Reserved(String),
}

impl Rival {
    /// The holder of a Claim, as a Route of `namespace` may see it.
    pub(crate) fn of(holder: &Holder, namespace: &str) -> Self {
        if holder.kind != REALM.holder {
            Self::Reserved(holder.kind.clone())
        } else if holder.namespace == namespace {
            Self::Sibling(holder.name.clone())
        } else {
            Self::Namespace(holder.namespace.clone())
        }
    }
}

/// Decides what to do about the host of a Route.
pub(crate) fn plan(situation: &Situation) -> Plan {
    let route = &situation.route;
    let denied = denial(situation, &route.spec.host, is_held_here(situation));
    // What a Domain took away goes at once, whatever becomes of the host that is asked for now.
    let mut steps: Vec<_> =
        situation.own.iter().filter_map(|claim| deny(situation, claim)).collect();
    if let Some(denial) = denied {
        return Plan { steps, hold: Hold::Denied(denial), look_again: None };
    }
    match contend(situation) {
        Contest::Won(mut winning) => {
            steps.append(&mut winning);
            // Only now, and last: a Route whose new host is another's can go back to its old one,
            // as long as nobody else has asked for it.
            let rest = situation.own.iter().filter(|claim| is_left_behind(situation, claim));
            steps.extend(rest.map(|claim| delete(claim, Reason::HostChanged)));
            Plan { steps, hold: Hold::Ours, look_again: None }
        }
        Contest::Lost { rival, look_again } => Plan { steps, hold: Hold::Lost(rival), look_again },
        Contest::Undecided(why) => Plan { steps, hold: Hold::Undecided(why), look_again: None },
    }
}

/// Hosts that the Route does not ask for any more and keeps until somebody else does. That it does
/// not ask, no Claim tells those who wait.
pub(crate) fn offered<'a>(situation: &'a Situation, plan: &Plan) -> Vec<&'a str> {
    if plan.hold == Hold::Ours {
        return Vec::new();
    }
    let kept = situation.own.iter().filter(|claim| is_left_behind(situation, claim));
    kept.map(|claim| claim.spec.value.as_str()).collect()
}

/// The outcome of looking at who else asks for the host.
enum Contest {
    /// It is this Route's; these steps make it so.
    Won(Vec<Step>),
    /// It is another's.
    Lost { rival: Rival, look_again: Option<Duration> },
    /// It could not be found out.
    Undecided(String),
}

fn contend(situation: &Situation) -> Contest {
    let namespace = namespace(&situation.route);
    let evict = match &situation.claim {
        None => None,
        Some((_, HolderState::Own)) => return Contest::Won(Vec::new()),
        Some((_, HolderState::Unknown(why))) => return Contest::Undecided(why.clone()),
        Some((claim, HolderState::Gone)) => Some(delete(claim, Reason::HolderGone)),
        Some((claim, HolderState::Left)) => Some(delete(claim, Reason::HolderLeft)),
        Some((claim, HolderState::Asks)) if claim.spec.holder.namespace == namespace => {
            Some(delete(claim, Reason::Outranked))
        }
        Some((claim, HolderState::Asks | HolderState::Reserved)) => {
            let rival = Rival::of(&claim.spec.holder, namespace);
            return Contest::Lost { rival, look_again: None };
        }
    };
    let older = situation.namesakes.iter().filter(|other| age(other) < age(&situation.route));
    if let Some(oldest) = older.min_by(|one, other| age(one).cmp(&age(other))) {
        let (_, name) = age(oldest);
        let holds = situation.claim.as_ref().is_some_and(|(claim, state)| {
            *state == HolderState::Asks
                && Some(&claim.spec.holder.uid) == oldest.metadata.uid.as_ref()
        });
        let look_again = (!holds).then_some(DEFERENCE);
        return Contest::Lost { rival: Rival::Sibling(name.into()), look_again };
    }
    let create =
        Step::Create { host: situation.route.spec.host.clone(), holder: holder(&situation.route) };
    Contest::Won(evict.into_iter().chain([create]).collect())
}

/// A step that gives up a Claim of this Route, if a Domain does not let the namespace have it.
fn deny(situation: &Situation, claim: &Claim) -> Option<Step> {
    denial(situation, &claim.spec.value, true).map(|_| delete(claim, Reason::Denied))
}

/// Whether this Claim of the Route is neither the one on its host nor given up already.
fn is_left_behind(situation: &Situation, claim: &Claim) -> bool {
    !policy::is_claim_on(claim, &situation.route.spec.host) && deny(situation, claim).is_none()
}

fn denial(situation: &Situation, host: &str, held: bool) -> Option<Denial> {
    let request = Request { host, namespace: namespace(&situation.route), held };
    let domains = situation.domains.iter().map(|domain| -> &DomainRule { domain });
    policy::denial(request, domains, situation.above.iter().map(|claim| -> &Claim { claim }))
}

/// Whether a living Route of this namespace holds the host.
fn is_held_here(situation: &Situation) -> bool {
    situation.claim.as_ref().is_some_and(|(claim, state)| {
        matches!(state, HolderState::Own | HolderState::Asks | HolderState::Left)
            && claim.spec.holder.namespace == namespace(&situation.route)
    })
}

fn delete(claim: &Claim, why: Reason) -> Step {
    Step::Delete { claim: Target::at(claim), host: claim.spec.value.clone(), why }
}

/// The order in which Routes of one namespace come to a host.
fn age(route: &Route) -> (Timestamp, &str) {
    (crate::created(route), route.metadata.name.as_deref().unwrap_or_default())
}

fn namespace(route: &Route) -> &str {
    route.metadata.namespace.as_deref().unwrap_or_default()
}

fn holder(route: &Route) -> Holder {
    REALM.holder(route)
}
