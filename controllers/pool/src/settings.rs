//! The knobs of the pool controller's decisions.

use jiff::SignedDuration;

/// What the plan needs to know beside the objects. A tenant's wishes are in the pool's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Namespace of the gateways' Leases and reports.
    pub system_namespace: String,
    /// How long a marked sandbox may finish what runs on it before it is deleted regardless.
    pub drain_limit: SignedDuration,
    /// Seconds between a sandbox's deletion and its SIGTERM, for deletions that no mark
    /// announced: evictions, `kubectl delete`, a node's drain.
    pub pre_stop_seconds: i64,
}

impl Settings {
    /// The documented defaults.
    pub fn standard(system_namespace: impl Into<String>) -> Self {
        Self {
            system_namespace: system_namespace.into(),
            drain_limit: SignedDuration::from_secs(30),
            // Gateways see a deletion within milliseconds; the rest is for EndpointSlices, node
            // agents and clients that hold an address a little longer.
            pre_stop_seconds: 5,
        }
    }
}
