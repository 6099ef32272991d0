//! The kernel's connection tracking, of which entries are ended whose endpoint is gone.
//!
//! A connection is led where its first packet was led, for as long as packets come: TCP ends
//! with its sandbox, but a sender of UDP would go on for ever. Nothing here ever ends all
//! entries: each request names an address.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NetlinkBuffer};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, IPTuple, ProtoTuple, Protocol as Transport, Tuple,
};
use nftnl::nftnl_sys::libc;
use nix::errno::Errno;

use crate::layout::number;
use crate::socket::{DATAGRAM, Link, Request};
use crate::value::{Family, Flows, Former, NodePort, Protocol, Ruleset, ServicePort};
use crate::wire;

/// The kernel's connection tracking, in the network namespace of the thread that opened it.
pub struct Conntrack {
    link: Link,
    filters: bool,
}

/// Why entries were not ended.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The socket failed.
    #[error("talk to connection tracking")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("connection tracking refuses to {0}")]
    Refused(&'static str, #[source] io::Error),
}

/// Some connections were not ended; the others were.
#[derive(Debug, thiserror::Error)]
#[error("end {} kinds of connections", .left.len())]
pub struct Unended {
    /// Those that are to be tried again. Some of their connections may have been ended.
    pub left: BTreeSet<Flows>,
    /// What went wrong first.
    #[source]
    pub first: ConntrackError,
}

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// Attributes of an entry.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Attributes of a filter, and its bits.
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const SOURCE: u32 = 1 << 0;
const DESTINATION: u32 = 1 << 1;
const PROTOCOL: u32 = 1 << 3;
const SOURCE_PORT: u32 = 1 << 4;
const DESTINATION_PORT: u32 = 1 << 5;
/// The kernel looks through its whole table for each filter: beyond a few, one reading is less.
const FILTERS_MAX: usize = 8;

/// What is known of one direction of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Direction {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
}

/// An entry of a dump.
struct Entry {
    original: Direction,
    reply: Direction,
    /// What names it, as the kernel wrote it.
    name: Vec<u8>,
}

// === impl Conntrack ===

impl Conntrack {
    /// Opens the socket and finds out whether this kernel can end entries by a filter (Linux
    /// 6.11); without, entries are read and ended one by one.
    ///
    /// # Errors
    /// Without the privilege, or without connection tracking.
    pub fn open() -> Result<Self, ConntrackError> {
        let link = Link::open().map_err(ConntrackError::Socket)?;
        let mut conntrack = Self { link, filters: true };
        // An address for documentation: nobody has it. A kernel that does not know the filter
        // misses most of the name of an entry.
        let nobody = Flows::Led {
            front: SocketAddr::from(([192, 0, 2, 255], 9)),
            protocol: Protocol::Udp,
            endpoint: SocketAddr::from(([192, 0, 2, 254], 9)),
        };
        conntrack.filters = match conntrack.end_filtered(&nobody) {
            Ok(()) => true,
            Err(ConntrackError::Refused(..)) => false,
            Err(error) => return Err(error),
        };
        Ok(conntrack)
    }

    /// Whether this kernel can end entries by a filter.
    pub fn filters(&self) -> bool {
        self.filters
    }

    /// The same, without using filters even if they are there.
    pub fn without_filters(mut self) -> Self {
        self.filters = false;
        self
    }

    /// Ends connections. Their next packet is led as if it were their first. What cannot be ended
    /// keeps nothing else from being ended.
    ///
    /// # Errors
    /// [`Unended`] with what is left to be tried again.
    pub fn end(&mut self, flows: &BTreeSet<Flows>) -> Result<(), Unended> {
        let (mut left, mut first) = (BTreeSet::new(), None);
        for family in Family::ALL {
            let of_family: BTreeSet<Flows> =
                flows.iter().copied().filter(|flows| family_of(flows) == family).collect();
            // For IPv6 the kernel has it backwards, still in Linux 6.18: its filter ends those
            // whose addresses are others.
            let can_filter = self.filters && family == Family::V4;
            if can_filter && of_family.len() <= FILTERS_MAX {
                for flow in of_family {
                    if let Err(error) = self.end_filtered(&flow) {
                        left.insert(flow);
                        first.get_or_insert(error);
                    }
                }
            } else if !of_family.is_empty()
                && let Err(error) = self.end_each(family, |entry| entry.is_of(&of_family))
            {
                left.extend(of_family);
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), |first| Err(Unended { left, first }))
    }

    /// Ends what [`Self::end`] would have ended, had this process lived. Gives how many.
    ///
    /// These are connections over UDP through ports of `desired` that lead to none of its
    /// endpoints, or through ports of `former` that are not desired any more; and over any
    /// transport those through either that lead to an address where nobody is, as `is_there` says.
    /// What others lead somewhere is left alone.
    ///
    /// # Errors
    /// Any of [`ConntrackError`]; some may have been ended.
    pub fn sweep(
        &mut self,
        desired: &Ruleset,
        former: &Former,
        is_there: impl Fn(IpAddr) -> bool,
    ) -> Result<usize, ConntrackError> {
        let families = Family::ALL.map(|family| {
            self.end_each(family, |entry| entry.is_stale(desired, former, &is_there))
        });
        families.into_iter().sum()
    }

