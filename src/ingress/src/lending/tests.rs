//! Several gateways with real pools, their messages in any order: no slot is used twice or lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::PeerEnd;
use super::link::Link;
use super::message::{Hold, Message};
use crate::activator::{Refusal, Slot, Turn};
use crate::demand::PoolDemand;
use crate::ingress::Ingress;
use crate::metrics::Metrics;
use crate::model::{
    Activation, AppProtocol, Concurrency, PoolConfig, PoolId, PoolName, Probe, SandboxConfig,
    SandboxId, SandboxPhase, ServiceKey, Slots,
};
use crate::settings::Settings;

const SANDBOX_COUNT: usize = 2;
/// More messages than any settling takes: slots that are passed to and fro never settle.
const MESSAGES_MAX: usize = 5_000;

#[derive(Debug, Clone)]
enum Step {
    Enter(usize),
    /// A client of that gateway goes away, waiting or running.
    GiveUp(usize, usize),
    Send(usize, usize),
    Receive(usize, usize),
    Connect(usize, usize),
    /// One end notices that the connection is gone.
    Break(usize, usize),
    /// A part of what was granted.
    Grant(usize, usize, u32),
    Ready(usize, usize, bool),
    Leave(usize),
    Lose(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (gateway, any_of) = (|| 0..4_usize, any::<usize>);
    let sandbox = 0..SANDBOX_COUNT;
    prop_oneof![
        10 => gateway().prop_map(Step::Enter),
        8 => (gateway(), any_of()).prop_map(|(gateway, place)| Step::GiveUp(gateway, place)),
        16 => (gateway(), gateway()).prop_map(|(from, to)| Step::Send(from, to)),
        16 => (gateway(), gateway()).prop_map(|(from, to)| Step::Receive(from, to)),
        2 => (gateway(), gateway()).prop_map(|(one, other)| Step::Connect(one, other)),
        2 => (gateway(), gateway()).prop_map(|(one, other)| Step::Break(one, other)),
        2 => (gateway(), sandbox.clone(), 0..4_u32)
            .prop_map(|(gateway, sandbox, count)| Step::Grant(gateway, sandbox, count)),
        2 => (gateway(), sandbox, any::<bool>())
            .prop_map(|(gateway, sandbox, ready)| Step::Ready(gateway, sandbox, ready)),
        1 => gateway().prop_map(Step::Leave),
        1 => gateway().prop_map(Step::Lose),
        2 => prop_oneof![Just(60), Just(1_100)].prop_map(Step::Wait),
    ]
}

struct Gateway {
    ingress: Ingress,
    name: Arc<str>,
    granted: [u32; SANDBOX_COUNT],
    waiting: Vec<JoinHandle<Result<Slot, Refusal>>>,
    running: Vec<Slot>,
    is_leaving: bool,
}

impl Gateway {
    fn new(number: usize, granted: [u32; SANDBOX_COUNT], concurrency: Concurrency) -> Self {
        let ingress = Ingress::new(Settings::standard(), Arc::new(Metrics::new()));
        let config =
            PoolConfig { port: 1, protocol: AppProtocol::Http1, probe: Probe::Feed, concurrency };
        ingress.upsert_pool(&mk_pool(), config);
        let pool = mk_pool().name;
        ingress.activate(&mk_service(), Activation { app_uid: "app".into(), epoch: 1, pool });
        let gateway = Self {
            ingress,
            name: format!("gateway-{number}").into(),
            granted,
            waiting: Vec::new(),
            running: Vec::new(),
            is_leaving: false,
        };
        for (sandbox, count) in granted.into_iter().enumerate() {
            gateway.feed(sandbox, count, SandboxPhase::Ready);
        }
        gateway
    }

    fn feed(&self, sandbox: usize, count: u32, phase: SandboxPhase) {
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let slots = Slots::Limited(count);
        let config = SandboxConfig { id: mk_sandbox(sandbox), address, phase, slots };
        self.ingress.upsert_sandbox(&mk_pool(), &config);
    }

    fn enter(&mut self) {
        let shared = Arc::clone(self.ingress.shared());
        let service = shared.registry.lock().service(&mk_service());
        self.waiting.push(tokio::spawn(async move {
            service.acquire(&shared.core, &mut Turn::default()).await
        }));
    }

