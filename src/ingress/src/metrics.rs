//! What the data path counts. Labels are closed sets: never a host, an app or a path.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::error::Code;
use crate::proxy::Audience;

/// Metrics of one ingress. Children of the families are resolved once, so that counting is one
/// atomic addition.
#[derive(Debug)]
pub struct Metrics {
    requests: Family<ClassLabel, Counter>,
    by_class: [[Counter; CLASSES.len()]; LISTENERS.len()],
    errors: Family<CodeLabel, Counter>,
    by_code: Vec<Counter>,
    refused: Family<RefusalLabel, Counter>,
    stages: Family<StageLabel, Histogram, fn() -> Histogram>,
    by_stage: [Histogram; STAGES.len()],
    pub(crate) wait: Histogram,
    pub(crate) in_flight: Gauge,
    pub(crate) upgrades: Gauge,
    pub(crate) queued: Gauge,
    pub(crate) cancelled: Counter,
    pub(crate) retries: Counter,
    pub(crate) retired: Counter,
    pub(crate) slots_lent: Gauge,
    pub(crate) slots_borrowed: Gauge,
    pub(crate) slots_recalled: Counter,
    pub(crate) connections: Gauge,
    pub(crate) upstream_connections: Gauge,
    pub(crate) upstream_idle: Gauge,
    pub(crate) handshake_failures: Counter,
    /// Bytes held for clients, by which it is decided who may hold more.
    pub(crate) response_buffers: Gauge,
    pub(crate) response_buffers_max: Gauge,
    cuts: Family<CutLabel, Counter>,
    by_cut: [Counter; CUTS.len()],
    pub(crate) connections_max: Gauge,
    pub(crate) queue_limit: Gauge,
    pub(crate) routes: Gauge,
    pub(crate) services: Gauge,
    pub(crate) pools: Gauge,
    pub(crate) names: Gauge,
}

/// In the order of [`Audience`].
const LISTENERS: [&str; 2] = ["public", "internal"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// In the order of [`Cut`].
const CUTS: [&str; 4] = ["stream", "connection", "no_room", "tunnel"];
const STAGES: [&str; 5] = ["queue", "create", "schedule", "start", "connect"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    listener: &'static str,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabel {
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    reason: &'static str,
}

/// A stage of the wait of a woken request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Queue,
    Create,
    Schedule,
    Start,
    Connect,
}

/// What was cut because its client took nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A response, whose sandbox is free for others.
    Stream,
    /// A connection that held more than its share.
    Connection,
    /// A response for which there was no room.
    NoRoom,
    /// A connection that had switched protocols.
    Tunnel,
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Total,
    Client,
    ProxyHeader,
}

/// From a warm answer on loopback to the longest stream worth telling apart.
const DURATION_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

fn duration_histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

impl Metrics {
    /// All at zero, not registered yet.
    #[must_use]
    pub fn new() -> Self {
        let requests = Family::<ClassLabel, Counter>::default();
        let errors = Family::<CodeLabel, Counter>::default();
        let cuts = Family::<CutLabel, Counter>::default();
        let stages = Family::<StageLabel, Histogram, fn() -> Histogram>::new_with_constructor(
            duration_histogram,
        );
        Self {
            by_class: LISTENERS.map(|listener| {
                CLASSES.map(|class| requests.get_or_create_owned(&ClassLabel { listener, class }))
            }),
            by_code: Code::ALL
                .iter()
                .map(|code| errors.get_or_create_owned(&CodeLabel { code: code.as_str() }))
                .collect(),
            by_stage: STAGES.map(|stage| stages.get_or_create_owned(&StageLabel { stage })),
            by_cut: CUTS.map(|what| cuts.get_or_create_owned(&CutLabel { what })),
            requests,
            errors,
            cuts,
            response_buffers: Gauge::default(),
            response_buffers_max: Gauge::default(),
            refused: Family::default(),
            stages,
            wait: duration_histogram(),
            in_flight: Gauge::default(),
            upgrades: Gauge::default(),
            queued: Gauge::default(),
            cancelled: Counter::default(),
            retries: Counter::default(),
            retired: Counter::default(),
            slots_lent: Gauge::default(),
            slots_borrowed: Gauge::default(),
            slots_recalled: Counter::default(),
            connections: Gauge::default(),
            upstream_connections: Gauge::default(),
            upstream_idle: Gauge::default(),
            handshake_failures: Counter::default(),
            connections_max: Gauge::default(),
            queue_limit: Gauge::default(),
            routes: Gauge::default(),
            services: Gauge::default(),
            pools: Gauge::default(),
            names: Gauge::default(),
        }
    }

