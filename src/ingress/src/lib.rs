//! The gateway: route table, activator, proxy.
