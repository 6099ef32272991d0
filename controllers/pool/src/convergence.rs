//! The controller against a world that obeys it: a pool, a kubelet, gateways and a clock, all
//! simulated, so that thousands of beginnings and interruptions can be tried. It proves that the
//! decisions come to rest where they should; what the API server does is proven on a real one.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use portolan_api::{Concurrency, DrainReport, PoolRole, SandboxPool};
use proptest::prelude::*;

use crate::{
    apply::Outcome,
    fixture::{self, POOL_UID, at, gateway, pool, sandbox, settings},
    gateway::Gateway,
    observe::Situation,
    plan::{Members, Plan, plan},
    sandbox::Sandbox,
    scale::History,
    setback::Setback,
    status::status,
};

/// Far more than the slowest way to rest: two drain limits and the scale-down delay.
const TICKS: i64 = 400;

#[derive(Clone, Debug)]
struct World {
    pool: SandboxPool,
    sandboxes: Vec<Sandbox>,
    gateways: Vec<Gateway>,
    history: Option<History>,
    unwritten: i32,
    setback: Option<Setback>,
    second: i64,
    names: BTreeSet<String>,
}

impl World {
    fn new(pool: SandboxPool, sandboxes: Vec<Sandbox>, gateways: Vec<Gateway>) -> Self {
        let names = sandboxes.iter().map(|sandbox| sandbox.key.name.clone()).collect();
        Self {
            pool,
            sandboxes,
            gateways,
            history: None,
            unwritten: 0,
            setback: None,
            second: 0,
            names,
        }
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    fn situation(&self) -> Situation {
        Situation {
            pool: Arc::new(self.pool.clone()),
            sandboxes: self.sandboxes.iter().cloned().map(Arc::new).collect(),
            gateways: self.gateways.clone(),
            all_seen: at(0),
            reports_fresh: at(0),
            history: self.history.clone(),
            incarnation: 0,
            unwritten: self.unwritten,
            setback: self.setback.clone(),
        }
    }

    fn plan(&self) -> Plan {
        plan(&self.situation(), &settings(), self.now())
    }

    /// One pass. A crash ends it after that many writes, and takes the memory and the status along.
    /// A number of replicas that may wait is written in some of them only.
    fn pass(&mut self, crash_after: Option<usize>) {
        let situation = self.situation();
        let mut plan = plan(&situation, &settings(), self.now());
        self.unwritten = 0;
        if plan.replicas_may_wait && self.second % 4 > 0 {
            plan.replicas = None;
            self.unwritten = plan.decision.wanted;
        }
        let mut outcome = Outcome::default();
        for step in 0..writes(&plan) {
            if Some(step) == crash_after {
                (self.history, self.unwritten, self.setback) = (None, 0, None);
                return;
            }
            self.write(&plan, step, &mut outcome);
        }
        self.history = plan.decision.history.clone();
        self.setback = outcome.setback(&situation, &plan, self.now());
        let report = status(&situation, &plan, &outcome, self.now());
        self.pool.status = Some(report.status);
    }

    /// The write of that number, in the order replicas, create, grant, mark, delete.
    fn write(&mut self, plan: &Plan, mut step: usize, outcome: &mut Outcome) {
        if let Some(replicas) = plan.replicas {
            if step == 0 {
                self.pool.spec.replicas = Some(replicas);
                return;
            }
            step -= 1;
        }
        if let Some(new) = plan.create.get(step) {
            let slots = new.slots.clone();
            let mut born =
                Sandbox { slots, ..crate::fixture::pending(new.ordinal, new.incarnation) };
            born.created = self.now();
            if self.names.insert(born.key.name.clone()) {
                self.sandboxes.push(born);
                outcome.created += 1;
            }
            outcome.incarnation = outcome.incarnation.max(new.incarnation);
            return;
        }
        step -= plan.create.len();
        if let Some(grant) = plan.grant.get(step) {
            self.change(&grant.target.uid, |sandbox| sandbox.slots = Some(grant.slots.clone()));
            return;
        }
        step -= plan.grant.len();
        if let Some(mark) = plan.mark.get(step) {
            self.change(&mark.target.uid, |sandbox| sandbox.drain = Some(mark.epoch.to_string()));
            return;
        }
        let deletion = &plan.delete[step - plan.mark.len()];
        self.change(&deletion.target.uid, |sandbox| sandbox.deleting = true);
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Sandbox)) {
        if let Some(sandbox) = self.sandboxes.iter_mut().find(|sandbox| sandbox.uid == uid) {
            change(sandbox);
        }
    }

