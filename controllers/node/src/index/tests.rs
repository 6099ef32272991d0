use portolan_nft::Family;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::facts::PortFacts;

const UID: &str = "own";

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("team-a", name)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn service(addresses: &[&str], ports: &[(&str, Protocol, u16, Option<u16>)]) -> ServiceFacts {
    let port = |(name, protocol, port, node_port): &(&str, Protocol, u16, Option<u16>)| PortFacts {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
        asked: *node_port,
        node_port: *node_port,
    };
    ServiceFacts {
        uid: UID.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        affinity: Affinity::None,
        ports: ports.iter().map(port).collect(),
    }
}

/// Endpoints as `10.8.0.1` (ready), `10.8.0.1?` (not ready), `10.8.0.1-` (going but serving) or
/// `10.8.0.1x` (going); another Pod with that address is `10.8.0.1'`.
fn slice(service: &str, ports: &[(&str, Protocol, u16)], endpoints: &[&str]) -> SliceFacts {
    let endpoint = |text: &&str| {
        let pod = u32::from(text.ends_with('\''));
        let text = text.trim_end_matches('\'');
        let address = text.trim_end_matches(['?', '-', 'x']);
        let (ready, last_resort, terminating) = match text.strip_prefix(address) {
            Some("") => (true, false, false),
            Some("?") => (false, false, false),
            Some("-") => (false, true, true),
            _ => (false, false, true),
        };
        EndpointFacts { address: ip(address), pod, local: false, ready, last_resort, terminating }
    };
    let ports = ports.iter().map(|(name, protocol, port)| ((*name).into(), *protocol, *port));
    SliceFacts {
        service: key(service).shared(),
        controller: Some(UID.into()),
        ports: ports.collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn put_slice(index: &mut Index, name: &str, old: Option<SliceFacts>, new: Option<SliceFacts>) {
    index.slice(&key(name), old.map(Arc::new).as_ref(), new.map(Arc::new).as_ref());
}

fn put_service(index: &mut Index, name: &str, facts: ServiceFacts) {
    index.service(&key(name), Some(Arc::new(facts)));
}

fn vip(address: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort { address: ip(address), protocol, port }
}

/// What a port leads to, as `address:port`; `None` if it is nobody's.
fn leads(backends: Option<&Option<Backends>>) -> Option<Vec<String>> {
    let backends = backends.expect("a change of this port").as_ref()?;
    let ends = backends.endpoints.iter();
    Some(ends.map(|end| std::net::SocketAddr::new(end.address, end.port).to_string()).collect())
}

const IRC: (&str, Protocol, u16) = ("irc", Protocol::Tcp, 6667);

#[test]
fn a_port_leads_to_the_ready_endpoints_of_its_name_and_family() {
    let mut index = Index::default();
    let ports = [("irc", Protocol::Tcp, 6667, Some(6697)), ("dns", Protocol::Udp, 53, None)];
    put_service(&mut index, "chat", service(&["10.96.0.1", "fd96::1"], &ports));
    let v4 = [IRC, ("dns", Protocol::Udp, 5353)];
    put_slice(&mut index, "v4", None, Some(slice("chat", &v4, &["10.8.0.1", "10.8.0.2?"])));
    put_slice(&mut index, "v6", None, Some(slice("chat", &[IRC], &["fd08::1"])));
    put_slice(&mut index, "other", None, Some(slice("shop", &v4, &["10.8.0.9"])));
    let changes = index.take_changes();
    let at = |port| leads(changes.services.get(&port)).expect("a port of ours").join(" ");
    assert_eq!(at(vip("10.96.0.1", Protocol::Tcp, 6667)), "10.8.0.1:6667");
    assert_eq!(at(vip("10.96.0.1", Protocol::Udp, 53)), "10.8.0.1:5353");
    assert_eq!(at(vip("fd96::1", Protocol::Tcp, 6667)), "[fd08::1]:6667");
    assert_eq!(at(vip("fd96::1", Protocol::Udp, 53)), "");
    let node_port = NodePort { protocol: Protocol::Tcp, port: 6697 };
    let both = leads(changes.node_ports.get(&node_port)).expect("a node port");
    assert_eq!(both, ["10.8.0.1:6667", "[fd08::1]:6667"]);
    assert_eq!((changes.services.len(), changes.node_ports.len()), (4, 1));
    assert!(!index.is_touched());
    assert_eq!(index.take_changes(), Changes::default());
}

#[test]
fn who_goes_serves_while_nobody_else_does() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    let port = vip("10.96.0.1", Protocol::Tcp, 6667);
    let going = slice("chat", &[IRC], &["10.8.0.1-", "10.8.0.2x", "10.8.0.3?"]);
    put_slice(&mut index, "v4", None, Some(going.clone()));
    let leads_to = |index: &mut Index| leads(index.take_changes().services.get(&port));
    assert_eq!(leads_to(&mut index), Some(vec!["10.8.0.1:6667".into()]));
    let one = slice("chat", &[IRC], &["10.8.0.1-", "10.8.0.3"]);
    put_slice(&mut index, "v4", Some(going), Some(one));
    assert_eq!(leads_to(&mut index), Some(vec!["10.8.0.3:6667".into()]));
}

#[test]
fn a_slice_that_only_has_the_label_leads_nowhere() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    for controller in [None, Some("another's".into())] {
        let foreign = SliceFacts { controller, ..slice("chat", &[IRC], &["10.8.0.1x"]) };
        put_slice(&mut index, "v4", None, Some(foreign.clone()));
        let changes = index.take_changes();
        let port = vip("10.96.0.1", Protocol::Tcp, 6667);
        assert_eq!(leads(changes.services.get(&port)), Some(vec![]));
        put_slice(&mut index, "v4", Some(foreign), None);
        assert_eq!(index.take_changes().gone, [].into(), "and ends nobody's connections");
    }
}

