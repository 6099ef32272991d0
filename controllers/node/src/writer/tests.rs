//! The writer on a real kernel, in network namespaces of the tests' own, fed without an API.

use std::process::Command;
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, unshare};
use portolan_nft::{Affinity, Backends, Elements, Endpoint, Found, Protocol, ServicePort, Table};
use portolan_reconcile::ObjectKey;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::facts::{EndpointFacts, PortFacts, ServiceFacts, SliceFacts};
use crate::inbox::Ground;
use crate::listen;

mod connections;
mod others;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a network namespace that goes with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let inside = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the privilege to make network namespaces");
        test();
    });
    inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A writer and its threads, in the namespace of the thread that started it.
struct Agent {
    inbox: Arc<Inbox>,
    metrics: Metrics,
    /// What is scraped of the same.
    page: portolan_process::Metrics,
    states: watch::Receiver<State>,
    opened: watch::Receiver<Option<Opened>>,
    thread: JoinHandle<()>,
}

impl Agent {
    fn start(inbox: Arc<Inbox>, open: Open) -> Self {
        let page = portolan_process::Metrics::new("portolan");
        let metrics = page.register(Metrics::register);
        let (state, states) = watch::channel(State::default());
        let (opened, opens) = watch::channel(None);
        let writer = Writer { inbox: inbox.clone(), open, metrics: metrics.clone(), state, opened };
        let thread = thread::spawn(|| writer.run());
        Self { inbox, metrics, page, states, opened: opens, thread }
    }

    /// An agent that has programmed the services of these numbers.
    fn with(services: &[(u8, &[u8])]) -> Self {
        let inbox = Arc::new(fed(services));
        let agent = Self::start(inbox, Box::new(Kernel::open));
        agent.await_state(&State::Programmed);
        agent
    }

    /// The same on a kernel that knows no owners of tables.
    fn shared(services: &[(u8, &[u8])]) -> Self {
        let agent = Self::start(Arc::new(fed(services)), Box::new(open_shared));
        agent.await_state(&State::Programmed);
        agent
    }

    fn await_state(&self, wanted: &State) {
        await_that(&format!("{wanted:?}"), || {
            let state = self.states.borrow().clone();
            (state == *wanted).then_some(()).ok_or(format!("{state:?}"))
        });
    }

