//! Tells when others change the table.
//!
//! Where the kernel knows owners of tables nobody can, and nothing needs to listen: a listener
//! costs the kernel a message for each element of each commit, ours too.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nftnl::nftnl_sys::libc;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::kernel::TABLE;
use crate::socket::DATAGRAM;
use crate::wire;

/// Listens to what happens to nf_tables, in the namespace of the thread that opened it.
pub struct Monitor {
    socket: TokioSocket,
    own: u32,
    buffer: Vec<u8>,
}

/// Room for events: some ten thousand elements. What does not fit is noticed as lost.
const RECEIVE_SIZE: usize = 16 << 20;
/// Messages of nf_tables have this above their kind.
const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
/// The attribute that has the table's name, whatever the message is about.
const TABLE_NAME: u16 = 1;

impl Monitor {
    /// Listens, but for what the socket of this number does: that of [`crate::Kernel::port`].
    ///
    /// # Errors
    /// Without the privilege, or outside of a runtime.
    pub fn open(own: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_SIZE)?;
        let group = u32::try_from(libc::NFNLGRP_NFTABLES).expect("a small number");
        socket.socket_ref().add_membership(group)?;
        Ok(Self { socket, own, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Waits until another changes the table, or may have: after this, read it.
    ///
    /// # Errors
    /// If the socket fails.
    ///
    /// # Cancel safety
    /// Cancel safe: an event that was not returned was not another's.
    pub async fn foreign_change(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer).await {
                Ok(()) => {
                    let mut messages = wire::messages(&self.buffer);
                    if messages.any(|message| is_foreign(&message, self.own)) {
                        return Ok(());
                    }
                }
                // Events were lost, another's perhaps.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a message tells of a change to our table by another than us.
fn is_foreign(message: &wire::Message<'_>, own: u32) -> bool {
    message.kind & 0xff00 == SUBSYSTEM
        && message.port != own
        && wire::text(message.body(), TABLE_NAME) == Some(TABLE)
}
