//! Situations of an App whose services have addresses of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portolan_api::{AppService, AppServiceStatus, SessionAffinity};
use portolan_reconcile::Transition;
use serde_json::{Value, from_value, json};

use super::{World, condition, ready_condition};
use crate::l4::{Addresses, held, moved, possible_apps};
use crate::plan::{Plan, Wanted};
use crate::status::status;

impl World {
    /// Stores what the API server would, as seen by the service controller: each AppService has
    /// its address.
    pub(super) fn store(&mut self, addresses: &Addresses) {
        let Addresses { create, replace, delete, is_followed: _, is_needed: _ } = addresses;
        for service in create.iter().chain(replace) {
            let name = service.metadata.name.clone().expect("an AppService has a name");
            let mut stored = service.clone();
            let before = self.seen.services.get(&name);
            let generation = before.and_then(|before| before.metadata.generation);
            stored.metadata.generation = Some(generation.unwrap_or(0) + 1);
            stored.metadata.uid.get_or_insert_with(|| format!("uid-{name}"));
            stored.status = Some(AppServiceStatus {
                observed_generation: stored.metadata.generation,
                cluster_ips: vec!["10.96.0.7".into()],
                conditions: vec![ready_condition("True", "Available")],
                ..AppServiceStatus::default()
            });
            self.seen.services.insert(name, Arc::new(stored));
        }
        for target in delete {
            self.seen.services.remove(&target.key.name);
        }
    }

    fn service(&mut self, name: &str) -> &mut AppService {
        Arc::make_mut(self.seen.services.get_mut(name).expect("the AppService exists"))
    }

    /// Lets the wanted version take over, whatever that takes.
    fn roll_out(&mut self) {
        self.pass();
        self.ready();
        self.settle();
    }

    /// Lets this AppService be all that holds node ports.
    fn hold(&mut self, service: &AppService) {
        let holders = held(service).into_iter().map(|port| (port, vec![Arc::new(service.clone())]));
        self.seen.holders = holders.collect();
    }

    /// What Events tell of the App after this pass.
    fn told(&self) -> Vec<Transition> {
        let app = self.seen.app.as_ref().expect("there is an App");
        status(app, &self.seen, &self.plan(), None, self.now).1
    }

    /// What is told the API server, by name.
    #[track_caller]
    fn check_addresses(&self, create: &[&str], replace: &[&str], delete: &[&str]) {
        let addresses = self.plan().addresses;
        let names = |services: &[AppService]| -> Vec<String> {
            services.iter().filter_map(|service| service.metadata.name.clone()).collect()
        };
        let gone = addresses.delete.iter().map(|target| target.key.name.clone());
        let found = (names(&addresses.create), names(&addresses.replace), gone.collect::<Vec<_>>());
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found, (owned(create), owned(replace), owned(delete)));
    }
}

fn irc(port: i32) -> Value {
    json!({ "name": "irc", "ports": [
        { "name": "admin", "port": 8080 },
        { "name": "irc", "port": port, "type": "tcp", "nodePort": 6697 },
    ] })
}

fn services(list: &[Value]) -> Value {
    Value::Array(list.to_vec())
}

fn web() -> Value {
    json!({ "name": "web" })
}

/// An App with an http-only service and one with an address, which serves.
fn serving() -> World {
    let mut world = World::new(services(&[web(), irc(6667)]));
    world.roll_out();
    world.check("Ready", "True Available");
    world
}

fn epochs(plan: &Plan) -> (Option<i64>, Option<i64>) {
    (plan.activation.as_ref().map(|activation| activation.epoch), plan.settled_epoch)
}

