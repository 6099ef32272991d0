use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::slots::Class;
use crate::value::{Affinity, Endpoint, Protocol};

#[test]
fn a_table_that_the_kernel_has_needs_nothing() {
    let mut table = Table::new(ruleset(40, 3));
    table.recovered(table.elements());
    assert_eq!(table.pending(), Transaction::default());
}

#[test]
fn a_table_that_others_deleted_is_made_as_it_was() {
    let mut table = programmed(ruleset(2, 40));
    table.set_service(port(1), remote((2..=40).chain([100])));
    apply(&mut table);
    let before = in_order(&table.programmed).into_iter().collect::<Elements>();
    let anew = Table::new(table.desired().clone()).elements();
    assert!(before != anew, "how it came to be shows");
    assert!(before == table.elements(), "as it was");
}

#[test]
fn another_endpoint_replaces_one_slot_only() {
    let mut table = programmed(ruleset(40, 3));
    table.set_service(port(7), remote([100, 2, 3]));
    let transaction = table.pending();
    assert_eq!(transaction.make.len(), 2, "one slot: {transaction:?}");
    assert_eq!(transaction.make.delete, [transaction.make.add[0].0], "the same key");
    assert_eq!(transaction.batches().count(), 1);
}

#[test]
fn another_number_of_endpoints_makes_before_it_breaks() {
    for (from, to) in [(3, 4), (4, 3), (1, 2), (16, 17), (40, 30), (300, 12)] {
        let mut table = programmed(ruleset(2, from));
        table.set_service(port(1), remote(1..=to));
        let Transaction { make, divert, discard } = table.pending();
        let new = Class::of(to, Affinity::None).expect("endpoints").size();
        let old = Class::of(from, Affinity::None).expect("endpoints").size();
        let expected = if new == old { (0, 0) } else { (new, old) };
        let context = format!("from {from} to {to}");
        assert_eq!((make.add.len(), discard.delete.len()), expected, "{context}");
        assert!(make.delete.is_empty() || new == old, "{context}: nothing goes first");
        assert!(divert.is_empty(), "{context}: the gate stays");
    }
}

#[test]
fn what_is_left_to_go_waits_for_a_whole_difference() {
    let mut table = programmed(ruleset(2, 3));
    table.set_service(port(1), remote([1, 2]));
    let new = table.pending_new();
    assert_eq!((new.make.add.len(), new.discard.delete.len()), (2, 3));
    table.committed(&new.make);
    table.made();
    assert_eq!(table.pending_new(), Transaction::default(), "nothing is new");
    assert!(table.is_dirty(), "something is left");
    let whole = table.pending();
    assert!(whole.make.is_empty() && whole.discard == new.discard, "{whole:?}");
    // Another change before that: what is there is used again.
    table.set_service(port(1), remote([1, 2, 3]));
    let new = table.pending_new();
    assert!(new.make.is_empty() && new.discard.delete.len() == 2, "{new:?}");
}

#[test]
fn a_service_that_goes_takes_one_batch() {
    let mut table = programmed(ruleset(40, 3));
    assert!(table.remove_service(port(7)));
    let transaction = table.pending();
    assert_eq!(transaction.batches().count(), 1);
    // Gate, virtual address, three slots.
    assert_eq!(transaction.make.delete.len(), 5);
}

#[test]
fn a_virtual_address_stays_while_one_of_its_ports_does() {
    let mut table = programmed(ruleset(2, 1));
    let second = ServicePort { port: 443, ..port(1) };
    table.set_service(second, remote([1]));
    apply(&mut table);
    table.remove_service(second);
    let gone = table.pending().make.delete;
    assert!(!gone.is_empty(), "the port goes");
    assert!(!gone.iter().any(|e| matches!(e.set, Set::Virtual(_))), "the address: {gone:?}");
}

#[test]
fn a_change_of_affinity_leaves_the_old_gate_before_the_old_slots() {
    for (from, to) in [(Affinity::None, Affinity::Source), (Affinity::Source, Affinity::None)] {
        let backends = |affinity| Backends { affinity, ..remote([1, 2, 3]) };
        let mut table = Table::default();
        table.set_service(port(1), backends(from));
        apply(&mut table);
        table.set_service(port(1), backends(to));
        let Transaction { make, divert, discard } = table.pending();
        assert!(make.delete.is_empty(), "nothing goes first");
        assert_eq!(divert.len(), 1, "the old gate");
        assert!(divert.delete[0].set.is_gate());
        assert!(discard.delete.iter().all(|element| !element.set.is_gate()), "the old slots");
    }
}

