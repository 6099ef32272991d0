//! Addresses, node ports and endpoints of AppServices, on the real API server: races, takeovers,
//! foreign objects, and crashes.
//!
//! The service controller runs inside the test, so that a test can stop it, count its writes and
//! crash it. Sandboxes are Pods that no node ever runs: the test writes their status itself, as a
//! kubelet would. What the kernel makes of all this is tested elsewhere.

mod addresses;
mod admission;
mod crashes;
mod endpoints;
mod internal;
mod ports;
mod races;
mod stage;
