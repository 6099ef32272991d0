//! What happens around the table: restarts, kills, others who change it, and errors.

mod lab;

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Lab, Outcome, by, local, service, sticky, v4, vip};
use portolan_nft::{
    Backends, Batch, Data, Element, Elements, Error, Family, Features, ForwardError, Forwarder,
    Found, Kernel, Key, Monitor, Owner, Protocol, Ruleset, Set,
};

const ALL: [(IpAddr, u16); 3] = [
    (IpAddr::V4(Ipv4Addr::new(10, 9, 1, 2)), 8080),
    (IpAddr::V4(Ipv4Addr::new(10, 9, 1, 2)), 8081),
    (IpAddr::V4(Ipv4Addr::new(10, 9, 2, 2)), 8080),
];

#[test]
fn a_restart_changes_no_element_and_traffic_goes_on_meanwhile() {
    let lab = Lab::new();
    lab.sandboxes[0].serve(ALL[0].into());
    for affinity in [local([ALL[0]]), sticky([ALL[0]])] {
        let desired = one(affinity);
        let first = lab.start(desired.clone());
        drop(first);
        let listed = listing_once_unowned(&lab);
        assert_eq!(lab.client.tcp((vip(1), 80)), by(ALL[0], v4(0, 2)), "nobody is there");
        let (second, change) = lab.start_with(desired).expect("the table");
        assert_eq!(change, Default::default(), "nothing was to do");
        drop(second);
        assert_eq!(listing_once_unowned(&lab), listed);
        lab.remove();
    }
    assert_eq!(lab.node.output("nft", &["list", "ruleset"]), "", "nothing is left");
}

/// What there is when nobody owns the table any more. A socket that was closed lives on in a
/// process that another test forks, until that runs its program.
fn listing_once_unowned(lab: &Lab) -> String {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let listing = lab.node.output("nft", &["list", "ruleset"]);
        if !listing.contains("flags owner") || Instant::now() > deadline {
            return listing;
        }
    }
}

/// Run by the next test in a process of its own: it changes endpoints until it is killed.
#[test]
fn child_that_changes_endpoints() {
    if std::env::var_os("PORTOLAN_NFT_CHILD").is_none() {
        return;
    }
    let kernel = || Kernel::open().expect("nf_tables");
    let (mut forwarder, _) = lab::start_unowned(kernel, one(local(ALL))).expect("the table");
    println!("started");
    for backends in
        [local([ALL[0]]), sticky(ALL), local([ALL[2], ALL[1]]), local(ALL)].iter().cycle()
    {
        forwarder.table().set_service(service(vip(1), Protocol::Tcp, 80), backends.clone());
        forwarder.flush().expect("the table");
    }
}

#[test]
fn a_process_that_is_killed_leaves_what_the_next_one_finishes() {
    let lab = Lab::new();
    for (end, sandbox) in ALL.iter().zip([0, 0, 1]) {
        lab.sandboxes[sandbox].accept((*end).into());
    }
    let mut left = 0;
    for round in 0..20 {
        let program = std::env::current_exe().expect("this program");
        let mut child = lab.node.run(|| {
            Command::new(program)
                .args(["--exact", "child_that_changes_endpoints", "--nocapture"])
                .env("PORTOLAN_NFT_CHILD", "1")
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program")
        });
        let mut output = std::io::BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        while !line.contains("started") {
            line.clear();
            let read = std::io::BufRead::read_line(&mut output, &mut line).expect("its output");
            assert!(read > 0, "round {round}: it ended by itself");
        }
        // Any moment will do; connections are opened all the while.
        let failed = lab.client.failed_connects((vip(1), 80), 20 + round);
        child.kill().expect("a child");
        child.wait().expect("a child");
        assert_eq!(failed, 0, "round {round}: while it changed endpoints");
        assert_eq!(lab.client.failed_connects((vip(1), 80), 50), 0, "round {round}: alone");
        let started = Barrier::new(2);
        let ((mut next, change), failed) = thread::scope(|scope| {
            let connects = scope.spawn(|| {
                started.wait();
                lab.client.failed_connects((vip(1), 80), 500)
            });
            started.wait();
            let next = lab.start_with(one(local(ALL))).expect("the table");
            (next, connects.join().expect("connects"))
        });
        assert_eq!(failed, 0, "round {round}: while the next one finishes");
        left += change.deleted;
        assert!(!change.replaced, "the table is taken, not made anew");
        assert_eq!(next.verify().expect("the table").commits, 0, "round {round}");
        let keys = |elements: Elements| elements.into_keys().collect::<Vec<_>>();
        let expected = keys(next.table().elements());
        drop(next);
        assert_eq!(keys(lab.elements()), expected, "round {round}");
    }
    assert!(left > 0, "at least once something was left to finish");
}

