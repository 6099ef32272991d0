//! How old what the gateway goes by may be.

use std::fmt;

use jiff::Timestamp;
use portolan_reconcile::{Cache, Watched};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Since when one cache may be behind: `None` while it is not, else `start` at the earliest.
type Since = Box<dyn Fn(Timestamp) -> Option<Timestamp> + Send + Sync>;

/// The age of the oldest cache, for whoever scrapes it: zero while every watch is unbroken.
pub(crate) struct Staleness {
    caches: Vec<Since>,
    /// What the caches began with was true then.
    start: Timestamp,
}

impl Staleness {
    pub(crate) fn new(start: Timestamp) -> Self {
        Self { caches: Vec::new(), start }
    }

    pub(crate) fn add<K: Watched, T: Send + Sync + 'static>(&mut self, cache: &Cache<K, T>) {
        let cache = cache.clone();
        self.caches.push(Box::new(move |start| match cache.unbroken_since() {
            Some(_) => None,
            None => Some(cache.interrupted_since().unwrap_or(start)),
        }));
    }

    fn seconds(&self, now: Timestamp) -> f64 {
        let oldest = self.caches.iter().filter_map(|since| since(self.start)).min();
        oldest.map_or(0.0, |since| now.duration_since(since).as_secs_f64().max(0.0))
    }
}

impl Collector for Staleness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let age = ConstGauge::new(self.seconds(Timestamp::now()));
        let help = "Age of what the gateway goes by, 0 while every watch is unbroken";
        let metric = encoder.encode_descriptor(
            "cache_stale",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        age.encode(metric)
    }
}

impl fmt::Debug for Staleness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staleness").field("start", &self.start).finish_non_exhaustive()
    }
}