#[test]
fn a_change_touches_its_service_only() {
    let mut index = Index::default();
    for (name, address) in [("chat", "10.96.0.1"), ("shop", "10.96.0.2")] {
        put_service(&mut index, name, service(&[address], &[("irc", Protocol::Tcp, 6667, None)]));
    }
    index.take_changes();
    put_slice(&mut index, "v4", None, Some(slice("shop", &[IRC], &["10.8.0.1"])));
    let changed: Vec<_> = index.take_changes().services.into_keys().collect();
    assert_eq!(changed, [vip("10.96.0.2", Protocol::Tcp, 6667)]);
}

#[test]
fn a_port_that_goes_is_nobodys() {
    let mut index = Index::default();
    let ports = [("irc", Protocol::Tcp, 6667, Some(6697)), ("tls", Protocol::Tcp, 6697, None)];
    put_service(&mut index, "chat", service(&["10.96.0.1"], &ports));
    index.take_changes();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &ports[1..]));
    let changes = index.take_changes();
    assert_eq!(changes.services[&vip("10.96.0.1", Protocol::Tcp, 6667)], None);
    assert_eq!(changes.node_ports[&NodePort { protocol: Protocol::Tcp, port: 6697 }], None);
    index.service(&key("chat"), None);
    let changes = index.take_changes();
    assert_eq!(changes.services[&vip("10.96.0.1", Protocol::Tcp, 6697)], None);
    assert_eq!(index.sizes().services, 0);
}

