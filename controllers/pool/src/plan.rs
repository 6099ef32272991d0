//! What to do about a pool. Pure: from a [`Situation`] and the time to a [`Plan`], no IO.
//!
//! A sandbox of the pool is in one of four states, and only the first counts as capacity:
//!
//! | state | seen by | goes |
//! |---|---|---|
//! | standing | neither of the below | when it is surplus: marked, or deleted if nobody can use it |
//! | draining | the annotation of a drain mark | when gateways are done with it, or at the limit |
//! | terminating | a deletion timestamp, whoever set it | by itself |
//! | ended | phase Failed or Succeeded | deleted at once; another takes its place, after a pause if it came to nothing |
//!
//! A mark is final: some gateway may have let go of the sandbox already, so new demand gets a new
//! sandbox. Whatever is controlled by another UID, or by nobody, is not the pool's: a Pod that a
//! deleted pool of the same name left behind is neither counted nor touched.

use std::collections::BTreeSet;

use jiff::Timestamp;
use portolan_api::{PoolRole, SandboxPool, conditions::reason, names};
use portolan_reconcile::Target;
use serde::Serialize;

use crate::{
    gateway::Gateway,
    observe::Situation,
    sandbox::Sandbox,
    scale::{self, Decision},
    setback::Setback,
    settings::Settings,
    slots::{self, Grants, Roster},
};

/// What to do, and what the decision was.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Write this to `spec.replicas`; `None`: it says so already.
    pub(crate) replicas: Option<i32>,
    /// That number may be written a moment later: it only grew, visitors wait for the sandboxes
    /// that it counts, and until then this process remembers it.
    pub(crate) replicas_may_wait: bool,
    /// Sandboxes to create, ascending by ordinal and incarnation.
    pub(crate) create: Vec<NewSandbox>,
    /// Grants to change on sandboxes that stay.
    pub(crate) grant: Vec<Grant>,
    /// Sandboxes to mark as draining.
    pub(crate) mark: Vec<Mark>,
    /// Sandboxes to delete.
    pub(crate) delete: Vec<Deletion>,
    /// What stands in the way of new sandboxes, or did until a short while ago.
    pub(crate) setback: Option<Setback>,
    /// How many are wanted.
    pub(crate) decision: Decision,
    /// When to look again although nothing changed.
    pub(crate) next: Option<Timestamp>,
}

/// A sandbox to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NewSandbox {
    pub(crate) ordinal: i32,
    pub(crate) incarnation: i64,
    /// `None` when the pool does not count slots.
    pub(crate) slots: Option<String>,
}

/// Slots to write to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Grant {
    pub(crate) target: Target,
    pub(crate) slots: String,
}

/// A drain mark to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mark {
    pub(crate) target: Target,
    /// Milliseconds since 1970: grows with each decision, and says when the limit is.
    pub(crate) epoch: i64,
    pub(crate) reason: MarkReason,
    /// The slots it has: an annotation of ours that an apply omits would be removed.
    pub(crate) slots: Option<String>,
}

/// Why a sandbox shall drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum MarkReason {
    /// More sandboxes than wanted.
    Surplus,
    /// It holds slots of a lost gateway, and the pool is `Strict`.
    SlotsLost,
    /// A gateway cannot know that its slots there are free, and the pool is `Strict`.
    Retired,
}

impl MarkReason {
    /// The value of the annotation.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Surplus => "Surplus",
            Self::SlotsLost => "SlotsLost",
            Self::Retired => "Retired",
        }
    }
}

/// A sandbox to delete, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Deletion {
    pub(crate) target: Target,
    pub(crate) reason: DeletionReason,
}

/// Why a sandbox is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum DeletionReason {
    /// Its containers have ended for good: an eviction, a node's shutdown.
    Ended,
    /// Every live gateway is done with it.
    Drained,
    /// The drain limit has passed.
    DrainLimit,
    /// Surplus, and no gateway can have reached it: it has no address, or no gateway lives.
    Unused,
}

/// The sandboxes of a pool by state; within each, by ordinal and then age.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members<'a> {
    pub(crate) standing: Vec<&'a Sandbox>,
    pub(crate) draining: Vec<&'a Sandbox>,
    pub(crate) terminating: Vec<&'a Sandbox>,
    pub(crate) ended: Vec<&'a Sandbox>,
}

