//! Changes in the kernel: what they touch, and that traffic does not notice them.

mod lab;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use lab::{Lab, local, remote, service, v4, vip};
use portolan_nft::{
    Backends, Batch, Elements, Found, Kernel, NodePort, Protocol, Ruleset, ServicePort, Transaction,
};

/// Connections that a test of churn opens.
const CONNECTS: usize = 20_000;

#[test]
fn what_is_read_back_is_what_was_desired() {
    let lab = Lab::new();
    let mut forwarder = lab.start(ruleset(300, 3));
    let written = forwarder.table().elements();
    assert_eq!(read(forwarder.kernel()), written);
    assert_eq!(forwarder.flush().expect("the table"), Default::default(), "nothing is left to do");
    let again = forwarder.verify().expect("the table");
    assert_eq!((again.commits, again.resyncs), (0, 1), "reading finds nothing to do");
}

#[test]
fn one_of_ten_thousand_services_is_changed_alone() {
    let lab = Lab::new();
    let mut forwarder = lab.start(ruleset(10_000, 3));
    let before = read(forwarder.kernel());

    forwarder.table().set_service(port(5_000), ends(&[1, 2, 9]));
    let change = forwarder.flush().expect("the table");
    assert_eq!((change.commits, change.added, change.deleted), (1, 1, 1), "one slot");

    forwarder.table().set_service(port(20_000), ends(&[1]));
    let began = Instant::now();
    let change = forwarder.flush().expect("the table");
    let took = began.elapsed();
    assert_eq!((change.commits, change.deleted), (1, 0), "one service comes");
    // The kernel needs some 20 µs; the rest is for a machine that does other things too.
    assert!(took.as_millis() < 50, "{took:?}");

    assert!(forwarder.table().remove_service(port(20_000)));
    let change = forwarder.flush().expect("the table");
    assert_eq!((change.commits, change.added), (1, 0), "and goes");

    let after = read(forwarder.kernel());
    let touched: Vec<_> =
        before.iter().filter(|(key, data)| after.get(key) != Some(data)).collect();
    assert_eq!(touched.len(), 1, "all else is untouched: {touched:?}");
    assert_eq!(before.len(), after.len());
}

#[test]
fn a_whole_range_of_node_ports_is_one_batch() {
    let lab = Lab::new();
    let mut forwarder = lab.start(Ruleset::default());
    for number in 30_000..=32_767 {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            forwarder.table().set_node_port(NodePort { protocol, port: number }, ends(&[1]));
        }
    }
    let began = Instant::now();
    let change = forwarder.flush().expect("the table");
    let took = began.elapsed();
    assert_eq!((change.commits, change.added), (1, 2 * 2 * 2_768));
    // It takes some 30 ms; the rest is for a machine that does other things too.
    assert!(took.as_millis() < 300, "{took:?}");
}

#[test]
fn fifty_thousand_services_fit() {
    let lab = Lab::new();
    let mut forwarder = lab.start(ruleset(50_000, 3));
    assert_eq!(forwarder.verify().expect("the table").commits, 0);
}

#[test]
fn no_connection_is_lost_while_endpoints_change() {
    let lab = Lab::new();
    let all = [(v4(1, 2), 8080), (v4(1, 2), 8081), (v4(2, 2), 8080), (v4(2, 2), 8081)];
    for (end, sandbox) in all.iter().zip([0, 0, 1, 1]) {
        lab.sandboxes[sandbox].accept((*end).into());
    }
    let target = service(vip(1), Protocol::Tcp, 80);
    let mut forwarder =
        lab.start(Ruleset { services: [(target, local(all))].into(), ..Ruleset::default() });
    // One endpoint is swapped for another, and there are more and fewer of them.
    let states = [
        local([all[0], all[1], all[2]]),
        local([all[0], all[3], all[2]]),
        local([all[0], all[3]]),
        local(all),
        local([all[1]]),
        lab::sticky(all),
        lab::sticky([all[0], all[2]]),
    ];
    let mut round = 0;
    let (failed, changes) = under_load(&lab, || {
        for state in &states {
            forwarder.table().set_service(target, state.clone());
            // With and without changes that overtake what is left.
            forwarder.advance().expect("the table");
            if round % 2 == 0 {
                forwarder.flush().expect("the table");
            }
            round += 1;
        }
        states.len()
    });
    assert_eq!(failed, 0, "of {CONNECTS} connections during {changes} changes");
}