/// What leaves a slice is gone, whatever was said of it last: the service controller keeps there
/// what it does not know to be gone.
#[test]
fn a_sandbox_is_gone_when_its_slice_lists_it_no_more() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    let ends = ["10.8.0.1", "10.8.0.2-", "10.8.0.3x", "10.8.0.4?", "10.8.0.5x"];
    let all = slice("chat", &[IRC], &ends);
    put_slice(&mut index, "v4", None, Some(all.clone()));
    put_slice(&mut index, "more", None, Some(slice("chat", &[IRC], &["10.8.0.5x"])));
    index.take_changes();
    put_slice(&mut index, "v4", Some(all), Some(slice("chat", &[IRC], &["10.8.0.6"])));
    let Changes { gone, reused, .. } = index.take_changes();
    assert_eq!(gone, ["10.8.0.1", "10.8.0.2", "10.8.0.3", "10.8.0.4"].map(ip).into());
    assert_eq!(reused, [].into());
    assert_eq!(index.sizes().sandboxes, 2);
}

#[test]
fn a_port_with_more_endpoints_than_it_leads_to_is_counted_while_it_is_so() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    let ends: Vec<String> = (0..300).map(|n| format!("10.8.{}.{}", n / 100, n % 100 + 1)).collect();
    let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
    let (many, few) = (slice("chat", &[IRC], &ends), slice("chat", &[IRC], &ends[..256]));
    put_slice(&mut index, "v4", None, Some(many.clone()));
    drop(index.take_changes());
    assert_eq!(index.sizes(), Sizes { services: 1, sandboxes: 300, crowded: 1 });
    put_slice(&mut index, "v4", Some(many), Some(few));
    drop(index.take_changes());
    assert_eq!(index.sizes(), Sizes { services: 1, sandboxes: 256, crowded: 0 });
}

#[test]
fn a_slice_that_is_deleted_or_full_says_of_nobody_that_it_is_gone() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    let one = slice("chat", &[IRC], &["10.8.0.1x"]);
    put_slice(&mut index, "v4", None, Some(one.clone()));
    put_slice(&mut index, "v4", Some(one.clone()), None);
    assert_eq!(index.take_changes().gone, [].into(), "deleted");
    let many: Vec<_> = (0..1000).map(|n| format!("10.9.{}.{}", n / 250, n % 250)).collect();
    let many = slice("chat", &[IRC], &many.iter().map(String::as_str).collect::<Vec<_>>());
    put_slice(&mut index, "v4", None, Some(one.clone()));
    put_slice(&mut index, "v4", Some(one), Some(many));
    assert_eq!(index.take_changes().gone, [].into(), "full");
}

/// Connections to an address that nobody has are ended when an agent starts.
#[test]
fn an_address_may_be_had_while_any_slice_lists_it_or_one_is_full() {
    let mut index = Index::default();
    put_slice(&mut index, "v4", None, Some(slice("chat", &[IRC], &["10.8.0.1x"])));
    let ports = [("internal", Protocol::Tcp, 8081)];
    let gateways = slice("portolan-gateway-internal", &ports, &["10.8.0.2"]);
    let of = ObjectKey::new("portolan-system", "portolan-gateway-internal-x");
    index.gateways(&of, Some(Arc::new(gateways)));
    let had = |index: &Index| {
        ["10.8.0.1", "10.8.0.2", "10.8.0.3"].map(|address| index.may_have(ip(address)))
    };
    assert_eq!(had(&index), [true, true, false]);
    let many: Vec<_> = (0..1000).map(|n| format!("10.9.{}.{}", n / 250, n % 250)).collect();
    let many = slice("shop", &[IRC], &many.iter().map(String::as_str).collect::<Vec<_>>());
    put_slice(&mut index, "many", None, Some(many));
    assert_eq!(had(&index), [true; 3], "who drains is left out of it");
}

