//! Tables of situations: what is planned, what is reported, and that a plan that was applied
//! leaves nothing to plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_api::{AppService, Claim, Holder, labels};
use portolan_claims::HolderState;
use portolan_reconcile::{ObjectKey, Observed, Target, WriteError};
use serde_json::{Value, from_value, json};

use crate::apply::Outcome;
use crate::error::Error;
use crate::observe::{Asked, Left, Situation, Slot};
use crate::plan::{self, Farewell, Hold, Plan, Step, plan};
use crate::ports::{NodePort, PortPolicy};
use crate::slices::{self, Family};
use crate::status::{Report, report};
use crate::view::{Belongs, Sandbox};
use crate::{REALM, address};

const UID: &str = "uid-of-the-app-service";

fn policy() -> PortPolicy {
    PortPolicy { allowed: "1-29999".parse().unwrap(), reserved: "22,80".parse().unwrap() }
}

/// An AppService with an http, a tcp and a udp port; the tcp one asks for `node_port`.
fn app_service(node_port: Option<i32>) -> AppService {
    from_value(json!({
        "metadata": { "name": "chat-irc", "namespace": "team-a", "uid": UID, "generation": 3 },
        "spec": { "app": "chat", "service": "irc", "pool": "chat-irc-1", "ports": [
            { "name": "site", "port": 8080, "type": "http", "targetPort": 8080 },
            { "name": "irc", "port": 6667, "type": "tcp", "targetPort": 6667, "nodePort": node_port },
            { "name": "voice", "port": 6667, "type": "udp", "targetPort": 6667 },
        ] },
    }))
    .unwrap()
}

/// As a cluster with both families answers the creation.
fn allocated(mut service: Service) -> Service {
    service.metadata.uid = Some("uid-of-the-service".into());
    service.metadata.resource_version = Some("7".into());
    let spec = service.spec.as_mut().unwrap();
    spec.cluster_ip = Some("10.96.0.7".into());
    spec.cluster_ips = Some(vec!["10.96.0.7".into(), "fd00::7".into()]);
    spec.ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
    spec.internal_traffic_policy = Some("Cluster".into());
    service
}

fn sandbox(name: &str, serving: bool, leaving: bool) -> Arc<Sandbox> {
    let last = name.len();
    Arc::new(Sandbox {
        key: ObjectKey::new("team-a", name),
        uid: format!("uid-of-{name}"),
        pool: ObjectKey::new("team-a", "chat-irc-1"),
        owner: Some("uid-of-the-pool".into()),
        addresses: vec![
            format!("10.0.0.{last}").parse().unwrap(),
            format!("fd00:1::{last}").parse().unwrap(),
        ],
        node: Some("node-1".into()),
        serving,
        leaving,
    })
}

/// What a first pass sees.
fn fresh(service: AppService) -> Situation {
    let mut asked = Vec::new();
    for port in &service.spec.ports {
        asked.extend(NodePort::asked(port).map(|node_port| Asked {
            name: port.name.clone(),
            port: node_port,
            claim: None,
            services: vec![],
            nodes: vec![],
        }));
    }
    Situation {
        service: Arc::new(service),
        address: Slot::Free,
        asked,
        held: vec![],
        sandboxes: Some(Observed::Present(vec![sandbox("a", true, false)])),
        former: vec![],
        slices: BTreeMap::from(Family::ALL.map(|family| (family, Slot::Free))),
    }
}

/// Everything is as the AppService wants it.
fn settled(service: AppService) -> Situation {
    let mut situation = fresh(service);
    for _ in 0..2 {
        let plan = plan(&situation, &policy());
        take(&mut situation, &plan);
    }
    situation
}

/// Takes the steps of a plan as an API server would.
fn take(situation: &mut Situation, plan: &Plan) {
    for step in &plan.steps {
        match step {
            Step::CreateService(service) => {
                situation.address = Slot::Ours(Box::new(allocated((**service).clone())));
            }
            Step::ReplaceService(service) => situation.address = Slot::Ours(service.clone()),
            Step::Release(claim, _) => {
                situation.held.retain(|held| Target::at(held.as_ref()) != *claim);
                for asked in &mut situation.asked {
                    asked.claim.take_if(|(held, _)| Target::at(held.as_ref()) == *claim);
                }
            }
            Step::CreateSlice(slice) | Step::ReplaceSlice(slice) => {
                let family = family_of(slice.metadata.name.as_deref().unwrap());
                situation.slices.insert(family, Slot::Ours(slice.clone()));
            }
            Step::DeleteSlice(slice) => {
                situation.slices.insert(family_of(&slice.key.name), Slot::Free);
            }
        }
    }
    for port in &plan.take {
        let claim = Arc::new(claim(*port, &REALM.holder(situation.service.as_ref())));
        situation.held.push(claim.clone());
        for asked in situation.asked.iter_mut().filter(|asked| asked.port == *port) {
            assert_eq!(asked.claim, None, "what is held cannot be created");
            asked.claim = Some((claim.clone(), HolderState::Own));
        }
    }
}