#[test]
fn an_address_is_made_before_anything_answers_on_it_and_stays() {
    let mut world = World::new(services(&[web(), irc(6667)]));
    let made = world.pass().addresses.create;
    assert_eq!(made.len(), 1, "http-only services have none");
    let metadata = &made[0].metadata;
    assert_eq!(metadata.name.as_deref(), Some("shop-irc"));
    assert_eq!(metadata.owner_references.as_ref().unwrap()[0].uid, "app-uid");
    let labels = metadata.labels.as_ref().unwrap();
    assert_eq!((&*labels["portolan.dev/app"], &*labels["portolan.dev/service"]), ("shop", "irc"));
    let spec = serde_json::to_value(&made[0].spec).unwrap();
    let expected = json!({
        "app": "shop", "service": "irc",
        "ports": [
            { "name": "admin", "port": 8080, "type": "http", "targetPort": 8080 },
            { "name": "irc", "port": 6667, "type": "tcp", "targetPort": 6667, "nodePort": 6697 },
        ],
    });
    assert_eq!(spec, expected, "all its ports, http too, and no pool before the switch");

    world.check_addresses(&[], &[], &[]);
    world.ready();
    let switched = world.pass();
    assert_eq!(epochs(&switched), (Some(1), None));
    let whole = Addresses { is_followed: true, is_needed: true, ..Addresses::default() };
    assert_eq!(switched.addresses, whole);
    world.check_addresses(&[], &["shop-irc"], &[]);
    let uid = world.service("shop-irc").metadata.uid.clone();
    world.settle();
    let service = world.service("shop-irc").clone();
    assert_eq!(service.metadata.uid, uid);
    let pools = world.status().services;
    let pool = pools.iter().find(|entry| entry.name == "irc").map(|entry| entry.pool.clone());
    assert_eq!(service.spec.pool, pool);
    world.check_addresses(&[], &[], &[]);
}

#[test]
fn ports_change_with_the_switch_and_not_before() {
    let mut world = serving();
    world.apply(services(&[web(), irc(7000)]));
    world.pass();
    world.check_addresses(&[], &[], &[]);
    let old = world.service("shop-irc").spec.clone();
    world.ready();
    world.pass();
    world.check_addresses(&[], &["shop-irc"], &[]);
    world.settle();
    let new = world.service("shop-irc").spec.clone();
    assert_eq!(new.ports[1].port, 7000);
    assert_ne!(new.pool, old.pool);
}

#[test]
fn affinity_is_the_addresss_and_not_the_sandboxs() {
    let mut world = serving();
    let pool = world.service("shop-irc").spec.pool.clone();
    let mut sticky = irc(6667);
    sticky["sessionAffinity"] = json!("ClientIP");
    world.apply(services(&[web(), sticky]));
    world.roll_out();
    let spec = &world.service("shop-irc").spec;
    assert_eq!((spec.session_affinity, &spec.pool), (Some(SessionAffinity::ClientIP), &pool));
    world.apply(services(&[web(), irc(6667)]));
    world.roll_out();
    assert_eq!(world.service("shop-irc").spec.session_affinity, None);
}

#[test]
fn an_address_goes_with_its_service_or_when_http_is_all_that_is_left() {
    let http = json!({ "name": "irc", "ports": [{ "name": "admin", "port": 8080 }] });
    for rest in [services(&[web()]), services(&[web(), http])] {
        let mut world = serving();
        world.apply(rest);
        world.pass();
        world.check_addresses(&[], &[], &[]);
        world.ready();
        world.pass();
        world.check_addresses(&[], &[], &["shop-irc"]);
        let target = &world.plan().addresses.delete[0];
        assert_eq!(target.uid, "uid-shop-irc", "that very object");
        world.settle();
        assert!(world.seen.services.is_empty());
        world.check("Ready", "True Available");
    }
}

#[test]
fn nothing_is_deleted_while_it_is_not_known_what_is_needed() {
    let mut world = serving();
    let (active, _) = world.active().unwrap();
    let version = world.seen.versions.remove(&active);
    world.app().spec.version = Some("shop-gone".into());
    assert!(matches!(world.plan().wanted, Wanted::Missing(_)));
    assert_eq!(world.plan().addresses, Addresses::default());
    world.seen.versions.insert(active, version.unwrap());
    world.check_addresses(&[], &[], &[]);
}

#[test]
fn an_edit_by_others_is_undone_and_what_they_add_is_kept() {
    let mut world = serving();
    let service = world.service("shop-irc");
    service.spec.pool = Some("shop-web-other".into());
    let labels = service.metadata.labels.as_mut().unwrap();
    labels.remove("portolan.dev/service");
    labels.insert("team".into(), "chat".into());
    service.metadata.resource_version = Some("77".into());
    let changed = &world.plan().addresses.replace[0];
    let metadata = &changed.metadata;
    assert_eq!(metadata.resource_version.as_deref(), Some("77"), "never over a later change");
    assert_eq!(metadata.labels.as_ref().unwrap().len(), 4);
    assert_ne!(changed.spec.pool.as_deref(), Some("shop-web-other"));
}