#[test]
fn a_slice_tells_so_of_an_app_service_that_went_before_this_process_came() {
    let mut index = Index::default();
    let (two, one) =
        (slice("chat", &[IRC], &["10.8.0.1x", "10.8.0.2x"]), slice("chat", &[IRC], &["10.8.0.2x"]));
    put_slice(&mut index, "v4", None, Some(two.clone()));
    put_slice(&mut index, "v4", Some(two), Some(one.clone()));
    assert_eq!(index.take_changes().gone, [ip("10.8.0.1")].into());
    let nobodys =
        |endpoints: &[&str]| SliceFacts { controller: None, ..slice("other", &[IRC], endpoints) };
    put_slice(&mut index, "other", None, Some(nobodys(&["10.8.0.9"])));
    put_slice(&mut index, "other", Some(nobodys(&["10.8.0.9"])), Some(nobodys(&[])));
    assert_eq!(index.take_changes().gone, [].into(), "nobody owns it");
}

#[test]
fn a_slice_goes_on_to_tell_what_is_gone_when_its_app_service_is() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    let all = slice("chat", &[IRC], &["10.8.0.1x", "10.8.0.2x", "10.8.0.3x"]);
    let (two, one) =
        (slice("chat", &[IRC], &["10.8.0.2x", "10.8.0.3x"]), slice("chat", &[IRC], &["10.8.0.3x"]));
    put_slice(&mut index, "v4", None, Some(all.clone()));
    index.service(&key("chat"), None);
    assert_eq!(index.take_changes().gone, [].into(), "they drain");
    put_slice(&mut index, "v4", Some(all), Some(two.clone()));
    assert_eq!(index.take_changes().gone, [ip("10.8.0.1")].into());
    // Another AppService of the name takes the slice over.
    let next = service(&["10.96.0.9"], &[("irc", Protocol::Tcp, 6667, None)]);
    put_service(&mut index, "chat", ServiceFacts { uid: "next".into(), ..next });
    let taken = SliceFacts { controller: Some("next".into()), ..one };
    put_slice(&mut index, "v4", Some(two), Some(taken));
    assert_eq!(index.take_changes().gone, [ip("10.8.0.2")].into());
}

#[test]
fn who_comes_back_before_anybody_was_told_is_not_gone() {
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    let (one, none) = (slice("chat", &[IRC], &["10.8.0.1x"]), slice("chat", &[IRC], &[]));
    put_slice(&mut index, "v4", None, Some(one.clone()));
    put_slice(&mut index, "v4", Some(one.clone()), Some(none));
    put_slice(&mut index, "v4-2", None, Some(one));
    let Changes { gone, reused, .. } = index.take_changes();
    assert_eq!((gone, reused), ([].into(), [].into()));
}

/// The next Pod with an address must not lose what it has: so what was there before is told when it
/// comes, and not when the one before leaves.
#[test]
fn an_address_that_another_pod_has_now_is_told_once() {
    let mut index = Index::default();
    for name in ["chat", "shop"] {
        let ports = [("irc", Protocol::Tcp, 6667, None)];
        put_service(&mut index, name, service(&["10.96.0.1"], &ports));
    }
    let (old, none) = (slice("chat", &[IRC], &["10.8.0.1x"]), slice("chat", &[IRC], &[]));
    put_slice(&mut index, "chat", None, Some(old.clone()));
    index.take_changes();
    put_slice(&mut index, "shop", None, Some(slice("shop", &[IRC], &["10.8.0.1'"])));
    assert_eq!(index.take_changes().reused, [ip("10.8.0.1")].into());
    put_slice(&mut index, "chat", Some(old.clone()), Some(none.clone()));
    let Changes { gone, reused, .. } = index.take_changes();
    assert_eq!((gone, reused), ([].into(), [].into()), "it is the other's by now");
    // Both in one look, in the other order.
    let mut index = Index::default();
    put_service(&mut index, "chat", service(&["10.96.0.1"], &[("irc", Protocol::Tcp, 6667, None)]));
    put_slice(&mut index, "chat", None, Some(old.clone()));
    put_slice(&mut index, "chat", Some(old), Some(none));
    put_slice(&mut index, "more", None, Some(slice("chat", &[IRC], &["10.8.0.1'"])));
    let Changes { gone, reused, .. } = index.take_changes();
    assert_eq!((gone, reused), ([].into(), [ip("10.8.0.1")].into()));
}