impl<'a> Members<'a> {
    /// Sorts what the situation shows; foreign Pods are left out.
    pub(crate) fn of(situation: &'a Situation) -> Self {
        let pool = &situation.pool;
        let mut own: Vec<&Sandbox> = situation.sandboxes.iter().map(AsRef::as_ref).collect();
        own.retain(|sandbox| sandbox.owner.is_some() && sandbox.owner == pool.metadata.uid);
        own.sort_by_key(|sandbox| (serial(pool, sandbox), &sandbox.key));
        let mut members = Self::default();
        for sandbox in own {
            let state = if sandbox.deleting {
                &mut members.terminating
            } else if sandbox.ended.is_some() {
                &mut members.ended
            } else if sandbox.drain.is_some() {
                &mut members.draining
            } else {
                &mut members.standing
            };
            state.push(sandbox);
        }
        members
    }
}

/// `(ordinal, incarnation)`; `None` for a name we did not make.
fn serial(pool: &SandboxPool, sandbox: &Sandbox) -> Option<(i32, i64)> {
    names::parse_pod(pool.metadata.name.as_deref()?, &sandbox.key.name)
}

/// Decides everything.
pub(crate) fn plan(situation: &Situation, settings: &Settings, now: Timestamp) -> Plan {
    Planner::new(situation, settings, now).plan()
}

