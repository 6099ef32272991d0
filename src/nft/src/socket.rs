//! A netlink socket to netfilter.
//!
//! The kernel handles what is sent before `send` returns, and its answers are then in the
//! socket's queue: so nothing here waits.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::wire::{self, Complaint, DONE, Message};

/// A netlink socket to netfilter, in the network namespace of the thread that opened it.
pub(crate) struct Link {
    socket: Socket,
    port: u32,
    sequence: u32,
    /// The largest datagram that may be sent.
    send_size: usize,
}

/// Room for answers: some thousands of errors, or a few pieces of a dump.
const RECEIVE_SIZE: usize = 4 << 20;
/// The largest datagram that the kernel makes: it splits dumps at 32 KiB, and events are smaller.
pub(crate) const DATAGRAM: usize = 64 << 10;
/// What the kernel takes of the send buffer for itself.
const OVERHEAD: usize = 4096;

impl Link {
    /// Opens a socket.
    ///
    /// # Errors
    /// Without the privilege over the namespace's network, or without netfilter in the kernel.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Otherwise an error echoes the message, and a message may be as large as a batch.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_SIZE)?;
        Ok(Self { socket, port, sequence: 1, send_size: 0 })
    }

    /// How the kernel names this socket in messages about what it did.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The number for the next message.
    pub(crate) fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Numbers up to here are used.
    pub(crate) fn advance(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    #[cfg(test)]
    pub(crate) fn shrink_receive_buffer(&self) {
        setsockopt(&self.socket, sockopt::RcvBufForce, &1).expect("a socket option");
    }

    /// Sends one datagram, however large.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() + OVERHEAD;
        if size > self.send_size {
            setsockopt(&self.socket, sockopt::SndBufForce, &size)?;
            self.send_size = size;
        }
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Puts one datagram of those that the kernel has ready into `buffer`; false if it has none.
    pub(crate) fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            buffer.clear();
            match self.socket.recv(buffer, 0) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request and hands each message of the answer to `each`, without the end of a dump.
    ///
    /// Gives what the kernel complained of, if it did, and whether a dump was interrupted.
    pub(crate) fn ask(
        &mut self,
        request: &Request<'_>,
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<Result<Answer, Complaint>> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let flags = if request.dump { NLM_F_DUMP } else { 0 };
        let Request { kind, family, texts, .. } = *request;
        self.send(&wire::request(kind, flags, sequence, family, texts))?;
        let mut interrupted = false;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        while self.receive(&mut buffer)? {
            for message in wire::messages(&buffer).filter(|message| message.sequence == sequence) {
                interrupted |= message.interrupted;
                if let Some(complaint) = message.complaint() {
                    return Ok(Err(complaint));
                }
                if message.kind == DONE {
                    return Ok(Ok(Answer { interrupted }));
                }
                each(&message);
            }
        }
        if request.dump { Err(Errno::EPROTO.into()) } else { Ok(Ok(Answer { interrupted })) }
    }
}

/// What to ask for.
pub(crate) struct Request<'a> {
    /// Subsystem and kind.
    pub(crate) kind: u16,
    /// Of the table.
    pub(crate) family: u8,
    /// Whether all objects are asked for, rather than one.
    pub(crate) dump: bool,
    /// Attributes.
    pub(crate) texts: &'a [(u16, &'a str)],
}

/// How a request ended.
pub(crate) struct Answer {
    /// Whether what was dumped changed meanwhile.
    pub(crate) interrupted: bool,
}