    fn give_up(&mut self, place: usize) {
        let count = self.waiting.len() + self.running.len();
        match place.checked_rem(count) {
            None => {}
            Some(place) if place < self.running.len() => drop(self.running.swap_remove(place)),
            Some(place) => self.waiting.swap_remove(place - self.running.len()).abort(),
        }
    }

    fn demand(&self) -> PoolDemand {
        self.ingress.demand().pop().expect("there is one pool")
    }

    fn used(&self, sandbox: usize) -> u32 {
        let id = mk_sandbox(sandbox);
        let demand = self.demand();
        demand.sandboxes.iter().find(|load| load.id == id).map_or(0, |load| load.running)
    }

    fn loans(&self) -> (i64, i64) {
        let metrics = &self.ingress.shared().core.metrics;
        (metrics.slots_lent.get(), metrics.slots_borrowed.get())
    }
}

struct World {
    /// `None`: it has ended.
    gateways: Vec<Option<Gateway>>,
    concurrency: Concurrency,
    totals: [u32; SANDBOX_COUNT],
    /// What lost gateways had on its way, for ever.
    ghosts: [u32; SANDBOX_COUNT],
    links: BTreeMap<(usize, usize), Link>,
    wires: BTreeMap<(usize, usize), VecDeque<Bytes>>,
}

impl World {
    fn new(grants: &[[u32; SANDBOX_COUNT]], concurrency: Concurrency) -> Self {
        let gateways = grants.iter().enumerate();
        let gateways =
            gateways.map(|(number, granted)| Some(Gateway::new(number, *granted, concurrency)));
        let total = |sandbox: usize| grants.iter().map(|granted| granted[sandbox]).sum();
        let mut world = Self {
            gateways: gateways.collect(),
            concurrency,
            totals: std::array::from_fn(total),
            ghosts: [0; SANDBOX_COUNT],
            links: BTreeMap::new(),
            wires: BTreeMap::new(),
        };
        world.connect_all();
        world
    }

    fn gateway(&mut self, number: usize) -> Option<&mut Gateway> {
        self.gateways.get_mut(number)?.as_mut()
    }

    fn connect(&mut self, one: usize, other: usize) {
        if one == other || self.gateway(one).is_none() || self.gateway(other).is_none() {
            return;
        }
        for (from, to) in [(one, other), (other, one)] {
            let peer = Arc::clone(&self.gateway(to).expect("seen above").name);
            let link = self.gateway(from).expect("seen above").ingress.link(peer);
            // The one before is dropped after the new one began, as over a network.
            self.links.insert((from, to), link);
            self.wires.insert((from, to), VecDeque::new());
        }
    }

    fn connect_all(&mut self) {
        for one in 0..self.gateways.len() {
            for other in one + 1..self.gateways.len() {
                self.connect(one, other);
            }
        }
    }

    fn send(&mut self, from: usize, to: usize) -> bool {
        let Some(message) = self.links.get_mut(&(from, to)).and_then(Link::try_next) else {
            return false;
        };
        self.wires.entry((from, to)).or_default().push_back(message.encode());
        true
    }

    fn receive(&mut self, from: usize, to: usize) {
        let Some(link) = self.links.get_mut(&(to, from)) else { return };
        let message = self.wires.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        if let Some(message) = message {
            let message = Message::decode(&message).expect("what was encoded can be decoded");
            link.take(message.clone()).unwrap_or_else(|error| panic!("{message:?}: {error}"));
        }
    }

