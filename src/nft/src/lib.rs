//! What a node forwards, in its kernel.
//!
//! A [`Ruleset`] says which virtual addresses and node ports lead to which endpoints. [`Table`]
//! holds it together with what the kernel has and gives the difference as a [`Transaction`];
//! [`Kernel`] does it, in atomic batches over netlink; [`Forwarder`] is the two together and
//! recovers from whatever goes wrong. [`Conntrack`] ends connections whose endpoint is gone,
//! and [`Monitor`] tells when others change the table.
//!
//! It knows nothing of Kubernetes, of Apps, of where endpoints come from, and of time.
//!
//! # Invariants
//!
//! - One table, one owner: it is recognised by its comment, and nothing else in the kernel is
//!   read or changed.
//! - All state is in elements of sets and maps; chains and rules are the same on every node.
//! - What is new is reachable before what is old is taken away.
//! - A flush after a flush does nothing.
//! - The table stays when this program ends.

mod conntrack;
mod decode;
mod element;
mod elements;
mod ffi;
mod forwarder;
mod kernel;
mod layout;
mod monitor;
mod slots;
mod socket;
mod table;
mod transaction;
mod value;
mod wire;

pub use conntrack::{Conntrack, ConntrackError, Unended};
pub use element::{Bytes, Data, Element, Key, Owner, Set};
pub use forwarder::{Change, ForwardError, Forwarder};
pub use kernel::{Error, Features, Found, Kernel, TABLE};
pub use monitor::Monitor;
pub use slots::{Class, ENDPOINTS_MAX, Target};
pub use table::Table;
pub use transaction::{Batch, Elements, Transaction};
pub use value::{
    Affinity, Backends, Endpoint, Endpoints, Family, Flows, Former, NodePort, Protocol, Range,
    Ruleset, ServicePort,
};
