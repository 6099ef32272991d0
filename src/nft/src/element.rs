//! The sets of the table and their elements, as bytes in the kernel's order. Pure.
//!
//! All state of services is in elements, none in chains. Each element has an owner that follows
//! from its set and its key, so that a dump can be compared service by service.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use crate::slots::{Class, Target};
use crate::value::{Family, NodePort, Protocol, ServicePort};

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// Which address, protocol and port is a service.
    Services(Family),
    /// The same, for services with affinity.
    StickyServices(Family),
    /// Virtual addresses: their other ports are refused.
    Virtual(Family),
    /// Addresses of the node that accept node ports.
    NodeAddresses(Family),
    /// All node ports, of both families.
    NodePorts,
    /// Those of them with affinity.
    StickyNodePorts,
    /// Local endpoints, each twice: what a sandbox sends to itself.
    Hairpin(Family),
    /// Endpoints on this node.
    Local(Family),
    /// Ranges of sandboxes whose packets to each other this node does not see.
    Bridged(Family),
    /// Slots of services.
    Slots(Family, Class),
    /// Slots of node ports.
    NodeSlots(Family, Class),
}

/// A few bytes, at most `N`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes<const N: usize> {
    length: u8,
    bytes: [u8; N],
}

/// The key of an element: its parts, each padded to four bytes.
pub type Key = Bytes<32>;
/// What a map gives for a key; empty in a set.
pub type Data = Bytes<20>;

/// Which element of which set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The set or map that it is in.
    pub set: Set,
    /// Its key.
    pub key: Key,
    /// Whether an interval ends before this key, rather than begins with it. Only in sets of
    /// intervals.
    pub end: bool,
}

/// Whom an element belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A port of a virtual address.
    Service(ServicePort),
    /// A port of the node.
    NodePort(NodePort),
    /// A virtual address, with all its ports.
    Virtual(IpAddr),
    /// An address of the node.
    NodeAddress(IpAddr),
    /// An endpoint on this node.
    Local(IpAddr),
    /// All ranges of a family: intervals are compared as a whole.
    Bridged(Family),
    /// Nobody: this program would not have made it.
    Stray,
}

/// The parts of a key and of data, as the kernel's `nft` knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// `ipv4_addr` or `ipv6_addr`.
    Address(Family),
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
    /// A slot; `mark` is the one type with the host's byte order that every `nft` can print.
    Slot,
}

/// How many sets there are for each family.
const OF_FAMILY: u8 = 7 + 2 * Class::COUNT;

// === impl Set ===

