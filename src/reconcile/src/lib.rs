//! The controller framework: driver, apply, status, events, leases, metrics.
