//! Many Routes, Domains and passes against one small model of an API server: two processes that
//! both believe to lead see old states and crash between any two steps, and still everything ends
//! right.

use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_api::{Claim, Route};
use portolan_claims::holder_key;
use portolan_reconcile::{ObjectKey, Observed, Target};
use proptest::prelude::*;

use crate::fixtures::{claim, domain, route};
use crate::observe::{CertificateSightings, Situation, confirmed, judged};
use crate::plan::{Hold, Plan, Step, plan};
use crate::policy::DomainRule;
use crate::{REALM, host};

const NAMESPACES: [&str; 3] = ["team-a", "team-b", "team-c"];
const NAMES: [&str; 2] = ["alpha", "beta"];
/// A leader, and one that has not noticed that it no longer is.
const PROCESSES: usize = 2;
const HOSTS: [&str; 6] =
    ["shop.example.com", "x.shop.example.com", "*.example.com", "*.shop.example.com", "a.org", "*"];
const SUFFIXES: [&str; 4] = ["example.com", "shop.example.com", "a.org", "*"];

/// A full round is a pass over every Route and Claim. Each round settles at least one host, and
/// settling one can free another.
const ROUNDS_MAX: usize = 4 * HOSTS.len();

#[derive(Clone, Debug, Default)]
struct World {
    routes: BTreeMap<ObjectKey, Arc<Route>>,
    claims: BTreeMap<ObjectKey, Arc<Claim>>,
    domains: BTreeMap<String, Arc<DomainRule>>,
    /// Time, UIDs and resource versions.
    ticks: i64,
}

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A user applies a Route.
    Apply { namespace: usize, name: usize, host: usize },
    /// A user deletes a Route.
    Delete { namespace: usize, name: usize },
    /// An administrator applies a Domain, or deletes it if no namespaces are given.
    Domain { suffix: usize, namespaces: Option<Vec<usize>> },
    /// One cache of a process, or each, catches up with the API server: watches are independent.
    CatchUp { process: usize, watched: Watched },
    /// A pass over a Route, with what the caches know, that crashes after so many steps.
    Pass { process: usize, namespace: usize, name: usize, steps: usize },
    /// A look at a Claim.
    Sweep { process: usize, host: usize },
}

const WATCHED: [Watched; 4] = [Watched::Routes, Watched::Claims, Watched::Domains, Watched::All];

#[derive(Clone, Copy, Debug)]
enum Watched {
    Routes,
    Claims,
    Domains,
    All,
}

fn event() -> impl Strategy<Value = Event> {
    let (namespace, name, host) = (0..NAMESPACES.len(), 0..NAMES.len(), 0..HOSTS.len());
    let namespaces = prop::collection::vec(namespace.clone(), 0..3);
    prop_oneof![
        4 => (namespace.clone(), name.clone(), host.clone())
            .prop_map(|(namespace, name, host)| Event::Apply { namespace, name, host }),
        1 => (namespace.clone(), name.clone())
            .prop_map(|(namespace, name)| Event::Delete { namespace, name }),
        1 => (0..SUFFIXES.len(), prop::option::of(namespaces))
            .prop_map(|(suffix, namespaces)| Event::Domain { suffix, namespaces }),
        4 => (process(), prop::sample::select(&WATCHED[..]))
            .prop_map(|(process, watched)| Event::CatchUp { process, watched }),
        8 => (process(), namespace, name, 0..4_usize).prop_map(
            |(process, namespace, name, steps)| Event::Pass { process, namespace, name, steps }
        ),
        2 => (process(), host).prop_map(|(process, host)| Event::Sweep { process, host }),
    ]
}

fn process() -> std::ops::Range<usize> {
    0..PROCESSES
}

fn key(namespace: usize, name: usize) -> ObjectKey {
    ObjectKey::new(NAMESPACES[namespace], NAMES[name])
}

impl World {
    fn tick(&mut self) -> i64 {
        self.ticks += 1;
        self.ticks
    }

    fn catch_up(&mut self, watched: Watched, live: &Self) {
        match watched {
            Watched::Routes => self.routes = live.routes.clone(),
            Watched::Claims => self.claims = live.claims.clone(),
            Watched::Domains => self.domains = live.domains.clone(),
            Watched::All => *self = live.clone(),
        }
    }

