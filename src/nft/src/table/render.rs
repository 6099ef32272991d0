//! Which elements an owner has. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Owned, Table};
use crate::element::{Data, Element, Owner, Set};
use crate::slots::{self, Class, ENDPOINTS_MAX, Target};
use crate::value::{Affinity, Backends, Family, Protocol, Range, ServicePort};

impl Table {
    /// The elements that an owner should have, in order; `programmed` are those it has, in order.
    pub(super) fn target(&self, owner: Owner, programmed: &[(Element, Data)]) -> Owned {
        let one = |exists: bool, element: Element| {
            if exists { vec![(element, Data::EMPTY)] } else { Vec::new() }
        };
        match owner {
            Owner::Service(port) => {
                let Some(backends) = self.desired.services.get(&port) else { return Vec::new() };
                let family = Family::of(port.address);
                let gate = match backends.affinity {
                    Affinity::None => Set::Services(family),
                    Affinity::Source => Set::StickyServices(family),
                };
                let gate = Element::service(gate, port);
                let mut owned = vec![(gate, Data::EMPTY)];
                spread(backends, family, (gate, Set::Slots), programmed, &mut owned);
                owned
            }
            Owner::NodePort(port) => {
                let Some(backends) = self.desired.node_ports.get(&port) else { return Vec::new() };
                let gate = Element::node_port(Set::NodePorts, port);
                let mut owned = vec![(gate, Data::EMPTY)];
                if backends.affinity == Affinity::Source {
                    owned.push((Element::node_port(Set::StickyNodePorts, port), Data::EMPTY));
                }
                for family in Family::ALL {
                    spread(backends, family, (gate, Set::NodeSlots), programmed, &mut owned);
                }
                owned
            }
            Owner::Virtual(address) => {
                let exists = self
                    .desired
                    .services
                    .range(first_port(address)..)
                    .next()
                    .is_some_and(|(port, _)| port.address == address);
                one(exists, Element::address(Set::Virtual(Family::of(address)), address))
            }
            Owner::NodeAddress(address) => {
                let exists = self.desired.node_addresses.contains(&address);
                one(exists, Element::address(Set::NodeAddresses(Family::of(address)), address))
            }
            Owner::Local(address) => {
                let exists = self.local.contains_key(&address);
                let mut owned = one(exists, Element::hairpin(address));
                let local = Element::address(Set::Local(Family::of(address)), address);
                owned.extend(one(exists, local));
                owned
            }
            Owner::Bridged(family) => {
                let ranges = self.desired.bridged.iter().copied();
                borders(family, ranges.filter(|range| Family::of(range.address) == family))
            }
            Owner::Stray => Vec::new(),
        }
    }
}

/// The least that a port of an address can be.
fn first_port(address: IpAddr) -> ServicePort {
    ServicePort { address, protocol: Protocol::Tcp, port: 0 }
}

/// Adds the slots of one family, behind `gate` in maps that `slots` makes.
fn spread(
    backends: &Backends,
    family: Family,
    (gate, slots): (Element, fn(Family, Class) -> Set),
    programmed: &[(Element, Data)],
    owned: &mut Owned,
) {
    let endpoints = backends.endpoints.iter();
    let mut targets: Vec<Target> = endpoints
        .filter(|endpoint| Family::of(endpoint.address) == family)
        .map(|endpoint| (endpoint.address, endpoint.port))
        .collect();
    targets.dedup();
    targets.truncate(ENDPOINTS_MAX);
    let Some(class) = Class::of(targets.len(), backends.affinity) else { return };
    let set = slots(family, class);
    let known = programmed.iter().filter(|(element, _)| element.set == set);
    let previous: BTreeMap<usize, Target> = known
        .filter_map(|(element, data)| Some((element.slot_index()?, data.to_target(family)?)))
        .collect();
    let start = owned.len();
    let assigned = slots::assign(class, &targets, &previous).into_iter().enumerate();
    owned.extend(
        assigned.map(|(slot, target)| (Element::slot(set, gate, slot), Data::target(target))),
    );
    // Slots have the host's byte order, in which the order of keys is not that of numbers.
    owned[start..].sort_unstable_by_key(|(element, _)| *element);
}

/// The borders of the union of ranges of one family.
fn borders(family: Family, ranges: impl Iterator<Item = Range>) -> Owned {
    let limit = match family {
        Family::V4 => u128::from(u32::MAX),
        Family::V6 => u128::MAX,
    };
    let mut bounds: Vec<_> = ranges.map(Range::bounds).collect();
    bounds.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in bounds {
        match merged.last_mut() {
            // Neighbours too: where one ends the next begins, which is one key.
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let mut owned = Vec::new();
    for (first, last) in merged {
        owned.push((Element::border(family, first, false), Data::EMPTY));
        // What reaches to the last address has no end.
        if last < limit {
            owned.push((Element::border(family, last + 1, true), Data::EMPTY));
        }
    }
    owned
}
