use serde_json::{Value, json};

use super::*;

fn slice(patch: Value) -> Option<SliceFacts> {
    let mut slice = json!({
        "addressType": "IPv4",
        "metadata": {
            "name": "chat-irc-ipv4", "namespace": "team-a",
            "labels": { "kubernetes.io/service-name": "chat-irc" },
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "X", "name": "x", "uid": "other" },
                { "apiVersion": "v1", "kind": "Y", "name": "y", "uid": "own", "controller": true },
            ],
        },
        "ports": [{ "name": "irc", "port": 6667 }],
        "endpoints": [],
    });
    slice.as_object_mut().expect("an object").extend(patch.as_object().expect("one").clone());
    SliceFacts::of(&serde_json::from_value(slice).expect("a slice"), "node-1")
}

fn endpoints(endpoints: Value) -> Vec<(String, bool, bool, bool, bool)> {
    let facts = slice(json!({ "endpoints": endpoints })).expect("a slice of ours");
    let found = facts.endpoints.into_iter();
    found
        .map(|end| {
            (end.address.to_string(), end.local, end.ready, end.last_resort, end.terminating)
        })
        .collect()
}

#[test]
fn a_slice_is_of_a_service_and_of_its_controller() {
    let facts = slice(json!({})).expect("a slice of ours");
    assert_eq!(*facts.service, ObjectKey::new("team-a", "chat-irc"));
    assert_eq!(facts.controller, Some("own".into()));
    assert_eq!(facts.ports, [("irc".into(), Protocol::Tcp, 6667)]);
    let metadata = json!({ "name": "chat-irc-ipv4",
        "labels": { "kubernetes.io/service-name": "chat-irc" },
        "annotations": { "portolan.dev/app-service-uid": "of-the-app-service" } });
    let facts = slice(json!({ "metadata": metadata })).expect("a slice of ours");
    assert_eq!(facts.controller, Some("of-the-app-service".into()));
}

#[test]
fn pods_that_have_an_address_one_after_the_other_are_told_apart() {
    let pod = |uid: &str| {
        let end = json!({ "addresses": ["10.8.0.1"], "targetRef": { "kind": "Pod", "uid": uid } });
        slice(json!({ "endpoints": [end] })).expect("a slice of ours").endpoints[0].pod
    };
    assert_eq!(pod("one"), pod("one"));
    assert_ne!(pod("one"), pod("another"));
}

#[test]
fn a_slice_without_service_or_ip_addresses_is_nothing() {
    assert_eq!(slice(json!({ "addressType": "FQDN" })), None);
    assert_eq!(slice(json!({ "metadata": { "name": "x" } })), None);
}

#[test]
fn what_an_endpoint_does_not_say_is_as_kubernetes_has_it() {
    let at = |conditions: Value| {
        let found = endpoints(json!([{ "addresses": ["10.8.0.1"], "conditions": conditions }]));
        let [(_, _, ready, last_resort, terminating)] = found[..] else { panic!("{found:?}") };
        (ready, last_resort, terminating)
    };
    assert_eq!(at(json!({})), (true, false, false));
    assert_eq!(at(json!({ "ready": false })), (false, false, false));
    assert_eq!(at(json!({ "ready": false, "terminating": true })), (false, false, true));
    let going = json!({ "ready": false, "serving": true, "terminating": true });
    assert_eq!(at(going), (false, true, true));
}

#[test]
fn an_endpoint_is_local_on_its_own_node_only() {
    let found = endpoints(json!([
        { "addresses": ["10.8.0.1", "10.8.0.9"], "nodeName": "node-1" },
        { "addresses": ["10.8.0.2"], "nodeName": "node-2" },
        { "addresses": ["10.8.0.3"] },
    ]));
    let local: Vec<_> = found.into_iter().map(|(address, local, ..)| (address, local)).collect();
    let address = |last: u8| format!("10.8.0.{last}");
    assert_eq!(local, [(address(1), true), (address(2), false), (address(3), false)]);
}

