//! Situations of an App, what is decided in each, and what it says of itself.

mod l4;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use portolan_api::resolve::pool_name;
use portolan_api::{
    App, AppSpec, AppStatus, AppVersion, PoolRole, SandboxPool, SandboxPoolSpec, SandboxPoolStatus,
};
use portolan_reconcile::ObjectKey;
use serde_json::{Value, json};

use crate::observe::{GatewaySeen, RouteFacts, Seen};
use crate::plan::{Plan, Settings, Wanted, plan};
use crate::status::{is_progress, status};

/// An App named `shop`, and the world around it: what the other controllers would do.
struct World {
    seen: Seen,
    now: Timestamp,
}

fn settings() -> Settings {
    Settings { system_namespace: "portolan-system".into() }
}

impl World {
    fn new(services: Value) -> Self {
        let mut app = App::new("shop", spec(services));
        app.metadata.namespace = Some("team".into());
        app.metadata.uid = Some("app-uid".into());
        app.metadata.generation = Some(1);
        let now = Timestamp::from_second(1_000_000).unwrap();
        Self { seen: Seen { app: Some(Arc::new(app)), ..Seen::default() }, now }
    }

    fn app(&mut self) -> &mut App {
        Arc::make_mut(self.seen.app.as_mut().expect("the App exists"))
    }

    fn apply(&mut self, services: Value) {
        let app = self.app();
        app.spec = AppSpec { version: app.spec.version.take(), ..spec(services) };
        app.metadata.generation = app.metadata.generation.map(|generation| generation + 1);
    }

    fn plan(&self) -> Plan {
        plan(&self.seen, &settings(), self.now).expect("there is an App")
    }

    fn status(&self) -> AppStatus {
        let app = self.seen.app.as_ref().expect("there is an App");
        status(app, &self.seen, &self.plan(), None, self.now).0
    }

    /// Plans, and stores what the API server and the version controller would.
    fn pass(&mut self) -> Plan {
        let plan = self.plan();
        let status = self.status();
        if let Some(version) = &plan.create {
            let name = version.metadata.name.clone().expect("a version has a name");
            let mut stored = version.clone();
            stored.metadata.uid = Some(format!("uid-{name}"));
            stored.metadata.creation_timestamp = Some(Time(self.now));
            for service in &stored.spec.services {
                self.seen
                    .pools
                    .entry(pool_name("shop", service))
                    .or_insert_with(|| Arc::new(candidate_pool(&stored, service)));
            }
            self.seen.versions.insert(name, Arc::new(stored));
        }
        for (name, _) in &plan.prune {
            self.seen.versions.remove(name);
        }
        self.store(&plan.addresses);
        self.app().status = Some(status);
        self.now += SignedDuration::from_secs(1);
        plan
    }

    /// Passes until nothing changes any more.
    fn settle(&mut self) {
        for _ in 0..10 {
            let before = self.seen.app.clone();
            self.pass();
            if self.seen.app == before {
                return;
            }
        }
        panic!("does not settle: {:?}", self.plan());
    }

    /// Lets every pool of the wanted version show one ready sandbox.
    fn ready(&mut self) {
        let Wanted::Version(name) = self.plan().wanted else { panic!("no version is wanted") };
        let version = self.seen.versions[&name].clone();
        for service in &version.spec.services {
            let pool = self.pool(&pool_name("shop", service));
            let status = SandboxPoolStatus {
                observed_generation: Some(1),
                ready_replicas: 1,
                replicas: 1,
                ..SandboxPoolStatus::default()
            };
            pool.status = Some(status);
            pool.metadata.owner_references = Some(vec![owner(&version)]);
        }
    }

    fn pool(&mut self, name: &str) -> &mut SandboxPool {
        Arc::make_mut(self.seen.pools.get_mut(name).expect("the pool exists"))
    }

    fn gateway(&mut self, name: &str, epoch: Option<i64>) {
        self.seen.gateways.retain(|gateway| gateway.name != name);
        let lapses = self.now + SignedDuration::from_secs(15);
        self.seen.gateways.push(GatewaySeen { name: name.into(), lapses, epoch });
    }