#[test]
fn an_owned_table_is_changed_by_nobody_else() {
    let lab = Lab::new();
    lab.sandboxes[0].serve(ALL[0].into());
    let mut forwarder = lab.start(one(local([ALL[0]])));
    if !forwarder.kernel().features().owned_tables {
        return;
    }
    let refused = lab.node.run(|| {
        let args = ["delete", "element", "inet", "portolan", "vip4", "{ 10.96.0.1 }"];
        !Command::new("nft").args(args).output().expect("nft").status.success()
    });
    assert!(refused, "another may not delete an element");
    lab.node.output("nft", &["flush", "ruleset"]);
    assert_eq!(lab.client.tcp((vip(1), 80)), by(ALL[0], v4(0, 2)), "a flush passes it by");
    let second = Forwarder::start(lab.kernel(), Ruleset::default());
    let error = second.map(|_| ()).expect_err("there is one owner");
    assert!(matches!(error, ForwardError::Kernel(Error::Owned)), "{error}");
}

#[test]
fn what_others_do_to_the_table_is_noticed_and_repaired() {
    let lab = Lab::new();
    lab.sandboxes[0].serve(ALL[0].into());
    let mut forwarder = shared(&lab, one(local([ALL[0]])));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let port = forwarder.kernel().port();
    let mut monitor = lab.node.run(|| {
        let _entered = runtime.enter();
        Monitor::open(port).expect("a monitor")
    });
    let damages: [&[&str]; 6] = [
        &["delete", "element", "inet", "portolan", "vip4", "{ 10.96.0.1 }"],
        &["add", "element", "inet", "portolan", "vip4", "{ 10.96.0.77 }"],
        &["add", "rule", "inet", "portolan", "services", "drop"],
        &["flush", "chain", "inet", "portolan", "lb4"],
        &["delete", "table", "inet", "portolan"],
        &["flush", "ruleset"],
    ];
    for damage in damages {
        lab.node.output("nft", damage);
        let began = Instant::now();
        runtime.block_on(async {
            let wait = tokio::time::timeout(Duration::from_secs(5), monitor.foreign_change());
            wait.await.expect("it was noticed").expect("the socket");
        });
        let change = forwarder.verify().expect("the table");
        assert!(change.commits > 0, "{damage:?}: {change:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{damage:?}: repaired at once");
        assert_eq!(lab.client.tcp((vip(1), 80)), by(ALL[0], v4(0, 2)), "{damage:?}");
        assert_eq!(lab.client.tcp((vip(77), 80)), Outcome::Silence, "{damage:?}: no stranger");
        assert_eq!(forwarder.verify().expect("the table").commits, 0, "{damage:?}");
    }
    // What this process does itself is nothing to notice.
    while runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(50), monitor.foreign_change()).await.is_ok()
    }) {}
    forwarder.table().set_service(service(vip(2), Protocol::Udp, 53), local([ALL[0]]));
    forwarder.flush().expect("the table");
    let noticed = runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(200), monitor.foreign_change()).await
    });
    assert!(noticed.is_err(), "this process's own change");
}

#[test]
fn a_flush_that_meets_a_damaged_table_repairs_it() {
    let lab = Lab::new();
    lab.sandboxes[0].serve(ALL[0].into());
    for damage in [&["delete", "table", "inet", "portolan"][..], &["flush", "ruleset"]] {
        let mut forwarder = shared(&lab, one(local([ALL[0]])));
        lab.node.output("nft", damage);
        forwarder.table().set_service(service(vip(2), Protocol::Tcp, 80), local([ALL[0]]));
        let change = forwarder.flush().expect("the table");
        assert!(change.replaced && change.resyncs > 0, "{change:?}");
        assert!(matches!(lab.client.tcp((vip(1), 80)), Outcome::Answer(_)));
        assert!(matches!(lab.client.tcp((vip(2), 80)), Outcome::Answer(_)));
    }
}