#[test]
fn addresses_that_are_no_machines_are_left_out_alone() {
    let addresses = [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "nonsense",
        "fd08::1",
        "10.8.0.7",
    ];
    let found = endpoints(addresses.map(|address| json!({ "addresses": [address] })).into());
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "10.8.0.7");
    let ends = ["fe80::1", "::1", "::ffff:127.0.0.1", "::", "fd08::7"];
    let ends: Value = ends.map(|address| json!({ "addresses": [address] })).into();
    let facts = slice(json!({ "addressType": "IPv6", "endpoints": ends })).expect("a slice");
    assert_eq!(facts.endpoints.len(), 1, "{facts:?}");
}

#[test]
fn ports_that_are_none_are_left_out_alone() {
    let ports = json!([
        { "name": "a", "port": 0 }, { "name": "b", "port": 70_000 }, { "name": "c" },
        { "name": "d", "port": 9, "protocol": "SCTP" }, { "port": 53, "protocol": "UDP" },
    ]);
    let facts = slice(json!({ "ports": ports })).expect("a slice");
    assert_eq!(facts.ports, [("".into(), Protocol::Udp, 53)]);
}

#[test]
fn a_node_port_counts_once_it_is_held() {
    let service = |status: Value| {
        let service = json!({
            "metadata": { "name": "chat-irc", "uid": "own" },
            "spec": {
                "app": "chat", "service": "irc", "sessionAffinity": "ClientIP",
                "ports": [
                    { "name": "irc", "port": 6697, "type": "tcp", "targetPort": 6697,
                      "nodePort": 6697 },
                    { "name": "dns", "port": 53, "type": "udp", "targetPort": 53,
                      "nodePort": 53 },
                ],
            },
            "status": status,
        });
        ServiceFacts::of(&serde_json::from_value(service).expect("an AppService"))
    };
    let waiting = service(json!({}));
    assert_eq!(waiting.addresses, Vec::<IpAddr>::new());
    assert_eq!(waiting.affinity, Affinity::Source);
    assert_eq!(waiting.ports[0].node_port, None);
    let held = service(json!({
        "clusterIPs": ["10.96.0.7", "None", "fd96::7"],
        "nodePorts": [{ "name": "irc", "port": 6697 }, { "name": "gone", "port": 7000 }],
    }));
    assert_eq!(held.addresses.len(), 2);
    let ports: Vec<_> = held.ports.iter().map(|port| (port.protocol, port.node_port)).collect();
    assert_eq!(ports, [(Protocol::Tcp, Some(6697)), (Protocol::Udp, None)]);
    // Asked for over another transport, or at another number, than what is held still.
    let changed = service(json!({
        "nodePorts": [
            { "name": "irc", "port": 6698, "transport": "TCP" },
            { "name": "dns", "port": 53, "transport": "TCP" },
        ],
    }));
    assert!(changed.ports.iter().all(|port| port.node_port.is_none()), "{:?}", changed.ports);
}

#[test]
fn a_headless_service_is_no_internal_name() {
    let service = |ips: &[&str]| {
        let service = json!({ "spec": { "clusterIPs": ips, "ports": [{ "port": 80 }] } });
        InternalFacts::of(&serde_json::from_value(service).expect("a Service"))
    };
    assert_eq!(service(&["None"]), None);
    let named = service(&["10.96.0.9"]).expect("an internal name");
    assert_eq!(named.ports, [(Protocol::Tcp, 80)]);
}

#[test]
fn a_node_is_reached_by_its_internal_and_external_addresses() {
    let node = json!({
        "metadata": { "name": "node-1", "uid": "node-uid" },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "192.0.2.10" },
            { "type": "Hostname", "address": "node-1" },
            { "type": "ExternalIP", "address": "2001:db8::10" },
        ] },
    });
    let facts = NodeFacts::of(&serde_json::from_value(node).expect("a Node"));
    assert_eq!(facts.uid, "node-uid");
    assert_eq!(facts.addresses.len(), 2);
}