struct Planner<'a> {
    situation: &'a Situation,
    settings: &'a Settings,
    now: Timestamp,
    gateways: Vec<&'a Gateway>,
    roster: Roster,
    members: Members<'a>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(situation: &'a Situation, settings: &'a Settings, now: Timestamp) -> Self {
        let live = situation.gateways.iter().filter(|gateway| gateway.is_live(now));
        let mut gateways: Vec<_> = live.collect();
        gateways.sort_by_key(|gateway| &gateway.name);
        Self {
            situation,
            settings,
            now,
            roster: Roster::of(&situation.gateways, situation.all_seen, now),
            gateways,
            members: Members::of(situation),
            plan: Plan::default(),
        }
    }

    fn plan(mut self) -> Plan {
        let spec = &self.situation.pool.spec;
        self.plan.decision = self.decide();
        let wanted = self.plan.decision.wanted;
        self.plan.replicas = (spec.replicas != Some(wanted)).then_some(wanted);
        self.plan.replicas_may_wait = self.sleeps() && wanted > spec.wanted();

        let mut sound = Vec::new();
        for sandbox in std::mem::take(&mut self.members.standing) {
            match self.fault(sandbox) {
                Some(reason) => self.retire(sandbox, reason),
                None => sound.push(sandbox),
            }
        }
        let (staying, surplus) = split_surplus(sound, wanted);
        for sandbox in surplus {
            self.retire(sandbox, MarkReason::Surplus);
        }
        self.plan.setback = self.setback();
        self.create(&staying, wanted);
        self.divide_slots(&staying);
        self.finish_drains();
        for sandbox in &self.members.ended {
            self.plan.delete.push(deletion(sandbox, DeletionReason::Ended));
        }
        self.look_again(&staying);
        self.plan
    }

    fn decide(&self) -> Decision {
        let spec = &self.situation.pool.spec;
        let status = self.situation.pool.status.as_ref();
        let demand: Vec<i64> = self.gateways.iter().map(|gateway| gateway.demand.total()).collect();
        let reported = self.gateways.iter().filter_map(|gateway| gateway.demand.last_activity);
        let input = scale::Input {
            role: spec.role,
            scale: &spec.scale,
            floor: spec.floor.unwrap_or_default(),
            replicas: spec.wanted().max(self.situation.unwritten),
            woken: self.woken(),
            demand: &demand,
            waits: self.gateways.iter().any(|gateway| gateway.demand.queued > 0),
            is_stale: self.situation.reports_fresh > self.now,
            reported: reported.max(),
            stored: status.and_then(|status| Some(status.last_activity.as_ref()?.0)),
            history: self.situation.history.as_ref(),
        };
        scale::decide(&input, self.now)
    }

    /// What a pool that sleeps by its spec woke, if another process did that and had not written
    /// it yet.
    fn woken(&self) -> i32 {
        let is_asleep = self.sleeps() && self.situation.pool.spec.wanted() == 0;
        let standing = self.members.standing.iter().filter(|one| self.fault(one).is_none());
        if is_asleep { i32::try_from(standing.count()).unwrap_or(i32::MAX) } else { 0 }
    }

    /// Whether the number follows the visitors, down as well as up.
    fn sleeps(&self) -> bool {
        let spec = &self.situation.pool.spec;
        spec.role == PoolRole::Active && spec.scale.scale_down_delay_seconds.is_some()
    }

    /// Why a sandbox is to be replaced although it is wanted.
    fn fault(&self, sandbox: &Sandbox) -> Option<MarkReason> {
        let scale = &self.situation.pool.spec.scale;
        let names = |gateway: &&Gateway| gateway.demand.retired.contains(&sandbox.key.name);
        if self.gateways.iter().any(names) {
            Some(MarkReason::Retired)
        } else {
            let lost = slots::is_broken(sandbox.slots.as_deref(), scale, &self.roster);
            lost.then_some(MarkReason::SlotsLost)
        }
    }

    /// Marks a sandbox, or deletes it where a mark would wait for nobody.
    fn retire(&mut self, sandbox: &Sandbox, reason: MarkReason) {
        if self.gateways.is_empty() || !sandbox.addressed {
            self.plan.delete.push(deletion(sandbox, DeletionReason::Unused));
            return;
        }
        self.plan.mark.push(Mark {
            target: sandbox.target(),
            epoch: self.now.as_millisecond(),
            reason,
            slots: sandbox.slots.clone(),
        });
    }

    /// The latest setback. A sandbox that ended before it came to anything is one: so would the
    /// next. Where one that lived has ended, another is made at once.
    fn setback(&self) -> Option<Setback> {
        let before = self.situation.setback.as_ref();
        let mut ends = self.members.ended.iter().filter_map(|one| Some((one, one.ended.as_ref()?)));
        let Some((sandbox, end)) = ends.find(|(_, end)| !end.has_lived) else {
            return before.filter(|before| !before.is_overcome(self.now)).cloned();
        };
        let (name, words) = (&sandbox.key.name, &end.words);
        let message = format!("sandbox {name} ended before its program could serve: {words}");
        Some(Setback::new(before, reason::START_FAILED, message, self.now))
    }

    fn create(&mut self, staying: &[&Sandbox], wanted: i32) {
        let pool = &self.situation.pool;
        let pods = self.situation.sandboxes.len();
        if self.plan.setback.as_ref().is_some_and(|setback| setback.holds(pods, self.now)) {
            return;
        }
        let count = count(wanted).saturating_sub(staying.len());
        let taken: BTreeSet<i32> =
            staying.iter().filter_map(|sandbox| Some(serial(pool, sandbox)?.0)).collect();
        let free = (0..i32::MAX).filter(|ordinal| !taken.contains(ordinal));
        // Names of all Pods that were ever seen are used up, whoever owns those Pods.
        let seen = self.situation.sandboxes.iter();
        let seen = seen.filter_map(|sandbox| Some(serial(pool, sandbox)?.1)).max();
        let used = pool.status.as_ref().map_or(0, |status| status.incarnation);
        let used = used.max(self.situation.incarnation);
        let first = used.max(seen.unwrap_or(0)).saturating_add(1);
        let new = free.zip(first..).take(count);
        self.plan.create = new
            .map(|(ordinal, incarnation)| NewSandbox { ordinal, incarnation, slots: None })
            .collect();
    }

    fn divide_slots(&mut self, staying: &[&Sandbox]) {
        let held: Vec<Option<Grants>> =
            staying.iter().map(|sandbox| sandbox.slots.as_deref().map(slots::read)).collect();
        let scale = &self.situation.pool.spec.scale;
        let divided = slots::divide(scale, &held, self.plan.create.len(), &self.roster);
        let mut divided = divided.into_iter();
        for ((sandbox, held), grants) in staying.iter().zip(&held).zip(divided.by_ref()) {
            if let Some(grants) = grants.filter(|grants| held.as_ref() != Some(grants)) {
                let slots = slots::render(&grants);
                self.plan.grant.push(Grant { target: sandbox.target(), slots });
            }
        }
        for (new, grants) in self.plan.create.iter_mut().zip(divided) {
            new.slots = grants.as_ref().map(slots::render);
        }
    }

    fn finish_drains(&mut self) {
        for sandbox in &self.members.draining {
            let epoch = drain_epoch(sandbox);
            let reason = if self.is_drained(sandbox, epoch) {
                Some(DeletionReason::Drained)
            } else if self.drain_end(epoch).is_none_or(|end| end <= self.now) {
                Some(DeletionReason::DrainLimit)
            } else {
                None
            };
            self.plan.delete.extend(reason.map(|reason| deletion(sandbox, reason)));
        }
    }

    /// Whether all live gateways follow the mark and have nothing left; so too if none lives.
    fn is_drained(&self, sandbox: &Sandbox, epoch: i64) -> bool {
        self.gateways.iter().all(|gateway| {
            gateway.demand.draining.iter().any(|report| {
                report.pod == sandbox.key.name && report.epoch == epoch && report.running == 0
            })
        })
    }

    /// When a marked sandbox is deleted regardless; `None` for a mark that is none of ours: no
    /// time, or one that lies ahead.
    fn drain_end(&self, epoch: i64) -> Option<Timestamp> {
        let marked = Timestamp::from_millisecond(epoch).ok()?;
        let ahead = marked.duration_since(self.now) > self.settings.drain_limit;
        marked.checked_add(self.settings.drain_limit).ok().filter(|_| !ahead)
    }

    fn look_again(&mut self, staying: &[&Sandbox]) {
        let draining = self.members.draining.iter().map(|sandbox| drain_epoch(sandbox));
        let marked = self.plan.mark.iter().map(|mark| mark.epoch);
        let epochs: Vec<i64> = draining.chain(marked).collect();
        let ends = epochs.iter().filter_map(|epoch| self.drain_end(*epoch));
        let ends = ends.filter(|end| *end > self.now);
        // A Lease lapses without a change of any object. It matters where the gateway counts:
        // with its requests, its slots, or the drain that it has not confirmed.
        let granted = staying.iter().any(|sandbox| sandbox.slots.is_some())
            || self.plan.create.iter().any(|new| new.slots.is_some())
            || !self.plan.grant.is_empty();
        let concerned = granted || !epochs.is_empty();
        let lapses = self.gateways.iter().filter(|g| concerned || g.demand.total() > 0);
        let lapses = lapses.map(|gateway| gateway.expires);
        let mut slots = staying.iter().filter_map(|sandbox| sandbox.slots.as_deref());
        let unseen = slots.any(|slots| self.roster.expects(slots));
        let seen = Some(self.situation.all_seen).filter(|_| unseen);
        let fresh = Some(self.situation.reports_fresh);
        let fresh = fresh.filter(|_| self.sleeps() && self.plan.decision.wanted > 0);
        let trusted = seen.into_iter().chain(fresh).filter(|time| *time > self.now);
        self.plan.next = ends.chain(lapses).chain(trusted).chain(self.plan.decision.next).min();
    }
}

