//! The chains and rules of the table, as values. Pure.
//!
//! They are the same whatever the node forwards: only elements change. A packet is looked up
//! once in each gate; the one that knows it leads to a chain with one rule for each class of
//! slots, of which exactly one class has the service.

use crate::element::Set;
use crate::slots::Class;
use crate::value::Family;

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name in the table.
    pub name: String,
    /// Where packets enter it; `None` if only rules lead here.
    pub hook: Option<Hook>,
    /// Its rules, in their order.
    pub rules: Vec<Vec<Expr>>,
}

/// A place in the way of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Packets that come in.
    Prerouting,
    /// Packets of processes on the node.
    Output,
    /// Packets that go out.
    Postrouting,
}

/// A step of a rule; a rule goes on to the next step only while each one matches.
///
/// Registers are the kernel's, of four bytes each; what is longer fills the ones that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads what the kernel knows of the packet.
    Meta(Meta, Register),
    /// Loads `length` bytes of a header.
    Payload {
        /// Which header.
        base: Base,
        /// Bytes from its start.
        offset: u32,
        /// How many bytes.
        length: u32,
        /// To where.
        to: Register,
    },
    /// Goes on if a register is equal to these bytes.
    Equal(Register, Vec<u8>),
    /// Masks a register of four bytes with a number in the host's order.
    Mask(Register, u32),
    /// Loads what the kernel knows of the connection.
    Connection(Connection, Register),
    /// Loads a random number below a modulus.
    Random(u32, Register),
    /// Loads the hash of `length` bytes, below a modulus.
    Hash {
        /// What is hashed.
        from: Register,
        /// How many bytes.
        length: u32,
        /// The result is below this.
        modulus: u32,
        /// To where.
        to: Register,
    },
    /// Goes on if a set has the key in a register; loads a map's data to where it says.
    Lookup(Set, Register, Option<Register>),
    /// Sends the connection to the address and the port in these registers.
    Dnat(Family, Register, Register),
    /// Gives the connection the address of the interface it leaves by.
    Masquerade,
    /// Answers with a TCP reset.
    RejectReset,
    /// Answers that the port is unreachable, in the words of the packet's family.
    RejectPort,
    /// Continues in another chain, and comes back.
    Jump(String),
    /// Continues in another chain.
    Goto(String),
    /// Leaves the chain.
    Return,
}

/// A register of four bytes, by the kernel's number: 8 to 23.
pub(crate) type Register = u32;

/// What the kernel knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    /// Its family, one byte.
    Family,
    /// Its transport, one byte.
    Protocol,
}

/// What the kernel knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// Its flags.
    Status,
    /// The address that the client addressed.
    OriginalAddress(Family),
    /// The port that the client addressed.
    OriginalPort,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// IP.
    Network,
    /// TCP or UDP.
    Transport,
}

/// Before kube-proxy's −100, so that an address of ours is ours; after connection tracking.
pub(crate) const PRIORITY: i32 = -110;
/// Where source addresses are translated, in the kernel's own order.
const PRIORITY_SOURCE: i32 = 100;

/// `IPS_DST_NAT` of the kernel: the destination of the connection was changed.
const STATUS_DNAT: u32 = 1 << 5;
/// Any constant; the same on all nodes, so that affinity does not depend on the node.
pub(crate) const HASH_SEED: u32 = 0x5eed;
/// The first of the registers.
const R0: Register = 8;
const SERVICES: &str = "services";
const REFUSE: &str = "noep";

impl Hook {
    /// The kernel's number.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// Where in the order of chains at the hook.
    pub(crate) fn priority(self) -> i32 {
        match self {
            Self::Prerouting | Self::Output => PRIORITY,
            Self::Postrouting => PRIORITY_SOURCE,
        }
    }
}

/// All chains. A chain stands after those that its rules lead to.
pub(crate) fn chains() -> Vec<Chain> {
    let mut chains = vec![refuse()];
    for family in Family::ALL {
        chains.extend([services_of(family, false), services_of(family, true)]);
        chains.extend([node_ports_of(family, false), node_ports_of(family, true)]);
    }
    chains.push(dispatch());
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        let rules = vec![vec![Expr::Jump(SERVICES.to_owned())]];
        chains.push(Chain { name: name.to_owned(), hook: Some(hook), rules });
    }
    chains.push(source());
    chains
}