    /// A second passes: deleted sandboxes go, new ones come up a stage, gateways follow marks.
    fn tick(&mut self) {
        self.second += 1;
        self.sandboxes.retain(|sandbox| !sandbox.deleting);
        for sandbox in self.sandboxes.iter_mut().filter(|sandbox| sandbox.ended.is_none()) {
            sandbox.ready = sandbox.addressed;
            sandbox.addressed = sandbox.scheduled;
            sandbox.scheduled = true;
            sandbox.hurdle = None;
        }
        let expires = at(self.second + 15);
        for gateway in &mut self.gateways {
            gateway.expires = expires;
            gateway.demand.draining = self.sandboxes.iter().filter_map(drain_report).collect();
        }
    }

    /// Lets the world run until nothing is left to do.
    #[track_caller]
    fn settle(&mut self) {
        for _ in 0..TICKS {
            self.pass(None);
            self.tick();
        }
        let plan = self.plan();
        assert_eq!(writes(&plan), 0, "not at rest after {TICKS} s: {plan:#?}\n{self:#?}");
        let situation = self.situation();
        let again = status(&situation, &plan, &Outcome::default(), self.now());
        assert_eq!(self.pool.status.as_ref(), Some(&again.status), "the status moves at rest");
        let members = Members::of(&situation);
        let standing = members.standing.len();
        assert_eq!(i32::try_from(standing).unwrap(), plan.decision.wanted, "{self:#?}");
        let left = members.draining.len() + members.terminating.len() + members.ended.len();
        assert_eq!(left, 0, "something is left over: {self:#?}");
        let ordinals: BTreeSet<_> = members.standing.iter().map(|one| ordinal(one)).collect();
        assert_eq!(ordinals.len(), standing, "two sandboxes have one ordinal: {self:#?}");
    }

    fn foreign(&self) -> Vec<Sandbox> {
        let foreign = |sandbox: &&Sandbox| sandbox.owner.as_deref() != Some(POOL_UID);
        self.sandboxes
            .iter()
            .filter(foreign)
            .map(|one| Sandbox { hurdle: None, ..one.clone() })
            .collect()
    }
}

fn writes(plan: &Plan) -> usize {
    usize::from(plan.replicas.is_some())
        + plan.create.len()
        + plan.grant.len()
        + plan.mark.len()
        + plan.delete.len()
}

fn ordinal(sandbox: &Sandbox) -> String {
    let name = &sandbox.key.name;
    name.rsplit('-').nth(1).expect("our names have an ordinal").to_owned()
}

/// Even names are let go at once, the others never: those wait for the drain limit.
fn drain_report(sandbox: &Sandbox) -> Option<DrainReport> {
    let epoch = sandbox.drain.as_ref()?.parse().ok()?;
    let running = i64::from(sandbox.key.name.len() % 2 == 1);
    Some(DrainReport { pod: sandbox.key.name.clone(), epoch, running })
}

prop_compose! {
    /// Any state a sandbox may be found in: ours or foreign, at any stage, edited or not.
    fn any_sandbox()(
        ordinal in 0..6_i32,
        incarnation in 1..30_i64,
        owner in prop_oneof![6 => Just(Some(POOL_UID)), 1 => Just(None), 1 => Just(Some("older"))],
        stage in 0..4_u8,
        (has_ended, has_lived) in (prop::bool::weighted(0.1), any::<bool>()),
        deleting in prop::bool::weighted(0.1),
        slots in prop_oneof![
            Just(None), Just(Some("gw-a=10")), Just(Some("gw-a=5,gw-b=5")), Just(Some("gw-z=10")),
            Just(Some("")), Just(Some("nonsense")),
        ],
        drain in prop_oneof![
            6 => Just(None), 1 => Just(Some("nonsense".to_owned())),
            1 => (-60..60_i64).prop_map(|second| Some(at(second).as_millisecond().to_string())),
        ],
    ) -> Sandbox {
        let sandbox = Sandbox {
            owner: owner.map(str::to_owned),
            scheduled: stage > 0,
            addressed: stage > 1,
            ready: stage > 2,
            deleting,
            slots: slots.map(str::to_owned),
            drain,
            ..sandbox(ordinal, incarnation)
        };
        if has_ended { fixture::ended(sandbox, has_lived) } else { sandbox }
    }
}

