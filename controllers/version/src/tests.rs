//! Situations of an App with its versions and pools, and what is decided in each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use portolan_api::conditions::reason;
use portolan_api::resolve::{pool_name, resolve};
use portolan_api::{
    AppSpec, AppVersion, AppVersionStatus, PoolRole, SandboxPool, SandboxPoolStatus,
    VersionService, names,
};
use portolan_reconcile::ObjectKey;

use crate::observe::{AppFacts, Seen, is_verifying, late_from, owners_in_doubt};
use crate::plan::{Plan, plan};
use crate::status::{is_progress, status};

/// An App named `shop`, and the world around it: what the other controllers would do.
struct World {
    seen: Seen,
}

impl World {
    fn new() -> Self {
        let app = AppFacts {
            key: ObjectKey::new("team", "shop"),
            uid: "app-uid".into(),
            is_deleting: false,
            active: None,
            latest: None,
            is_settled: true,
            patience: SignedDuration::from_secs(600),
        };
        Self { seen: Seen { app: Some(app), may_verify: true, ..Seen::default() } }
    }

    fn app(&mut self) -> &mut AppFacts {
        self.seen.app.as_mut().expect("the App exists")
    }

    /// A version of the App with these services; returns its name. It becomes the latest.
    fn apply(&mut self, spec: &str) -> String {
        let spec: AppSpec = serde_json::from_value(serde_json::json!({
            "image": "example/shop:1",
            "services": serde_json::from_str::<serde_json::Value>(spec).unwrap(),
        }))
        .unwrap();
        let resolved = resolve("shop", &spec);
        let name = names::version("shop", &resolved.digest);
        let mut version = AppVersion::new(&name, resolved);
        version.metadata.namespace = Some("team".into());
        version.metadata.uid = Some(format!("uid-{name}"));
        version.metadata.generation = Some(1);
        self.seen.versions.insert(name.clone(), Arc::new(version));
        self.app().latest = Some(name.clone());
        name
    }

    fn activate(&mut self, version: &str, is_settled: bool) {
        let app = self.app();
        app.active = Some(version.into());
        app.is_settled = is_settled;
    }

    /// Plans, and stores the pools as the API server and the pool controller would.
    fn pass(&mut self) -> Plan {
        let plan = plan(&self.seen);
        for (name, desired) in &plan.pools {
            let mut stored = desired.clone();
            let before = self.seen.pools.get(name);
            stored.status = before.and_then(|before| before.status.clone());
            stored.spec.replicas = before.and_then(|before| before.spec.replicas);
            stored.metadata.uid = Some(format!("uid-{name}"));
            stored.metadata.resource_version = Some("1".into());
            stored.metadata.generation = Some(1);
            self.seen.pools.insert(name.clone(), Arc::new(stored));
        }
        plan
    }

    /// Lets a pool show so many ready sandboxes.
    fn ready(&mut self, version: &str, service: &str, count: i32) {
        let name = self.pool_name(version, service);
        let pool = self.seen.pools.get_mut(&name).expect("the pool exists");
        Arc::make_mut(pool).status = Some(SandboxPoolStatus {
            observed_generation: Some(1),
            replicas: count,
            ready_replicas: count,
            ..SandboxPoolStatus::default()
        });
    }

    fn service(&self, version: &str, service: &str) -> &VersionService {
        let services = &self.seen.versions[version].spec.services;
        services.iter().find(|known| known.name == service).expect("the service exists")
    }

    fn pool_name(&self, version: &str, service: &str) -> String {
        pool_name("shop", self.service(version, service))
    }

    fn pool(&self, version: &str, service: &str) -> &SandboxPool {
        &self.seen.pools[&self.pool_name(version, service)]
    }

    #[track_caller]
    fn check(&self, version: &str, service: &str, role: PoolRole, floor: Option<i32>) {
        let pool = self.pool(version, service);
        assert_eq!((pool.spec.role, pool.spec.floor), (role, floor), "{version}/{service}");
    }