    /// A sample of what is scraped.
    #[track_caller]
    fn sample(&self, name: &str) -> f64 {
        let page = self.page.encode();
        let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = found.and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    fn stop(self) -> Metrics {
        self.inbox.stop();
        self.thread.join().expect("a writer that ends in order");
        self.metrics
    }
}

#[track_caller]
fn await_that<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "waited for {what}, last seen: {seen}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The kernel as one that knows no owners of tables.
fn open_shared() -> Result<Kernel, Error> {
    Ok(Kernel::open()?.without(Features { owned_tables: true, ..Features::default() }))
}

/// What the inbox has for a writer.
#[track_caller]
fn work(inbox: &Inbox) -> Work {
    let now = Instant::now();
    match inbox.wait(now, now) {
        Wake::Work(work) => work,
        other => panic!("{other:?} is no work"),
    }
}

fn key(number: u8) -> ObjectKey {
    ObjectKey::new("team-a", format!("s{number}"))
}

fn service(number: u8) -> Arc<ServiceFacts> {
    let port = |name: &str, protocol, port| PortFacts {
        name: name.into(),
        protocol,
        port,
        asked: None,
        node_port: None,
    };
    Arc::new(ServiceFacts {
        uid: "own".into(),
        addresses: vec![[10, 96, 0, number].into()],
        affinity: Affinity::None,
        ports: vec![port("irc", Protocol::Tcp, 6667), port("dns", Protocol::Udp, 53)],
    })
}

fn slice(number: u8, endpoints: &[u8]) -> Arc<SliceFacts> {
    let endpoint = |last: &u8| EndpointFacts {
        address: [10, 8, number, *last].into(),
        pod: 0,
        local: false,
        ready: true,
        last_resort: false,
        terminating: false,
    };
    Arc::new(SliceFacts {
        service: key(number).shared(),
        controller: Some("own".into()),
        ports: vec![("irc".into(), Protocol::Tcp, 6667), ("dns".into(), Protocol::Udp, 53)],
        endpoints: endpoints.iter().map(endpoint).collect(),
    })
}

fn feed(inbox: &Inbox, services: &[(u8, &[u8])]) {
    for (number, endpoints) in services {
        inbox.change(|index| {
            index.service(&key(*number), Some(service(*number)));
            index.slice(&key(*number), None, Some(&slice(*number, endpoints)));
        });
    }
}

fn ground() -> Ground {
    let addresses = [[192, 0, 2, 10].into()].into();
    Ground { addresses, ..Ground::default() }
}

fn fed(services: &[(u8, &[u8])]) -> Inbox {
    let inbox = Inbox::default();
    inbox.set_ground(ground());
    feed(&inbox, services);
    inbox
}

/// The same as a ruleset, put together without the index.
fn ruleset(services: &[(u8, &[u8])]) -> Ruleset {
    let mut ruleset = Ruleset { node_addresses: ground().addresses, ..Ruleset::default() };
    for (number, endpoints) in services {
        for (protocol, port) in [(Protocol::Tcp, 6667), (Protocol::Udp, 53)] {
            let address = [10, 96, 0, *number].into();
            let endpoint = |last: &u8| {
                let address = [10, 8, *number, *last].into();
                Endpoint { address, port, local: false }
            };
            let backends = Backends {
                affinity: Affinity::None,
                endpoints: endpoints.iter().map(endpoint).collect(),
            };
            ruleset.services.insert(ServicePort { address, protocol, port }, backends);
        }
    }
    ruleset
}

/// What the kernel has, once nobody owns the table any more. An agent that has ended may be its
/// owner for a moment longer: when another test's thread starts a program, the new process holds
/// a copy of the closed socket from its fork to its exec.
#[track_caller]
fn found() -> Elements {
    await_that("a table without an owner", || match Kernel::open().expect("a kernel").read() {
        Ok(Found::Current(elements, _)) => Ok(elements),
        Err(Error::Owned) => Err("its owner".to_owned()),
        other => panic!("{other:?} is not a table of ours"),
    })
}

fn read(mut kernel: Kernel) -> Elements {
    match kernel.read().expect("a table that can be read") {
        Found::Current(elements, _) => elements,
        other => panic!("{other:?} is not a table of ours"),
    }
}

/// Waits until the table has this, as `nft` prints it.
#[track_caller]
fn await_listed(text: &str) {
    await_that(text, || {
        let listing = nft("list ruleset");
        listing.contains(text).then_some(()).ok_or(listing)
    });
}

fn nft(words: &str) -> String {
    let output = Command::new("nft").args(words.split(' ')).output().expect("nft");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "nft {words}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_is_fed_is_in_the_kernel() {
    in_namespace(|| {
        let services: [(u8, &[u8]); 2] = [(1, &[1, 2, 3]), (2, &[])];
        let agent = Agent::with(&services);
        let listing = nft("list ruleset");
        assert!(listing.contains("10.96.0.1 . tcp . 6667"), "{listing}");
        agent.stop();
        assert_eq!(found(), Table::new(ruleset(&services)).elements(), "and stays");
    });
}

#[test]
fn a_restart_with_the_same_state_changes_nothing() {
    in_namespace(|| {
        let services: [(u8, &[u8]); 2] = [(1, &[1, 2, 3]), (2, &[4])];
        assert_eq!(Agent::with(&services).stop().commits.get(), 1);
        let metrics = Agent::with(&services).stop();
        assert_eq!((metrics.commits.get(), metrics.resyncs.get()), (0, 0));
    });
}

#[test]
fn a_restart_with_another_state_ends_at_that() {
    in_namespace(|| {
        Agent::with(&[(1, &[1, 2, 3]), (2, &[4])]).stop();
        let services: [(u8, &[u8]); 2] = [(1, &[1, 3, 5]), (3, &[6])];
        Agent::with(&services).stop();
        let addresses = |elements: &Elements| elements.keys().copied().collect::<Vec<_>>();
        let expected = Table::new(ruleset(&services)).elements();
        assert_eq!(addresses(&found()), addresses(&expected));
    });
}

#[test]
fn who_is_gone_before_the_first_programming_is_not_forgotten() {
    let inbox = Arc::new(fed(&[(1, &[1, 2])]));
    let writer = Writer {
        inbox: inbox.clone(),
        open: Box::new(Kernel::open),
        metrics: Metrics::register(&mut Registry::default()),
        state: watch::channel(State::default()).0,
        opened: watch::channel(None).0,
    };
    let (before, after) = (slice(1, &[1, 2]), slice(1, &[1]));
    inbox.change(|index| index.slice(&key(1), Some(&before), Some(&after)));
    let mut gone = BTreeSet::new();
    // A second try, after the kernel refused the first.
    for attempt in 1..=2 {
        assert_eq!(writer.first(work(&inbox), &mut gone), ruleset(&[(1, &[1])]), "{attempt}");
        assert_eq!(gone, BTreeSet::from([IpAddr::from([10, 8, 1, 2])]), "{attempt}");
        inbox.repeat();
    }
}

#[test]
fn a_process_that_was_killed_between_two_batches_leaves_nothing_behind() {
    in_namespace(|| {
        let before: [(u8, &[u8]); 1] = [(1, &[1, 2, 3])];
        let after: [(u8, &[u8]); 1] = [(1, &[1, 2])];
        let kernel = Kernel::open().expect("a kernel");
        let (mut killed, _) = Forwarder::start(kernel, ruleset(&before)).expect("a table");
        killed.table().replace(ruleset(&after));
        killed.advance().expect("the first batch");
        assert!(killed.table().is_dirty(), "the first batch is all there is");
        drop(killed);
        let metrics = Agent::with(&after).stop();
        assert_ne!(metrics.commits.get(), 0, "what was left is taken away");
        assert_eq!(found(), Table::new(ruleset(&after)).elements());
    });
}

#[test]
fn what_another_flushes_is_back_within_a_second() {
    in_namespace(|| {
        let services: [(u8, &[u8]); 1] = [(1, &[1, 2, 3])];
        let agent = Agent::shared(&services);
        let (inbox, opened) = (agent.inbox.clone(), agent.opened.clone());
        let shutdown = CancellationToken::new();
        let ear = thread::spawn({
            let shutdown = shutdown.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let listening = listen(inbox, opened, shutdown);
                runtime.expect("a runtime").block_on(listening).expect("an end in order");
            }
        });
        // The look at its beginning: from then on it hears everything.
        await_that("the monitor", || match agent.metrics.verified.get() {
            0 => Err("no verification".to_owned()),
            _ => Ok(()),
        });
        nft("flush ruleset");
        let begun = Instant::now();
        await_listed("10.96.0.1 . tcp . 6667");
        assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
        shutdown.cancel();
        ear.join().expect("an ear that ends in order");
        agent.stop();
        let kernel = open_shared().expect("a kernel");
        assert_eq!(read(kernel), Table::new(ruleset(&services)).elements());
    });
}