#[test]
fn two_batches_are_what_saves_connections() {
    let lab = Lab::new();
    let all = [(v4(1, 2), 8080), (v4(1, 2), 8081), (v4(2, 2), 8080)];
    for (end, sandbox) in all.iter().zip([0, 0, 1]) {
        lab.sandboxes[sandbox].accept((*end).into());
    }
    let target = service(vip(1), Protocol::Tcp, 80);
    let services = [(target, local(all))].into();
    let mut table = portolan_nft::Table::new(Ruleset { services, ..Ruleset::default() });
    let mut kernel = lab.kernel();
    kernel.install(&[]).expect("the table");
    let mut step = |backends: Backends| {
        table.set_service(target, backends);
        let Transaction { make, discard, .. } = table.pending();
        // What is made before and what is broken after, at once.
        let at_once = Batch {
            delete: [make.delete, discard.delete].concat(),
            add: [make.add, discard.add].concat(),
        };
        kernel.commit(&at_once, None).expect("the batch");
        table.committed(&at_once);
        table.settled();
    };
    step(local(all));
    // A packet must be between two look-ups at that moment, so one round may pass by chance.
    let lost = (0..20).any(|_| {
        let (failed, _) = under_load(&lab, || {
            step(local([all[0], all[1]]));
            step(local(all));
            2
        });
        failed > 0
    });
    assert!(lost, "changes in one batch are noticed");
}

#[test]
fn no_connection_is_lost_while_the_table_is_replaced() {
    let lab = Lab::new();
    let end = (v4(1, 2), 8080);
    lab.sandboxes[0].accept(end.into());
    let services: BTreeMap<_, _> = [(service(vip(1), Protocol::Tcp, 80), local([end]))].into();
    let mut forwarder = lab.start(Ruleset { services, ..Ruleset::default() });
    let elements: Vec<_> = forwarder.table().elements().into_iter().collect();
    let (failed, changes) = under_load(&lab, || {
        forwarder.kernel().replace(&elements).expect("the table");
        1
    });
    assert_eq!(failed, 0, "of {CONNECTS} connections during {changes} replacements");
}

/// Opens connections while changes are made; gives how many failed, and how many changes.
fn under_load(lab: &Lab, mut change: impl FnMut() -> usize) -> (usize, usize) {
    let (done, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut changes = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let lost = lab.client.failed_connects((vip(1), 80), CONNECTS);
            failed.store(lost, Ordering::Relaxed);
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            changes += change();
        }
    });
    // Some wait for packets under way, ten milliseconds each.
    assert!(changes > 20, "only {changes} changes");
    (failed.into_inner(), changes)
}

fn read(kernel: &mut Kernel) -> Elements {
    match kernel.read().expect("the table") {
        Found::Current(elements, _) => elements,
        other => panic!("{other:?}"),
    }
}

fn ruleset(services: u16, endpoints: u8) -> Ruleset {
    let hosts: Vec<_> = (1..=endpoints).collect();
    let services = (0..services).map(|n| (port(n), ends(&hosts))).collect();
    Ruleset { services, ..Ruleset::default() }
}

fn port(n: u16) -> ServicePort {
    let [high, low] = n.to_be_bytes();
    service([10, 96, high, low].into(), Protocol::Tcp, 80)
}

fn ends(hosts: &[u8]) -> Backends {
    let endpoints = hosts.iter().flat_map(|host| remote([(v4(1, *host), 8080)]).endpoints.to_vec());
    Backends { endpoints: endpoints.collect(), ..Backends::default() }
}
