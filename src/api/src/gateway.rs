//! Which gateways are alive: each holds a Lease of its own in the system namespace.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;

/// A gateway, as its Lease tells. Its name is that of its Pod, its Lease and its reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Name of the gateway.
    pub name: String,
    /// When its Lease lapses unless it is renewed. From then on its reports are not demand, and
    /// nobody waits for it.
    pub lapses: Timestamp,
}

impl Gateway {
    /// Label selector of the Leases of gateways.
    pub const SELECTOR: &str =
        "app.kubernetes.io/managed-by=portolan,app.kubernetes.io/component=gateway";

    /// The gateway that holds this Lease; `None` for a Lease that nobody has renewed yet.
    pub fn of(lease: Lease) -> Option<Self> {
        let spec = lease.spec?;
        let duration = SignedDuration::from_secs(spec.lease_duration_seconds?.into());
        let lapses = spec.renew_time?.0.checked_add(duration).ok()?;
        Some(Self { name: lease.metadata.name?, lapses })
    }

    /// Whether the gateway is alive at `now`.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.lapses > now
    }
}
