//! What the agent counts. Labels are closed sets, never a name.

use std::sync::atomic::AtomicU64;

use portolan_nft::{Change, ForwardError};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::index::Sizes;

/// The agent's metrics. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) commits: Counter,
    added: Counter,
    deleted: Counter,
    replaced: Counter,
    pub(crate) resyncs: Counter,
    errors: Family<ErrorLabel, Counter>,
    pub(crate) unended: Counter,
    services: Gauge,
    sandboxes: Gauge,
    crowded: Gauge,
    pub(crate) verified: Counter,
    pub(crate) elements: Gauge,
    pub(crate) latency: Histogram,
    pub(crate) first: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    reason: &'static str,
}

/// From one commit of one element to a node that cannot keep up.
const LATENCY_BUCKETS: [f64; 12] =
    [0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0];

impl Metrics {
    /// Registers all of it under the prefix `node`; call once per registry.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("node");
        let metrics = Self {
            commits: Counter::default(),
            added: Counter::default(),
            deleted: Counter::default(),
            replaced: Counter::default(),
            resyncs: Counter::default(),
            errors: Family::default(),
            unended: Counter::default(),
            services: Gauge::default(),
            sandboxes: Gauge::default(),
            crowded: Gauge::default(),
            verified: Counter::default(),
            elements: Gauge::default(),
            latency: Histogram::new(LATENCY_BUCKETS),
            first: Gauge::default(),
        };
        registry.register("commits", "Batches committed to nf_tables", metrics.commits.clone());
        let help = "Elements added to the table";
        registry.register("elements_added", help, metrics.added.clone());
        let help = "Elements deleted from the table";
        registry.register("elements_deleted", help, metrics.deleted.clone());
        let help = "Times the whole table was made anew";
        registry.register("tables_replaced", help, metrics.replaced.clone());
        let help = "Times the table was not what it was thought to be, and was read";
        registry.register("resyncs", help, metrics.resyncs.clone());
        let help = "Rounds that ended without the desired state in the kernel";
        registry.register("errors", help, metrics.errors.clone());
        let help = "Times that connections which lead nowhere any more could not be ended";
        registry.register("conntrack_errors", help, metrics.unended.clone());
        let help = "Times the table was read to be compared";
        registry.register("verifications", help, metrics.verified.clone());
        registry.register("elements", "Elements in the table", metrics.elements.clone());
        let help = "AppServices and internal names";
        registry.register("services", help, metrics.services.clone());
        let help = "Addresses of sandboxes in EndpointSlices";
        registry.register("sandboxes", help, metrics.sandboxes.clone());
        let help = "Ports with more sandboxes of one family than a node can lead to";
        registry.register("crowded_ports", help, metrics.crowded.clone());
        let help = "From the first change of a round as the watch gave it to its commit";
        let latency = metrics.latency.clone();
        registry.register_with_unit("event_to_kernel", help, Unit::Seconds, latency);
        let help = "How long the first programming took";
        registry.register_with_unit(
            "first_programming",
            help,
            Unit::Seconds,
            metrics.first.clone(),
        );
        metrics
    }

    pub(crate) fn count(&self, change: &Change) {
        let Change { commits, added, deleted, replaced, resyncs } = *change;
        self.commits.inc_by(commits as u64);
        self.added.inc_by(added as u64);
        self.deleted.inc_by(deleted as u64);
        self.replaced.inc_by(replaced.into());
        self.resyncs.inc_by(resyncs as u64);
    }

    /// Takes in how much there is, and returns whether more ports are crowded than before.
    pub(crate) fn size(&self, sizes: Sizes) -> bool {
        let Sizes { services, sandboxes, crowded } = sizes;
        let crowded = i64::try_from(crowded).unwrap_or(i64::MAX);
        self.services.set(i64::try_from(services).unwrap_or(i64::MAX));
        self.sandboxes.set(i64::try_from(sandboxes).unwrap_or(i64::MAX));
        self.crowded.set(crowded) < crowded
    }

    pub(crate) fn fail(&self, error: &ForwardError) {
        let reason = match error {
            ForwardError::Foreign(_) => "Foreign",
            ForwardError::Kernel(error) => error.category(),
        };
        self.errors.get_or_create_owned(&ErrorLabel { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use portolan_nft::Error;

    use super::*;

    /// All of them, each moved to a value of its own; what is scraped then.
    fn moved() -> String {
        let page = portolan_process::Metrics::new("portolan");
        let metrics = page.register(Metrics::register);
        let change = Change { commits: 1, added: 2, deleted: 3, replaced: true, resyncs: 4 };
        // Counters count on.
        metrics.count(&change);
        metrics.count(&change);
        metrics.count(&Change { replaced: false, ..change });
        metrics.fail(&ForwardError::Foreign(None));
        metrics.fail(&Error::Unknown.into());
        metrics.fail(&Error::Unknown.into());
        metrics.unended.inc();
        metrics.verified.inc_by(5);
        metrics.elements.set(6);
        metrics.size(Sizes { services: 7, sandboxes: 8, crowded: 9 });
        metrics.latency.observe(0.25);
        metrics.first.set(0.5);
        page.encode()
    }

    #[test]
    fn each_says_what_was_done_and_how_much_there_is() {
        let page = moved();
        for sample in [
            "commits_total 3",
            "elements_added_total 6",
            "elements_deleted_total 9",
            "tables_replaced_total 2",
            "resyncs_total 12",
            "errors_total{reason=\"Foreign\"} 1",
            "errors_total{reason=\"Unknown\"} 2",
            "conntrack_errors_total 1",
            "verifications_total 5",
            "elements 6",
            "services 7",
            "sandboxes 8",
            "crowded_ports 9",
            "event_to_kernel_seconds_sum 0.25",
            "event_to_kernel_seconds_bucket{le=\"0.1\"} 0",
            "event_to_kernel_seconds_bucket{le=\"0.5\"} 1",
            "first_programming_seconds 0.5",
        ] {
            let line = format!("\nportolan_node_{sample}\n");
            assert!(page.contains(&line), "{sample} is not in {page}");
        }
    }

    #[test]
    fn those_that_are_worth_an_alert_are_there_under_the_names_of_the_pages() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let text = std::fs::read_to_string(path).expect("the page for operators");
        let named: Vec<_> =
            text.split('`').filter(|word| word.starts_with("portolan_node_")).collect();
        assert!(named.len() >= 5, "they are found: {named:?}");
        let page = moved();
        for name in named {
            assert!(page.contains(&format!("\n{name}")), "{name} is not in {page}");
        }
    }

    #[test]
    fn that_more_ports_are_crowded_is_news_once() {
        let metrics = Metrics::register(&mut Registry::default());
        let news =
            [0, 1, 1, 3, 2, 3].map(|crowded| metrics.size(Sizes { crowded, ..Sizes::default() }));
        assert_eq!(news, [false, true, false, true, false, true]);
    }
}
