//! What is done to a cluster while visitors ask, and what they notice of it.
//!
//! Each [`Scenario`] does one thing that operators and failures do to a cluster: rollouts, killed
//! sandboxes, restarted gateways, an API server that is away. Meanwhile visitors ask at a steady
//! pace over HTTP/1.1 and HTTP/2 ([`load`]), and others hold WebSockets and event streams open
//! ([`streams`]). It knows nothing of how Portolan does it: what counts is what they see.
//!
//! Entry points: [`Scene::set`], [`play`]. The long form is `make soak`; the short form
//! is a test.

mod astray;
pub mod concurrency;
mod extent;
mod get;
pub mod inside;
pub mod load;
mod report;
mod scenarios;
mod scene;
pub mod streams;

pub use extent::Extent;
pub use report::{Outcome, Report, table};
pub use scenarios::{Scenario, play};
pub use scene::Scene;
