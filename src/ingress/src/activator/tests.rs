//! The activator with real waiting: random steps, then look whether anything was lost.

use std::net::IpAddr;
use std::sync::Arc;

use futures::FutureExt;
use portolan_instructions::Hot;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::{Refusal, Registry, Service, Slot, Turn};
use crate::core::Core;
use crate::metrics::Metrics;
use crate::model::{
    Activation, AppProtocol, BootFailure, Concurrency, FailureKind, PoolConfig, PoolId, PoolName,
    Probe, SandboxConfig, SandboxId, SandboxPhase, ServiceKey, Slots,
};
use crate::settings::Settings;

/// Two pools that the service switches between, three sandboxes each.
const POOL_COUNT: u8 = 2;
const SANDBOX_COUNT: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    Enter,
    /// The client of any request, waiting or running, goes away.
    GiveUp(usize),
    Sandbox(u8, u8, SandboxPhase, u32),
    Remove(u8, u8),
    Die(usize),
    Switch(u8),
    Deactivate,
    Fail(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let phase = prop_oneof![
        4 => Just(SandboxPhase::Ready),
        1 => Just(SandboxPhase::Scheduled),
        1 => Just(SandboxPhase::Draining { epoch: 1 }),
    ];
    let (pool, sandbox) = (0..POOL_COUNT, 0..SANDBOX_COUNT);
    prop_oneof![
        8 => Just(Step::Enter),
        6 => any::<usize>().prop_map(Step::GiveUp),
        6 => (pool.clone(), sandbox.clone(), phase, 0_u32..4)
            .prop_map(|(pool, sandbox, phase, slots)| Step::Sandbox(pool, sandbox, phase, slots)),
        1 => (pool.clone(), sandbox).prop_map(|(pool, sandbox)| Step::Remove(pool, sandbox)),
        1 => any::<usize>().prop_map(Step::Die),
        2 => pool.clone().prop_map(Step::Switch),
        1 => Just(Step::Deactivate),
        1 => (pool, any::<bool>()).prop_map(|(pool, fails)| Step::Fail(pool, fails)),
    ]
}

struct World {
    core: Arc<Core>,
    registry: Registry,
    service: Arc<Service>,
    epoch: u64,
    waiting: Vec<JoinHandle<Result<Slot, Refusal>>>,
    running: Vec<Slot>,
}

impl World {
    fn new() -> Self {
        let core = Arc::new(Core::new(Settings::standard(), Arc::new(Metrics::new())));
        let mut registry = Registry::new(Arc::clone(&core));
        for pool in 0..POOL_COUNT {
            let config = PoolConfig {
                port: 1,
                protocol: AppProtocol::Http1,
                // Nothing listens: only the feed makes a sandbox usable.
                probe: Probe::Feed,
                concurrency: Concurrency::Soft,
            };
            registry.upsert_pool(&mk_pool(pool), config);
        }
        let service = registry.service(&mk_service());
        Self { core, registry, service, epoch: 0, waiting: Vec::new(), running: Vec::new() }
    }

    fn switch(&mut self, pool: u8) {
        self.epoch += 1;
        let pool = mk_pool(pool).name;
        let activation = Activation { app_uid: "app".into(), epoch: self.epoch, pool };
        self.registry.activate(&mk_service(), activation);
    }