    fn end(&mut self, number: usize, end: PeerEnd) {
        let Some(mut gateway) = self.gateways.get_mut(number).and_then(Option::take) else {
            return;
        };
        self.links.retain(|(from, to), _| *from != number && *to != number);
        self.wires.retain(|(from, to), _| *from != number && *to != number);
        if end == PeerEnd::Lost && self.concurrency == Concurrency::Strict {
            for (sandbox, ghosts) in self.ghosts.iter_mut().enumerate() {
                *ghosts += gateway.used(sandbox);
            }
        }
        gateway.waiting.iter().for_each(JoinHandle::abort);
        gateway.running.clear();
        for other in self.gateways.iter().flatten() {
            other.ingress.forget_peer(&gateway.name, end);
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Enter(number) => {
                if let Some(gateway) = self.gateway(number).filter(|one| !one.is_leaving) {
                    gateway.enter();
                }
            }
            Step::GiveUp(number, place) => {
                if let Some(gateway) = self.gateway(number) {
                    gateway.give_up(place);
                }
            }
            Step::Send(from, to) => drop(self.send(from, to)),
            Step::Receive(from, to) => self.receive(from, to),
            Step::Connect(one, other) => self.connect(one, other),
            Step::Break(from, to) => {
                self.links.remove(&(from, to));
                self.wires.remove(&(to, from));
            }
            Step::Grant(number, sandbox, count) => {
                if let Some(gateway) = self.gateway(number) {
                    let count = count.min(gateway.granted[sandbox]);
                    gateway.feed(sandbox, count, SandboxPhase::Ready);
                }
            }
            Step::Ready(number, sandbox, is_ready) => {
                if let Some(gateway) = self.gateway(number) {
                    let phases = [SandboxPhase::Draining { epoch: 1 }, SandboxPhase::Ready];
                    let count = gateway.granted[sandbox];
                    gateway.feed(sandbox, count, phases[usize::from(is_ready)]);
                }
            }
            Step::Leave(number) => {
                if let Some(gateway) = self.gateway(number) {
                    gateway.is_leaving = true;
                    gateway.ingress.call_home();
                }
            }
            Step::Lose(number) => self.end(number, PeerEnd::Lost),
            Step::Wait(time) => tokio::time::advance(Duration::from_millis(time)).await,
        }
        self.settle().await;
        self.check();
        for number in 0..self.gateways.len() {
            let gateway = self.gateway(number).filter(|gateway| gateway.is_leaving);
            if gateway.is_some_and(|one| one.waiting.is_empty() && one.ingress.is_square()) {
                self.end(number, PeerEnd::Left);
            }
        }
    }

    /// Lets every task do what it can, and collects what came of it.
    async fn settle(&mut self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        for gateway in self.gateways.iter_mut().flatten() {
            let all = std::mem::take(&mut gateway.waiting).into_iter();
            let (ended, waiting): (Vec<_>, _) = all.partition(JoinHandle::is_finished);
            gateway.waiting = waiting;
            for request in ended {
                if let Ok(Ok(slot)) = request.await {
                    gateway.running.push(slot);
                }
            }
        }
    }

    fn used(&self, sandbox: usize) -> u32 {
        self.gateways.iter().flatten().map(|gateway| gateway.used(sandbox)).sum()
    }

    fn check(&self) {
        for sandbox in 0..SANDBOX_COUNT {
            let used = self.used(sandbox) + self.ghosts[sandbox];
            assert!(used <= self.totals[sandbox], "{used} of {:?}", self.totals[sandbox]);
        }
    }

    /// Delivers all messages until none is left.
    async fn deliver(&mut self) {
        let mut count = 0;
        loop {
            let pairs: Vec<_> = self.links.keys().copied().collect();
            let mut is_quiet = true;
            for (from, to) in pairs {
                while self.send(from, to) {
                    is_quiet = false;
                }
                while self.wires.get(&(from, to)).is_some_and(|wire| !wire.is_empty()) {
                    self.receive(from, to);
                    count += 1;
                    is_quiet = false;
                }
            }
            self.settle().await;
            self.check();
            assert!(count < MESSAGES_MAX, "slots go to and fro");
            if is_quiet {
                return;
            }
        }
    }

