//! Measures the table in network namespaces of its own, beside the shape that kube-proxy gives
//! its rules: a chain and an anonymous map for each service. Needs the privilege over networks.
//!
//! `cargo run --release -p portolan-nft --example figures`

#[path = "figures/chains.rs"]
mod chains;
#[path = "../tests/lab/mod.rs"]
mod lab;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Lab, Namespace, local, service, v4, vip};
use portolan_nft::{Backends, Endpoint, Forwarder, Kernel, Protocol, Ruleset, ServicePort};
use socket2::SockRef;

fn main() {
    println!("| figure | measured |");
    println!("|---|---|");
    memory();
    programming();
    kube_proxy_shape();
    one_change();
    latency();
    churn();
}

fn row(figure: &str, measured: &str) {
    println!("| {figure} | {measured} |");
}

/// First, since a process does not give memory back.
fn memory() {
    let size = |file: &str, name: &str| -> usize {
        let text = std::fs::read_to_string(file).expect(file);
        let line = text.lines().find(|line| line.starts_with(name)).expect(name);
        line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).expect("a size in KiB")
    };
    let node = Namespace::new();
    let kernel = node.run(|| Kernel::open().expect("nf_tables"));
    drop(Forwarder::start(kernel, ruleset(10_000, 3)).expect("the table"));
    let most = size("/proc/self/status", "VmHWM:");
    row("most memory of a process with 10000 services × 3, KiB", &most.to_string());
    // All are kept, since the kernel would fill the next one into what the last one left.
    const TABLES: usize = 5;
    let before = size("/proc/meminfo", "SUnreclaim:");
    let tables: Vec<_> = (0..TABLES)
        .map(|_| {
            let node = Namespace::new();
            let kernel = node.run(|| Kernel::open().expect("nf_tables"));
            (Forwarder::start(kernel, ruleset(10_000, 3)).expect("the table"), node)
        })
        .collect();
    let growth = size("/proc/meminfo", "SUnreclaim:").saturating_sub(before) / TABLES;
    row("kernel memory of 10000 services × 3, KiB", &growth.to_string());
    drop(tables);
}

fn programming() {
    for (services, endpoints, rounds) in [(10_000, 3, 7), (5_000, 50, 3), (50_000, 3, 1)] {
        let mut times = Vec::new();
        let (mut size, mut recovery) = (0, Duration::ZERO);
        for _ in 0..rounds {
            let node = Namespace::new();
            let desired = ruleset(services, endpoints);
            let kernel = node.run(|| Kernel::open().expect("nf_tables"));
            let began = Instant::now();
            let (forwarder, _) = Forwarder::start(kernel, desired.clone()).expect("the table");
            times.push(began.elapsed());
            drop(forwarder);
            let kernel = node.run(|| Kernel::open().expect("nf_tables"));
            let began = Instant::now();
            let (mut forwarder, change) = Forwarder::start(kernel, desired).expect("the table");
            recovery = began.elapsed();
            assert_eq!(change.commits, 0, "a restart changes nothing");
            size = forwarder.table().len();
        }
        times.sort();
        row(
            &format!("program {services} services × {endpoints} from nothing, {size} elements"),
            &format!("{:.1?} median of {rounds}, {:.1?} least", times[rounds / 2], times[0]),
        );
        row(
            &format!("restart with {services} services × {endpoints}: read, compare, no change"),
            &format!("{recovery:.1?}"),
        );
    }
}

fn kube_proxy_shape() {
    // Its time grows with the square of the services; ten thousand take half a minute.
    for services in [1_000, 3_000] {
        let node = Namespace::new();
        let chains = chains::text(&ruleset(services, 3));
        let theirs = chains::load(&node, &chains);
        let one = chains::load(&node, &chains::one_change(&ruleset(services, 3)));
        let node = Namespace::new();
        let kernel = node.run(|| Kernel::open().expect("nf_tables"));
        let began = Instant::now();
        let (mut forwarder, _) = Forwarder::start(kernel, ruleset(services, 3)).expect("the table");
        let ours = began.elapsed();
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        row(
            &format!("{services} services × 3: a chain and a map for each, by `nft`"),
            &format!("{theirs:.1?}, ours {ours:.1?}: {ratio:.0} times as long"),
        );
        forwarder.table().set_service(port(0), backends(&[4, 2, 3]));
        let began = Instant::now();
        forwarder.flush().expect("the table");
        let ours = began.elapsed();
        let ratio = one.as_secs_f64() / ours.as_secs_f64();
        row(
            &format!("one endpoint of {services} services changed in that shape"),
            &format!("{one:.1?}, ours {ours:.1?}: {ratio:.0} times as long"),
        );
    }
}