/// What was read is so until somebody else commits.
#[test]
fn a_batch_that_another_made_wrong_since_the_table_was_read_is_made_anew() {
    let lab = Lab::new();
    let mut forwarder = shared(&lab, one(local([ALL[0]])));
    let port = service(vip(2), Protocol::Tcp, 80);
    let address = ["element", "inet", "portolan", "vip4", "{ 10.96.0.2 }"];
    for verb in ["add", "delete"] {
        // Just what is to be done next: it is there already, or is no more.
        lab.node.output("nft", &[&[verb][..], &address].concat());
        match verb {
            "add" => forwarder.table().set_service(port, local([ALL[0]])),
            _ => forwarder.table().remove_service(port),
        };
        let change = forwarder.flush().expect("the table");
        assert!(change.resyncs > 0 && change.commits > 0, "{verb}: {change:?}");
        assert!(!change.replaced, "{verb}: only what differs is changed: {change:?}");
        assert!(forwarder.refused().is_empty(), "{verb}");
        let expected = forwarder.table().elements();
        assert_eq!(read(forwarder.kernel()), expected, "{verb}");
    }
}

#[test]
fn a_table_of_another_is_left_alone_and_one_of_another_version_replaced() {
    let lab = Lab::new();
    lab.node.output("nft", &["add", "table", "inet", "portolan"]);
    let error = Forwarder::start(lab.kernel(), Ruleset::default()).map(|_| ());
    let error = error.expect_err("it is not ours");
    assert!(matches!(error, ForwardError::Foreign(None)), "{error}");
    assert!(matches!(Forwarder::remove(lab.kernel()), Err(ForwardError::Foreign(None))));
    lab.node.output("nft", &["delete", "table", "inet", "portolan"]);

    let other = "add table inet portolan { comment \"owner=portolan-node layout=0\"; }";
    lab.node.output("nft", &[other]);
    let (mut forwarder, change) =
        Forwarder::start(lab.kernel(), one(local([ALL[0]]))).expect("the table");
    assert!(change.replaced);
    assert_eq!(forwarder.verify().expect("the table").commits, 0);
    let listed = lab.node.output("nft", &["list", "tables"]);
    assert_eq!(listed.lines().count(), 1, "the stand-in is gone: {listed}");
}

/// As an older agent left it, with all that leads connections, and nobody there.
#[test]
fn no_connection_is_lost_while_a_table_of_another_version_is_replaced() {
    let lab = Lab::new();
    lab.sandboxes[0].accept(ALL[0].into());
    for _ in 0..5 {
        drop(shared(&lab, one(local([ALL[0]]))));
        // A part that this version does not have.
        lab.node.output("nft", &["add", "chain", "inet", "portolan", "older"]);
        let replaced = AtomicBool::new(false);
        let connect = || lab.client.failed_connects((vip(1), 80), 200);
        let failed: usize = thread::scope(|scope| {
            let connects = scope.spawn(|| {
                let mut failed = connect();
                while !replaced.load(Ordering::Relaxed) {
                    failed += connect();
                }
                failed + connect()
            });
            let started = lab.start_with(one(local([ALL[0]])));
            replaced.store(true, Ordering::Relaxed);
            let (_forwarder, change) = started.expect("the table");
            assert!(change.replaced, "{change:?}");
            connects.join().expect("connects")
        });
        assert_eq!(failed, 0);
        lab.remove();
    }
}

#[test]
fn other_tables_stay_as_they_are_and_ours_can_be_printed() {
    let lab = Lab::new();
    let others = "add table ip kube-proxy; add map ip kube-proxy m { type ipv4_addr : verdict; };
        add chain ip kube-proxy c { type nat hook prerouting priority -100; };
        add rule ip kube-proxy c ip daddr vmap @m";
    lab.node.output("nft", &[others]);
    let before = lab.node.output("nft", &["-a", "list", "table", "ip", "kube-proxy"]);
    let mut forwarder = lab.start(one(local(ALL)));
    forwarder.table().set_service(service(vip(2), Protocol::Udp, 53), sticky(ALL));
    forwarder.flush().expect("the table");
    let after = lab.node.output("nft", &["-a", "list", "table", "ip", "kube-proxy"]);
    assert_eq!(before, after);
    let ours = lab.node.output("nft", &["list", "table", "inet", "portolan"]);
    assert!(!ours.contains("@nh"), "every part has its name");
}