    /// What users and administrators do.
    fn apply_event(&mut self, event: &Event) {
        let tick = self.tick();
        match event {
            Event::Apply { namespace, name, host } => {
                let mut new = route(NAMESPACES[*namespace], NAMES[*name], HOSTS[*host], tick);
                new.metadata.uid = Some(format!("uid-{tick}"));
                if let Some(old) = self.routes.get(&key(*namespace, *name)) {
                    new.metadata = old.metadata.clone();
                }
                self.routes.insert(key(*namespace, *name), Arc::new(new));
            }
            Event::Delete { namespace, name } => {
                self.routes.remove(&key(*namespace, *name));
            }
            Event::Domain { suffix, namespaces: None } => {
                self.domains.remove(SUFFIXES[*suffix]);
            }
            Event::Domain { suffix, namespaces: Some(namespaces) } => {
                let suffix = SUFFIXES[*suffix];
                let listed: Vec<_> = namespaces.iter().map(|&index| NAMESPACES[index]).collect();
                let rule = domain(&format!("d-{suffix}"), suffix, &listed, tick);
                self.domains.insert(suffix.into(), Arc::new(rule));
            }
            Event::CatchUp { .. } | Event::Pass { .. } | Event::Sweep { .. } => {}
        }
    }

    /// What a pass over `route` sees: this world through the caches, and `live` where it asks.
    fn situation(&self, route: &Arc<Route>, live: &Self) -> Situation {
        let (wanted, own) = (route.spec.host.as_str(), ObjectKey::of(route.as_ref()));
        let claim = self.claims.get(&REALM.key(wanted)).map(|claim| {
            let holder = holder_key(claim);
            let cached = self.routes.get(&holder).map(Arc::as_ref);
            let state = confirmed(claim, route, cached).unwrap_or_else(|| {
                let live = live.routes.get(&holder);
                judged(claim, live.map_or(Observed::Absent, |route| Observed::Present(route)))
            });
            (claim.clone(), state)
        });
        let is_namesake = |key: &ObjectKey, other: &Route| {
            key.namespace == own.namespace && *key != own && other.spec.host == wanted
        };
        let namesakes = self.routes.iter().filter(|(key, other)| is_namesake(key, other));
        let above = host::above(wanted);
        let held = self.claims.values();
        Situation {
            namesakes: namesakes.map(|(_, other)| other.clone()).collect(),
            domains: self.domains.values().cloned().collect(),
            claim,
            above: above
                .iter()
                .filter_map(|host| self.claims.get(&REALM.key(host)))
                .cloned()
                .collect(),
            own: held
                .filter(|claim| route.metadata.uid.as_ref() == Some(&claim.spec.holder.uid))
                .cloned()
                .collect(),
            app: Observed::Absent,
            certificate: CertificateSightings::default(),
            route: route.clone(),
        }
    }

    /// Takes the first `limit` steps of a plan. Returns whether anything changed.
    fn take(&mut self, plan: &Plan, actor: &Route, limit: usize) -> bool {
        let mut changed = false;
        for step in plan.steps.iter().take(limit) {
            match step {
                Step::Delete { claim, .. } => match self.claims.get(&claim.key) {
                    None => {}
                    Some(there) if Target::at(there.as_ref()) == *claim => {
                        self.check_taking(there, actor);
                        self.claims.remove(&claim.key);
                        changed = true;
                    }
                    Some(_) => return changed,
                },
                Step::Create { host, holder } => {
                    if self.claims.contains_key(&REALM.key(host)) {
                        return changed;
                    }
                    let tick = self.tick();
                    let mut new = claim(host, &holder.namespace, &holder.name, &holder.uid);
                    new.metadata.uid = Some(format!("claim-{tick}"));
                    new.metadata.resource_version = Some(tick.to_string());
                    self.claims.insert(REALM.key(host), Arc::new(new));
                    changed = true;
                }
            }
        }
        changed
    }

    /// Whatever a pass believes: nobody takes a host that a living Route of another namespace
    /// holds and asks for.
    fn check_taking(&self, claim: &Claim, actor: &Route) {
        let holder = self.routes.get(&holder_key(claim)).filter(|holder| {
            holder.metadata.uid.as_ref() == Some(&claim.spec.holder.uid)
                && holder.spec.host == claim.spec.value
        });
        let foreign = actor.metadata.namespace.as_ref() != Some(&claim.spec.holder.namespace);
        assert!(!(foreign && holder.is_some()), "{actor:?} takes {claim:?}");
    }