fn family_of(slice: &str) -> Family {
    if slice.ends_with("-ipv4") { Family::V4 } else { Family::V6 }
}

fn claim(port: NodePort, holder: &Holder) -> Claim {
    let mut claim = REALM.claim(&port.value(), holder);
    claim.metadata.uid = Some(format!("uid-of-claim-{port}"));
    claim.metadata.resource_version = Some("5".into());
    claim
}

fn other() -> Holder {
    Holder {
        kind: "AppService".into(),
        namespace: "team-b".into(),
        name: "game-lobby".into(),
        uid: "other".into(),
    }
}

/// The settled situation, but another has, or had, the Claim on the node port.
fn contended(holder: Holder, state: HolderState) -> Situation {
    contended_on(6697, holder, state)
}

fn contended_on(port: i32, holder: Holder, state: HolderState) -> Situation {
    let mut situation = settled(app_service(None));
    let service = app_service(Some(port));
    situation.asked = fresh(service.clone()).asked;
    let asked = &mut situation.asked[0];
    asked.claim = Some((Arc::new(claim(asked.port, &holder)), state));
    situation.service = Arc::new(service);
    situation
}

/// Kinds of the steps, in order.
fn kinds(plan: &Plan) -> Vec<&'static str> {
    let kind = |step: &Step| match step {
        Step::CreateService(_) => "create service",
        Step::ReplaceService(_) => "replace service",
        Step::Release(..) => "release",
        Step::CreateSlice(_) => "create slice",
        Step::ReplaceSlice(_) => "replace slice",
        Step::DeleteSlice(_) => "delete slice",
    };
    plan.steps.iter().map(kind).chain(plan.take.iter().map(|_| "take")).collect()
}

#[track_caller]
fn check_steps(situation: &Situation, expected: &[&str]) -> Plan {
    let made = plan(situation, &policy());
    assert_eq!(kinds(&made), expected, "{situation:#?}");
    made
}

fn report_on(situation: &Situation, outcome: &Outcome) -> Report {
    report(situation, &plan(situation, &policy()), outcome, Timestamp::UNIX_EPOCH)
}

#[track_caller]
fn check_ready(situation: &Situation, outcome: &Outcome, reason: &str, message: &str) {
    let Report { status, .. } = report_on(situation, outcome);
    let ready = status.conditions.iter().find(|one| one.type_ == "Ready").unwrap();
    assert_eq!(ready.reason, reason, "{}", ready.message);
    assert!(ready.message.contains(message), "{}", ready.message);
    assert_eq!(ready.status == "True", reason == "Available");
    assert_eq!(status.observed_generation, Some(3));
}

// === address ===

#[test]
fn a_new_app_service_gets_an_address_its_port_and_then_its_slices() {
    let mut situation = fresh(app_service(Some(6697)));
    let first = check_steps(&situation, &["create service", "take"]);
    let Step::CreateService(service) = &first.steps[0] else { panic!("{first:?}") };
    let expected = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "chat-irc", "namespace": "team-a",
            "labels": {
                "app.kubernetes.io/managed-by": "portolan",
                "portolan.dev/app": "chat", "portolan.dev/service": "irc",
                "service.kubernetes.io/service-proxy-name": "portolan",
            },
            "ownerReferences": [{ "apiVersion": "portolan.dev/v1alpha1", "kind": "AppService",
                "name": "chat-irc", "uid": UID, "controller": true }],
        },
        "spec": {
            "type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack", "sessionAffinity": "None",
            "ports": [
                { "name": "site", "port": 8080, "protocol": "TCP", "targetPort": 8080 },
                { "name": "irc", "port": 6667, "protocol": "TCP", "targetPort": 6667 },
                { "name": "voice", "port": 6667, "protocol": "UDP", "targetPort": 6667 },
            ],
        },
    });
    assert_eq!(serde_json::to_value(service).unwrap(), expected);
    take(&mut situation, &first);
    let second = check_steps(&situation, &["create slice", "create slice"]);
    take(&mut situation, &second);
    check_steps(&situation, &[]);
    check_ready(
        &situation,
        &Outcome::default(),
        "Available",
        "1 sandbox behind 10.96.0.7 and fd00::7",
    );
}

