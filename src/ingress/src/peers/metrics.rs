//! What is counted of links. No labels: a gateway's name is no closed set.

use std::sync::Arc;

use portolan_process::ErrorChain;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::peers::Broken;

/// Metrics of the links of one gateway.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Gateways that live and can be reached.
    pub(crate) known: Gauge,
    links: Gauge,
    broken: Counter,
    violations: Counter,
    pub(crate) failed: Counter,
    pub(crate) refused: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("peer");
        registry.register(
            "known",
            "Other gateways that live and can be reached",
            self.known.clone(),
        );
        registry.register("links", "Links to other gateways", self.links.clone());
        registry.register("links_broken", "Links that broke", self.broken.clone());
        registry.register(
            "violations",
            "Links ended because the other gateway broke the protocol",
            self.violations.clone(),
        );
        registry.register("dials_failed", "Links that did not come about", self.failed.clone());
        registry.register(
            "connections_refused",
            "Connections to the port for gateways that were none",
            self.refused.clone(),
        );
    }

    #[cfg(test)]
    pub(crate) fn violations(&self) -> u64 {
        self.violations.get()
    }

    /// Attempts that failed and links that broke.
    #[cfg(test)]
    pub(crate) fn failures(&self) -> u64 {
        self.failed.get() + self.broken.get()
    }

    /// Counts a link as long as the guard is held.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.links.inc();
        Open(Arc::clone(self))
    }

    pub(crate) fn broke(&self, peer: &str, broken: &Broken) {
        match broken {
            Broken::Replaced | Broken::Disowned => {
                tracing::debug!(peer, reason = %broken, "Link ended");
            }
            Broken::Closed | Broken::Connection(_) => {
                self.broken.inc();
                tracing::info!(peer, reason = %ErrorChain(broken), "Link broken");
            }
            Broken::Violation(_) => {
                self.broken.inc();
                self.violations.inc();
                tracing::warn!(peer, reason = %broken, "Another gateway broke the protocol");
            }
        }
    }
}

pub(crate) struct Open(Arc<Metrics>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.links.dec();
    }
}