    fn sweep(&mut self, seen: &Self, key: &ObjectKey) -> bool {
        let Some(claim) = seen.claims.get(key) else { return false };
        let holder = holder_key(claim);
        let is_holder = |world: &Self| {
            let route = world.routes.get(&holder);
            route.is_some_and(|route| route.metadata.uid.as_ref() == Some(&claim.spec.holder.uid))
        };
        if is_holder(seen) || is_holder(self) {
            return false;
        }
        let same = self.claims.get(key).is_some_and(|there| there.metadata == claim.metadata);
        same && self.claims.remove(key).is_some()
    }

    /// Passes over everything, with caches that are up to date, until nothing changes.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut changed = false;
            for key in self.claims.keys().cloned().collect::<Vec<_>>() {
                changed |= self.sweep(&self.clone(), &key);
            }
            for route in self.routes.values().cloned().collect::<Vec<_>>() {
                let plan = plan(&self.situation(&route, self));
                changed |= self.take(&plan, &route, usize::MAX);
            }
            if !changed {
                return;
            }
        }
        panic!("still changing after {ROUNDS_MAX} rounds: {self:#?}");
    }

    /// What must be so once everything has settled.
    fn check_settled(&self) {
        for claim in self.claims.values() {
            let holder = self.routes.get(&holder_key(claim)).expect("every holder lives");
            assert_eq!(holder.metadata.uid.as_ref(), Some(&claim.spec.holder.uid), "{claim:?}");
        }
        for route in self.routes.values() {
            let situation = self.situation(route, self);
            let plan = plan(&situation);
            assert_eq!(plan.steps, [], "a settled Route needs nothing: {route:?}");
            match plan.hold {
                Hold::Ours => self.check_first_of_namespace(route, &situation),
                Hold::Lost(_) => {
                    let (claim, _) = situation.claim.expect("a lost host has a holder");
                    let holder = &self.routes[&holder_key(&claim)];
                    assert_eq!(holder.spec.host, route.spec.host, "the holder asks for it");
                }
                Hold::Denied(_) => {}
                Hold::Undecided(why) => panic!("everything can be read: {why}"),
            }
        }
    }

    fn check_first_of_namespace(&self, route: &Route, situation: &Situation) {
        let own = (crate::created(route), &route.metadata.name);
        for other in &situation.namesakes {
            assert!(
                own < (crate::created(other.as_ref()), &other.metadata.name),
                "{other:?} is older"
            );
        }
    }
}

fn run(events: &[Event]) -> World {
    let mut world = World::default();
    let mut seen: [World; PROCESSES] = Default::default();
    for event in events {
        world.apply_event(event);
        match event {
            Event::CatchUp { process, watched } => seen[*process].catch_up(*watched, &world),
            Event::Pass { process, namespace, name, steps } => {
                let seen = &seen[*process];
                if let Some(route) = seen.routes.get(&key(*namespace, *name)) {
                    let plan = plan(&seen.situation(route, &world));
                    world.take(&plan, route, *steps);
                }
            }
            Event::Sweep { process, host } => {
                world.sweep(&seen[*process], &REALM.key(HOSTS[*host]));
            }
            _ => {}
        }
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_happens_everything_settles(events in prop::collection::vec(event(), 0..80)) {
        let mut world = run(&events);
        world.settle();
        world.check_settled();
    }

    #[test]
    fn of_two_namespaces_exactly_one_gets_the_host(first in 0..2_usize, steps in 0..3_usize) {
        let apply = |namespace| Event::Apply { namespace, name: 0, host: 0 };
        let look = |process| Event::CatchUp { process, watched: Watched::All };
        let pass = |process, namespace, steps| Event::Pass { process, namespace, name: 0, steps };
        // Two processes see the host free; the first may crash before its step.
        let race = [apply(0), apply(1), look(0), look(1), pass(0, first, steps), pass(1, 1 - first, 3)];
        let mut world = run(&race);
        prop_assert_eq!(world.claims.len(), 1);
        let winner = world.claims.values().next().unwrap().spec.holder.namespace.clone();
        world.settle();
        world.check_settled();
        let holder = &world.claims[&REALM.key(HOSTS[0])].spec.holder.namespace;
        prop_assert_eq!(holder, &winner, "the winner stays");
    }
}