#[test]
fn the_address_stays_when_ports_change() {
    let mut situation = settled(app_service(None));
    let mut service = app_service(None);
    service.spec.ports.remove(1);
    service.spec.ports[0].port = 81;
    service.spec.session_affinity = Some(portolan_api::SessionAffinity::ClientIP);
    situation.service = Arc::new(service);
    let changed = check_steps(&situation, &["replace service", "replace slice", "replace slice"]);
    let Step::ReplaceService(service) = &changed.steps[0] else { panic!("{changed:?}") };
    assert_eq!(address::addresses(service), ["10.96.0.7", "fd00::7"]);
    assert_eq!(service.metadata.resource_version.as_deref(), Some("7"), "as it was seen");
    take(&mut situation, &changed);
    check_steps(&situation, &[]);
}

#[test]
fn what_somebody_did_to_the_service_is_undone() {
    let mut situation = settled(app_service(None));
    let Slot::Ours(service) = &mut situation.address else { panic!("it is settled") };
    let spec = service.spec.as_mut().unwrap();
    spec.selector = Some([("app".to_owned(), "theirs".to_owned())].into());
    spec.type_ = Some("NodePort".into());
    check_steps(&situation, &["replace service"]);
}

#[test]
fn a_name_that_somebody_else_has_is_left_to_it() {
    let mut situation = fresh(app_service(None));
    situation.address = Slot::Taken;
    check_steps(&situation, &[]);
    check_ready(&situation, &Outcome::default(), "NameConflict", "Service chat-irc exists");
    let mut situation = settled(app_service(None));
    situation.slices.insert(Family::V6, Slot::Taken);
    check_steps(&situation, &[]);
    check_ready(&situation, &Outcome::default(), "NameConflict", "EndpointSlice chat-irc-ipv6");
}

#[test]
fn what_a_former_app_service_left_is_waited_for() {
    let mut situation = fresh(app_service(None));
    situation.address = Slot::Leaving;
    check_steps(&situation, &[]);
    check_ready(&situation, &Outcome::default(), "Starting", "former AppService");
}

#[track_caller]
fn check_belongs(owner: Value, expected: Belongs) {
    let service: Service = from_value(json!({
        "metadata": { "name": "chat-irc", "namespace": "team-a", "ownerReferences": owner },
    }))
    .unwrap();
    assert_eq!(Belongs::of(&service, &app_service(None)), expected);
}

#[test]
fn ownership_is_by_uid() {
    let owner = |kind: &str, name: &str, uid: &str, controller: bool| {
        json!([{ "apiVersion": "portolan.dev/v1alpha1", "kind": kind, "name": name, "uid": uid,
            "controller": controller }])
    };
    check_belongs(json!([]), Belongs::Elsewhere);
    check_belongs(owner("AppService", "chat-irc", UID, true), Belongs::Here);
    check_belongs(owner("AppService", "chat-irc", UID, false), Belongs::Elsewhere);
    check_belongs(owner("AppService", "chat-irc", "former", true), Belongs::Former);
    check_belongs(owner("App", "chat-irc", "other", true), Belongs::Elsewhere);
    check_belongs(owner("AppService", "other", "other", true), Belongs::Elsewhere);
}

/// While a service was http-only, its App gave it an internal name: that Service goes by itself.
#[test]
fn an_internal_name_of_the_same_app_is_handed_over() {
    let owner = |name: &str, uid: &str| {
        json!([{ "apiVersion": "portolan.dev/v1alpha1", "kind": "App", "name": name, "uid": uid,
            "controller": true }])
    };
    check_belongs(owner("chat", "uid-of-chat"), Belongs::Former);
    // Of an App that was deleted and applied again, before the garbage collector came by.
    check_belongs(owner("chat", "uid-of-a-former-chat"), Belongs::Former);
    // `chat-irc` with a service of its own whose name makes the same one.
    check_belongs(owner("chat-x", "uid-of-chat-x"), Belongs::Elsewhere);
}