    fn active(&self) -> Option<(String, i64)> {
        let activation = self.seen.app.as_ref()?.status.as_ref()?.activation.clone()?;
        Some((activation.version, activation.epoch))
    }

    #[track_caller]
    fn check(&self, kind: &str, expected: &str) {
        let status = self.status();
        let condition = condition(&status.conditions, kind);
        let found = condition.map(|c| format!("{} {}", c.status, c.reason));
        assert_eq!(found.as_deref(), Some(expected), "{kind}: {condition:?}");
    }
}

fn spec(services: Value) -> AppSpec {
    serde_json::from_value(json!({ "image": "example/shop:1", "services": services })).unwrap()
}

fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn owner(version: &AppVersion) -> OwnerReference {
    OwnerReference {
        kind: "AppVersion".into(),
        name: version.metadata.name.clone().unwrap(),
        uid: version.metadata.uid.clone().unwrap(),
        ..OwnerReference::default()
    }
}

fn candidate_pool(version: &AppVersion, service: &portolan_api::VersionService) -> SandboxPool {
    let spec = SandboxPoolSpec {
        app: "shop".into(),
        service: service.name.clone(),
        sandbox: service.sandbox.clone(),
        role: PoolRole::Candidate,
        scale: service.scale.clone(),
        floor: Some(1),
        replicas: Some(1),
    };
    let mut pool = SandboxPool::new(&pool_name("shop", service), spec);
    pool.metadata.generation = Some(1);
    pool.metadata.owner_references = Some(vec![owner(version)]);
    pool
}