    fn owners(&self, version: &str, service: &str) -> Vec<String> {
        let owners = self.pool(version, service).metadata.owner_references.clone();
        owners.unwrap_or_default().into_iter().map(|owner| owner.name).collect()
    }

    /// Reports, and stores what is reported.
    fn reason(&mut self, version: &str) -> String {
        let plan = plan(&self.seen);
        for (name, (status, _)) in status(&self.seen, &plan, Timestamp::UNIX_EPOCH) {
            Arc::make_mut(self.seen.versions.get_mut(&name).unwrap()).status = Some(status);
        }
        let status = self.seen.versions[version].status.clone();
        let conditions = status.map(|status| status.conditions).unwrap_or_default();
        conditions
            .first()
            .map_or("nothing".into(), |ready| format!("{} {}", ready.status, ready.reason))
    }
}

const WEB: &str = r#"[{"name":"web"}]"#;
const WEB_NEW: &str = r#"[{"name":"web","args":["new"]}]"#;
const WEB_AND_WORKER: &str = r#"[{"name":"web"},{"name":"worker"}]"#;
const NEW_WEB_AND_WORKER: &str = r#"[{"name":"web","args":["new"]},{"name":"worker"}]"#;

#[test]
fn a_first_version_is_verified_and_then_serves() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.pass();
    world.check(&v1, "web", PoolRole::Candidate, Some(1));
    assert_eq!(world.reason(&v1), "Unknown Verifying");
    world.ready(&v1, "web", 1);
    assert_eq!(world.reason(&v1), "True Verified");
    world.activate(&v1, false);
    world.pass();
    world.check(&v1, "web", PoolRole::Active, None);
    assert_eq!(world.reason(&v1), "True Active");
}

#[test]
fn a_version_that_nobody_names_yet_says_nothing() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.app().latest = None;
    assert_eq!(world.reason(&v1), "nothing");
    world.app().latest = Some(v1.clone());
    assert_eq!(world.reason(&v1), "Unknown Verifying");
}

#[test]
fn the_old_pool_stays_until_every_gateway_follows() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    assert_eq!(world.reason(&v1), "True Active");
    world.ready(&v1, "web", 3);
    let v2 = world.apply(WEB_NEW);
    world.pass();
    world.check(&v1, "web", PoolRole::Active, None);
    world.check(&v2, "web", PoolRole::Candidate, Some(3));
    world.ready(&v2, "web", 3);
    world.activate(&v2, false);
    world.pass();
    world.check(&v1, "web", PoolRole::Active, None);
    world.check(&v2, "web", PoolRole::Active, None);
    assert_eq!(world.reason(&v2), "True Active");
    world.app().is_settled = true;
    world.pass();
    world.check(&v1, "web", PoolRole::Retired, None);
    assert_eq!(world.reason(&v1), "True Replaced");
}

#[test]
fn a_rollback_before_every_gateway_follows_leaves_the_pool_that_serves_them() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    world.ready(&v1, "web", 3);
    let v2 = world.apply(WEB_NEW);
    world.pass();
    world.ready(&v2, "web", 3);
    world.activate(&v2, false);
    world.pass();
    world.apply(WEB);
    world.pass();
    // A candidate would be cut down to its floor, whatever the gateways still ask of it.
    world.check(&v1, "web", PoolRole::Active, Some(3));
    world.activate(&v1, false);
    world.pass();
    world.check(&v1, "web", PoolRole::Active, None);
    world.check(&v2, "web", PoolRole::Active, None);
    world.app().is_settled = true;
    world.pass();
    world.check(&v2, "web", PoolRole::Retired, None);
}

#[test]
fn a_pool_that_gateways_still_use_keeps_the_scale_it_served_with() {
    let few = r#"[{"name":"web","scale":{"max":3}}]"#;
    let many = r#"[{"name":"web","scale":{"max":30}}]"#;
    // In both orders, because versions are looked at in the order of their names.
    for (first, last, max) in [(few, many, 30), (many, few, 3)] {
        let mut world = World::new();
        for spec in [first, last] {
            let version = world.apply(spec);
            world.activate(&version, true);
            world.pass();
        }
        let shared = world.app().active.clone().unwrap();
        let next = world.apply(WEB_NEW);
        world.pass();
        world.activate(&next, false);
        world.pass();
        assert_eq!(world.pool(&shared, "web").spec.scale.max, max);
        world.app().is_settled = true;
        world.pass();
        assert_eq!(world.pool(&shared, "web").spec.scale.max, max);
    }
}

