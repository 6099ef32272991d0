//! The service controller: the address, the node ports and the endpoints of `AppService`s.

mod ports;

pub use ports::{NodePort, ParsePortsError, PortPolicy, PortRanges};
