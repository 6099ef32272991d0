//! The node's table: what is desired, what the kernel has, and the difference. Pure.
//!
//! Changes are synchronous and cheap; they mark what to look at, so that a difference costs as
//! much as what changed and not as much as there is.

mod kept;
mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use self::kept::Kept;
use crate::element::{Data, Element, Owner, Set};
use crate::transaction::{Batch, Elements, Transaction};
use crate::value::{
    Backends, Family, Flows, Former, NodePort, Protocol, Range, Ruleset, ServicePort,
};

/// The node's table.
///
/// Invariant: an owner whose elements in `programmed` differ from what `desired` makes of it is
/// in `dirty` or, if it only has elements too many, in `left`.
#[derive(Clone, Debug, Default)]
pub struct Table {
    desired: Ruleset,
    /// How many ports have an endpoint on this node, by its address.
    local: BTreeMap<IpAddr, usize>,
    programmed: Programmed,
    dirty: BTreeSet<Owner>,
    left: BTreeSet<Owner>,
    /// Connections over UDP that changes of `desired` left without their endpoint.
    stale: BTreeSet<Flows>,
    /// Owners that the kernel refuses, and that are left as they are until they change.
    refused: BTreeSet<Owner>,
}

/// The elements of one owner, in order.
type Owned = Vec<(Element, Data)>;
/// Elements by their owners, none of which is without any.
pub(crate) type Programmed = BTreeMap<Owner, Kept>;

impl Table {
    /// A table with this desired state, of which the kernel has nothing.
    pub fn new(desired: Ruleset) -> Self {
        // Nothing is known of before, so no connection is stale: `Conntrack::sweep` finds those.
        let mut table = Self::default();
        for backends in desired.services.values().chain(desired.node_ports.values()) {
            table.count_local(backends, 1);
        }
        table.desired = desired;
        table.dirty = table.owners();
        table
    }

    /// What is desired.
    pub fn desired(&self) -> &Ruleset {
        &self.desired
    }

    /// How many elements the kernel has, as far as is known.
    pub fn len(&self) -> usize {
        self.programmed.values().map(Kept::len).sum()
    }