#[test]
fn every_service_gets_its_own_pool_with_its_scale() {
    let mut world = World::new();
    let v1 = world.apply(r#"[{"name":"web"},{"name":"worker","scale":{"instances":3}}]"#);
    world.pass();
    assert_eq!(world.seen.pools.len(), 2);
    for (service, scale) in [("web", (0, 20)), ("worker", (3, 3))] {
        let pool = world.pool(&v1, service);
        assert_eq!((pool.spec.scale.min, pool.spec.scale.max), scale, "{service}");
        assert_eq!(world.owners(&v1, service), [v1.as_str()]);
    }
}

#[test]
fn a_service_that_was_removed_goes_with_the_switch() {
    let mut world = World::new();
    let v1 = world.apply(WEB_AND_WORKER);
    world.activate(&v1, true);
    world.pass();
    let v2 = world.apply(WEB);
    world.pass();
    world.check(&v1, "worker", PoolRole::Active, None);
    world.activate(&v2, false);
    world.pass();
    world.check(&v1, "worker", PoolRole::Active, None);
    world.app().is_settled = true;
    world.pass();
    world.check(&v1, "worker", PoolRole::Retired, None);
    world.check(&v2, "web", PoolRole::Active, None);
}

#[test]
fn a_pool_that_somebody_deleted_is_made_again() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    world.seen.pools.clear();
    let plan = world.pass();
    world.check(&v1, "web", PoolRole::Active, None);
    assert_eq!(world.owners(&v1, "web"), [v1.as_str()]);
    let made = &plan.pools[&world.pool_name(&v1, "web")];
    assert_eq!(made.metadata.uid, None, "an apply with a UID would not create it");
}

#[test]
fn a_rollback_takes_the_retired_pool_up_again() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    let v2 = world.apply(WEB_NEW);
    world.activate(&v2, true);
    world.pass();
    world.check(&v1, "web", PoolRole::Retired, None);
    world.ready(&v2, "web", 2);
    assert_eq!(world.apply(WEB), v1);
    world.pass();
    world.check(&v1, "web", PoolRole::Candidate, Some(2));
}

#[test]
fn a_service_that_did_not_change_shares_its_pool() {
    let mut world = World::new();
    let v1 = world.apply(WEB_AND_WORKER);
    world.activate(&v1, true);
    world.pass();
    let v2 = world.apply(NEW_WEB_AND_WORKER);
    world.pass();
    assert_eq!(world.pool_name(&v1, "worker"), world.pool_name(&v2, "worker"));
    let mut both = vec![v1.clone(), v2.clone()];
    both.sort();
    assert_eq!(world.owners(&v1, "worker"), both);
    assert_eq!(world.owners(&v1, "web"), [v1.as_str()]);
    world.check(&v1, "worker", PoolRole::Active, Some(1));
}

#[test]
fn an_owner_is_dropped_only_when_it_is_known_to_be_gone() {
    let mut world = World::new();
    let v1 = world.apply(WEB_AND_WORKER);
    world.activate(&v1, true);
    world.pass();
    let v2 = world.apply(NEW_WEB_AND_WORKER);
    world.activate(&v2, true);
    world.pass();
    world.seen.versions.remove(&v1);
    let doubts = owners_in_doubt(&world.seen.pools, &world.seen.versions);
    assert_eq!(doubts, BTreeSet::from([(v1.clone(), format!("uid-{v1}"))]));
    world.pass();
    let mut both = vec![v1.clone(), v2.clone()];
    both.sort();
    assert_eq!(world.owners(&v2, "worker"), both, "a cache that lags takes no owner away");
    world.seen.gone.insert(format!("uid-{v1}"));
    world.pass();
    assert_eq!(world.owners(&v2, "worker"), [v2]);
}

