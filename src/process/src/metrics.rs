//! The process's metric registry, shared by everything that registers or prints.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::{encoding::text, registry::Registry};

/// A shared registry of metrics.
///
/// Cheap to clone; all clones are the same registry. Components keep their metrics in a struct of
/// their own and register it once, at start; the registry's lock is never taken to count.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// An empty registry; every metric's name begins with `prefix` and an underscore.
    pub fn new(prefix: &str) -> Self {
        Self { registry: Arc::new(Mutex::new(Registry::with_prefix(prefix))) }
    }

    /// Lets a component register its metrics, and returns what it returns.
    pub fn register<T>(&self, component: impl FnOnce(&mut Registry) -> T) -> T {
        component(&mut self.lock())
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.lock()).expect("writing to a string never fails");
        page
    }

    /// A component that panicked while registering leaves a registry that is still well formed.
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn what_a_component_counts_is_printed_under_the_prefix() {
        let metrics = Metrics::new("portolan");
        let passes = metrics.register(|registry| {
            let passes = Counter::<u64>::default();
            registry.register("passes", "Passes ended", passes.clone());
            passes
        });
        passes.inc();
        assert_eq!(
            metrics.clone().encode(),
            "# HELP portolan_passes Passes ended.\n\
             # TYPE portolan_passes counter\n\
             portolan_passes_total 1\n\
             # EOF\n"
        );
    }
}