    fn sandbox(&mut self, pool: u8, sandbox: u8, phase: SandboxPhase, slots: Slots) {
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let config = SandboxConfig { id: mk_sandbox(sandbox), address, phase, slots };
        self.registry.upsert_sandbox(&mk_pool(pool), &config);
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Enter => {
                let (service, core) = (Arc::clone(&self.service), Arc::clone(&self.core));
                self.waiting.push(tokio::spawn(async move {
                    service.acquire(&core, &mut Turn::default()).await
                }));
            }
            Step::GiveUp(place) => {
                let count = self.waiting.len() + self.running.len();
                match place.checked_rem(count) {
                    None => {}
                    Some(place) if place < self.running.len() => {
                        drop(self.running.swap_remove(place));
                    }
                    Some(place) => {
                        let waiting = self.waiting.swap_remove(place - self.running.len());
                        waiting.abort();
                    }
                }
            }
            Step::Sandbox(pool, sandbox, phase, slots) => {
                self.sandbox(pool, sandbox, phase, Slots::Limited(slots));
            }
            Step::Remove(pool, sandbox) => {
                let pool = mk_pool(pool);
                self.registry.remove_sandbox(&pool.uid, &mk_sandbox(sandbox).uid);
            }
            Step::Die(place) => {
                if let Some(place) = place.checked_rem(self.running.len()) {
                    self.running.swap_remove(place).give_back_dead();
                }
            }
            Step::Switch(pool) => self.switch(pool),
            Step::Deactivate => self.registry.deactivate(&mk_service()),
            Step::Fail(pool, fails) => {
                let kind = FailureKind::Boot;
                let failure = fails.then(|| BootFailure { kind, reason: "CrashLooping".into() });
                self.registry.set_failure(&mk_pool(pool).uid, failure);
            }
        }
        self.settle().await;
    }

    /// Lets every task do what it can, and collects what came of it.
    async fn settle(&mut self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let (ended, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(JoinHandle::is_finished);
        self.waiting = waiting;
        for request in ended as Vec<_> {
            if let Ok(Ok(slot)) = request.await {
                self.running.push(slot);
            }
        }
    }

    fn check(&self) {
        let demands: Vec<_> = self.registry.pools().map(|pool| pool.demand()).collect();
        let running: u32 = demands.iter().map(|demand| demand.running).sum();
        assert_eq!(running as usize, self.running.len(), "every slot is somebody's");
        let queued: u32 = demands.iter().map(|demand| demand.queued).sum();
        assert!(queued as usize <= self.waiting.len(), "nobody waits who has gone");
        assert_eq!(self.core.metrics.queued.get(), i64::from(queued));
    }
}

fn mk_service() -> ServiceKey {
    ServiceKey { namespace: "team-a".into(), app: "shop".into(), service: "web".into() }
}

fn mk_pool(number: u8) -> PoolId {
    let name = format!("pool-{number}");
    let uid = format!("{name}-uid").into();
    PoolId { name: PoolName { namespace: "team-a".into(), name: name.into() }, uid }
}

fn mk_sandbox(number: u8) -> SandboxId {
    let name = format!("sandbox-{number}");
    SandboxId { uid: format!("{name}-uid").into(), name: name.into() }
}

fn run(steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        world.switch(0);
        for step in steps {
            world.step(step).await;
            world.check();
        }
        // Room for everyone: whoever still waits is served now, or was lost.
        world.registry.set_failure(&mk_pool(0).uid, None);
        world.switch(0);
        world.sandbox(0, 9, SandboxPhase::Ready, Slots::Unlimited);
        world.settle().await;
        assert_eq!(world.waiting.len(), 0, "nobody was lost");
        world.running.clear();
        world.check();
        world.core.stop().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_slot_leaks_and_no_waiter_is_lost(steps in vec(step(), 1..60)) {
        run(steps);
    }
}

#[test]
fn a_free_slot_costs_what_is_committed() {
    let hot = Hot {
        row: "gateway: take a free slot of 3 sandboxes and give it back",
        module: module_path!(),
        test: "a_free_slot_costs_what_is_committed",
        rounds: 1_000,
    };
    let prepare = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let mut world = World::new();
        world.switch(0);
        for sandbox in 0..SANDBOX_COUNT {
            world.sandbox(0, sandbox, SandboxPhase::Ready, Slots::Limited(10));
        }
        world
    };
    hot.check(prepare, |world, _| {
        let mut turn = Turn::default();
        let slot = world.service.acquire(&world.core, &mut turn).now_or_never();
        assert!(slot.expect("nobody else has one").is_ok());
    });
}