/// The epoch of the mark; zero, which is long past, if somebody made it unreadable.
fn drain_epoch(sandbox: &Sandbox) -> i64 {
    sandbox.drain.as_deref().and_then(|epoch| epoch.parse().ok()).unwrap_or(0)
}

fn deletion(sandbox: &Sandbox, reason: DeletionReason) -> Deletion {
    Deletion { target: sandbox.target(), reason }
}

/// Who stays and who goes, both by ordinal. First go those without a node, then those that are not
/// ready; they cost the least. Of the ready ones the youngest go: the oldest have the warmest
/// caches and the longest connections. Which sandbox is least busy only gateways know, and not
/// knowing costs nobody a request: a marked sandbox finishes what it has.
fn split_surplus<'a>(
    sandboxes: Vec<&'a Sandbox>,
    wanted: i32,
) -> (Vec<&'a Sandbox>, Vec<&'a Sandbox>) {
    let surplus = sandboxes.len().saturating_sub(count(wanted));
    let mut by_worth: Vec<(usize, &Sandbox)> = sandboxes.into_iter().enumerate().collect();
    by_worth.sort_by_key(|(place, sandbox)| {
        let age = std::cmp::Reverse((sandbox.created, *place));
        (sandbox.scheduled, sandbox.ready, age)
    });
    let mut staying = by_worth.split_off(surplus);
    by_worth.sort_by_key(|(place, _)| *place);
    staying.sort_by_key(|(place, _)| *place);
    let sandboxes = |list: Vec<(usize, &'a Sandbox)>| list.into_iter().map(|(_, s)| s).collect();
    (sandboxes(staying), sandboxes(by_worth))
}

/// A number of sandboxes as a length; negative ones, which the schema refuses, are none.
fn count(wanted: i32) -> usize {
    usize::try_from(wanted).unwrap_or(0)
}

#[cfg(test)]
mod tests;