    /// Whether the kernel has no element, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.programmed.is_empty()
    }

    /// Whether [`Self::pending`] may have something; false is certain.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.left.is_empty()
    }

    /// Owners that the kernel refused and that are not forwarded as desired.
    pub fn refused(&self) -> &BTreeSet<Owner> {
        &self.refused
    }

    /// Sets what stands behind a port of a virtual address. Gives whether that is a change.
    pub fn set_service(&mut self, port: ServicePort, backends: Backends) -> bool {
        if self.desired.services.get(&port) == Some(&backends) {
            return false;
        }
        self.count_local(&backends, 1);
        let new = backends.clone();
        let old = self.desired.services.insert(port, backends);
        self.count_local(old.as_ref().unwrap_or(&Backends::default()), -1);
        self.note_stale((port.address, port.protocol, port.port), old.as_ref(), &new);
        self.touch([Owner::Service(port), Owner::Virtual(port.address)]);
        true
    }

    /// Removes a port of a virtual address. Gives whether it was there.
    pub fn remove_service(&mut self, port: ServicePort) -> bool {
        let Some(old) = self.desired.services.remove(&port) else { return false };
        self.count_local(&old, -1);
        let front = (port.address, port.protocol, port.port);
        self.note_stale(front, Some(&old), &Backends::default());
        self.touch([Owner::Service(port), Owner::Virtual(port.address)]);
        true
    }

    /// Sets what stands behind a node port. Gives whether that is a change.
    pub fn set_node_port(&mut self, port: NodePort, backends: Backends) -> bool {
        if self.desired.node_ports.get(&port) == Some(&backends) {
            return false;
        }
        self.count_local(&backends, 1);
        let new = backends.clone();
        let old = self.desired.node_ports.insert(port, backends);
        self.count_local(old.as_ref().unwrap_or(&Backends::default()), -1);
        for address in self.desired.node_addresses.clone() {
            self.note_stale((address, port.protocol, port.port), old.as_ref(), &new);
        }
        self.touch([Owner::NodePort(port)]);
        true
    }

    /// Removes a node port. Gives whether it was there.
    pub fn remove_node_port(&mut self, port: NodePort) -> bool {
        let Some(old) = self.desired.node_ports.remove(&port) else { return false };
        self.count_local(&old, -1);
        for address in self.desired.node_addresses.clone() {
            let front = (address, port.protocol, port.port);
            self.note_stale(front, Some(&old), &Backends::default());
        }
        self.touch([Owner::NodePort(port)]);
        true
    }

    /// Sets the node's addresses that accept node ports. Gives whether that is a change.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let old = std::mem::replace(&mut self.desired.node_addresses, addresses);
        let changed: Vec<_> =
            old.symmetric_difference(&self.desired.node_addresses).copied().collect();
        let node_ports = std::mem::take(&mut self.desired.node_ports);
        for address in &changed {
            for (port, backends) in &node_ports {
                let front = (*address, port.protocol, port.port);
                match old.contains(address) {
                    true => self.note_stale(front, Some(backends), &Backends::default()),
                    false => self.note_stale(front, None, backends),
                }
            }
        }
        self.desired.node_ports = node_ports;
        let is_change = !changed.is_empty();
        self.touch(changed.into_iter().map(Owner::NodeAddress));
        is_change
    }

    /// Sets the ranges of [`Ruleset::bridged`]. Gives whether that is a change.
    pub fn set_bridged(&mut self, ranges: BTreeSet<Range>) -> bool {
        let old = std::mem::replace(&mut self.desired.bridged, ranges);
        let is_change = old != self.desired.bridged;
        if is_change {
            self.touch(Family::ALL.map(Owner::Bridged));
        }
        is_change
    }

    /// Sets all that is desired; only differences are looked at afterwards.
    pub fn replace(&mut self, desired: Ruleset) {
        let Ruleset { services, node_ports, node_addresses, bridged } = desired;
        let gone = |port: &&ServicePort| !services.contains_key(port);
        for port in self.desired.services.keys().filter(gone).copied().collect::<Vec<_>>() {
            self.remove_service(port);
        }
        let gone = |port: &&NodePort| !node_ports.contains_key(port);
        for port in self.desired.node_ports.keys().filter(gone).copied().collect::<Vec<_>>() {
            self.remove_node_port(port);
        }
        for (port, backends) in services {
            self.set_service(port, backends);
        }
        for (port, backends) in node_ports {
            self.set_node_port(port, backends);
        }
        self.set_node_addresses(node_addresses);
        self.set_bridged(bridged);
    }

    /// What the kernel must change. Empty if nothing must.
    pub fn pending(&self) -> Transaction {
        self.difference(self.dirty.union(&self.left))
    }

    /// The same, without what was left by an earlier one of which only `make` was done.
    pub fn pending_new(&self) -> Transaction {
        self.difference(self.dirty.iter())
    }

    /// What [`Self::pending`] has of these owners alone.
    pub(crate) fn pending_of(&self, owners: &[Owner]) -> Transaction {
        self.difference(owners.iter())
    }

    /// Owners that [`Self::pending`] may have something of.
    pub(crate) fn unsettled(&self) -> Vec<Owner> {
        self.dirty.union(&self.left).copied().collect()
    }

    fn difference<'a>(&self, owners: impl Iterator<Item = &'a Owner>) -> Transaction {
        let mut transaction = Transaction::default();
        for owner in owners {
            let programmed = self.owned(*owner);
            let target = self.target(*owner, &programmed);
            if matches!(owner, Owner::Bridged(_)) && target != programmed {
                // Old and new intervals may overlap, which the kernel refuses.
                transaction.make.delete.extend(programmed.iter().map(|(element, _)| *element));
                transaction.make.add.extend(target);
            } else {
                // What leads nowhere any more is refused: nothing of it is worth a wait.
                let leads = target.iter().any(|(element, _)| element.slot_index().is_some());
                let waits = leads || matches!(owner, Owner::Local(_));
                compare(&programmed, &target, waits, &mut transaction);
            }
        }
        let Transaction { make, divert, discard } = &mut transaction;
        [make, divert, discard].into_iter().for_each(Batch::sort);
        transaction
    }

    /// All elements that the desired state makes, but for refused ones. What is known to have been
    /// in the table stays as it was where it can: who is led by its address goes on to its endpoint.
    pub fn elements(&self) -> Elements {
        in_order(&self.rendered()).into_iter().collect()
    }

    /// The same by owner.
    pub(crate) fn rendered(&self) -> Programmed {
        let owners = self.owners().into_iter().filter(|owner| !self.refused.contains(owner));
        let rendered = owners.map(|owner| (owner, self.target(owner, &self.owned(owner))));
        let rendered = rendered.filter(|(_, owned)| !owned.is_empty());
        rendered.map(|(owner, owned)| (owner, Kept::pack(&owned))).collect()
    }

    /// Notes that the kernel did all of what is pending.
    pub fn settled(&mut self) {
        self.dirty.clear();
        self.left.clear();
    }

    /// Notes that the kernel did the first batch of what is pending.
    pub fn made(&mut self) {
        self.left.append(&mut self.dirty);
    }

    /// Notes that the kernel did a batch of a transaction.
    pub fn committed(&mut self, batch: &Batch) {
        for gone in batch.delete.chunk_by(|one, other| one.owner() == other.owner()) {
            self.edit(gone[0].owner(), |owned| {
                owned.retain(|(element, _)| !gone.contains(element));
            });
        }
        for come in batch.add.chunk_by(|(one, _), (other, _)| one.owner() == other.owner()) {
            self.edit(come[0].0.owner(), |owned| {
                owned.extend(come);
                owned.sort_unstable_by_key(|(element, _)| *element);
            });
        }
    }

    /// Notes what the kernel has, after it was read: all is looked at again.
    pub fn recovered(&mut self, elements: Elements) {
        self.programmed = by_owner(elements);
        self.left.clear();
        self.dirty = self.owners();
        self.dirty.extend(self.programmed.keys().copied());
        self.dirty.retain(|owner| !self.refused.contains(owner));
    }

    /// Where the kernel leads connections, as far as is known.
    pub(crate) fn led(&self) -> Former {
        let mut former = Former::default();
        for (owner, kept) in &self.programmed {
            match owner {
                Owner::Service(port) => drop(former.services.insert(*port)),
                Owner::NodePort(port) => drop(former.node_ports.insert(*port)),
                Owner::NodeAddress(address) => drop(former.node_addresses.insert(*address)),
                Owner::Virtual(_) | Owner::Local(_) | Owner::Bridged(_) | Owner::Stray => continue,
            }
            let targets = kept.unpack().into_iter().filter_map(|(element, data)| {
                let (Set::Slots(family, _) | Set::NodeSlots(family, _)) = element.set else {
                    return None;
                };
                data.to_target(family).map(|(address, _)| address)
            });
            former.endpoints.extend(targets);
        }
        former
    }

    /// Notes that the kernel has what was [`Self::rendered`] and nothing else.
    pub(crate) fn installed(&mut self, rendered: Programmed) {
        self.programmed = rendered;
        self.settled();
    }

    /// Leaves an owner as it is in the kernel until it changes, or until
    /// [`Self::retry_refused`], since the kernel refuses it.
    pub fn refuse(&mut self, owner: Owner) {
        self.dirty.remove(&owner);
        self.left.remove(&owner);
        self.refused.insert(owner);
    }

    /// The connections over UDP that changes left without their endpoint.
    pub(crate) fn stale(&self) -> &BTreeSet<Flows> {
        &self.stale
    }

    /// The connections over UDP that changes left without their endpoint, once; to be ended
    /// when the changes are in the kernel and what is old is gone from it.
    pub fn take_stale(&mut self) -> BTreeSet<Flows> {
        std::mem::take(&mut self.stale)
    }

    /// Takes back what [`Self::take_stale`] gave and could not be ended.
    pub(crate) fn note_unended(&mut self, flows: impl IntoIterator<Item = Flows>) {
        self.stale.extend(flows);
    }

    /// Notes which connections through a port lead nowhere after a change; TCP is left to end.
    fn note_stale(
        &mut self,
        (address, protocol, port): (IpAddr, Protocol, u16),
        old: Option<&Backends>,
        new: &Backends,
    ) {
        if protocol != Protocol::Udp {
            return;
        }
        let front = SocketAddr::new(address, port);
        let ends = |backends: &Backends| -> BTreeSet<SocketAddr> {
            let ends = backends.endpoints.iter();
            let ends = ends.filter(|end| Family::of(end.address) == Family::of(address));
            ends.map(|end| SocketAddr::new(end.address, end.port)).collect()
        };
        let old_ends = old.map(ends).unwrap_or_default();
        let new_ends = ends(new);
        // What came before anybody was there, and was let through as it was.
        let unled = (old_ends.is_empty() && !new_ends.is_empty()).then_some(front);
        let gone = old_ends.difference(&new_ends).copied();
        let stale = gone.chain(unled).map(|endpoint| Flows::Led { front, protocol, endpoint });
        self.stale.extend(stale);
        // Who comes back before the kernel was told is not gone.
        for endpoint in new_ends {
            self.stale.remove(&Flows::Led { front, protocol, endpoint });
        }
    }

    /// Lets the next difference try again what the kernel refused.
    pub fn retry_refused(&mut self) {
        self.dirty.append(&mut self.refused);
    }

    /// What the kernel has of an owner, as far as is known.
    fn owned(&self, owner: Owner) -> Owned {
        self.programmed.get(&owner).map(Kept::unpack).unwrap_or_default()
    }

    fn edit(&mut self, owner: Owner, change: impl FnOnce(&mut Owned)) {
        let mut owned = self.owned(owner);
        change(&mut owned);
        match owned.is_empty() {
            true => drop(self.programmed.remove(&owner)),
            false => drop(self.programmed.insert(owner, Kept::pack(&owned))),
        }
    }

    /// Everyone who may have elements.
    fn owners(&self) -> BTreeSet<Owner> {
        let Ruleset { services, node_ports, node_addresses, bridged: _ } = &self.desired;
        let ports = services.keys();
        let ports = ports.flat_map(|port| [Owner::Service(*port), Owner::Virtual(port.address)]);
        ports
            .chain(node_ports.keys().copied().map(Owner::NodePort))
            .chain(node_addresses.iter().copied().map(Owner::NodeAddress))
            .chain(self.local.keys().copied().map(Owner::Local))
            .chain(Family::ALL.map(Owner::Bridged))
            .collect()
    }

    fn touch(&mut self, owners: impl IntoIterator<Item = Owner>) {
        for owner in owners {
            self.refused.remove(&owner);
            self.dirty.insert(owner);
        }
    }

    fn count_local(&mut self, backends: &Backends, by: isize) {
        let endpoints = backends.endpoints.iter().filter(|endpoint| endpoint.local);
        for address in endpoints.map(|endpoint| endpoint.address) {
            let count = self.local.entry(address).or_default();
            *count = count.saturating_add_signed(by);
            let last = *count == 0;
            let first = *count == 1;
            if last {
                self.local.remove(&address);
            }
            if last || first {
                self.touch([Owner::Local(address)]);
            }
        }
    }
}