    /// Lets the kernel find what to end.
    fn end_filtered(&mut self, flows: &Flows) -> Result<(), ConntrackError> {
        let family = family_of(flows);
        for (original, reply) in directions(flows) {
            let refused = self.request(DELETE, family, &filter(&original, &reply))?;
            if let Some(errno) = refused.filter(|errno| *errno != Errno::ENOENT) {
                return Err(ConntrackError::Refused("end connections", errno.into()));
            }
        }
        Ok(())
    }

    /// Reads all entries of a family and ends those that fit. One that the kernel refuses to end
    /// is told when the others have been ended.
    fn end_each(
        &mut self,
        family: Family,
        fits: impl Fn(&Entry) -> bool,
    ) -> Result<usize, ConntrackError> {
        let mut found = Vec::new();
        let request = Request { kind: GET, family: number(family), dump: true, texts: &[] };
        let answer = self.link.ask(&request, |message| {
            found.extend(entry(message.body()).filter(&fits).map(|entry| entry.name));
        });
        if let Err(complaint) = answer.map_err(ConntrackError::Socket)? {
            let source = Errno::from_raw(complaint.errno).into();
            return Err(ConntrackError::Refused("list connections", source));
        }
        let (mut ended, mut refused) = (0, None);
        for name in found {
            match self.request(DELETE, family, &name)? {
                None => ended += 1,
                // It ended by itself.
                Some(Errno::ENOENT) => {}
                Some(errno) => refused = Some(errno),
            }
        }
        let refused =
            refused.map(|errno: Errno| ConntrackError::Refused("end a connection", errno.into()));
        refused.map_or(Ok(ended), Err)
    }

    /// Sends attributes and gives the error, `None` for success.
    fn request(
        &mut self,
        kind: u16,
        family: Family,
        attributes: &[u8],
    ) -> Result<Option<Errno>, ConntrackError> {
        let sequence = self.link.sequence();
        self.link.advance(sequence.wrapping_add(1));
        let mut bytes = wire::request(kind, NLM_F_ACK, sequence, number(family), &[]);
        bytes.extend_from_slice(attributes);
        let size = u32::try_from(bytes.len()).expect("a request is short");
        NetlinkBuffer::new(&mut bytes).set_length(size);
        self.link.send(&bytes).map_err(ConntrackError::Socket)?;
        let mut buffer = Vec::with_capacity(DATAGRAM);
        while self.link.receive(&mut buffer).map_err(ConntrackError::Socket)? {
            let answers = wire::messages(&buffer).filter_map(|message| message.complaint());
            if let Some(answer) = answers.into_iter().find(|answer| answer.sequence == sequence) {
                return Ok((answer.errno != 0).then(|| Errno::from_raw(answer.errno)));
            }
        }
        Err(ConntrackError::Socket(Errno::EPROTO.into()))
    }
}

// === impl Direction ===

impl Direction {
    /// The bits that tell the kernel which of the values count.
    fn bits(&self) -> u32 {
        let bit = |known: bool, bit: u32| if known { bit } else { 0 };
        bit(self.source.is_some(), SOURCE)
            | bit(self.destination.is_some(), DESTINATION)
            | bit(self.protocol.is_some(), PROTOCOL)
            | bit(self.source_port.is_some(), SOURCE_PORT)
            | bit(self.destination_port.is_some(), DESTINATION_PORT)
    }

    fn to_tuple(self) -> Vec<Tuple> {
        let addresses = [
            self.source.map(IPTuple::SourceAddress),
            self.destination.map(IPTuple::DestinationAddress),
        ];
        let ports = [
            self.protocol.map(|protocol| ProtoTuple::Protocol(Transport::from(protocol))),
            self.source_port.map(ProtoTuple::SourcePort),
            self.destination_port.map(ProtoTuple::DestinationPort),
        ];
        let ports: Vec<_> = ports.into_iter().flatten().collect();
        let mut tuple = vec![Tuple::Ip(addresses.into_iter().flatten().collect())];
        if !ports.is_empty() {
            tuple.push(Tuple::Proto(ports));
        }
        tuple
    }
}

// === impl Entry ===

impl Entry {
    /// Whether it is one of these.
    fn is_of(&self, flows: &BTreeSet<Flows>) -> bool {
        let sandbox = [self.original.source, self.reply.source].into_iter().flatten();
        sandbox.map(Flows::Sandbox).any(|flow| flows.contains(&flow))
            || self.led().is_some_and(|flow| flows.contains(&flow))
    }

    /// Where it was led.
    fn led(&self) -> Option<Flows> {
        let Direction { destination, destination_port, protocol, .. } = self.original;
        Some(Flows::Led {
            front: SocketAddr::new(destination?, destination_port?),
            protocol: Protocol::from_number(protocol?)?,
            endpoint: SocketAddr::new(self.reply.source?, self.reply.source_port?),
        })
    }