#[test]
fn a_table_of_another_is_left_alone_until_it_is_gone() {
    in_namespace(|| {
        nft("add table inet portolan");
        let services: [(u8, &[u8]); 1] = [(1, &[1])];
        let agent = Agent::start(Arc::new(fed(&services)), Box::new(Kernel::open));
        await_that("a complaint", || match &*agent.states.borrow() {
            State::Foreign(_) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert!(agent.sample("portolan_node_errors_total{reason=\"Foreign\"}") >= 1.0);
        // What comes meanwhile is not lost.
        feed(&agent.inbox, &[(2, &[2])]);
        assert_eq!(nft("list table inet portolan"), "table inet portolan {\n}\n");
        nft("delete table inet portolan");
        agent.await_state(&State::Programmed);
        agent.stop();
        let expected: [(u8, &[u8]); 2] = [(1, &[1]), (2, &[2])];
        assert_eq!(found(), Table::new(ruleset(&expected)).elements());
    });
}

#[test]
fn a_burst_is_few_rounds_and_ends_at_its_last_word() {
    in_namespace(|| {
        let agent = Agent::with(&[(1, &[1])]);
        let before = agent.metrics.commits.get();
        let mut current = slice(1, &[1]);
        for step in 0..1_000_u32 {
            let last = u8::try_from(step % 100 + 1).expect("a small number");
            let next = slice(1, &[last]);
            agent.inbox.change(|index| index.slice(&key(1), Some(&current), Some(&next)));
            current = next;
        }
        let last: [(u8, &[u8]); 1] = [(1, &[100])];
        await_that("the last word", || {
            let listing = nft("list map inet portolan ep4-1");
            listing.contains("10.8.1.100").then_some(()).ok_or(listing)
        });
        let commits = agent.metrics.commits.get() - before;
        assert!(commits < 100, "{commits} commits for 1000 changes");
        agent.stop();
        assert_eq!(found(), Table::new(ruleset(&last)).elements());
    });
}

#[test]
fn nothing_is_kept_of_a_service_that_is_gone() {
    in_namespace(|| {
        let agent = Agent::with(&[(1, &[1]), (2, &[2])]);
        agent.inbox.change(|index| {
            index.service(&key(2), None);
            index.slice(&key(2), Some(&slice(2, &[2])), None);
        });
        await_that("its address to go", || {
            let listing = nft("list ruleset");
            (!listing.contains("10.96.0.2")).then_some(()).ok_or(listing)
        });
        let metrics = agent.stop();
        assert_eq!(found(), Table::new(ruleset(&[(1, &[1])])).elements());
        assert_eq!(metrics.elements.get(), count(found().len()));
    });
}