/// Finds out what a packet is for.
fn dispatch() -> Chain {
    let services = [Set::Services as fn(Family) -> Set, Set::StickyServices];
    let mut rules = Vec::new();
    for (sticky, set) in services.into_iter().enumerate() {
        rules.extend(Family::ALL.map(|family| {
            let mut rule = vec_of(family);
            let port = load_destination(family, &mut rule);
            load_port(port, &mut rule);
            rule.push(Expr::Lookup(set(family), R0, None));
            rule.push(Expr::Goto(chain_of("lb", family, sticky == 1)));
            rule
        }));
    }
    // A sticky node port is in both sets, so the smaller one comes first.
    for (set, sticky) in [(Set::StickyNodePorts, true), (Set::NodePorts, false)] {
        rules.extend(Family::ALL.map(|family| {
            let mut rule = vec_of(family);
            load_destination(family, &mut rule);
            rule.push(Expr::Lookup(Set::NodeAddresses(family), R0, None));
            load_port(R0, &mut rule);
            rule.push(Expr::Lookup(set, R0, None));
            rule.push(Expr::Goto(chain_of("np", family, sticky)));
            rule
        }));
    }
    rules.extend(Family::ALL.map(|family| {
        let mut rule = vec_of(family);
        load_destination(family, &mut rule);
        rule.push(Expr::Lookup(Set::Virtual(family), R0, None));
        rule.push(Expr::Goto(REFUSE.to_owned()));
        rule
    }));
    Chain { name: SERVICES.to_owned(), hook: None, rules }
}

/// Sends a packet for a virtual address to an endpoint.
fn services_of(family: Family, sticky: bool) -> Chain {
    let load = |rule: &mut Vec<Expr>| {
        let port = load_destination(family, rule);
        load_port(port, rule)
    };
    balance("lb", family, sticky, load, Set::Slots)
}

/// Sends a packet for a node port to an endpoint.
fn node_ports_of(family: Family, sticky: bool) -> Chain {
    balance("np", family, sticky, |rule| load_port(R0, rule), Set::NodeSlots)
}

/// One rule for each class. A miss ends the rule, and the next class is tried; who is in none
/// has no endpoint.
fn balance(
    prefix: &str,
    family: Family,
    sticky: bool,
    load: impl Fn(&mut Vec<Expr>) -> Register,
    slots: fn(Family, Class) -> Set,
) -> Chain {
    let classes: Vec<Class> =
        if sticky { Class::sticky().collect() } else { Class::all().collect() };
    let rule = |class: Class| {
        // Only packets of this family are led here; but without the look at it `nft` prints
        // numbers in place of the parts of a header.
        let mut rule = vec_of(family);
        if sticky {
            // The address is hashed where the slot will be, which needs as many registers.
            let (offset, length) = source_address(family);
            let free = R0 + 8;
            rule.push(Expr::Payload { base: Base::Network, offset, length, to: free });
            let slot = load(&mut rule);
            let modulus = class.modulus();
            rule.push(Expr::Hash { from: free, length, modulus, to: slot });
        } else {
            let slot = load(&mut rule);
            rule.push(Expr::Random(class.modulus(), slot));
        }
        rule.push(Expr::Lookup(slots(family, class), R0, Some(R0)));
        rule.push(Expr::Dnat(family, R0, R0 + registers(family)));
        rule
    };
    let mut rules: Vec<_> = classes.into_iter().map(rule).collect();
    rules.push(vec![Expr::Goto(REFUSE.to_owned())]);
    Chain { name: chain_of(prefix, family, sticky), hook: None, rules }
}

/// Answers that nobody is there, rather than to let the client wait.
fn refuse() -> Chain {
    let of = |protocol: u8, answer| {
        vec![Expr::Meta(Meta::Protocol, R0), Expr::Equal(R0, vec![protocol]), answer]
    };
    let rules = vec![of(6, Expr::RejectReset), of(17, Expr::RejectPort)];
    Chain { name: REFUSE.to_owned(), hook: None, rules }
}