#[test]
fn an_owner_of_another_kind_is_not_ours_to_keep() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.pass();
    let name = world.pool_name(&v1, "web");
    let pool = Arc::make_mut(world.seen.pools.get_mut(&name).unwrap());
    pool.metadata.owner_references.get_or_insert_default().push(OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: "foreign".into(),
        uid: "foreign".into(),
        ..OwnerReference::default()
    });
    world.pass();
    assert_eq!(world.owners(&v1, "web"), [v1]);
}

#[test]
fn a_floor_only_rises_while_the_candidate_verifies() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    world.ready(&v1, "web", 2);
    let v2 = world.apply(WEB_NEW);
    world.pass();
    world.check(&v2, "web", PoolRole::Candidate, Some(2));
    world.ready(&v1, "web", 5);
    world.pass();
    world.check(&v2, "web", PoolRole::Candidate, Some(5));
    world.ready(&v1, "web", 1);
    world.pass();
    world.check(&v2, "web", PoolRole::Candidate, Some(5));
}

#[test]
fn a_floor_never_exceeds_what_the_new_version_wants() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    world.ready(&v1, "web", 9);
    let v2 = world.apply(r#"[{"name":"web","args":["new"],"scale":{"max":4}}]"#);
    world.pass();
    world.check(&v2, "web", PoolRole::Candidate, Some(4));
}

#[test]
fn a_candidate_that_another_replaces_is_retired() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    let v2 = world.apply(WEB_NEW);
    world.pass();
    let v3 = world.apply(r#"[{"name":"web","args":["newer"]}]"#);
    world.pass();
    world.check(&v1, "web", PoolRole::Active, None);
    world.check(&v2, "web", PoolRole::Retired, None);
    world.check(&v3, "web", PoolRole::Candidate, Some(1));
}

#[test]
fn only_the_active_version_sets_the_scale() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.activate(&v1, true);
    world.pass();
    let v2 = world.apply(r#"[{"name":"web","scale":{"max":3}}]"#);
    world.pass();
    assert_eq!(world.pool_name(&v1, "web"), world.pool_name(&v2, "web"));
    assert_eq!(world.pool(&v1, "web").spec.scale.max, 20);
    world.activate(&v2, false);
    world.pass();
    assert_eq!(world.pool(&v1, "web").spec.scale.max, 3);
}

#[test]
fn a_service_with_a_port_that_nothing_wakes_keeps_one_sandbox() {
    let mut world = World::new();
    let spec = r#"[{"name":"web","ports":[{"name":"http","port":80},{"name":"irc","port":6667,"type":"tcp"}]}]"#;
    let v1 = world.apply(spec);
    world.activate(&v1, true);
    world.pass();
    assert_eq!(world.pool(&v1, "web").spec.scale.min, 1);
}

#[test]
fn as_many_versions_verify_at_once_as_may() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.seen.may_verify = false;
    assert!(world.pass().is_waiting);
    assert!(world.seen.pools.is_empty());
    assert_eq!(world.reason(&v1), "Unknown Waiting");
    world.seen.may_verify = true;
    assert!(!world.pass().is_waiting);
    world.seen.may_verify = false;
    assert!(!world.pass().is_waiting, "what has begun goes on");
    world.check(&v1, "web", PoolRole::Candidate, Some(1));
    assert!(is_verifying(world.pool(&v1, "web")));
    world.ready(&v1, "web", 1);
    assert!(!is_verifying(world.pool(&v1, "web")));
}