#[test]
fn node_ports_over_udp_are_known_before_they_are_held() {
    let mut index = Index::default();
    let mut facts = service(&["10.96.0.1"], &[("dns", Protocol::Udp, 53, Some(40_053))]);
    facts.ports[0].node_port = None;
    put_service(&mut index, "chat", facts);
    put_service(&mut index, "irc", service(&[], &[("irc", Protocol::Tcp, 6667, Some(40_054))]));
    assert_eq!(index.asked_over_udp(), [40_053].into());
}

#[test]
fn internal_names_lead_to_the_gateways() {
    let mut index = Index::default();
    let facts = InternalFacts {
        addresses: vec![ip("10.96.0.5")],
        ports: vec![(Protocol::Tcp, 80), (Protocol::Tcp, 3000)],
    };
    index.internal(&key("shop-web"), Some(Arc::new(facts)));
    let ports = [("internal", Protocol::Tcp, 8081)];
    let gateways = slice("portolan-gateway-internal", &ports, &["10.8.0.1", "10.8.0.2"]);
    let of = ObjectKey::new("portolan-system", "portolan-gateway-internal-x");
    index.gateways(&of, Some(Arc::new(gateways)));
    let changes = index.take_changes();
    for port in [80, 3000] {
        let ends = leads(changes.services.get(&vip("10.96.0.5", Protocol::Tcp, port)));
        assert_eq!(ends.expect("gateways"), ["10.8.0.1:8081", "10.8.0.2:8081"]);
    }
    index.gateways(&of, None);
    let changes = index.take_changes();
    assert_eq!(leads(changes.services.get(&vip("10.96.0.5", Protocol::Tcp, 80))), Some(vec![]));
    index.internal(&key("shop-web"), None);
    assert_eq!(index.take_changes().services[&vip("10.96.0.5", Protocol::Tcp, 80)], None);
}

#[test]
fn of_two_that_claim_a_port_the_first_by_name_has_it() {
    let ports = [("irc", Protocol::Tcp, 6667, Some(6697))];
    let facts = service(&["10.96.0.1"], &ports);
    let mut index = Index::default();
    put_slice(&mut index, "b", None, Some(slice("b", &[IRC], &["10.8.0.2"])));
    put_service(&mut index, "b", facts.clone());
    index.take_changes();
    put_service(&mut index, "a", facts);
    let node_port = NodePort { protocol: Protocol::Tcp, port: 6697 };
    assert_eq!(leads(index.take_changes().node_ports.get(&node_port)), Some(vec![]), "a has it");
    index.service(&key("a"), None);
    let back = leads(index.take_changes().node_ports.get(&node_port));
    assert_eq!(back, Some(vec!["10.8.0.2:6667".into()]), "b has it again");
}

// === A history and a new index agree ===

/// What the API can say next: an object by number, present in one of a few forms or absent.
#[derive(Clone, Copy, Debug)]
enum Step {
    Service(u8, Option<u8>),
    Slice(u8, Option<u8>),
    Internal(u8, Option<u8>),
    Gateways(Option<u8>),
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    let form = || proptest::option::of(0..6_u8);
    prop_oneof![
        (0..3_u8, form()).prop_map(|(which, form)| Step::Service(which, form)),
        (0..4_u8, form()).prop_map(|(which, form)| Step::Slice(which, form)),
        (0..2_u8, form()).prop_map(|(which, form)| Step::Internal(which, form)),
        form().prop_map(Step::Gateways),
        Just(Step::Look),
    ]
}

fn service_form(form: u8) -> ServiceFacts {
    let addresses: &[&str] =
        [&["10.96.0.1"][..], &["10.96.0.2", "fd96::1"], &[]][form as usize % 3];
    let node_port = (form > 2).then_some(7000);
    let ports = [("irc", Protocol::Tcp, 80, node_port), ("dns", Protocol::Udp, 53, None)];
    service(addresses, &ports[..1 + form as usize % 2])
}