    /// Registers everything; the prefix is the root's.
    pub fn register(&self, registry: &mut Registry) {
        self.register_requests(registry);
        self.register_loans(registry);
        self.register_bounds(registry);
        self.register_buffers(registry);
    }

    fn register_buffers(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "response_buffers",
            "Held for clients that have not taken it",
            Unit::Bytes,
            self.response_buffers.clone(),
        );
        registry.register_with_unit(
            "response_buffers_max",
            "Its limit",
            Unit::Bytes,
            self.response_buffers_max.clone(),
        );
        registry.register(
            "responses_cut",
            "What was cut because its client took nothing of it",
            self.cuts.clone(),
        );
    }

    fn register_loans(&self, registry: &mut Registry) {
        registry.register("slots_lent", "Slots lent to other gateways", self.slots_lent.clone());
        registry.register(
            "slots_borrowed",
            "Slots borrowed from other gateways",
            self.slots_borrowed.clone(),
        );
        registry.register(
            "slots_recalled",
            "Lent slots that were called back",
            self.slots_recalled.clone(),
        );
    }

    fn register_requests(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests answered, by listener and status class",
            self.requests.clone(),
        );
        registry.register("errors", "Answers of the gateway itself, by code", self.errors.clone());
        registry.register_with_unit(
            "wait",
            "Time requests waited for a slot, if it was not free",
            Unit::Seconds,
            self.wait.clone(),
        );
        registry.register_with_unit(
            "wait_stage",
            "What waiting requests waited for",
            Unit::Seconds,
            self.stages.clone(),
        );
        registry.register("requests_in_flight", "Requests being handled", self.in_flight.clone());
        registry.register("upgrades", "Upgraded connections open", self.upgrades.clone());
        registry.register("requests_queued", "Requests waiting for a slot", self.queued.clone());
        registry.register(
            "requests_cancelled",
            "Requests whose client went away before the response began",
            self.cancelled.clone(),
        );
        registry.register("retries", "Requests sent to a second sandbox", self.retries.clone());
        registry.register("retired", "Sandboxes retired under Strict", self.retired.clone());
    }

    fn register_bounds(&self, registry: &mut Registry) {
        registry.register("connections", "Connections from outside", self.connections.clone());
        registry.register("connections_max", "Their limit", self.connections_max.clone());
        registry.register(
            "connections_refused",
            "Connections from outside that were closed at once, by reason",
            self.refused.clone(),
        );
        registry.register(
            "handshake_failures",
            "Connections that did not complete their TLS handshake",
            self.handshake_failures.clone(),
        );
        registry.register(
            "upstream_connections",
            "Connections to sandboxes",
            self.upstream_connections.clone(),
        );
        registry.register(
            "upstream_connections_idle",
            "Connections to sandboxes that wait for a request",
            self.upstream_idle.clone(),
        );
        registry.register(
            "queue_limit",
            "Requests that may wait for one service",
            self.queue_limit.clone(),
        );
        registry.register("routes", "Routes known", self.routes.clone());
        registry.register("services", "Services known", self.services.clone());
        registry.register("pools", "Pools known", self.pools.clone());
        registry.register("names", "Names of services inside the cluster", self.names.clone());
    }

    pub(crate) fn answered(&self, audience: Audience, status: http::StatusCode) {
        // 100..=999 is what the type allows; everything from 600 on counts as an error.
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.by_class[audience as usize][class - 1].inc();
    }

    pub(crate) fn failed(&self, code: Code) {
        self.by_code[code as usize].inc();
    }

    pub(crate) fn refused(&self, reason: Refused) {
        let reason = match reason {
            Refused::Total => "total",
            Refused::Client => "client",
            Refused::ProxyHeader => "proxy_header",
        };
        self.refused.get_or_create(&RefusalLabel { reason }).inc();
    }

    pub(crate) fn cut(&self, what: Cut) {
        self.by_cut[what as usize].inc();
    }

    pub(crate) fn waited(&self, stage: Stage, time: Duration) {
        self.by_stage[stage as usize].observe(time.as_secs_f64());
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