#[test]
fn a_name_that_is_anothers_is_told_and_left_alone() {
    let mut world = serving();
    let service = world.service("shop-irc");
    service.metadata.owner_references.as_mut().unwrap()[0].uid = "another-app-uid".into();
    (service.spec.app, service.spec.service) = ("shop-i".into(), "rc".into());
    world.check_addresses(&[], &[], &[]);
    world.check("ServicesReady", "False NameConflict");
    world.check("Ready", "False NameConflict");
    world.apply(services(&[web()]));
    world.roll_out();
    world.check_addresses(&[], &[], &[]);
    world.check("Ready", "True Available");
}

#[test]
fn one_that_goes_is_waited_for() {
    let mut world = serving();
    let now = world.now;
    world.service("shop-irc").metadata.deletion_timestamp = Some(Time(now));
    world.service("shop-irc").spec.pool = None;
    world.check_addresses(&[], &[], &[]);
    world.seen.services.clear();
    world.check_addresses(&["shop-irc"], &[], &[]);
    world.check("ServicesReady", "Unknown Starting");
}

#[test]
fn what_is_wrong_with_an_address_is_the_apps_word_too() {
    let mut world = serving();
    let status = world.service("shop-irc").status.as_mut().unwrap();
    status.conditions = vec![ready_condition("False", "NodePortConflict")];
    world.check("ServicesReady", "False NodePortConflict");
    world.check("Ready", "False NodePortConflict");
    world.service("shop-irc").status = None;
    world.check("ServicesReady", "Unknown Starting");
}

/// An AppService of another App that holds a node port.
fn lobby(number: i32, kind: &str) -> AppService {
    from_value(json!({
        "metadata": { "name": "game-lobby", "namespace": "team-b", "uid": "uid-of-game-lobby" },
        "spec": { "app": "game", "service": "lobby", "ports": [
            { "name": "play", "port": 1, "type": kind, "targetPort": 1, "nodePort": number },
        ] },
        "status": { "nodePorts": [{ "name": "play", "port": number }] },
    }))
    .expect("an AppService")
}

/// An App whose first version had the node port 6697/tcp and whose second one gave it up; and the
/// first version.
fn gave_up() -> (World, String) {
    let mut world = serving();
    let (first, _) = world.active().expect("a version serves");
    world.apply(services(&[web()]));
    world.roll_out();
    (world, first)
}

#[test]
fn a_rollback_waits_for_a_node_port_that_another_app_holds() {
    let (mut world, first) = gave_up();
    let before = world.active();
    world.hold(&lobby(6697, "tcp"));
    world.app().spec.version = Some(first.clone());
    world.roll_out();
    assert_eq!(world.active(), before, "what serves goes on serving");
    world.check_addresses(&[], &[], &[]);
    world.check("Ready", "False NodePortConflict");
    world.check("Progressing", "False NodePortConflict");
    world.check("ServicesReady", "True Available");
    let conditions = world.status().conditions;
    let message = &condition(&conditions, "Ready").unwrap().message;
    let holder =
        "service irc: node port 6697/TCP (port irc) is held by AppService team-b/game-lobby;";
    assert!(message.starts_with(holder), "{message}");
    let serves = format!("; version {} keeps serving", before.unwrap().0);
    assert!(message.ends_with(&serves), "{message}");

    world.seen.holders.clear();
    world.settle();
    assert_eq!(world.active(), Some((first, 3)), "it goes on by itself");
    world.check("Ready", "True Available");
}

#[test]
fn a_new_version_and_an_old_manifest_wait_for_a_node_port_too() {
    for port in [6667, 7000] {
        let (mut world, _) = gave_up();
        let before = world.active();
        world.hold(&lobby(6697, "tcp"));
        world.apply(services(&[web(), irc(port)]));
        world.roll_out();
        assert_eq!(world.active(), before);
        world.check("Ready", "False NodePortConflict");
    }
}