/// Changes the source only where answers would not find back otherwise.
fn source() -> Chain {
    let not_ours = vec![
        Expr::Connection(Connection::Status, R0),
        Expr::Mask(R0, STATUS_DNAT),
        Expr::Equal(R0, vec![0; 4]),
        Expr::Return,
    ];
    let hairpin = |family| {
        let mut rule = vec_of(family);
        let second = load_source(family, &mut rule);
        load_destination_to(family, second, &mut rule);
        rule.extend([Expr::Lookup(Set::Hairpin(family), R0, None), Expr::Masquerade]);
        rule
    };
    let bridged_service = |family| {
        let mut rule = bridged(family);
        rule.push(Expr::Connection(Connection::OriginalAddress(family), R0));
        rule.extend([Expr::Lookup(Set::Virtual(family), R0, None), Expr::Masquerade]);
        rule
    };
    let bridged_node_port = |family| {
        let mut rule = bridged(family);
        push_asked_node_port(family, &mut rule);
        rule.push(Expr::Masquerade);
        rule
    };
    let local = |family| {
        let mut rule = vec_of(family);
        load_destination(family, &mut rule);
        rule.extend([Expr::Lookup(Set::Local(family), R0, None), Expr::Return]);
        rule
    };
    let node_port = |family| {
        let mut rule = vec_of(family);
        push_asked_node_port(family, &mut rule);
        rule.push(Expr::Masquerade);
        rule
    };
    // Where sandboxes are reached through a tunnel, a program of the node has asked by the way to
    // the virtual address: with the address of that, answers would come back beside the tunnel.
    let own = |family| {
        let mut rule = vec_of(family);
        load_source(family, &mut rule);
        rule.push(Expr::Lookup(Set::NodeAddresses(family), R0, None));
        rule.push(Expr::Connection(Connection::OriginalAddress(family), R0));
        rule.extend([Expr::Lookup(Set::Virtual(family), R0, None), Expr::Masquerade]);
        rule
    };
    let mut rules = vec![not_ours];
    rules.extend(Family::ALL.map(hairpin));
    rules.extend(Family::ALL.map(bridged_service));
    rules.extend(Family::ALL.map(bridged_node_port));
    rules.extend(Family::ALL.map(local));
    rules.extend(Family::ALL.map(node_port));
    rules.extend(Family::ALL.map(own));
    Chain { name: "postrouting".to_owned(), hook: Some(Hook::Postrouting), rules }
}

/// Goes on with what goes from one sandbox behind a bridge to another: its answers would pass the
/// node by. Who led it there must still be asked, since others see to what they lead.
fn bridged(family: Family) -> Vec<Expr> {
    let mut rule = vec_of(family);
    load_source(family, &mut rule);
    rule.push(Expr::Lookup(Set::Bridged(family), R0, None));
    load_destination(family, &mut rule);
    rule.push(Expr::Lookup(Set::Bridged(family), R0, None));
    rule
}

/// Goes on with what was led by a node port, by what the client addressed: another's is left to it.
fn push_asked_node_port(family: Family, rule: &mut Vec<Expr>) {
    rule.push(Expr::Connection(Connection::OriginalAddress(family), R0));
    rule.push(Expr::Lookup(Set::NodeAddresses(family), R0, None));
    rule.push(Expr::Meta(Meta::Protocol, R0));
    rule.push(Expr::Connection(Connection::OriginalPort, R0 + 1));
    rule.push(Expr::Lookup(Set::NodePorts, R0, None));
}

fn chain_of(prefix: &str, family: Family, sticky: bool) -> String {
    let digit = if family == Family::V4 { 4 } else { 6 };
    format!("{prefix}{digit}{}", if sticky { "-src" } else { "" })
}

/// A rule for packets of one family.
fn vec_of(family: Family) -> Vec<Expr> {
    vec![Expr::Meta(Meta::Family, R0), Expr::Equal(R0, vec![number(family)])]
}

/// The kernel's number of a family.
pub(crate) fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// How many registers an address needs.
fn registers(family: Family) -> Register {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// Offset and length of the source address in the header.
fn source_address(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    }
}

/// Each of these gives the register that follows what was loaded.
fn load_source(family: Family, rule: &mut Vec<Expr>) -> Register {
    let (offset, length) = source_address(family);
    rule.push(Expr::Payload { base: Base::Network, offset, length, to: R0 });
    R0 + registers(family)
}

fn load_destination(family: Family, rule: &mut Vec<Expr>) -> Register {
    load_destination_to(family, R0, rule)
}

fn load_destination_to(family: Family, to: Register, rule: &mut Vec<Expr>) -> Register {
    let (source, length) = source_address(family);
    let offset = source + length;
    rule.push(Expr::Payload { base: Base::Network, offset, length, to });
    to + registers(family)
}

fn load_port(to: Register, rule: &mut Vec<Expr>) -> Register {
    rule.push(Expr::Meta(Meta::Protocol, to));
    rule.push(Expr::Payload { base: Base::Transport, offset: 2, length: 2, to: to + 1 });
    to + 2
}