#[test]
fn a_bad_element_stops_its_batch_only_and_is_named() {
    let lab = Lab::new();
    let mut forwarder = lab.start(one(local(ALL)));
    let (known, data) = forwarder
        .table()
        .elements()
        .into_iter()
        .find(|(e, _)| matches!(e.set, Set::Slots(..)))
        .expect("a slot");
    let kernel = forwarder.kernel();
    let quickest_before = quickest(kernel);
    let before = read(kernel);
    let stranger = address(Family::V4, &[10, 1, 1, 1]);
    let add = vec![(stranger, Data::EMPTY), (known, other(data))];
    let batch = Batch { delete: Vec::new(), add };
    let error = kernel.commit(&batch, None).expect_err("the slot is taken");
    assert_eq!(error.owner(), Some(Owner::Service(service(vip(1), Protocol::Tcp, 80))), "{error}");
    assert_eq!(error.category(), "Refused");
    assert_eq!(read(kernel), before, "nothing of it was done");
    let quickest_after = quickest(kernel);
    // The quickest of many says how much work it is; the rest is for a machine that does other
    // things too.
    assert!(quickest_after < 3 * quickest_before, "{quickest_before:?}, then {quickest_after:?}");
}

/// How long the quickest of some good batches takes.
fn quickest(kernel: &mut Kernel) -> Duration {
    let stranger = address(Family::V4, &[10, 1, 1, 1]);
    let add = Batch { delete: Vec::new(), add: vec![(stranger, Data::EMPTY)] };
    let delete = Batch { delete: vec![stranger], add: Vec::new() };
    let took = (0..50).map(|_| {
        let began = Instant::now();
        kernel.commit(&add, None).expect("a good batch");
        kernel.commit(&delete, None).expect("a good batch");
        began.elapsed()
    });
    took.min().expect("some")
}

/// A set that is full is a refusal of the kernel that lasts; another who fills it makes one.
#[test]
fn who_is_refused_is_left_out_whether_the_kernel_names_it_or_not() {
    for named in [true, false] {
        let lab = Lab::new();
        lab.sandboxes[0].serve(ALL[0].into());
        let unnamed = Features { names_elements: !named, ..Features::default() };
        let shared = Features { owned_tables: true, ..unnamed };
        let kernel = lab.node.run(|| Kernel::open().expect("nf_tables").without(shared));
        let (mut forwarder, _) = Forwarder::start(kernel, one(local([ALL[0]]))).expect("the table");
        let resize = |size: &str| {
            let set = format!("add set inet portolan vip4 {{ type ipv4_addr; size {size}; }}");
            lab.node.output("nft", &[&set])
        };
        resize("3");
        // Its addresses are all full but two.
        for number in 2..=20 {
            let port = service(vip(number), Protocol::Tcp, 80);
            forwarder.table().set_service(port, local([ALL[0]]));
        }
        let change = forwarder.flush().expect("what can be done is");
        let refused = forwarder.refused().clone();
        assert_eq!(refused.len(), 17, "named: {named}: {refused:?}");
        assert!(refused.iter().all(|owner| matches!(owner, Owner::Virtual(_))), "{refused:?}");
        assert!(change.added >= 19, "named: {named}: {change:?}");
        for number in 1..=20 {
            assert_eq!(lab.client.tcp((vip(number), 80)), by(ALL[0], v4(0, 2)), "{number}");
        }
        resize("65536");
        forwarder.verify().expect("the table");
        assert!(forwarder.refused().is_empty(), "named: {named}: it is tried again");
        let expected = forwarder.table().elements();
        assert_eq!(read(forwarder.kernel()), expected, "named: {named}");
    }
}

#[test]
fn a_batch_for_an_old_generation_is_refused() {
    let lab = Lab::new();
    let mut kernel = lab.kernel();
    kernel.install(&[]).expect("the table");
    let generation = kernel.generation().expect("a generation");
    lab.node.output("nft", &["add", "table", "ip", "other"]);
    let error = kernel.commit(&Batch::default(), Some(generation)).expect_err("it is old");
    assert!(matches!(error, Error::Stale), "{error}");
    let generation = kernel.generation().expect("a generation");
    kernel.commit(&Batch::default(), Some(generation)).expect("it is new");
}