/// Elements in the order of their owners, and of themselves.
fn by_owner(elements: Elements) -> Programmed {
    let mut elements: Vec<_> = elements.into_iter().collect();
    // They come in a few long runs, one for each set. Stable, so each owner's stay in order.
    elements.sort_by_key(|(element, _)| element.owner());
    let by_owner = elements.chunk_by(|(one, _), (other, _)| one.owner() == other.owner());
    // From what is in order a map is built without looking for a place for each.
    by_owner.map(|owned| (owned[0].0.owner(), Kept::pack(owned))).collect()
}

/// Elements in the order of their sets, as the kernel gets them.
pub(crate) fn in_order(programmed: &Programmed) -> Vec<(Element, Data)> {
    let mut elements = Vec::with_capacity(programmed.values().map(Kept::len).sum());
    elements.extend(programmed.values().flat_map(Kept::unpack));
    elements.sort_unstable_by_key(|(element, _)| *element);
    elements
}

/// What leads from one list of an owner's elements to another; both are in order. What goes
/// `waits` for the packets that look for it, or goes at once.
fn compare(
    programmed: &[(Element, Data)],
    target: &[(Element, Data)],
    waits: bool,
    into: &mut Transaction,
) {
    let (mut old, mut new) = (programmed.iter().peekable(), target.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let gone = if order.is_le() { old.next() } else { None };
        let come = if order.is_ge() { new.next() } else { None };
        match (gone, come) {
            (Some((element, before)), Some((_, after))) if before != after => {
                into.make.delete.push(*element);
                into.make.add.push((*element, *after));
            }
            (None, Some(added)) => into.make.add.push(*added),
            (Some((element, _)), None) if !waits => into.make.delete.push(*element),
            // A port that stays is found through another gate before its old slots go.
            (Some((element, _)), None) if element.set.is_gate() => {
                into.divert.delete.push(*element);
            }
            (Some((element, _)), None) => into.discard.delete.push(*element),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests;