#[test]
fn a_local_endpoint_is_known_as_long_as_any_port_uses_it() {
    let locals = |table: &Table| {
        let elements = table.programmed.values().flat_map(Kept::unpack);
        elements.filter(|(e, _)| matches!(e.set, Set::Local(_) | Set::Hairpin(_))).count()
    };
    let mut table = Table::default();
    table.set_service(port(1), local([1, 2]));
    table.set_node_port(NodePort { protocol: Protocol::Tcp, port: 6667 }, local([1]));
    apply(&mut table);
    assert_eq!(locals(&table), 4, "two addresses in two sets");
    table.remove_service(port(1));
    apply(&mut table);
    assert_eq!(locals(&table), 2, "the node port's");
    table.remove_node_port(NodePort { protocol: Protocol::Tcp, port: 6667 });
    apply(&mut table);
    assert!(table.is_empty(), "{:?}", table.programmed);
}

#[test]
fn endpoints_of_the_other_family_do_not_count() {
    let mut table = Table::default();
    table.set_service(
        port(1),
        Backends {
            endpoints: [endpoint("fd00::1".parse().expect("an address"))].into(),
            ..Backends::default()
        },
    );
    let elements = table.elements();
    assert!(!elements.keys().any(|e| matches!(e.set, Set::Slots(..))), "{elements:?}");
    assert!(elements.keys().any(|e| matches!(e.set, Set::Services(_))), "refused by its gate");
}

#[test]
fn ranges_are_merged_and_replaced_as_a_whole() {
    let range = |address: [u8; 4], length| Range { address: address.into(), length };
    let keys = |batch: &[(Element, Data)]| -> Vec<(String, bool)> {
        batch.iter().map(|(e, _)| (format!("{:?}", e.key), e.end)).collect()
    };
    let mut table = Table::default();
    table.set_bridged([range([10, 0, 0, 0], 24), range([10, 0, 1, 9], 24)].into());
    let made = table.pending().make.add;
    assert_eq!(keys(&made), [("0a000000".to_owned(), false), ("0a000200".to_owned(), true)]);
    apply(&mut table);
    table.set_bridged([range([255, 0, 0, 0], 8)].into());
    let make = table.pending().make;
    assert_eq!(make.delete.len(), 2, "both old borders, in the same batch");
    assert_eq!(keys(&make.add), [("ff000000".to_owned(), false)], "there is nothing behind");
}

#[test]
fn only_connections_over_udp_whose_endpoint_is_gone_are_stale() {
    let front = SocketAddr::new(port(1).address, port(1).port);
    let led = |n: u16| Flows::Led {
        front,
        protocol: Protocol::Udp,
        endpoint: SocketAddr::new(address(n), 8080),
    };
    let unled = Flows::Led { front, protocol: Protocol::Udp, endpoint: front };
    let udp = ServicePort { protocol: Protocol::Udp, ..port(1) };
    let mut table = Table::default();
    let mut step = |backends: Option<Backends>, expected: &[Flows], what: &str| {
        match backends {
            Some(backends) => table.set_service(udp, backends),
            None => table.remove_service(udp),
        };
        assert_eq!(table.take_stale(), expected.iter().copied().collect(), "{what}");
    };
    step(Some(remote([1, 2])), &[unled], "what came before the service");
    step(Some(remote([2, 3])), &[led(1)], "what was led to who is gone");
    step(Some(remote([])), &[led(2), led(3)], "nobody is left");
    step(Some(remote([1])), &[unled], "somebody is there again");
    step(None, &[led(1)], "the service goes");
    table.set_service(port(1), remote([1]));
    table.remove_service(port(1));
    assert!(table.take_stale().is_empty(), "TCP is left to end");
}

#[test]
fn connections_through_a_node_address_that_goes_or_comes_are_stale() {
    let node_port = NodePort { protocol: Protocol::Udp, port: 6667 };
    let front = SocketAddr::new(address(9), node_port.port);
    let led = |endpoint| Flows::Led { front, protocol: Protocol::Udp, endpoint };
    let mut table = Table::default();
    table.set_node_port(node_port, remote([1, 2]));
    table.set_node_port(NodePort { protocol: Protocol::Tcp, ..node_port }, remote([3]));
    assert!(table.set_node_addresses([address(9)].into()));
    assert_eq!(table.take_stale(), [led(front)].into(), "what the node itself answered before");
    assert!(table.set_node_addresses([].into()));
    let ends = [1, 2].map(|n| led(SocketAddr::new(address(n), 8080)));
    assert_eq!(table.take_stale(), ends.into(), "what was led from it");
    table.note_unended(ends);
    assert!(table.set_node_addresses([address(9)].into()));
    assert_eq!(table.take_stale(), [led(front)].into(), "whoever is back is not to be ended");
}

#[test]
fn what_was_found_says_where_it_led() {
    let node_port = NodePort { protocol: Protocol::Udp, port: 6667 };
    let mut found = Table::default();
    found.set_service(port(1), remote([1, 2]));
    found.set_service(port(2), remote([]));
    found.set_node_port(node_port, remote([3]));
    found.set_node_addresses([address(9)].into());
    let mut table = Table::default();
    table.recovered(found.elements());
    let expected = Former {
        services: [port(1), port(2)].into(),
        node_ports: [node_port].into(),
        node_addresses: [address(9)].into(),
        endpoints: [1, 2, 3].map(address).into(),
    };
    assert_eq!(table.led(), expected);
}