#[test]
fn what_was_read_before_another_changed_the_table_is_not_built_upon() {
    let lab = Lab::new();
    let mut forwarder = shared(&lab, one(local(ALL)));
    let kernel = forwarder.kernel();
    let (before, generation) = read_at(kernel);
    let stranger = address(Family::V4, &[10, 1, 1, 1]);
    let batch = Batch { delete: Vec::new(), add: vec![(stranger, Data::EMPTY)] };
    lab.node.output("nft", &["delete", "element", "inet", "portolan", "vip4", "{ 10.96.0.1 }"]);
    let error = kernel.commit(&batch, Some(generation)).expect_err("it is old");
    assert!(matches!(error, Error::Stale), "{error}");
    let (after, generation) = read_at(kernel);
    assert!(!after.contains_key(&stranger), "nothing of it was done");
    assert_eq!(after.len(), before.len() - 1, "what another did is seen");
    kernel.commit(&batch, Some(generation)).expect("it is new");
    forwarder.verify().expect("the table");
    assert_eq!(read(forwarder.kernel()), before, "and repaired");
}

/// Another changes two sets at once, again and again: no reading has one without the other.
#[test]
fn without_an_owner_a_reading_is_of_one_moment() {
    let lab = Lab::new();
    let mut forwarder = shared(&lab, one(local(ALL)));
    let kernel = forwarder.kernel();
    let strangers = [
        address(Family::V4, &[10, 96, 0, 77]),
        address(Family::V6, &[0xfd, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77]),
    ];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            let all = ["add", "delete"].map(|verb| {
                let [v4, v6] = ["vip4 { 10.96.0.77 }", "vip6 { fd96::77 }"]
                    .map(|element| format!("{verb} element inet portolan {element}"));
                format!("{v4}; {v6}")
            });
            while !stop.load(Ordering::Relaxed) {
                all.iter().for_each(|both| drop(lab.node.output("nft", &[both.as_str()])));
            }
        });
        let (mut with, mut without) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        while with < 20 || without < 20 {
            assert!(Instant::now() < deadline, "seen {with} times with them, {without} without");
            match kernel.read() {
                Ok(Found::Current(elements, _)) => {
                    match strangers.map(|stranger| elements.contains_key(&stranger)) {
                        [true, true] => with += 1,
                        [false, false] => without += 1,
                        seen => panic!("a reading of two moments: {seen:?}"),
                    }
                }
                // The other was too fast, and that is said.
                Err(Error::Restless) => {}
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn others_who_commit_all_the_time_do_not_make_a_reading_wrong() {
    let lab = Lab::new();
    let services =
        (0..2_000_u16).map(|n| (service(vip((n % 200) as u8), Protocol::Tcp, n), local(ALL)));
    let desired = Ruleset { services: services.collect(), ..Ruleset::default() };
    let mut forwarder = lab.start(desired.clone());
    let expected = forwarder.table().elements();
    lab.node.output("nft", &["add table ip other; add set ip other s { type ipv4_addr; }"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lab.node.output("nft", &["add", "element", "ip", "other", "s", "{ 10.0.0.1 }"]);
                lab.node.output("nft", &["flush", "set", "ip", "other", "s"]);
            }
        });
        for _ in 0..5 {
            assert_eq!(read(forwarder.kernel()), expected);
        }
        drop(forwarder);
        let (_, change) = lab.start_with(desired).expect("the table");
        assert_eq!(change.commits, 0);
    });
}

/// Stops others also when a test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Forwards without owning the table, as on a kernel that knows no owners.
fn shared(lab: &Lab, desired: Ruleset) -> Forwarder {
    let no_owner = Features { owned_tables: true, ..Features::default() };
    let kernel = lab.kernel().without(no_owner);
    Forwarder::start(kernel, desired).expect("the table").0
}

fn one(backends: Backends) -> Ruleset {
    let services = [(service(vip(1), Protocol::Tcp, 80), backends)].into();
    Ruleset { services, ..Ruleset::default() }
}

fn read(kernel: &mut Kernel) -> Elements {
    read_at(kernel).0
}

/// What the kernel has, and at which generation.
fn read_at(kernel: &mut Kernel) -> (Elements, u32) {
    match kernel.read().expect("the table") {
        Found::Current(elements, generation) => (elements, generation),
        other => panic!("{other:?}"),
    }
}

/// The element that says that an address is a virtual one.
fn address(family: Family, bytes: &[u8]) -> Element {
    Element { set: Set::Virtual(family), key: Key::new(bytes).expect("an address"), end: false }
}

/// The same bytes, but for one.
fn other(data: Data) -> Data {
    let mut bytes = data.as_slice().to_vec();
    bytes[3] ^= 1;
    Data::new(&bytes).expect("as long as before")
}