fn ready_condition(status: &str, reason: &str) -> Condition {
    serde_json::from_value(json!({
        "type": "Ready", "status": status, "reason": reason, "message": "its message",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

fn v1() -> Value {
    json!([{ "name": "web" }])
}

fn v2() -> Value {
    json!([{ "name": "web", "args": ["new"] }])
}

/// An App whose first version serves.
fn serving() -> World {
    let mut world = World::new(v1());
    world.pass();
    world.ready();
    world.settle();
    world
}

#[test]
fn a_first_version_is_made_verified_and_activated() {
    let mut world = World::new(v1());
    assert!(world.pass().create.is_some());
    world.check("Ready", "Unknown RollingOut");
    world.check("ServicesReady", "False NoActiveVersion");
    assert!(world.pass().create.is_none(), "it is made once");
    assert_eq!(world.active(), None, "nothing is ready yet");
    world.ready();
    world.settle();
    assert_eq!(world.active().map(|(_, epoch)| epoch), Some(1));
    world.check("Ready", "True Available");
    world.check("Progressing", "True Complete");
}

#[test]
fn the_same_manifest_makes_the_same_version() {
    let mut world = serving();
    let (first, _) = world.active().unwrap();
    world.apply(v2());
    world.pass();
    world.ready();
    world.settle();
    let (second, epoch) = world.active().unwrap();
    assert_ne!(first, second);
    assert_eq!(epoch, 2);
    world.apply(v1());
    assert!(world.pass().create.is_none(), "applying the old manifest again is the rollback");
    world.ready();
    world.settle();
    assert_eq!(world.active(), Some((first, 3)));
}

#[test]
fn what_does_not_change_what_runs_makes_no_version() {
    let mut world = serving();
    world.app().spec.revision_history_limit = 3;
    world.app().spec.progress_deadline_seconds = 5;
    assert_eq!(world.plan().create, None);
}

/// An App whose second version was activated, while these gateways still follow the first.
fn switching(gateways: &[&str]) -> World {
    let mut world = serving();
    for gateway in gateways {
        world.gateway(gateway, Some(1));
    }
    world.apply(v2());
    world.pass();
    world.ready();
    world.settle();
    assert_eq!(world.active().map(|(_, epoch)| epoch), Some(2));
    world
}

#[test]
fn an_app_is_ready_when_every_live_gateway_follows() {
    let mut world = switching(&["a", "b"]);
    world.check("Ready", "Unknown Switching");
    world.gateway("a", Some(2));
    world.check("Ready", "Unknown Switching");
    world.gateway("b", Some(2));
    world.settle();
    world.check("Ready", "True Available");
    world.gateway("c", None);
    world.check("Ready", "True Available");
}

#[test]
fn without_its_policy_nothing_is_switched() {
    let mut world = serving();
    world.apply(v2());
    world.pass();
    world.ready();
    let mut plan = world.plan();
    assert_eq!(plan.activation.as_ref().map(|activation| activation.epoch), Some(2));
    plan.stay(&world.seen);
    let standing = world.seen.app.as_ref().and_then(|app| app.status.clone()).expect("a status");
    assert_eq!(plan.activation, standing.activation);
    assert_eq!(plan.settled_epoch, standing.settled_epoch);
}

#[test]
fn a_first_version_is_ready_with_the_write_that_activates_it() {
    let mut world = World::new(v1());
    world.gateway("a", None);
    world.pass();
    world.ready();
    world.pass();
    assert_eq!(world.active().map(|(_, epoch)| epoch), Some(1));
    assert_eq!(world.app().status.as_ref().and_then(|status| status.settled_epoch), Some(1));
    world.check("Ready", "True Available");
    let before = world.seen.app.clone();
    world.pass();
    assert_eq!(world.seen.app, before, "it is all in one write");
}

#[test]
fn only_more_of_the_same_rollout_may_wait() {
    let mut world = World::new(v1());
    assert!(!is_progress(None, &world.status()), "tools take no status for one that is done");
    world.pass();
    let before = world.status();
    assert!(!is_progress(Some(&before), &before), "there is nothing to say");
    let changed = |change: &dyn Fn(&mut AppStatus)| {
        let mut after = before.clone();
        change(&mut after);
        is_progress(Some(&before), &after)
    };
    let routes = |status: &'static str, reason: &'static str| {
        move |after: &mut AppStatus| {
            let routes = ready_condition(status, reason);
            after.conditions.retain(|condition| condition.type_ != "RoutesReady");
            after.conditions.push(Condition { type_: "RoutesReady".into(), ..routes });
        }
    };
    assert!(changed(&|after| after.url = Some("http://shop.example.com".into())));
    assert!(changed(&routes("Unknown", "RouteNotReady")));
    assert!(!changed(&routes("False", "RouteNotReady")));
    assert!(!changed(&|after| after.observed_generation = Some(2)));
    assert!(!changed(&|after| after.latest_version = Some("shop-other".into())));
    world.ready();
    assert!(!is_progress(Some(&before), &world.status()), "the switch");
}

#[test]
fn a_gateway_whose_lease_has_lapsed_is_not_waited_for() {
    let mut world = switching(&["dead"]);
    let lapses = world.seen.gateways[0].lapses;
    assert_eq!(world.plan().look_again, Some(lapses));
    world.now = lapses;
    world.settle();
    world.check("Ready", "True Available");
}

#[test]
fn a_version_that_fails_disturbs_nothing() {
    let mut world = serving();
    let serving = world.active();
    world.apply(v2());
    world.pass();
    let Wanted::Version(name) = world.plan().wanted else { unreachable!("a version is wanted") };
    let service = world.seen.versions[&name].spec.services[0].clone();
    world.pool(&pool_name("shop", &service)).status = Some(SandboxPoolStatus {
        observed_generation: Some(1),
        conditions: vec![ready_condition("False", "CrashLooping")],
        ..SandboxPoolStatus::default()
    });
    world.check("Ready", "False CrashLooping");
    world.check("Progressing", "True RollingOut");
    world.check("ServicesReady", "True Available");
    world.now += SignedDuration::from_secs(600);
    world.settle();
    world.check("Progressing", "False DeadlineExceeded");
    assert_eq!(world.active(), serving);
}

#[test]
fn a_version_takes_over_with_all_its_services_or_not_at_all() {
    let services = |args: &str| {
        let service = |name: &str| json!({ "name": name, "args": [args] });
        json!([service("web"), service("worker")])
    };
    let mut world = World::new(services("old"));
    world.pass();
    world.ready();
    world.settle();
    let before = world.active();
    world.apply(services("new"));
    world.pass();
    world.ready();
    let Wanted::Version(name) = world.plan().wanted else { unreachable!("a version is wanted") };
    let worker = pool_name("shop", &world.seen.versions[&name].spec.services[1]);
    let pool = world.seen.pools.remove(&worker).expect("the worker has a pool");
    world.settle();
    assert_eq!(world.active(), before, "the pool of the worker could not be made");
    world.seen.pools.insert(worker.clone(), pool);
    world.pool(&worker).status.as_mut().unwrap().ready_replicas = 0;
    world.settle();
    assert_eq!(world.active(), before, "the worker is not ready");
    world.pool(&worker).status.as_mut().unwrap().ready_replicas = 1;
    world.settle();
    assert_eq!(world.active(), Some((name, 2)));
}

#[test]
fn a_version_that_another_replaced_never_takes_over() {
    let mut world = serving();
    let before = world.active();
    world.apply(v2());
    world.pass();
    world.ready();
    world.apply(json!([{ "name": "web", "args": ["newer"] }]));
    world.settle();
    assert_eq!(world.active(), before, "it was verified too late");
    world.ready();
    world.settle();
    let Wanted::Version(name) = world.plan().wanted else { unreachable!("a version is wanted") };
    assert_eq!(world.active(), Some((name, 2)), "one switch");
}

#[test]
fn a_version_that_is_only_slow_exceeds_its_deadline() {
    let mut world = World::new(v1());
    world.pass();
    let since = world.seen.app.as_ref().unwrap().status.clone().unwrap().latest_since.unwrap().0;
    let deadline = since + SignedDuration::from_secs(600);
    assert_eq!(world.plan().look_again, Some(deadline));
    world.now = deadline - SignedDuration::from_secs(1);
    world.check("Progressing", "True RollingOut");
    world.now = deadline;
    world.check("Ready", "False DeadlineExceeded");
    assert_eq!(world.plan().look_again, None, "time alone changes nothing any more");
    world.ready();
    world.settle();
    world.check("Ready", "True Available");
}

#[test]
fn a_version_past_its_deadline_says_what_it_waits_for() {
    let mut world = World::new(v1());
    world.pass();
    for pool in world.seen.pools.values_mut() {
        let conditions = vec![ready_condition("Unknown", "Starting")];
        let status = SandboxPoolStatus { conditions, ..SandboxPoolStatus::default() };
        Arc::make_mut(pool).status = Some(status);
    }
    world.now += SignedDuration::from_secs(600);
    let status = world.status();
    for kind in ["Ready", "Progressing"] {
        let condition = condition(&status.conditions, kind).expect("it is reported");
        assert_eq!(condition.reason, "DeadlineExceeded");
        assert!(condition.message.contains("service web: its message"), "{}", condition.message);
    }
}

#[test]
fn a_pinned_version_is_followed_whatever_the_rest_says() {
    let mut world = serving();
    let (first, _) = world.active().unwrap();
    world.apply(v2());
    world.pass();
    world.ready();
    world.settle();
    world.app().spec.version = Some(first.clone());
    world.apply(json!([{ "name": "web", "args": ["ignored"] }]));
    assert_eq!(world.pass().create, None);
    world.ready();
    world.settle();
    assert_eq!(world.active().map(|(version, _)| version), Some(first));
    world.check("Progressing", "True Pinned");
    world.app().spec.version = Some("shop-nosuch".into());
    world.settle();
    world.check("Ready", "False VersionNotFound");
    world.check("ServicesReady", "True Available");
}

#[test]
fn a_version_of_another_app_cannot_be_pinned() {
    let mut world = serving();
    let active = world.active();
    let mut foreign = world.seen.versions.values().next().unwrap().as_ref().clone();
    foreign.metadata.name = Some("shop-foreign1".into());
    foreign.metadata.owner_references.as_mut().unwrap()[0].uid = "another-app-uid".into();
    world.seen.versions.insert("shop-foreign1".into(), Arc::new(foreign));
    world.app().spec.version = Some("shop-foreign1".into());
    world.settle();
    world.check("Ready", "False VersionNotFound");
    assert_eq!(world.active(), active);
}

#[test]
fn a_version_of_an_earlier_app_of_that_name_is_not_ours() {
    let mut world = serving();
    world.app().metadata.uid = Some("another-app-uid".into());
    world.app().status = None;
    assert_eq!(world.plan().create, None);
    world.check("Ready", "False NameConflict");
    world.seen.versions.clear();
    assert!(world.plan().create.is_some());
}

#[test]
fn a_version_name_with_other_content_is_not_taken_for_ours() {
    let mut world = serving();
    let (name, _) = world.active().unwrap();
    let version = Arc::make_mut(world.seen.versions.get_mut(&name).unwrap());
    version.spec.digest = "0".repeat(64);
    world.check("Ready", "False NameConflict");
}

#[test]
fn a_pool_that_another_version_owns_verifies_nothing() {
    let mut world = World::new(v1());
    world.pass();
    world.ready();
    for pool in world.seen.pools.clone().keys() {
        world.pool(pool).metadata.owner_references = None;
    }
    assert_eq!(world.plan().activation, None);
}

#[test]
fn a_pool_must_have_seen_its_spec_and_be_meant_to_serve() {
    let mut world = World::new(v1());
    world.pass();
    world.ready();
    let name = world.seen.pools.keys().next().unwrap().clone();
    world.pool(&name).metadata.generation = Some(2);
    assert_eq!(world.plan().activation, None, "the pool controller has not seen the latest spec");
    world.pool(&name).metadata.generation = Some(1);
    world.pool(&name).spec.role = PoolRole::Retired;
    assert_eq!(world.plan().activation, None, "it drains");
    world.pool(&name).spec.role = PoolRole::Candidate;
    world.pool(&name).spec.floor = Some(2);
    assert_eq!(world.plan().activation, None, "one of two is ready");
    world.pool(&name).spec.floor = Some(1);
    assert!(world.plan().activation.is_some());
}

#[test]
fn history_keeps_its_limit_and_never_loses_what_serves() {
    let mut world = serving();
    for number in 0..5 {
        world.apply(json!([{ "name": "web", "args": [number.to_string()] }]));
        world.pass();
        world.ready();
        world.settle();
        let retired: Vec<_> = world.seen.pools.keys().cloned().collect();
        for pool in retired {
            world.pool(&pool).status.as_mut().unwrap().replicas = 0;
        }
    }
    assert_eq!(world.seen.versions.len(), 6);
    world.app().spec.revision_history_limit = 2;
    world.settle();
    let (active, _) = world.active().unwrap();
    assert_eq!(world.seen.versions.len(), 3);
    assert!(world.seen.versions.contains_key(&active));
    world.app().spec.revision_history_limit = 0;
    world.settle();
    assert_eq!(world.seen.versions.keys().collect::<Vec<_>>(), [&active]);
}

#[test]
fn history_is_not_pruned_during_a_rollout_nor_while_sandboxes_drain() {
    let mut world = serving();
    world.app().spec.revision_history_limit = 0;
    world.apply(v2());
    world.app().spec.revision_history_limit = 0;
    world.pass();
    assert_eq!(world.plan().prune, []);
    let (first, _) = world.active().unwrap();
    world.ready();
    world.pass();
    world.pass();
    let service = world.seen.versions[&first].spec.services[0].clone();
    let pool = pool_name("shop", &service);
    world.pool(&pool).status.as_mut().unwrap().replicas = 1;
    assert_eq!(world.plan().prune, []);
    let status = world.pool(&pool).status.as_mut().unwrap();
    (status.replicas, status.draining_replicas) = (0, 1);
    assert_eq!(world.plan().prune, [], "what still runs there would end with the pool");
    world.pool(&pool).status.as_mut().unwrap().draining_replicas = 0;
    assert_eq!(world.plan().prune.len(), 1);
}

#[test]
fn a_pool_that_drains_outlives_all_versions_that_share_it() {
    let mut world = serving();
    for services in [json!([{ "name": "web", "scale": { "max": 5 } }]), v2()] {
        world.apply(services);
        world.pass();
        world.ready();
        world.settle();
    }
    let (active, _) = world.active().unwrap();
    let versions = world.seen.versions.clone().into_values();
    let old: Vec<_> =
        versions.filter(|version| version.metadata.name.as_ref() != Some(&active)).collect();
    let name = pool_name("shop", &old[0].spec.services[0]);
    let pool = world.pool(&name);
    pool.metadata.owner_references = Some(old.iter().map(|version| owner(version)).collect());
    let status = pool.status.as_mut().unwrap();
    (status.replicas, status.draining_replicas) = (0, 1);
    world.app().spec.revision_history_limit = 0;
    assert_eq!(world.plan().prune, [], "neither version is the last one to go");
    world.pool(&name).status.as_mut().unwrap().draining_replicas = 0;
    assert_eq!(world.plan().prune.len(), 2);
}

#[test]
fn asleep_is_healthy() {
    let mut world = serving();
    let name = world.seen.pools.keys().next().unwrap().clone();
    world.pool(&name).spec.replicas = Some(0);
    world.check("Ready", "True Asleep");
    world.pool(&name).status.as_mut().unwrap().conditions =
        vec![ready_condition("Unknown", "Starting")];
    world.pool(&name).spec.replicas = Some(1);
    world.check("Ready", "True Available");
    world.pool(&name).status.as_mut().unwrap().conditions =
        vec![ready_condition("False", "CrashLooping")];
    world.check("Ready", "False CrashLooping");
}

#[test]
fn a_service_that_cannot_sleep_says_so() {
    let ports = json!([{ "name": "irc", "port": 6667, "type": "tcp" }]);
    let mut world = World::new(json!([{ "name": "web", "ports": ports }]));
    world.pass();
    world.ready();
    world.settle();
    world.check("Sleepable", "False L4Ports");
    let auto = json!({ "mode": "Auto", "max": 3 });
    let mut worker = World::new(json!([{ "name": "worker", "scale": auto }]));
    worker.pass();
    worker.ready();
    worker.settle();
    worker.check("Sleepable", "False NoHttpPort");
    assert!(condition(&serving().status().conditions, "Sleepable").is_none());
}

#[test]
fn routes_give_the_url_and_their_condition() {
    let mut world = serving();
    world.check("RoutesReady", "True NoRoutes");
    let mut route = |name: &str, created: i64, ready: Option<&str>| {
        let facts = RouteFacts {
            key: ObjectKey::new("team", name),
            app: "shop".into(),
            created: Some(Timestamp::from_second(created).unwrap()),
            ready: ready.map(|status| ready_condition(status, "HostConflict")),
            url: Some(format!("https://{name}.example.com")),
        };
        world.seen.routes.insert(name.into(), Arc::new(facts));
    };
    route("a", 3, Some("True"));
    route("b", 2, Some("True"));
    assert_eq!(world.status().url.as_deref(), Some("https://b.example.com"));
    world.check("RoutesReady", "True RoutesReady");
    let facts = Arc::make_mut(world.seen.routes.get_mut("b").unwrap());
    facts.ready = None;
    world.check("RoutesReady", "Unknown RouteNotReady");
    let facts = Arc::make_mut(world.seen.routes.get_mut("b").unwrap());
    facts.ready = Some(ready_condition("False", "HostConflict"));
    world.check("RoutesReady", "False RouteNotReady");
    assert_eq!(world.status().url.as_deref(), Some("https://a.example.com"));
}

#[test]
fn an_app_that_goes_is_left_to_the_collector() {
    let mut world = serving();
    world.app().metadata.deletion_timestamp = Some(Time(world.now));
    assert_eq!(plan(&world.seen, &settings(), world.now), None);
}

#[test]
fn the_network_is_open_for_what_serves_and_what_comes() {
    let ports = |number: i32| json!([{ "name": "web", "port": number }]);
    let mut world = World::new(ports(3000));
    let numbers = |plan: Plan| -> Vec<i64> {
        let policy = serde_json::to_value(plan.policy).unwrap();
        let rules = policy["spec"]["ingress"].as_array().unwrap().clone();
        let ports = rules.iter().flat_map(|rule| rule["ports"].as_array().unwrap());
        ports.map(|port| port["port"].as_i64().unwrap()).collect()
    };
    assert_eq!(numbers(world.pass()), [3000]);
    world.ready();
    world.settle();
    world.apply(ports(4000));
    assert_eq!(numbers(world.pass()), [3000, 4000]);
    world.ready();
    world.pass();
    world.settle();
    assert_eq!(numbers(world.plan()), [4000]);
}
