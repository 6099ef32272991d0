//! A real Kubernetes on this machine, for the demo, the tests and development.
//!
//! The components are built from their Go modules into one program, containerd and runc come from
//! Debian, and all of it runs in network, mount and pid namespaces of its own: the host's network,
//! mounts and services are not touched, and ending a cluster leaves nothing behind.
//!
//! Enter at [`cluster::Cluster`]. The crate knows Kubernetes and nothing of Portolan, except for
//! the images it builds ([`images`]) and the name of the ingress' Service ([`forward`]).
//!
//! Invariants:
//!
//! - A process that this crate did not start is never signalled: processes are known by pid and
//!   start time, machines by the pid namespace they are.
//! - What is made is recorded before the next thing is made, so that a run that was killed is
//!   cleaned up by the next one.

pub mod addresses;
pub mod archive;
pub mod certificates;
pub mod cgroups;
pub mod cluster;
pub mod command;
pub mod control_plane;
pub mod debian;
pub mod forward;
pub mod go;
pub mod images;
pub mod irc;
pub mod kwok;
pub mod logs;
pub mod machine;
pub mod network;
pub mod nginx;
pub mod node;
pub mod packages;
pub mod paths;
pub mod platform;
pub mod process;
pub mod progress;
pub mod state;
pub mod wait;