fn one_change() {
    let node = Namespace::new();
    let kernel = node.run(|| Kernel::open().expect("nf_tables"));
    let (mut forwarder, _) = Forwarder::start(kernel, ruleset(10_000, 3)).expect("the table");
    let mut time = |name: &str, rounds: u16, step: &mut dyn FnMut(&mut Forwarder, u16)| {
        let mut times: Vec<Duration> = (0..rounds)
            .map(|round| {
                let began = Instant::now();
                step(&mut forwarder, round);
                let took = began.elapsed();
                if round % 50 == 0 {
                    forwarder.flush().expect("the table");
                }
                took
            })
            .collect();
        times.sort();
        let [p50, p99] = [50, 99].map(|percent| times[usize::from(rounds) * percent / 100]);
        row(&format!("{name}, at 10000 services"), &format!("p50 {p50:.1?}, p99 {p99:.1?}"));
    };
    time("one endpoint replaced", 4_000, &mut |forwarder, round| {
        forwarder.table().set_service(port(5_000), backends(&[1, 2, 4 + (round % 2) as u8]));
        forwarder.flush().expect("the table");
    });
    time("a service comes or goes", 4_000, &mut |forwarder, round| {
        if round % 2 == 0 {
            forwarder.table().set_service(port(20_000), backends(&[1, 2, 3]));
        } else {
            forwarder.table().remove_service(port(20_000));
        }
        forwarder.flush().expect("the table");
    });
    let hosts = |round: u16| backends(if round.is_multiple_of(2) { &[1, 2] } else { &[1, 2, 3] });
    time("one endpoint more or fewer, the new made", 4_000, &mut |forwarder, round| {
        forwarder.table().set_service(port(round), hosts(round));
        forwarder.advance().expect("the table");
    });
    time("the same with the old gone, after packets under way", 200, &mut |forwarder, round| {
        forwarder.table().set_service(port(5_000), hosts(round));
        forwarder.flush().expect("the table");
    });
}

fn latency() {
    const CONNECTS: usize = 20_000;
    let lab = Lab::new();
    let end = (v4(1, 2), 8080);
    lab.sandboxes[0].accept(end.into());
    // The way is the same, but for the look-ups.
    let time = |to: (std::net::IpAddr, u16)| {
        lab.client.run(|| {
            let mut times: Vec<Duration> = (0..CONNECTS)
                .map(|_| {
                    let began = Instant::now();
                    let stream = TcpStream::connect(to).expect("a connection");
                    let took = began.elapsed();
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
                    took
                })
                .collect();
            times.sort();
            (times[0], times[CONNECTS / 2])
        })
    };
    let shown =
        |(least, median): (Duration, Duration)| format!("{least:.1?} least, {median:.1?} p50");
    time(end);
    let bare = time(end);
    row("connect without nftables", &shown(bare));
    let mut desired = ruleset(10_000, 3);
    let ports = [0, 5_000, 9_999].map(port);
    for port in ports {
        desired.services.insert(port, local([end]));
    }
    let kernel = lab.kernel();
    let _forwarder = Forwarder::start(kernel, desired).expect("the table").0;
    for (name, port) in ["first", "middle", "last"].into_iter().zip(ports) {
        let measured = time((port.address, port.port));
        let ratio = measured.1.as_secs_f64() / bare.1.as_secs_f64();
        row(
            &format!("connect to the {name} of 10000 services"),
            &format!("{}, {ratio:.2} times that", shown(measured)),
        );
    }
    row("connect to what is no service, beside 10000", &shown(time(end)));
}

fn churn() {
    const CONNECTS: usize = 100_000;
    let lab = Lab::new();
    let ends = [(v4(1, 2), 8080), (v4(1, 2), 8081), (v4(2, 2), 8080), (v4(2, 2), 8081)];
    for (end, sandbox) in ends.iter().zip([0, 0, 1, 1]) {
        lab.sandboxes[sandbox].accept((*end).into());
    }
    let target = service(vip(1), Protocol::Tcp, 80);
    let mut forwarder =
        lab.start(Ruleset { services: [(target, local(ends))].into(), ..Ruleset::default() });
    let (done, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut changes = 0;
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            failed.store(lab.client.failed_connects((vip(1), 80), CONNECTS), Ordering::Relaxed);
            done.store(true, Ordering::Relaxed);
        });
        let states =
            [local([ends[0], ends[1]]), local([ends[2], ends[1]]), local(ends), local([ends[3]])];
        for state in states.iter().cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
            forwarder.table().set_service(target, state.clone());
            forwarder.flush().expect("the table");
            changes += 1;
        }
    });
    row(
        &format!("connections lost of {CONNECTS} while endpoints come and go"),
        &format!("{}, during {changes} changes in {:.1?}", failed.into_inner(), began.elapsed()),
    );
}

fn ruleset(services: u16, endpoints: u8) -> Ruleset {
    let hosts: Vec<_> = (1..=endpoints).collect();
    let services = (0..services).map(|n| (port(n), backends(&hosts))).collect();
    Ruleset { services, ..Ruleset::default() }
}

fn port(n: u16) -> ServicePort {
    let [high, low] = n.to_be_bytes();
    service([10, 96, high, low].into(), Protocol::Tcp, 80)
}

fn backends(hosts: &[u8]) -> Backends {
    let endpoint = |host: &u8| Endpoint { address: v4(100, *host), port: 8080, local: false };
    Backends { endpoints: hosts.iter().map(endpoint).collect(), ..Backends::default() }
}
