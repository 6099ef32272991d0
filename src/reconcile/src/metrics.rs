//! What the framework counts. Labels are closed sets: the controllers of this process, verbs,
//! results and error categories; never a name or anything a tenant chose.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ControllerLabel {
    /// Its name, such as `app`.
    pub controller: &'static str,
}

/// One controller and a word from a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PassLabel {
    /// Its name, such as `app`.
    pub controller: &'static str,
    /// `settled`, `requeued` or an error's category.
    pub result: &'static str,
}

/// One controller and what it did to the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabel {
    /// Its name, such as `app`.
    pub controller: &'static str,
    /// `apply`, `apply_status`, `apply_fields`, `create`, `delete`, `scale` or `event`.
    pub verb: &'static str,
}

/// One controller and a kind that it watches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WatchLabel {
    /// Its name, such as `app`.
    pub controller: &'static str,
    /// The watched kind, such as `Pod`.
    pub kind: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// 1 ms to 65 s: a pass that only reads caches takes microseconds, one that writes milliseconds.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 9))
}

/// The framework's metrics; one per process, shared by its controllers.
#[derive(Clone, Debug)]
pub struct ReconcileMetrics {
    /// Passes by result.
    pub passes: Family<PassLabel, Counter>,
    /// Seconds a pass took.
    pub pass_seconds: Histograms<ControllerLabel>,
    /// Writes sent to the API server, whatever came of them.
    pub writes: Family<WriteLabel, Counter>,
    /// Watches that broke and were begun again.
    pub watch_errors: Family<WatchLabel, Counter>,
    /// Complete lists: one at the start, and one for each interruption that cannot be resumed.
    pub watch_lists: Family<WatchLabel, Counter>,
    /// Whether a watch is interrupted, so that its cache may be stale, 0 or 1.
    pub watch_interrupted: Family<WatchLabel, Gauge>,
    /// Objects that could not be understood and were skipped.
    pub malformed_objects: Family<WatchLabel, Counter>,
    /// Objects in caches.
    pub cached_objects: Family<WatchLabel, Gauge>,
    /// Whether this process leads, 0 or 1.
    pub leading: Family<ControllerLabel, Gauge>,
    /// Events that were dropped because too many waited or the API server refused them.
    pub events_dropped: Family<ControllerLabel, Counter>,
    queue: QueueFamilies,
}

impl ReconcileMetrics {
    /// Registers all of it under the prefix `reconcile`; call once per registry.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("reconcile");
        let metrics = Self {
            passes: Family::default(),
            pass_seconds: Family::new_with_constructor(seconds),
            writes: Family::default(),
            watch_errors: Family::default(),
            watch_lists: Family::default(),
            watch_interrupted: Family::default(),
            malformed_objects: Family::default(),
            cached_objects: Family::default(),
            leading: Family::default(),
            events_dropped: Family::default(),
            queue: QueueFamilies::register(registry),
        };
        registry.register("passes", "Passes by result", metrics.passes.clone());
        let help = "Seconds a pass took";
        registry.register("pass_seconds", help, metrics.pass_seconds.clone());
        let help = "Writes sent to the API server";
        registry.register("api_writes", help, metrics.writes.clone());
        let help = "Watches that broke and were begun again";
        registry.register("watch_errors", help, metrics.watch_errors.clone());
        registry.register("watch_lists", "Complete lists", metrics.watch_lists.clone());
        let help = "Whether a watch is interrupted, so that its cache may be stale";
        registry.register("watch_interrupted", help, metrics.watch_interrupted.clone());
        let help = "Objects that could not be understood and were skipped";
        registry.register("malformed_objects", help, metrics.malformed_objects.clone());
        let help = "Objects in caches";
        registry.register("cached_objects", help, metrics.cached_objects.clone());
        registry.register("leading", "Whether this process leads", metrics.leading.clone());
        let help = "Events that were not published";
        registry.register("events_dropped", help, metrics.events_dropped.clone());
        metrics
    }

    /// How many writes a controller has sent, over all verbs; what a test of idempotence asks.
    pub fn writes_of(&self, controller: &'static str) -> u64 {
        let verbs = WRITE_VERBS.iter().copied();
        verbs.map(|verb| self.writes.get_or_create(&WriteLabel { controller, verb }).get()).sum()
    }

    pub(crate) fn queue(&self, controller: &'static str) -> QueueMetrics {
        let label = ControllerLabel { controller };
        QueueMetrics {
            depth: self.queue.depth.get_or_create_owned(&label),
            scheduled: self.queue.scheduled.get_or_create_owned(&label),
            capacity: self.queue.capacity.get_or_create_owned(&label),
            refused: self.queue.refused.get_or_create_owned(&label),
            wait: self.queue.wait.get_or_create_owned(&label),
        }
    }
}

/// Every verb that [`ReconcileMetrics::writes`] counts for objects; Events are not among them.
const WRITE_VERBS: [&str; 7] =
    ["apply", "apply_status", "apply_fields", "create", "replace", "delete", "scale"];

#[derive(Clone, Debug)]
struct QueueFamilies {
    depth: Family<ControllerLabel, Gauge>,
    scheduled: Family<ControllerLabel, Gauge>,
    capacity: Family<ControllerLabel, Gauge>,
    refused: Family<ControllerLabel, Counter>,
    wait: Histograms<ControllerLabel>,
}

impl QueueFamilies {
    fn register(registry: &mut Registry) -> Self {
        let families = Self {
            depth: Family::default(),
            scheduled: Family::default(),
            capacity: Family::default(),
            refused: Family::default(),
            wait: Family::new_with_constructor(seconds),
        };
        registry.register("queue_depth", "Keys ready for a worker", families.depth.clone());
        registry.register("queue_scheduled", "Keys due later", families.scheduled.clone());
        registry.register("queue_capacity", "Keys a queue may hold", families.capacity.clone());
        let help = "Keys refused by a full queue; a full pass follows";
        registry.register("queue_refused", help, families.refused.clone());
        let help = "Seconds a ready key waited for a worker";
        registry.register("queue_wait_seconds", help, families.wait.clone());
        families
    }
}

/// The metrics of one queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueMetrics {
    pub(crate) depth: Gauge,
    pub(crate) scheduled: Gauge,
    pub(crate) capacity: Gauge,
    pub(crate) refused: Counter,
    pub(crate) wait: Histogram,
}