fn slice_form(which: u8, form: u8) -> SliceFacts {
    let ends = [&["10.8.0.1", "10.8.0.2?"][..], &["10.8.0.1-"], &[], &["fd08::1"], &["10.8.0.3x"]];
    let ports = [IRC, ("dns", Protocol::Udp, 53), ("internal", Protocol::Tcp, 8081)];
    let of = ["s0", "s1", "s2", "s0"][which as usize];
    let controller = (form < 5).then(|| UID.into());
    SliceFacts { controller, ..slice(of, &ports, ends[form as usize % 5]) }
}

fn internal_form(form: u8) -> InternalFacts {
    let addresses = vec![ip(["10.96.0.1", "10.96.0.9"][form as usize % 2])];
    InternalFacts {
        addresses,
        ports: vec![(Protocol::Tcp, 80), (Protocol::Tcp, u16::from(form) + 1)],
    }
}

fn gather<P: Ord>(into: &mut BTreeMap<P, Backends>, changes: Changed<P>) {
    for (port, backends) in changes {
        match backends {
            Some(backends) => drop(into.insert(port, backends)),
            None => drop(into.remove(&port)),
        }
    }
}

proptest! {
    #[test]
    fn any_history_ends_where_a_new_index_begins(steps in vec(step(), 0..60)) {
        let mut index = Index::default();
        let mut held = (BTreeMap::new(), BTreeMap::new());
        let mut services = BTreeMap::new();
        let mut slices = BTreeMap::<_, Arc<SliceFacts>>::new();
        let mut internal = BTreeMap::new();
        let mut gateways = None;
        let gateway_key = ObjectKey::new("portolan-system", "gateways");
        for step in steps {
            match step {
                Step::Service(which, form) => {
                    let of = key(&format!("s{which}"));
                    let facts = form.map(service_form).map(Arc::new);
                    index.service(&of, facts.clone());
                    services.insert(of, facts);
                }
                Step::Slice(which, form) => {
                    let of = key(&format!("slice-{which}"));
                    let new = form.map(|form| Arc::new(slice_form(which, form)));
                    index.slice(&of, slices.get(&of), new.as_ref());
                    match new {
                        Some(new) => drop(slices.insert(of, new)),
                        None => drop(slices.remove(&of)),
                    }
                }
                Step::Internal(which, form) => {
                    let of = key(&format!("i{which}"));
                    let facts = form.map(internal_form).map(Arc::new);
                    index.internal(&of, facts.clone());
                    internal.insert(of, facts);
                }
                Step::Gateways(form) => {
                    gateways = form.map(|form| Arc::new(slice_form(0, form)));
                    index.gateways(&gateway_key, gateways.clone());
                }
                Step::Look => {
                    let changes = index.take_changes();
                    gather(&mut held.0, changes.services);
                    gather(&mut held.1, changes.node_ports);
                }
            }
        }
        let changes = index.take_changes();
        gather(&mut held.0, changes.services);
        gather(&mut held.1, changes.node_ports);
        let mut new = Index::default();
        slices.iter().for_each(|(of, facts)| new.slice(of, None, Some(facts)));
        internal.into_iter().for_each(|(of, facts)| new.internal(&of, facts));
        new.gateways(&gateway_key, gateways);
        services.into_iter().for_each(|(of, facts)| new.service(&of, facts));
        let changes = new.take_changes();
        let mut expected = (BTreeMap::new(), BTreeMap::new());
        gather(&mut expected.0, changes.services);
        gather(&mut expected.1, changes.node_ports);
        prop_assert_eq!(&held, &expected);
        prop_assert_eq!(index.sizes(), new.sizes());
        for (port, backends) in &held.0 {
            let family = Family::of(port.address);
            prop_assert!(backends.endpoints.iter().all(|end| Family::of(end.address) == family));
        }
    }
}