#[test]
fn what_the_kernel_refuses_is_left_until_it_changes() {
    let mut table = Table::default();
    table.set_service(port(1), remote([1]));
    table.refuse(Owner::Service(port(1)));
    let rest = table.pending();
    assert!(rest.make.add.iter().all(|(e, _)| e.owner() != Owner::Service(port(1))));
    table.set_service(port(1), remote([2]));
    assert!(table.refused().is_empty());
    assert!(table.pending().make.add.iter().any(|(e, _)| e.owner() == Owner::Service(port(1))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, and wherever it is interrupted: in the end the kernel has what a new
    /// table would have, but for the order of slots; no batch adds what is there or deletes what
    /// is not; and at no time does a service with endpoints lack a complete set of slots.
    #[test]
    fn any_history_ends_as_desired(
        steps in prop::collection::vec((0_u16..4, 0_usize..20, any::<bool>(), 0_usize..4), 1..40)
    ) {
        let mut kernel = Elements::new();
        let mut table = Table::default();
        for (service, count, sticky, batches) in steps {
            let affinity = if sticky { Affinity::Source } else { Affinity::None };
            if count == 19 {
                table.remove_service(port(service));
            } else {
                table.set_service(port(service), Backends { affinity, ..remote(1..=count) });
            }
            let was_served = is_served(&kernel, service);
            let transaction = table.pending();
            for batch in transaction.batches().take(batches) {
                carry_out(&mut kernel, batch);
                table.committed(batch);
                let stays = was_served && (1..19).contains(&count);
                prop_assert!(!stays || is_served(&kernel, service), "served at all times");
            }
            if batches == 0 {
                // As after a crash: what the kernel has is all that is known.
                table.recovered(kernel.clone());
            }
        }
        for batch in table.pending().batches() {
            carry_out(&mut kernel, batch);
            table.committed(batch);
        }
        prop_assert_eq!(table.pending(), Transaction::default(), "the second difference");
        let fresh = table.elements();
        prop_assert_eq!(kernel.keys().collect::<Vec<_>>(), fresh.keys().collect::<Vec<_>>());
    }
}

/// Does to a map what the kernel does to its sets, as strictly.
fn carry_out(kernel: &mut Elements, batch: &Batch) {
    for element in &batch.delete {
        assert!(kernel.remove(element).is_some(), "{element:?} is not there");
    }
    for (element, data) in &batch.add {
        assert!(kernel.insert(*element, *data).is_none(), "{element:?} is there");
    }
}

/// Whether a packet for a service finds an endpoint, whatever its number or hash: the first gate
/// that knows the service leads to classes of which one is complete.
fn is_served(kernel: &Elements, service: u16) -> bool {
    let has = |set, slot: Option<usize>| {
        let gate = Element::service(set, port(service));
        kernel.contains_key(&slot.map_or(gate, |slot| Element::slot(set, gate, slot)))
    };
    let is_complete =
        |class: Class| (0..class.size()).all(|slot| has(Set::Slots(Family::V4, class), Some(slot)));
    if has(Set::Services(Family::V4), None) {
        Class::all().any(is_complete)
    } else {
        has(Set::StickyServices(Family::V4), None) && Class::sticky().any(is_complete)
    }
}

fn apply(table: &mut Table) {
    for batch in table.pending().batches() {
        table.committed(batch);
    }
    table.settled();
    assert_eq!(table.pending(), Transaction::default(), "the second difference");
}

fn programmed(ruleset: Ruleset) -> Table {
    let mut table = Table::new(ruleset);
    apply(&mut table);
    table
}

fn ruleset(services: u16, endpoints: usize) -> Ruleset {
    let services = (0..services).map(|n| (port(n), remote(1..=endpoints))).collect();
    Ruleset { services, ..Ruleset::default() }
}

fn port(n: u16) -> ServicePort {
    let [high, low] = n.to_be_bytes();
    ServicePort { address: [10, 96, high, low].into(), protocol: Protocol::Tcp, port: 80 }
}

fn address(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    [10, 9, high, low].into()
}

fn endpoint(address: IpAddr) -> Endpoint {
    Endpoint { address, port: 8080, local: false }
}

fn remote(endpoints: impl IntoIterator<Item = usize>) -> Backends {
    let endpoints = endpoints.into_iter();
    let endpoints = endpoints.map(|n| endpoint(address(n as u16))).collect();
    Backends { affinity: Affinity::None, endpoints }
}

fn local(endpoints: impl IntoIterator<Item = usize>) -> Backends {
    let backends = remote(endpoints);
    let endpoints = backends.endpoints.iter().map(|e| Endpoint { local: true, ..*e });
    Backends { endpoints: endpoints.collect(), ..backends }
}