fn refusal(code: u16, message: &str) -> WriteError {
    let status = json!({ "status": "Failure", "code": code, "message": message, "reason": "" });
    WriteError {
        verb: "create",
        kind: "Service".into(),
        key: ObjectKey::new("team-a", "chat-irc"),
        source: kube::Error::Api(from_value(status).unwrap()).into(),
    }
}

fn refused(code: u16, message: &str) -> Outcome {
    let failure = Some(Error::Service(refusal(code, message)));
    Outcome { failure, ..Outcome::default() }
}

#[test]
fn what_the_api_server_refuses_is_told() {
    let situation = fresh(app_service(None));
    let full = "Internal error occurred: failed to allocate a serviceIP for Service \"chat-irc\": \
                range is full";
    check_ready(&situation, &refused(500, full), "AddressesExhausted", "ServiceCIDR");
    let quota = "exceeded quota: services";
    check_ready(&situation, &refused(403, quota), "ServiceRefused", quota);
}

#[test]
fn a_pass_that_found_nothing_out_says_nothing_new() {
    let before = report_on(&settled(app_service(Some(6697))), &Outcome::default()).status;
    let mut service = app_service(Some(6697));
    service.metadata.generation = Some(4);
    service.status = Some(before.clone());
    let mut situation = settled(service);
    situation.sandboxes = Some(Observed::Unknown("not listed yet".into()));
    situation.address = Slot::Unknown("malformed".into());
    let holder = situation.asked[0].claim.clone().unwrap().0;
    situation.asked[0].claim = Some((holder, HolderState::Unknown("refused".into())));
    check_steps(&situation, &[]);
    assert_eq!(report_on(&situation, &Outcome::default()).status, before);
    assert!(situation.unknown().is_some(), "it is tried again");
}

/// The same at its next generation, the former one having been acted on.
fn changed(situation: Situation) -> Situation {
    let status = report_on(&situation, &Outcome::default()).status;
    assert_eq!(status.observed_generation, Some(3), "it begins as acted on");
    let mut service = situation.service.as_ref().clone();
    service.metadata.generation = Some(4);
    service.status = Some(status);
    Situation { service: Arc::new(service), ..situation }
}

#[track_caller]
fn check_observed(situation: &Situation, outcome: &Outcome, reason: &str, expected: i64) {
    let status = report_on(situation, outcome).status;
    let ready = status.conditions.iter().find(|one| one.type_ == "Ready").expect("it is set");
    assert_eq!(ready.reason, reason, "what is wrong is told: {}", ready.message);
    assert_eq!(status.observed_generation, Some(expected), "{reason}");
}

/// Sandboxes of the former pool are deleted once a generation is acted on.
#[test]
fn a_generation_is_acted_on_only_when_its_slices_say_so() {
    let unwritten =
        |failure| Outcome { failure: Some(failure), slices_lag: true, ..Outcome::default() };
    let situation = changed(settled(app_service(None)));
    for code in [500, 429, 403] {
        let outcome = unwritten(Error::Slice(refusal(code, "not now")));
        check_observed(&situation, &outcome, "ServiceRefused", 3);
    }
    let disputed = || changed(contended(other(), HolderState::Asks));
    check_observed(&disputed(), &Outcome::default(), "NodePortConflict", 4);
    let outcome = unwritten(Error::Stale("the endpoints"));
    check_observed(&disputed(), &outcome, "NodePortConflict", 3);
    let mut unseen = disputed();
    unseen.sandboxes = Some(Observed::Unknown("the watch of Pods is interrupted".into()));
    check_observed(&unseen, &Outcome::default(), "NodePortConflict", 3);
    for slot in [Slot::Unknown("malformed".into()), Slot::Leaving] {
        let mut unseen = disputed();
        unseen.slices.insert(Family::V6, slot);
        check_observed(&unseen, &Outcome::default(), "NodePortConflict", 3);
    }
    let mut unseen = disputed();
    unseen.address = Slot::Unknown("malformed".into());
    check_observed(&unseen, &Outcome::default(), "NodePortConflict", 3);
    // Nothing leads to a former pool where there is no address.
    let without = changed(fresh(app_service(None)));
    check_observed(&without, &refused(403, "exceeded quota: services"), "ServiceRefused", 4);
}

