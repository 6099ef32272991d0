//! Who holds a host, on the real API server: races, takeovers, Domains, and crashes.
//!
//! The route controller runs inside the test, so that a test can stop it, count its writes and
//! crash it. All hosts of a test lie under a name of its own; Claims and Domains belong to the
//! whole cluster.

mod crashes;
mod domains;
mod hosts;
mod stage;
mod status;