impl Set {
    /// All of them; the index in this order is the identifier in a batch.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |family| {
            [
                Self::Services(family),
                Self::StickyServices(family),
                Self::Virtual(family),
                Self::NodeAddresses(family),
                Self::Hairpin(family),
                Self::Local(family),
                Self::Bridged(family),
            ]
            .into_iter()
            .chain(Class::all().map(move |class| Self::Slots(family, class)))
            .chain(Class::all().map(move |class| Self::NodeSlots(family, class)))
        };
        [Self::NodePorts, Self::StickyNodePorts]
            .into_iter()
            .chain(Family::ALL.into_iter().flat_map(of))
    }

    /// Its place among all of them.
    pub(crate) fn number(self) -> u8 {
        let of = |family: Family| 2 + OF_FAMILY * family as u8;
        match self {
            Self::NodePorts => 0,
            Self::StickyNodePorts => 1,
            Self::Services(family) => of(family),
            Self::StickyServices(family) => of(family) + 1,
            Self::Virtual(family) => of(family) + 2,
            Self::NodeAddresses(family) => of(family) + 3,
            Self::Hairpin(family) => of(family) + 4,
            Self::Local(family) => of(family) + 5,
            Self::Bridged(family) => of(family) + 6,
            Self::Slots(family, class) => of(family) + 7 + class.number(),
            Self::NodeSlots(family, class) => of(family) + 7 + Class::COUNT + class.number(),
        }
    }

    /// The set with a number.
    pub(crate) fn from_number(number: u8) -> Self {
        static SETS: LazyLock<Vec<Set>> = LazyLock::new(|| Set::all().collect());
        SETS[usize::from(number)]
    }

    /// The set with a name of the table.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|set| set.to_string() == name)
    }

    /// The parts of a key, in their order.
    pub(crate) fn key(self) -> Vec<Part> {
        use Part::{Address, Port, Protocol, Slot};
        match self {
            Self::Services(family) | Self::StickyServices(family) => {
                vec![Address(family), Protocol, Port]
            }
            Self::NodePorts | Self::StickyNodePorts => vec![Protocol, Port],
            Self::Hairpin(family) => vec![Address(family), Address(family)],
            Self::Virtual(family)
            | Self::NodeAddresses(family)
            | Self::Local(family)
            | Self::Bridged(family) => vec![Address(family)],
            Self::Slots(family, _) => vec![Address(family), Protocol, Port, Slot],
            Self::NodeSlots(..) => vec![Protocol, Port, Slot],
        }
    }

    /// The parts of the data, in their order; empty for a set that is no map.
    pub(crate) fn data(self) -> Vec<Part> {
        match self {
            Self::Slots(family, _) | Self::NodeSlots(family, _) => {
                vec![Part::Address(family), Part::Port]
            }
            _ => Vec::new(),
        }
    }

    /// Whether its elements are the borders of intervals.
    pub(crate) fn is_interval(self) -> bool {
        matches!(self, Self::Bridged(_))
    }

    /// Whether it decides where a packet of a service is looked up. Its elements go before the
    /// slots they lead to.
    pub(crate) fn is_gate(self) -> bool {
        matches!(
            self,
            Self::Services(_) | Self::StickyServices(_) | Self::NodePorts | Self::StickyNodePorts
        )
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |family: &Family| match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        match self {
            Self::Services(family) => write!(f, "svc{}", digit(family)),
            Self::StickyServices(family) => write!(f, "svc{}-src", digit(family)),
            Self::Virtual(family) => write!(f, "vip{}", digit(family)),
            Self::NodeAddresses(family) => write!(f, "nodeip{}", digit(family)),
            Self::NodePorts => f.write_str("nodeport"),
            Self::StickyNodePorts => f.write_str("nodeport-src"),
            Self::Hairpin(family) => write!(f, "hairpin{}", digit(family)),
            Self::Local(family) => write!(f, "local{}", digit(family)),
            Self::Bridged(family) => write!(f, "bridged{}", digit(family)),
            Self::Slots(family, class) => write!(f, "ep{}-{}", digit(family), class.size()),
            Self::NodeSlots(family, class) => write!(f, "np{}-{}", digit(family), class.size()),
        }
    }
}

// === impl Bytes ===

impl<const N: usize> Bytes<N> {
    /// The most bytes.
    pub const SIZE_MAX: usize = N;
    /// No bytes at all.
    pub const EMPTY: Self = Self { length: 0, bytes: [0; N] };

    /// A copy of `bytes`; `None` if there are more than `N`.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut copy = Self { length: u8::try_from(bytes.len()).ok()?, bytes: [0; N] };
        copy.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(copy)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Appends a part, padded to four bytes.
    fn with(mut self, part: &[u8]) -> Self {
        let start = usize::from(self.length);
        self.bytes[start..start + part.len()].copy_from_slice(part);
        let padded = start + part.len().next_multiple_of(4);
        self.length = u8::try_from(padded).expect("a key has less than 256 bytes");
        self
    }