// === node ports ===

#[test]
fn a_node_port_is_reported_only_while_it_is_held() {
    let held = report_on(&settled(app_service(Some(6697))), &Outcome::default()).status;
    let ports: Vec<_> = held.node_ports.iter().map(|one| (one.name.as_str(), one.port)).collect();
    assert_eq!(ports, [("irc", 6697)]);
    let lost = contended(other(), HolderState::Asks);
    assert_eq!(report_on(&lost, &Outcome::default()).status.node_ports, []);
}

#[test]
fn the_loser_names_the_holder_and_waits() {
    let situation = contended(other(), HolderState::Asks);
    check_steps(&situation, &[]);
    let expected = "node port 6697/TCP (port irc) is held by AppService team-b/game-lobby";
    check_ready(&situation, &Outcome::default(), "NodePortConflict", expected);
}

#[test]
fn that_another_port_is_lost_or_to_another_is_told_anew() {
    let mut said = None;
    let mut told = |port: i32, holder: Holder| {
        let mut situation = contended_on(port, holder, HolderState::Asks);
        Arc::make_mut(&mut situation.service).status = said.take();
        let Report { status, transitions } = report_on(&situation, &Outcome::default());
        said = Some(status);
        transitions.len()
    };
    assert_eq!(told(6697, other()), 1, "a conflict");
    assert_eq!(told(6697, other()), 0, "the same one");
    assert_eq!(told(6698, other()), 1, "another port");
    assert_eq!(told(6698, Holder { name: "game-den".into(), ..other() }), 1, "another holder");
}

#[test]
fn a_dead_claim_is_released_before_the_port_is_taken() {
    for state in [HolderState::Gone, HolderState::Left] {
        let mut situation = contended(other(), state);
        let made = check_steps(&situation, &["release", "take"]);
        let Step::Release(target, _) = &made.steps[0] else { panic!("{made:?}") };
        assert_eq!(target.resource_version.as_deref(), Some("5"), "exactly what was seen");
        take(&mut situation, &made);
        check_steps(&situation, &[]);
    }
}

#[test]
fn a_holder_that_cannot_be_read_keeps_its_claim() {
    let situation = contended(other(), HolderState::Unknown("timeout".into()));
    let made = check_steps(&situation, &[]);
    assert_eq!(made.ports[0].hold, Hold::Unknown("timeout".into()));
}

#[test]
fn a_claim_made_by_hand_reserves_the_port() {
    let situation = contended(Holder { kind: "Ops".into(), ..other() }, HolderState::Reserved);
    check_steps(&situation, &[]);
    check_ready(&situation, &Outcome::default(), "NodePortConflict", "a Claim for a Ops");
}

#[test]
fn reserved_ports_are_refused_and_given_back() {
    let situation = settled(app_service(Some(22)));
    assert_eq!(situation.held, []);
    check_ready(
        &situation,
        &Outcome::default(),
        "NodePortReserved",
        "22/TCP (port irc) is reserved",
    );
    let outside = settled(app_service(Some(30000)));
    check_ready(&outside, &Outcome::default(), "NodePortReserved", "not among those");
    let held = settled(app_service(Some(6697)));
    let stricter = PortPolicy { reserved: "6000-7000".parse().unwrap(), ..policy() };
    assert_eq!(kinds(&plan(&held, &stricter)), ["release"]);
}

#[test]
fn ports_in_use_are_refused() {
    let occupied = |services: &[&str], nodes: &[&str]| {
        let mut situation = fresh(app_service(Some(6697)));
        let asked = &mut situation.asked[0];
        asked.services = services.iter().map(|name| ObjectKey::new("kube-system", *name)).collect();
        asked.nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        take(&mut situation, &plan(&fresh(app_service(None)), &policy()));
        situation
    };
    let check = |situation: &Situation, message| {
        check_steps(situation, &["create slice", "create slice"]);
        check_ready(situation, &Outcome::default(), "NodePortTaken", message);
    };
    check(&occupied(&["dns"], &["node-1"]), "is taken by Service kube-system/dns");
    check(&occupied(&[], &["node-1"]), "is taken by a process on node node-1");
    check(&occupied(&[], &["node-1", "node-2"]), "is taken by processes on node node-1 and 1 more");
}