    /// Connections stand, grants are whole, and everything has had its time.
    async fn come_to_rest(&mut self) {
        for gateway in self.gateways.iter().flatten() {
            for (sandbox, count) in gateway.granted.into_iter().enumerate() {
                gateway.feed(sandbox, count, SandboxPhase::Ready);
            }
        }
        self.connect_all();
        for _ in 0..4 {
            self.deliver().await;
            tokio::time::advance(Duration::from_millis(1_100)).await;
            self.settle().await;
        }
        self.deliver().await;
    }
}

fn mk_service() -> ServiceKey {
    ServiceKey { namespace: "team-a".into(), app: "shop".into(), service: "web".into() }
}

fn mk_pool() -> PoolId {
    let name = PoolName { namespace: "team-a".into(), name: "pool".into() };
    PoolId { name, uid: "pool-uid".into() }
}

fn mk_sandbox(number: usize) -> SandboxId {
    let name = format!("sandbox-{number}");
    SandboxId { uid: format!("{name}-uid").into(), name: name.into() }
}

async fn run(grants: &[[u32; SANDBOX_COUNT]], concurrency: Concurrency, steps: Vec<Step>) {
    let mut world = World::new(grants, concurrency);
    for step in steps {
        world.step(step).await;
    }
    world.come_to_rest().await;
    let alive = || world.gateways.iter().flatten();
    let waiting: usize = alive().map(|gateway| gateway.waiting.len()).sum();
    let is_whole = alive().all(|gateway| {
        !gateway.is_leaving && !gateway.demand().sandboxes.iter().any(|load| load.retired)
    });
    for sandbox in (0..SANDBOX_COUNT).filter(|_| is_whole && waiting > 0) {
        let granted: u32 = alive().map(|gateway| gateway.granted[sandbox]).sum();
        // More, if what a lost gateway had lent is still in use.
        let used = world.used(sandbox);
        assert!(used >= granted, "{waiting} wait though {used} of {granted} are used");
    }
    for gateway in world.gateways.iter_mut().flatten() {
        gateway.waiting.drain(..).for_each(|request| request.abort());
        gateway.running.clear();
    }
    world.come_to_rest().await;
    if is_whole {
        for gateway in world.gateways.iter().flatten() {
            assert_eq!(gateway.loans(), (0, 0), "{} keeps nothing", gateway.name);
            assert!(gateway.ingress.is_square(), "{} owes nothing", gateway.name);
            // Closed with the next change: until then it is only looked after.
            gateway.feed(0, gateway.granted[0], SandboxPhase::Ready);
            let pools = gateway.ingress.shared().pools();
            let is_open = pools.iter().any(|pool| pool.has_accounts());
            assert!(!is_open, "{} keeps no account", gateway.name);
        }
    }
}

fn block_on(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_slot_is_used_twice_or_lost(
        grants in vec([0..4_u32, 0..2_u32], 2..5),
        is_strict in any::<bool>(),
        steps in vec(step(), 1..150),
    ) {
        let concurrency = if is_strict { Concurrency::Strict } else { Concurrency::Soft };
        block_on(run(&grants, concurrency, steps));
    }
}

/// What a peer says to a gateway with one slot, up to what is refused.
#[track_caller]
fn check_refused(said: Vec<Message>, refusal: &str) {
    block_on(async {
        let gateway = Gateway::new(0, [1, 0], Concurrency::Strict);
        let peer: Arc<str> = "peer".into();
        let mut link = gateway.ingress.link(Arc::clone(&peer));
        let mut answers: Vec<_> = said.into_iter().map(|message| link.take(message)).collect();
        let last = answers.pop().expect("something is said");
        assert!(answers.iter().all(Result::is_ok), "only the last is refused: {answers:?}");
        assert_eq!(last.map_err(|error| error.to_string()), Err(refusal.to_owned()));
        drop(link);
        gateway.ingress.forget_peer(&peer, PeerEnd::Left);
        assert_eq!(gateway.loans(), (0, 0), "what was refused changed no account");
        assert!(gateway.ingress.is_square());
    });
}

#[test]
fn what_no_gateway_says_is_refused() {
    let hold = |count| Hold { pool: mk_pool().uid, sandbox: mk_sandbox(0).uid, count };
    let hello = |count, is_last| Message::Hello { holds: vec![hold(1); count], is_last };
    let want = || Message::Want { pool: mk_pool().uid, count: 1, is_fresh: true };
    let returned = |count| Message::Returned { hold: hold(count), is_refused: false };
    check_refused(vec![want()], "no greeting came first");
    check_refused(vec![hello(0, false), want()], "no greeting came first");
    check_refused(vec![hello(0, true), hello(0, true)], "a second greeting");
    check_refused(vec![hello(1 << 20, false), hello(1, true)], "a greeting is too long");
    let more = "more slots are returned than were lent";
    check_refused(vec![hello(0, true), want(), returned(2)], more);
    check_refused(vec![hello(1, true), returned(2)], more);
}

#[test]
fn slots_that_nobody_lent_come_back_to_nothing() {
    block_on(async {
        let gateway = Gateway::new(0, [1, 0], Concurrency::Strict);
        let mut link = gateway.ingress.link("peer".into());
        link.take(Message::Hello { holds: Vec::new(), is_last: true }).unwrap();
        // The sandbox may have gone here and come again: that is no fault of the other end.
        let hold = Hold { pool: mk_pool().uid, sandbox: mk_sandbox(0).uid, count: 7 };
        link.take(Message::Returned { hold, is_refused: false }).unwrap();
        assert_eq!(gateway.loans(), (0, 0));
        assert_eq!(gateway.ingress.shared().core.metrics.slots_lent.get(), 0);
    });
}

#[test]
fn a_link_that_was_replaced_may_say_nothing_more() {
    block_on(async {
        let gateway = Gateway::new(0, [1, 0], Concurrency::Strict);
        let hello = || Message::Hello { holds: Vec::new(), is_last: true };
        let mut first = gateway.ingress.link("peer".into());
        let mut second = gateway.ingress.link("peer".into());
        let refused = first.take(hello()).unwrap_err();
        assert_eq!(refused.to_string(), "a newer link took its place");
        second.take(hello()).unwrap();
        drop(first);
        let want = Message::Want { pool: mk_pool().uid, count: 1, is_fresh: true };
        second.take(want).unwrap();
        assert_eq!(gateway.loans(), (1, 0), "the end of the old one does not touch the new one");
    });
}

#[test]
fn one_slot_goes_to_each_gateway_in_turn() {
    block_on(async {
        let mut world = World::new(&[[1, 0], [0, 0], [0, 0]], Concurrency::Strict);
        for number in 0..3 {
            (0..6).for_each(|_| world.gateway(number).unwrap().enter());
        }
        let mut served = [0; 3];
        for _ in 0..18 {
            world.deliver().await;
            let running = |gateway: &Option<Gateway>| gateway.as_ref().unwrap().running.len();
            let runs: Vec<_> = world.gateways.iter().map(running).collect();
            assert_eq!(runs.iter().sum::<usize>(), 1, "{runs:?} after {served:?}");
            let place = runs.iter().position(|count| *count == 1).unwrap();
            served[place] += 1;
            world.gateway(place).unwrap().running.clear();
            world.settle().await;
        }
        assert_eq!(served, [6, 6, 6]);
    });
}

#[test]
fn nothing_is_asked_for_while_another_gateway_may_have_it() {
    block_on(async {
        let mut world = World::new(&[[1, 0], [1, 0]], Concurrency::Soft);
        world.deliver().await;
        (0..3).for_each(|_| world.gateway(0).unwrap().enter());
        world.settle().await;
        assert_eq!(world.gateway(0).unwrap().demand().queued, 0, "not before the answer");
        world.deliver().await;
        let demand = world.gateway(0).unwrap().demand();
        assert_eq!((demand.running, demand.queued), (2, 1), "one was lent, no more is free");
    });
}

#[test]
fn a_silent_gateway_holds_nobody_up() {
    block_on(async {
        let mut world = World::new(&[[1, 0], [1, 0]], Concurrency::Soft);
        world.deliver().await;
        (0..3).for_each(|_| world.gateway(0).unwrap().enter());
        world.settle().await;
        tokio::time::advance(Duration::from_millis(60)).await;
        world.settle().await;
        assert_eq!(world.gateway(0).unwrap().demand().queued, 2);
    });
}

#[test]
fn a_lost_borrower_retires_under_strict_only() {
    for (concurrency, retired) in [(Concurrency::Soft, false), (Concurrency::Strict, true)] {
        block_on(async {
            let mut world = World::new(&[[1, 0], [0, 0]], concurrency);
            world.gateway(1).unwrap().enter();
            world.settle().await;
            world.deliver().await;
            assert_eq!(world.gateway(1).unwrap().running.len(), 1);
            world.end(1, PeerEnd::Lost);
            world.gateway(0).unwrap().enter();
            world.settle().await;
            let lender = world.gateway(0).unwrap();
            let load = lender.demand().sandboxes.into_iter().find(|load| load.id == mk_sandbox(0));
            assert_eq!(load.map(|load| load.retired), Some(retired));
            assert_eq!(lender.running.len(), usize::from(!retired), "{concurrency:?}");
        });
    }
}