#[test]
fn a_switch_waits_for_no_other_port_than_one_it_would_be_the_first_to_ask_for() {
    let rolls_back = |holder: &AppService| {
        let (mut world, first) = gave_up();
        world.hold(holder);
        world.app().spec.version = Some(first.clone());
        world.roll_out();
        world.active() == Some((first, 3))
    };
    assert!(!rolls_back(&lobby(6697, "tcp")));
    assert!(!rolls_back(&lobby(6697, "http")), "the transport is the same");
    assert!(rolls_back(&lobby(6697, "udp")), "another transport");
    assert!(rolls_back(&lobby(6698, "tcp")), "another number");
    let mut own = lobby(6697, "tcp");
    own.metadata.owner_references = serving().service("shop-irc").metadata.owner_references.clone();
    assert!(rolls_back(&own), "another service of the App");

    // The version that serves asks for it, too.
    let mut world = serving();
    world.hold(&lobby(6697, "tcp"));
    world.apply(services(&[web(), irc(7000)]));
    world.roll_out();
    assert_eq!(world.active().map(|(_, epoch)| epoch), Some(2));

    // Nothing serves that would go on.
    let mut world = World::new(services(&[web(), irc(6667)]));
    world.hold(&lobby(6697, "tcp"));
    world.roll_out();
    assert_eq!(world.active().map(|(_, epoch)| epoch), Some(1));
}

#[test]
fn that_another_node_port_is_withheld_is_told_anew() {
    let (mut world, first) = gave_up();
    world.app().spec.version = Some(first);
    let is_told = |world: &mut World, holder: &AppService| {
        world.hold(holder);
        let told = world.told().into_iter().any(|one| one.type_ == "Ready" && one.is_naming);
        world.pass();
        told
    };
    let mut den = lobby(6697, "tcp");
    den.metadata.name = Some("game-den".into());
    assert!(is_told(&mut world, &lobby(6697, "tcp")), "a conflict");
    assert!(!is_told(&mut world, &lobby(6697, "tcp")), "the same one");
    assert!(is_told(&mut world, &den), "another holder");
}

#[test]
fn a_node_port_is_held_while_it_is_said_to_be_and_asked_for() {
    let holding = lobby(6697, "udp");
    let port = || BTreeSet::from(["6697/udp".to_owned()]);
    assert_eq!(held(&holding), port());
    let mut unheld = holding.clone();
    unheld.status = None;
    assert_eq!(held(&unheld), BTreeSet::new(), "it only asks");
    let mut left = holding.clone();
    left.spec.ports[0].node_port = Some(6698);
    assert_eq!(held(&left), BTreeSet::new(), "it asks for another");
    assert_eq!(moved(None, Some(&holding)), port());
    assert_eq!(moved(Some(&holding), None), port());
    assert_eq!(moved(Some(&holding), Some(&unheld)), port());
    assert_eq!(moved(Some(&holding), Some(&holding)), BTreeSet::new());
}

#[test]
fn the_old_sandboxes_stay_until_addresses_lead_to_the_new_ones() {
    let mut world = serving();
    world.apply(services(&[web(), irc(7000)]));
    world.pass();
    world.ready();
    assert_eq!(epochs(&world.pass()), (Some(2), Some(1)));
    assert_eq!(epochs(&world.plan()), (Some(2), Some(1)), "the address is still to be written");
    world.pass();
    world.service("shop-irc").status.as_mut().unwrap().observed_generation = Some(1);
    assert_eq!(epochs(&world.plan()), (Some(2), Some(1)), "nobody has acted on it");
    world.check("Progressing", "True Switching");
    world.service("shop-irc").metadata.generation = Some(1);
    assert_eq!(epochs(&world.plan()), (Some(2), Some(2)));
}

#[test]
fn the_ports_of_a_service_with_an_address_are_open_to_its_namespace() {
    let http = |port: i32| json!({ "name": "web", "port": port });
    let mut world = World::new(services(&[http(3000), irc(6667)]));
    let plan = world.pass();
    let policy = serde_json::to_value(plan.policy).unwrap();
    let rules = policy["spec"]["ingress"].as_array().unwrap();
    let open = |rule: &Value| {
        let peers = rule["from"].as_array().map_or(0, Vec::len);
        (peers, rule["ports"][0]["port"].as_i64())
    };
    let found: Vec<_> = rules.iter().map(open).collect();
    assert_eq!(found, [(2, Some(3000)), (3, Some(8080)), (0, Some(6667))]);
}

#[test]
fn a_name_says_which_apps_could_want_it() {
    assert_eq!(possible_apps("a-b-c").collect::<Vec<_>>(), ["a", "a-b"]);
    assert_eq!(possible_apps("shop").count(), 0);
}