#[test]
fn what_comes_to_a_port_that_is_held_is_told_until_it_goes() {
    let mut held = settled(app_service(Some(6697)));
    let mut check = |nodes: &[&str], services: &[&str], told: &[&str], expected: Option<&str>| {
        let asked = &mut held.asked[0];
        asked.nodes = nodes.iter().map(|name| (*name).to_owned()).collect();
        asked.services = services.iter().map(|name| ObjectKey::new("kube-system", *name)).collect();
        check_steps(&held, &[]);
        check_ready(&held, &Outcome::default(), "Available", "1 sandbox");
        let report = report_on(&held, &Outcome::default());
        let is_first = told == ["NodePortTaken"];
        assert_eq!(report.intrusion().is_some(), is_first, "an Event, once");
        let Report { status, transitions } = report;
        assert_eq!(status.node_ports.len(), 1, "connections flow");
        let dispute = status.conditions.iter().find(|one| one.type_ == "NodePortsExclusive");
        let said = dispute.map(|one| format!("{} {}", one.status, one.message));
        match expected {
            Some(words) => {
                assert!(said.as_ref().is_some_and(|said| said.contains(words)), "{said:?}")
            }
            None => assert_eq!(said, None),
        }
        let events: Vec<_> = transitions.iter().map(|one| one.reason.as_str()).collect();
        assert_eq!(events, told, "{transitions:?}");
        let mut service = app_service(Some(6697));
        service.status = Some(status);
        held.service = Arc::new(service);
    };
    check(&[], &[], &["Available"], None);
    check(&["node-1"], &[], &["NodePortTaken"], Some("False node port 6697/TCP (port irc) has"));
    check(&["node-1"], &[], &[], Some("taken by a process on node node-1 too"));
    check(&["node-1"], &["dns"], &[], Some("taken by Service kube-system/dns too"));
    check(&[], &[], &["Exclusive"], Some("True nothing else"));
    check(&[], &[], &[], Some("True nothing else"));
}

#[test]
fn a_port_that_is_no_longer_asked_for_is_released() {
    let mut situation = settled(app_service(Some(6697)));
    situation.service = Arc::new(app_service(Some(6698)));
    situation.asked = fresh(app_service(Some(6698))).asked;
    let made = check_steps(&situation, &["release", "take"]);
    take(&mut situation, &made);
    check_steps(&situation, &[]);
    assert_eq!(situation.held.len(), 1);
}

#[test]
fn two_ports_cannot_have_one_node_port() {
    let mut service = app_service(Some(6697));
    service.spec.ports[0].node_port = Some(6697);
    let situation = settled(service);
    assert_eq!(situation.held.len(), 1);
    check_ready(
        &situation,
        &Outcome::default(),
        "NodePortTaken",
        "another port of this AppService",
    );
}

#[test]
fn every_port_that_is_not_had_is_told() {
    let mut service = app_service(Some(22));
    service.spec.ports[2].node_port = Some(80);
    let situation = settled(service);
    for expected in ["node port 22/TCP (port irc) ", "; node port 80/UDP (port voice) "] {
        check_ready(&situation, &Outcome::default(), "NodePortReserved", expected);
    }
}

// === endpoints ===

/// `name ready/serving/terminating` of each endpoint of the IPv4 slice.
fn endpoints(situation: &Situation) -> Vec<String> {
    let Slot::Ours(slice) = &situation.slices[&Family::V4] else { panic!("it is settled") };
    let shown = slice.endpoints.iter().flatten().map(|endpoint| {
        let conditions = endpoint.conditions.clone().unwrap();
        let said = [conditions.ready, conditions.serving, conditions.terminating];
        let said = said.map(|one| if one.unwrap() { "y" } else { "n" }).join("");
        format!("{} {said}", endpoint.target_ref.clone().unwrap().name.unwrap())
    });
    shown.collect()
}

fn with_sandboxes(sandboxes: Vec<Arc<Sandbox>>) -> Situation {
    let mut situation = settled(app_service(None));
    situation.sandboxes = Some(Observed::Present(sandboxes));
    let made = plan(&situation, &policy());
    take(&mut situation, &made);
    check_steps(&situation, &[]);
    situation
}

#[test]
fn endpoints_say_what_connections_may_do() {
    let situation = with_sandboxes(vec![
        sandbox("starting", false, false),
        sandbox("drains", true, true),
        sandbox("ready", true, false),
        sandbox("dies", false, true),
    ]);
    assert_eq!(endpoints(&situation), ["dies nny", "drains nyy", "ready yyn", "starting nnn"]);
    assert_eq!(report_on(&situation, &Outcome::default()).status.ready_endpoints, 1);
}