    /// Whether [`Conntrack::sweep`] ends it.
    fn is_stale(
        &self,
        desired: &Ruleset,
        former: &Former,
        is_there: &impl Fn(IpAddr) -> bool,
    ) -> bool {
        let Some(Flows::Led { front, protocol, endpoint: end }) = self.led() else { return false };
        let (address, port) = (front.ip(), front.port());
        let service = desired.services.get(&ServicePort { address, protocol, port });
        let node_port = || {
            let ours = desired.node_addresses.contains(&address);
            let port = NodePort { protocol, port };
            desired.node_ports.get(&port).filter(|_| ours)
        };
        let backends = service.or_else(node_port);
        if let (Protocol::Udp, Some(backends)) = (protocol, backends) {
            let mut ends = backends.endpoints.iter();
            return !ends.any(|known| (known.address, known.port) == (end.ip(), end.port()));
        }
        // Nobody else leads what comes to a virtual address that is a service's. A port of a node,
        // or an address that went, may have been led by others before or after: there, only what
        // leads where the table did is known to be ours.
        let is_virtual = service.is_some() && end.ip() != address;
        let is_front = backends.is_some() || former.led(front, protocol);
        let is_ours = is_virtual || is_front && former.endpoints.contains(&end.ip());
        is_ours && (protocol == Protocol::Udp || !is_there(end.ip()))
    }
}

fn family_of(flows: &Flows) -> Family {
    match flows {
        Flows::Led { front, .. } => Family::of(front.ip()),
        Flows::Sandbox(address) => Family::of(*address),
    }
}

/// What a request names: original and reply direction of the connections.
fn directions(flows: &Flows) -> Vec<(Direction, Direction)> {
    let any = Direction::default();
    match *flows {
        Flows::Led { front, protocol, endpoint } => {
            let protocol = Some(protocol.number());
            let original = Direction {
                destination: Some(front.ip()),
                destination_port: Some(front.port()),
                protocol,
                ..any
            };
            let reply = Direction {
                source: Some(endpoint.ip()),
                source_port: Some(endpoint.port()),
                protocol,
                ..any
            };
            vec![(original, reply)]
        }
        Flows::Sandbox(address) => {
            let source = Direction { source: Some(address), ..any };
            vec![(any, source), (source, any)]
        }
    }
}

/// The attributes of a request that ends what fits. Never without an address: a kernel that
/// does not know filters would end everything.
fn filter(original: &Direction, reply: &Direction) -> Vec<u8> {
    let mut flags = Vec::new();
    let mut attributes = Vec::new();
    for (direction, kind, tuple) in [
        (original, FILTER_ORIGINAL, ConntrackAttribute::CtaTupleOrig as fn(_) -> _),
        (reply, FILTER_REPLY, ConntrackAttribute::CtaTupleReply),
    ] {
        if direction.bits() == 0 {
            continue;
        }
        emit(&DefaultNla::new(kind, direction.bits().to_ne_bytes().to_vec()), &mut flags);
        emit(&tuple(direction.to_tuple()), &mut attributes);
    }
    // Not as one of the crate's attributes: those it does not know lose the flag.
    emit(&DefaultNla::new(FILTER | NLA_F_NESTED, flags), &mut attributes);
    attributes
}

fn emit(attribute: &impl Emitable, into: &mut Vec<u8>) {
    let start = into.len();
    into.resize(start + attribute.buffer_len(), 0);
    attribute.emit(&mut into[start..]);
}

fn entry(body: &[u8]) -> Option<Entry> {
    let mut name = Vec::new();
    for kind in [ORIGINAL, ID, ZONE] {
        if let Some(value) = wire::attribute(body, kind) {
            let kind = if kind == ORIGINAL { kind | NLA_F_NESTED } else { kind };
            emit(&DefaultNla::new(kind, value.to_vec()), &mut name);
        }
    }
    let original = direction(wire::attribute(body, ORIGINAL)?);
    Some(Entry { original, reply: direction(wire::attribute(body, REPLY)?), name })
}

fn direction(tuple: &[u8]) -> Direction {
    let addresses = wire::attribute(tuple, 1).unwrap_or_default();
    let ports = wire::attribute(tuple, 2).unwrap_or_default();
    let v4 = |kind| {
        let bytes: Option<&[u8; 4]> = wire::attribute(addresses, kind)?.first_chunk();
        bytes.map(|bytes| IpAddr::from(*bytes))
    };
    let v6 = |kind| {
        let bytes: Option<&[u8; 16]> = wire::attribute(addresses, kind)?.first_chunk();
        bytes.map(|bytes| IpAddr::from(*bytes))
    };
    let port = |kind| {
        let bytes = wire::attribute(ports, kind)?.first_chunk()?;
        Some(u16::from_be_bytes(*bytes))
    };
    Direction {
        source: v4(1).or_else(|| v6(3)),
        destination: v4(2).or_else(|| v6(4)),
        protocol: wire::attribute(ports, 1).and_then(|bytes| bytes.first().copied()),
        source_port: port(2),
        destination_port: port(3),
    }
}

#[cfg(test)]
mod tests;