prop_compose! {
    /// Any pool the version controller may write, with any `replicas` a user may have left.
    fn any_pool()(
        role in prop_oneof![
            4 => Just(PoolRole::Active), 1 => Just(PoolRole::Candidate), 1 => Just(PoolRole::Retired),
        ],
        (min, more) in (0..4_i32, 0..8_i32),
        limit in prop::option::of(1..12_i32),
        delay in prop::option::of(1..60_i32),
        is_strict in any::<bool>(),
        floor in prop::option::of(0..4_i32),
        replicas in 0..12_i32,
    ) -> SandboxPool {
        let mut pool = pool();
        pool.spec.role = role;
        pool.spec.floor = floor;
        pool.spec.replicas = Some(replicas);
        pool.spec.scale.min = min;
        pool.spec.scale.max = (min + more).max(1);
        pool.spec.scale.requests_per_instance = limit;
        pool.spec.scale.scale_down_delay_seconds = delay;
        if is_strict {
            pool.spec.scale.concurrency = Concurrency::Strict;
        }
        pool
    }
}

prop_compose! {
    fn any_gateways()(
        demand in prop::collection::vec((0..30_i64, 0..30_i64), 0..4),
    ) -> Vec<Gateway> {
        let names = ["gw-a", "gw-b", "gw-c"];
        let gateways = demand.iter().zip(names);
        gateways.map(|((queued, running), name)| gateway(name, *queued, *running)).collect()
    }
}

prop_compose! {
    fn any_world()(
        pool in any_pool(),
        sandboxes in prop::collection::vec(any_sandbox(), 0..10),
        gateways in any_gateways(),
    ) -> World {
        // Names are unique in a namespace, and we never give one ordinal to two that stand.
        let (mut names, mut ordinals) = (BTreeSet::new(), BTreeSet::new());
        let unique = sandboxes.into_iter().filter(|one| {
            let leaves = one.ended.is_some() || one.deleting || one.drain.is_some();
            let stands = one.owner.as_deref() == Some(POOL_UID) && !leaves;
            names.insert(one.key.name.clone()) && (!stands || ordinals.insert(ordinal(one)))
        });
        World::new(pool, unique.collect(), gateways)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_settles_from_any_state(mut world in any_world()) {
        world.settle();
    }

    #[test]
    fn foreign_pods_are_left_alone(mut world in any_world()) {
        world.tick();
        world.tick();
        world.tick();
        let before = world.foreign();
        world.settle();
        prop_assert_eq!(world.foreign(), before);
    }

    #[test]
    fn a_crash_between_any_two_writes_changes_nothing(
        mut world in any_world(),
        crashes in prop::collection::vec(0..6_usize, 1..20),
    ) {
        let mut undisturbed = world.clone();
        undisturbed.settle();
        for crash_after in crashes {
            world.pass(Some(crash_after));
            world.tick();
        }
        world.settle();
        prop_assert_eq!(world.pool.spec.replicas, undisturbed.pool.spec.replicas);
    }

    #[test]
    fn no_pass_makes_more_than_is_wanted(mut world in any_world()) {
        for _ in 0..40 {
            let plan = world.plan();
            let before = Members::of(&world.situation()).standing.len();
            world.pass(None);
            let after = Members::of(&world.situation()).standing.len();
            let wanted = usize::try_from(plan.decision.wanted).unwrap();
            prop_assert!(after <= wanted.max(before), "{after} stand, {wanted} are wanted");
            // After a setback nothing is made, also in place of what has to go.
            let waits = plan.setback.is_some_and(|setback| setback.until > world.now());
            prop_assert!(waits || after >= wanted.min(before), "{after} of {wanted} stand");
            world.tick();
        }
    }

    #[test]
    fn the_same_plan_twice_does_it_once(mut world in any_world()) {
        let plan = world.plan();
        for step in 0..writes(&plan) {
            world.write(&plan, step, &mut Outcome::default());
        }
        let once = world.sandboxes.clone();
        for step in 0..writes(&plan) {
            world.write(&plan, step, &mut Outcome::default());
        }
        prop_assert_eq!(world.sandboxes, once);
    }

    #[test]
    fn when_demand_ends_a_pool_comes_down_to_its_least(mut world in any_world()) {
        world.settle();
        for gateway in &mut world.gateways {
            (gateway.demand.queued, gateway.demand.running) = (0, 0);
        }
        world.settle();
        let spec = &world.pool.spec;
        if spec.role == PoolRole::Active && spec.scale.scale_down_delay_seconds.is_some() {
            let least = spec.scale.min.max(spec.floor.unwrap_or(0)).min(spec.scale.max);
            prop_assert_eq!(spec.replicas, Some(least));
        }
    }
}
