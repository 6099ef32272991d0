//! How much of everything.

use std::time::Duration;

/// How often and how long things are done.
#[derive(Clone, Debug)]
pub struct Extent {
    /// Requests per second.
    pub rate: u32,
    /// WebSockets and event streams that are held open.
    pub streams: usize,
    /// Rollouts, every other one a rollback.
    pub rollouts: u32,
    /// How long a version that never becomes ready is given.
    pub never_ready: Duration,
    /// Sandboxes that are deleted.
    pub sandboxes: u32,
    /// Restarts of the gateways' Deployment.
    pub restarts: u32,
    /// Gateways that are killed. Each but the first rests longer before it comes back.
    pub kills: u32,
    /// How soon others answer in the place of a gateway that was killed. It takes a kubelet that
    /// looks once a second, and a kube-proxy; where tests run, both have little of a processor.
    pub hand_over: Duration,
    /// How long others may count on a gateway that was killed. Its Lease would lapse after 15 s.
    pub given_up: Duration,
    /// How soon the kubelet has a killed gateway listen again. While the API server is away nobody
    /// can tell kube-proxy to send visitors elsewhere meanwhile.
    pub restart: Duration,
    /// How long the controllers are killed again and again.
    pub controllers: Duration,
    /// How long the API server is away.
    pub outage: Duration,
    /// Apps that are woken at once.
    pub wakes: u32,
    /// How long strict and soft limits are tried, for each thing that happens meanwhile.
    pub limits: Duration,
    /// How often each kind of attack has its turn.
    pub passes: u32,
    /// How long a turn is.
    pub attack: Duration,
}

impl Extent {
    /// The long form, which is what is promised.
    pub const LONG: Self = Self {
        rate: 200,
        streams: 200,
        rollouts: 50,
        never_ready: Duration::from_secs(60),
        sandboxes: 50,
        restarts: 20,
        kills: 4,
        hand_over: Duration::from_secs(1),
        given_up: Duration::from_secs(5),
        restart: Duration::from_secs(3),
        controllers: Duration::from_secs(300),
        outage: Duration::from_secs(300),
        wakes: 100,
        limits: Duration::from_secs(60),
        passes: 4,
        attack: Duration::from_secs(5),
    };
    /// The short form, which every test run can afford.
    pub const SHORT: Self = Self {
        rate: 200,
        streams: 40,
        rollouts: 2,
        never_ready: Duration::from_secs(5),
        sandboxes: 2,
        restarts: 1,
        kills: 2,
        hand_over: Duration::from_secs(5),
        given_up: Duration::from_secs(12),
        restart: Duration::from_secs(10),
        controllers: Duration::from_secs(10),
        outage: Duration::from_secs(10),
        wakes: 5,
        limits: Duration::from_secs(5),
        // Each kind at more length, and what becomes of it: the test `hostile`.
        passes: 1,
        attack: Duration::from_secs(1),
    };
}