#[test]
fn what_nothing_wakes_keeps_a_sandbox() {
    let scale = r#""scale":{"mode":"Auto","max":3}"#;
    for (service, least) in [
        (r#""name":"web""#, 0),
        (r#""name":"worker""#, 1),
        (r#""name":"mail","port":25,"portType":"tcp""#, 1),
    ] {
        let mut world = World::new();
        let v1 = world.apply(&format!("[{{{service},{scale}}}]"));
        world.pass();
        let pool = world.seen.pools.values().next().expect("its pool");
        assert_eq!((pool.spec.scale.min, pool.spec.scale.max), (least, 3), "{v1}: {service}");
    }
}

#[test]
fn an_app_that_goes_is_left_to_the_collector() {
    let mut world = World::new();
    world.apply(WEB);
    world.app().is_deleting = true;
    assert_eq!(plan(&world.seen), Plan::default());
    world.seen.app = None;
    assert_eq!(plan(&world.seen), Plan::default());
}

#[test]
fn a_second_plan_asks_for_what_is_there() {
    let mut world = World::new();
    let v1 = world.apply(WEB_AND_WORKER);
    world.activate(&v1, true);
    world.pass();
    world.apply(NEW_WEB_AND_WORKER);
    world.pass();
    let stored: BTreeMap<_, _> =
        world.seen.pools.iter().map(|(name, pool)| (name.clone(), pool.spec.clone())).collect();
    let again = plan(&world.seen);
    let desired: BTreeMap<_, _> =
        again.pools.iter().map(|(name, pool)| (name.clone(), pool.spec.clone())).collect();
    assert_eq!(desired, stored);
}

#[test]
fn a_version_says_what_is_wrong_with_its_pool() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.pass();
    let name = world.pool_name(&v1, "web");
    let condition = serde_json::json!({
        "type": "Ready", "status": "False", "reason": reason::IMAGE_PULL_FAILED,
        "message": "no such image", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    Arc::make_mut(world.seen.pools.get_mut(&name).unwrap()).status = Some(SandboxPoolStatus {
        conditions: vec![serde_json::from_value(condition).unwrap()],
        ..SandboxPoolStatus::default()
    });
    assert_eq!(world.reason(&v1), "False ImagePullFailed");
    assert!(!is_verifying(world.pool(&v1, "web")), "it holds up no other version");
}

#[test]
fn a_candidate_that_only_starts_is_late_one_day() {
    let mut world = World::new();
    let v1 = world.apply(WEB);
    world.pass();
    assert_eq!(late_from(&world.seen), None, "nobody has looked at it");
    let name = world.pool_name(&v1, "web");
    let mut say = |patience: i64, status: &str| {
        world.app().patience = SignedDuration::from_secs(patience);
        let pool = Arc::make_mut(world.seen.pools.get_mut(&name).expect("the pool exists"));
        pool.status = Some(SandboxPoolStatus {
            conditions: vec![
                serde_json::from_value(serde_json::json!({
                    "type": "Ready", "status": status, "reason": "Starting", "message": "",
                    "lastTransitionTime": "1970-01-01T00:00:10Z",
                }))
                .unwrap(),
            ],
            ..SandboxPoolStatus::default()
        });
        late_from(&world.seen).map(Timestamp::as_second)
    };
    assert_eq!(say(600, "Unknown"), Some(610));
    assert_eq!(say(86_400, "Unknown"), Some(1810), "whatever its App says");
    assert_eq!(say(600, "True"), None, "that was in another role");
    assert_eq!(say(600, "False"), None, "it has no place");
}

#[test]
fn only_word_of_a_step_may_wait() {
    let word = |status: &str, reason: &str| AppVersionStatus {
        observed_generation: Some(1),
        conditions: vec![
            serde_json::from_value(serde_json::json!({
                "type": "Ready", "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }))
            .unwrap(),
        ],
    };
    let verifying = word("Unknown", reason::VERIFYING);
    let verified = word("True", reason::VERIFIED);
    let failed = word("False", reason::IMAGE_PULL_FAILED);
    let waiting = word("Unknown", reason::WAITING);
    assert!(is_progress(None, &verifying) && is_progress(Some(&verifying), &verified));
    assert!(is_progress(Some(&word("True", reason::REPLACED)), &verifying), "a rollback");
    assert!(!is_progress(Some(&verifying), &verifying), "there is nothing to say");
    assert!(!is_progress(Some(&failed), &verifying), "it does not fail any more");
    for last in [&failed, &waiting, &word("True", reason::ACTIVE)] {
        assert!(!is_progress(None, last) && !is_progress(Some(&verifying), last), "{last:?}");
    }
}