#[test]
fn the_order_in_which_pods_are_read_changes_nothing() {
    let mut situation = with_sandboxes(vec![sandbox("b", true, false), sandbox("a", true, false)]);
    let swapped = vec![sandbox("a", true, false), sandbox("b", true, false)];
    situation.sandboxes = Some(Observed::Present(swapped));
    check_steps(&situation, &[]);
}

#[test]
fn without_sandboxes_the_slices_stay_and_are_empty() {
    let situation = with_sandboxes(vec![]);
    assert_eq!(endpoints(&situation), [""; 0]);
    check_ready(&situation, &Outcome::default(), "NoEndpoints", "no sandbox of pool chat-irc-1");
    let mut inactive = situation;
    let mut service = app_service(None);
    service.spec.pool = None;
    inactive.service = Arc::new(service);
    inactive.sandboxes = None;
    check_steps(&inactive, &[]);
    check_ready(&inactive, &Outcome::default(), "NoActiveVersion", "10.96.0.7");
}

#[test]
fn sandboxes_that_cannot_be_seen_are_not_forgotten() {
    let mut situation = settled(app_service(None));
    situation.sandboxes = Some(Observed::Unknown("the watch of Pods is interrupted".into()));
    check_steps(&situation, &[]);
    assert_eq!(endpoints(&situation), ["a yyn"]);
}

/// A sandbox as a slice lists it that is not of the pool any more.
fn former(of: &Sandbox) -> [Arc<Sandbox>; 2] {
    let at = |address: &std::net::IpAddr| {
        let addresses = vec![*address];
        Arc::new(Sandbox { addresses, serving: false, leaving: true, ..of.clone() })
    };
    [at(&of.addresses[0]), at(&of.addresses[1])]
}

#[test]
fn sandboxes_of_a_former_pool_are_listed_until_they_are_gone() {
    let mut situation = settled(app_service(None));
    situation.sandboxes = Some(Observed::Present(vec![sandbox("of-new", true, false)]));
    situation.former = former(&sandbox("a", true, false)).into();
    let made = check_steps(&situation, &["replace slice", "replace slice"]);
    take(&mut situation, &made);
    check_steps(&situation, &[]);
    assert_eq!(endpoints(&situation), ["a nny", "of-new yyn"]);
    assert_eq!(report_on(&situation, &Outcome::default()).status.ready_endpoints, 1);
    situation.former = vec![];
    let made = check_steps(&situation, &["replace slice", "replace slice"]);
    take(&mut situation, &made);
    assert_eq!(endpoints(&situation), ["of-new yyn"]);
}

#[test]
fn slices_outlive_their_app_service_until_their_sandboxes_are_gone() {
    let situation = settled(app_service(None));
    let Slot::Ours(slice) = &situation.slices[&Family::V4] else { panic!("it is settled") };
    assert_eq!(slice.metadata.owner_references, None, "nobody takes it along");
    let left = |slice: &EndpointSlice, there: Vec<Arc<Sandbox>>| {
        [Left { family: Family::V4, slice: Arc::new(slice.clone()), there }]
    };
    let there = former(&sandbox("a", true, false)).to_vec();
    let Farewell { replace, delete } = plan::farewell(&left(slice, there.clone()));
    let [replaced] = &replace[..] else { panic!("{replace:?}") };
    assert_eq!(delete, []);
    let mut shown = situation.clone();
    shown.slices.insert(Family::V4, Slot::Ours(Box::new(replaced.clone())));
    assert_eq!(endpoints(&shown), ["a nny"]);
    let again = plan::farewell(&left(replaced, there));
    assert_eq!(again, Farewell::default(), "a second look changes nothing");
    let Farewell { replace, delete } = plan::farewell(&left(replaced, vec![]));
    let [emptied] = &replace[..] else { panic!("{replace:?}") };
    assert_eq!(emptied.endpoints, None, "that the last one is gone is told, too");
    assert_eq!(delete, [Target::of(replaced)]);
    let last = plan::farewell(&left(emptied, vec![]));
    assert_eq!(last, Farewell { replace: vec![], delete });
}

