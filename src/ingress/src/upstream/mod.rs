//! Connections to one sandbox.

use std::net::SocketAddr;

use crate::model::AppProtocol;

/// One sandbox's port.
#[derive(Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    protocol: AppProtocol,
}

impl Upstream {
    pub(crate) const fn new(address: SocketAddr, protocol: AppProtocol) -> Self {
        Self { address, protocol }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) const fn protocol(&self) -> AppProtocol {
        self.protocol
    }
}