    fn with_address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.with(&address.octets()),
            IpAddr::V6(address) => self.with(&address.octets()),
        }
    }

    /// Addresses and ports are as packets have them; protocols are one byte.
    fn with_port(self, protocol: Protocol, port: u16) -> Self {
        self.with(&[protocol.number()]).with(&port.to_be_bytes())
    }

    /// The kernel's random numbers and hashes have the order of the host.
    fn with_slot(self, slot: usize) -> Self {
        self.with(&u32::try_from(slot).expect("a slot is at most 255").to_ne_bytes())
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

// === impl Element ===

impl Element {
    /// The element of a set with one address as key.
    pub(crate) fn address(set: Set, address: IpAddr) -> Self {
        Self::new(set, Key::EMPTY.with_address(address))
    }

    /// The element that lets a sandbox reach itself.
    pub(crate) fn hairpin(address: IpAddr) -> Self {
        let key = Key::EMPTY.with_address(address).with_address(address);
        Self::new(Set::Hairpin(Family::of(address)), key)
    }

    /// The element that says that a port is a service's.
    pub(crate) fn service(set: Set, port: ServicePort) -> Self {
        Self::new(set, Key::EMPTY.with_address(port.address).with_port(port.protocol, port.port))
    }

    /// The element that says that a port is a node port.
    pub(crate) fn node_port(set: Set, port: NodePort) -> Self {
        Self::new(set, Key::EMPTY.with_port(port.protocol, port.port))
    }

    /// Slot `slot` of what `gate` opens; `set` is one of slots.
    pub(crate) fn slot(set: Set, gate: Self, slot: usize) -> Self {
        Self::new(set, gate.key.with_slot(slot))
    }

    /// A border of an interval.
    pub(crate) fn border(family: Family, value: u128, end: bool) -> Self {
        let address: IpAddr = match family {
            // The caller keeps to the family's numbers.
            Family::V4 => Ipv4Addr::from_bits(value as u32).into(),
            Family::V6 => Ipv6Addr::from_bits(value).into(),
        };
        Self { end, ..Self::address(Set::Bridged(family), address) }
    }

    /// The same of any bytes, as a dump has them.
    pub(crate) fn new(set: Set, key: Key) -> Self {
        Self { set, key, end: false }
    }

    /// Whom it belongs to.
    pub fn owner(&self) -> Owner {
        let key = self.key.as_slice();
        let owner = match self.set {
            Set::Services(family) | Set::StickyServices(family) | Set::Slots(family, _) => {
                service_of(family, key).map(Owner::Service)
            }
            Set::NodePorts | Set::StickyNodePorts | Set::NodeSlots(..) => {
                port_of(key).map(|(protocol, port)| Owner::NodePort(NodePort { protocol, port }))
            }
            Set::Virtual(family) => address_of(family, key).map(Owner::Virtual),
            Set::NodeAddresses(family) => address_of(family, key).map(Owner::NodeAddress),
            Set::Hairpin(family) | Set::Local(family) => address_of(family, key).map(Owner::Local),
            Set::Bridged(family) => Some(Owner::Bridged(family)),
        };
        owner.unwrap_or(Owner::Stray)
    }

    /// Which slot it is; `None` if it is none.
    pub(crate) fn slot_index(&self) -> Option<usize> {
        if !matches!(self.set, Set::Slots(..) | Set::NodeSlots(..)) {
            return None;
        }
        let bytes = self.key.as_slice().last_chunk::<4>()?;
        usize::try_from(u32::from_ne_bytes(*bytes)).ok()
    }
}

// === impl Data ===

impl Data {
    /// The data of a slot.
    pub(crate) fn target((address, port): Target) -> Self {
        Self::EMPTY.with_address(address).with(&port.to_be_bytes())
    }

    /// Where a slot leads; `None` if this is no such data.
    pub(crate) fn to_target(self, family: Family) -> Option<Target> {
        let bytes = self.as_slice();
        let address = address_of(family, bytes)?;
        let port = bytes.get(length_of(family)..)?.first_chunk::<2>()?;
        Some((address, u16::from_be_bytes(*port)))
    }
}

fn length_of(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn address_of(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        Family::V6 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

fn port_of(bytes: &[u8]) -> Option<(Protocol, u16)> {
    let protocol = Protocol::from_number(*bytes.first()?)?;
    Some((protocol, u16::from_be_bytes(*bytes.get(4..)?.first_chunk()?)))
}

fn service_of(family: Family, bytes: &[u8]) -> Option<ServicePort> {
    let address = address_of(family, bytes)?;
    let (protocol, port) = port_of(bytes.get(length_of(family)..)?)?;
    Some(ServicePort { address, protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_found_by_its_number() {
        for (number, set) in (0..).zip(Set::all()) {
            assert_eq!((set.number(), Set::from_number(number)), (number, set));
        }
    }
}