#[test]
fn a_slice_is_taken_over_from_a_former_app_service_and_from_nobody_else() {
    let situation = settled(app_service(None));
    let Slot::Ours(slice) = &situation.slices[&Family::V4] else { panic!("it is settled") };
    let mut next = app_service(None);
    next.metadata.uid = Some("uid-of-the-next".into());
    assert_eq!(slices::belongs(slice, &next), Belongs::Here);
    let taken = slices::brought_up(slice, &next, Family::V4, &[]);
    let uid = taken.metadata.annotations.as_ref().and_then(|all| all.get(labels::APP_SERVICE_UID));
    assert_eq!(uid.map(String::as_str), Some("uid-of-the-next"));
    let mut going = slice.clone();
    going.metadata.deletion_timestamp = Some(from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert_eq!(slices::belongs(&going, &next), Belongs::Former);
    for missing in [labels::SLICE_MANAGED_BY, labels::SLICE_SERVICE] {
        let mut foreign = slice.clone();
        foreign.metadata.labels.as_mut().unwrap().remove(missing);
        assert_eq!(slices::belongs(&foreign, &next), Belongs::Elsewhere, "without {missing}");
    }
    let mut foreign = slice.clone();
    foreign.metadata.annotations = None;
    assert_eq!(slices::belongs(&foreign, &next), Belongs::Elsewhere);
}

#[test]
fn what_a_slice_lists_is_read_back() {
    let slice = slices::new(&app_service(None), Family::V4, &[sandbox("a", true, false)]);
    let listed = slices::listed(&slice);
    assert!(sandbox("a", true, false).is_at(&listed[0]) && listed.len() == 1, "{listed:?}");
    let renumbered = Sandbox { addresses: vec!["10.0.0.9".parse().unwrap()], ..listed[0].clone() };
    assert!(!sandbox("a", true, false).is_at(&renumbered), "its address is gone");
    let replaced = Sandbox { uid: "another".into(), ..listed[0].clone() };
    assert!(!sandbox("a", true, false).is_at(&replaced));
}

#[test]
fn the_slice_of_a_family_that_went_goes() {
    let mut situation = settled(app_service(None));
    let Slot::Ours(service) = &mut situation.address else { panic!("it is settled") };
    service.spec.as_mut().unwrap().cluster_ips = Some(vec!["10.96.0.7".into()]);
    let made = check_steps(&situation, &["delete slice"]);
    take(&mut situation, &made);
    check_steps(&situation, &[]);
}

#[test]
fn of_more_sandboxes_than_a_slice_holds_the_draining_are_left_out() {
    let mut sandboxes: Vec<_> =
        (0..1000).map(|n| sandbox(&format!("s{n:04}"), true, false)).collect();
    sandboxes.insert(0, sandbox("a-drains", true, true));
    let slice = slices::new(&app_service(None), Family::V4, &[]);
    let filled = slices::brought_up(&slice, &app_service(None), Family::V4, &sandboxes);
    let endpoints = filled.endpoints.unwrap();
    assert_eq!(endpoints.len(), 1000);
    let first = endpoints[0].target_ref.clone().unwrap();
    assert_eq!(first.name.as_deref(), Some("s0000"));
}

#[test]
fn more_sandboxes_than_nodes_lead_to_are_told() {
    let outcome = Outcome::default();
    let many = |count: usize| {
        let mut situation = settled(app_service(None));
        let sandboxes = (0..count).map(|n| sandbox(&format!("s{n:03}"), true, false)).collect();
        situation.sandboxes = Some(Observed::Present(sandboxes));
        situation
    };
    let addresses = "10.96.0.7 and fd00::7";
    let all = format!("256 sandboxes behind {addresses}");
    let ready = report_on(&many(256), &outcome).status.conditions;
    assert_eq!(ready[0].message, all, "nothing is missing");
    let some = format!("300 sandboxes behind {addresses}, of which each node leads to 256");
    check_ready(&many(300), &outcome, "Available", &some);
}

#[test]
fn a_second_report_says_nothing_new() {
    let situation = settled(app_service(Some(6697)));
    let first = report_on(&situation, &Outcome::default());
    assert_eq!(first.transitions.len(), 1);
    let mut again = situation;
    let mut service = app_service(Some(6697));
    service.status = Some(first.status.clone());
    again.service = Arc::new(service);
    let second = report_on(&again, &Outcome::default());
    assert_eq!(second, Report { status: first.status, transitions: vec![] });
}
