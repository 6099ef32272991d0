//! Where AppServices, their slices, internal names and the gateways' slices meet. Pure.
//!
//! Every change names the services that it touches; [`Index::take_changes`] works out what these
//! forward now, and nothing else. What it gives is what a new index with the same objects would
//! give: neither the order in which objects came nor those that have gone matter.
//!
//! Two services can claim one port only when what the API says contradicts itself. Then the first
//! by key has it, on every node the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portolan_api::AppService;
use portolan_nft::{
    Affinity, Backends, Endpoint, Endpoints, Family, NodePort, Protocol, ServicePort,
};
use portolan_reconcile::{ObjectKey, Uid};

use crate::facts::{EndpointFacts, InternalFacts, ServiceFacts, SliceFacts};

#[cfg(test)]
mod tests;

/// What a port leads to, or `None` if it is nobody's any more.
pub(crate) type Changed<P> = BTreeMap<P, Option<Backends>>;

/// What changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) services: Changed<ServicePort>,
    pub(crate) node_ports: Changed<NodePort>,
    /// Addresses of sandboxes that are gone.
    pub(crate) gone: BTreeSet<IpAddr>,
    /// Addresses that another sandbox has now.
    pub(crate) reused: BTreeSet<IpAddr>,
}

/// All that is forwarded, by who asks for it.
#[derive(Debug, Default)]
pub(crate) struct Index {
    services: BTreeMap<Arc<ObjectKey>, Front>,
    internal: BTreeMap<Arc<ObjectKey>, Arc<InternalFacts>>,
    /// The port of a gateway's slice for calls from inside.
    gateways: BTreeMap<ObjectKey, Arc<SliceFacts>>,
    claims: BTreeSet<(Port, Source)>,
    /// The same by source, in order.
    claimed: BTreeMap<Source, Box<[Port]>>,
    touched: BTreeSet<Source>,
    /// How many slices list a sandbox.
    sandboxes: BTreeMap<Sandbox, u32>,
    gone: BTreeSet<Sandbox>,
    reused: BTreeSet<IpAddr>,
    /// Ports that have more endpoints than they can lead to.
    crowded: BTreeSet<Port>,
}

/// How many of each there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// AppServices and internal names.
    pub(crate) services: usize,
    /// Addresses of sandboxes.
    pub(crate) sandboxes: usize,
    /// Ports that have more endpoints than they can lead to.
    pub(crate) crowded: usize,
}

/// A sandbox by its address, and by which Pod of those that have had the address it is.
type Sandbox = (IpAddr, u32);

/// The name of the gateways' port for calls from inside the cluster.
const INTERNAL_PORT: &str = "internal";

/// As many endpoints as a slice can have. What is not in one that is full may exist.
const ENDPOINTS_MAX: usize = 1000;

// AppServices tell users the limit that the kernel's rules set; this crate alone knows both.
const _: () = assert!(portolan_nft::ENDPOINTS_MAX == AppService::ENDPOINTS_LED_MAX);

/// An AppService with its slices, either of which may come first.
#[derive(Debug, Default)]
struct Front {
    facts: Option<Arc<ServiceFacts>>,
    /// UID of the AppService of this name that was there before: slices outlive it.
    former: Option<Uid>,
    /// By key, in no order: one for each family, as a rule.
    slices: Vec<(Arc<ObjectKey>, Arc<SliceFacts>)>,
}

/// Who asks for ports. Keys are shared: there are thousands, and each is named once for every port
/// besides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Service(Arc<ObjectKey>),
    Internal(Arc<ObjectKey>),
}

/// A port that can be somebody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Service(ServicePort),
    Node(NodePort),
}

impl Index {
    /// Takes in an AppService, or that there is none of this name.
    pub(crate) fn service(&mut self, key: &ObjectKey, facts: Option<Arc<ServiceFacts>>) {
        self.front(&key.shared(), |front| {
            let uid = facts.as_ref().map(|facts| facts.uid.clone());
            let before = std::mem::replace(&mut front.facts, facts);
            let before = before.map(|facts| facts.uid.clone());
            front.former = before
                .filter(|before| Some(before) != uid.as_ref())
                .or_else(|| front.former.take());
        });
    }

    /// Takes in a slice of ours, or that there is none of this name.
    pub(crate) fn slice(
        &mut self,
        key: &ObjectKey,
        old: Option<&Arc<SliceFacts>>,
        new: Option<&Arc<SliceFacts>>,
    ) {
        // Counted first, so that who only moved is not gone.
        if let Some(new) = new {
            self.count(new);
        }
        if let Some(old) = old {
            self.discount(old, new);
        }
        // In one step if it stays with its service: a service without anything is forgotten.
        if let Some(old) = old.filter(|old| new.is_none_or(|new| new.service != old.service)) {
            self.front(&old.service, |front| front.slices.retain(|(known, _)| **known != *key));
        }
        if let Some(new) = new {
            let named = (key.shared(), new.clone());
            self.front(&new.service, |front| {
                front.slices.retain(|(known, _)| **known != *key);
                // One or two, as a rule: the room that a list makes by itself would stay empty.
                front.slices.reserve_exact(1);
                front.slices.push(named);
            });
        }
    }

    /// Takes in an internal name, or that there is none of this name.
    pub(crate) fn internal(&mut self, key: &ObjectKey, facts: Option<Arc<InternalFacts>>) {
        let shared = key.shared();
        match facts {
            Some(facts) => drop(self.internal.insert(shared.clone(), facts)),
            None => drop(self.internal.remove(key)),
        }
        self.touched.insert(Source::Internal(shared));
    }

    /// Takes in a slice of the gateways, or that there is none of this name.
    pub(crate) fn gateways(&mut self, key: &ObjectKey, facts: Option<Arc<SliceFacts>>) {
        match facts {
            Some(facts) => drop(self.gateways.insert(key.clone(), facts)),
            None => drop(self.gateways.remove(key)),
        }
        self.touched.extend(self.internal.keys().cloned().map(Source::Internal));
    }

    /// Touches everything, for who begins anew.
    pub(crate) fn touch_all(&mut self) {
        self.touched.extend(self.services.keys().cloned().map(Source::Service));
        self.touched.extend(self.internal.keys().cloned().map(Source::Internal));
    }

    /// Whether there may be changes.
    pub(crate) fn is_touched(&self) -> bool {
        !(self.touched.is_empty() && self.gone.is_empty() && self.reused.is_empty())
    }

    /// How many there are of what is counted. Ports are as of the last look at the changes.
    pub(crate) fn sizes(&self) -> Sizes {
        let known = self.services.values().filter(|front| front.facts.is_some()).count();
        Sizes {
            services: known + self.internal.len(),
            sandboxes: self.sandboxes.len(),
            crowded: self.crowded.len(),
        }
    }

    /// Whether some slice has a sandbox of this address.
    pub(crate) fn lists(&self, address: IpAddr) -> bool {
        self.sandboxes.range((address, 0)..=(address, u32::MAX)).next().is_some()
    }

    /// Whether a sandbox or a gateway may have this address: some slice lists it, or one is full
    /// and so may have left out who drains.
    pub(crate) fn may_have(&self, address: IpAddr) -> bool {
        let mut gateways = self.gateways.values().flat_map(|slice| &slice.endpoints);
        let mut slices = self.services.values().flat_map(|front| &front.slices);
        self.lists(address)
            || gateways.any(|endpoint| endpoint.address == address)
            || slices.any(|(_, slice)| slice.endpoints.len() >= ENDPOINTS_MAX)
    }

    /// The node ports over UDP that AppServices ask for.
    pub(crate) fn asked_over_udp(&self) -> BTreeSet<u16> {
        let known = self.services.values().filter_map(|front| front.facts.as_ref());
        let ports = known.flat_map(|facts| &facts.ports);
        ports.filter(|port| port.protocol == Protocol::Udp).filter_map(|port| port.asked).collect()
    }

    /// What the services that were touched forward now; once.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let mut unsettled = BTreeSet::new();
        for source in std::mem::take(&mut self.touched) {
            self.renew_claims(&source, &mut unsettled);
        }
        let mut changes =
            Changes { reused: std::mem::take(&mut self.reused), ..Changes::default() };
        let mut gone = std::mem::take(&mut self.gone);
        // Who comes back before anybody was told is not gone.
        gone.retain(|sandbox| !self.sandboxes.contains_key(sandbox));
        for (address, _) in gone {
            match self.lists(address) {
                true => changes.reused.insert(address),
                false => changes.gone.insert(address),
            };
        }
        for port in unsettled {
            let backends = self.holder(port).map(|source| self.backends(source, port));
            match backends.as_ref().is_some_and(is_crowded) {
                true => self.crowded.insert(port),
                false => self.crowded.remove(&port),
            };
            match port {
                Port::Service(port) => drop(changes.services.insert(port, backends)),
                Port::Node(port) => drop(changes.node_ports.insert(port, backends)),
            }
        }
        changes
    }

    /// Brings the claims of a service up to date, and names all ports that this concerns.
    fn renew_claims(&mut self, source: &Source, unsettled: &mut BTreeSet<Port>) {
        let wanted = self.wanted(source);
        let had = match wanted.is_empty() {
            true => self.claimed.remove(source),
            false => self.claimed.insert(source.clone(), wanted.iter().copied().collect()),
        };
        let had = BTreeSet::from_iter(had.unwrap_or_default());
        for port in had.difference(&wanted) {
            self.claims.remove(&(*port, source.clone()));
        }
        for port in wanted.difference(&had) {
            self.claims.insert((*port, source.clone()));
        }
        unsettled.extend(had.union(&wanted));
    }

    /// The first of those who claim a port.
    fn holder(&self, port: Port) -> Option<&Source> {
        // Sources of services come before others, and an empty key before all.
        let least = (port, Source::Service(Arc::default()));
        let (claimed, source) = self.claims.range(least..).next()?;
        (*claimed == port).then_some(source)
    }

    fn wanted(&self, source: &Source) -> BTreeSet<Port> {
        let service_port = |address: &IpAddr, protocol, port| {
            Port::Service(ServicePort { address: *address, protocol, port })
        };
        match source {
            Source::Service(key) => {
                let facts = self.services.get(key).and_then(|front| front.facts.as_ref());
                let Some(facts) = facts else { return BTreeSet::new() };
                let ports = facts.ports.iter().flat_map(|port| {
                    let node_port = port.node_port;
                    let node_port = node_port
                        .map(|number| NodePort { protocol: port.protocol, port: number })
                        .map(Port::Node);
                    let addresses = facts.addresses.iter();
                    let virtual_ports =
                        addresses.map(|address| service_port(address, port.protocol, port.port));
                    virtual_ports.chain(node_port)
                });
                ports.collect()
            }
            Source::Internal(key) => {
                let Some(facts) = self.internal.get(key) else { return BTreeSet::new() };
                let addresses = facts.addresses.iter().flat_map(|address| {
                    let ports = facts.ports.iter();
                    ports.map(|(protocol, port)| service_port(address, *protocol, *port))
                });
                addresses.collect()
            }
        }
    }

    /// What a port of a service leads to.
    fn backends(&self, source: &Source, port: Port) -> Backends {
        let families: &[Family] = match port {
            Port::Service(port) => &[Family::of(port.address)],
            Port::Node(_) => &Family::ALL,
        };
        match source {
            Source::Service(key) => {
                let Some(front) = self.services.get(key) else { return Backends::default() };
                front.backends(port, families)
            }
            Source::Internal(_) => {
                let slices = self.gateways.values().map(|slice| &**slice);
                let endpoints = chosen(slices, (INTERNAL_PORT, Protocol::Tcp), families);
                Backends { affinity: Affinity::None, endpoints }
            }
        }
    }

    fn front(&mut self, key: &Arc<ObjectKey>, change: impl FnOnce(&mut Front)) {
        let front = self.services.entry(key.clone()).or_default();
        change(front);
        if front.facts.is_none() && front.slices.is_empty() {
            self.services.remove(key);
        }
        self.touched.insert(Source::Service(key.clone()));
    }

    /// The address of a sandbox that is not known to be gone is another's already if the service
    /// controller lags behind the network plugin.
    fn count(&mut self, slice: &SliceFacts) {
        let is_ours = self.is_ours(slice);
        for endpoint in &slice.endpoints {
            let is_known = self.lists(endpoint.address);
            let count = self.sandboxes.entry((endpoint.address, endpoint.pod)).or_default();
            *count += 1;
            if *count == 1 && is_known && is_ours {
                self.reused.insert(endpoint.address);
            }
        }
    }

    /// A sandbox is gone when a slice that listed it does so no more and no other does: the
    /// service controller keeps it there until its Pod is gone, whatever becomes of its pool and
    /// of the AppService. A slice that was deleted says nothing, nor does one that is full.
    fn discount(&mut self, old: &SliceFacts, new: Option<&Arc<SliceFacts>>) {
        let tells = new.is_some_and(|new| {
            let is_whole = new.endpoints.len() < ENDPOINTS_MAX;
            is_whole && self.is_ours(old) && self.is_ours(new)
        });
        for endpoint in &old.endpoints {
            let sandbox = (endpoint.address, endpoint.pod);
            let Some(count) = self.sandboxes.get_mut(&sandbox) else { continue };
            *count -= 1;
            if *count == 0 {
                self.sandboxes.remove(&sandbox);
                // If another Pod has the address, that was told when it came.
                if tells && !self.lists(endpoint.address) {
                    self.gone.insert(sandbox);
                }
            }
        }
    }

    fn is_ours(&self, slice: &SliceFacts) -> bool {
        self.services.get(&slice.service).is_some_and(|front| front.has_owned(slice))
    }
}

impl Front {
    /// Ownership is by UID: a slice that only has the label is somebody else's.
    fn owns(&self, slice: &SliceFacts) -> bool {
        let facts = self.facts.as_ref();
        facts.is_some_and(|facts| slice.controller.as_ref() == Some(&facts.uid))
    }

    /// The same, or it was before the AppService went. Of one that went before this process came
    /// nobody knows more than its slice says.
    fn has_owned(&self, slice: &SliceFacts) -> bool {
        let is_former = match &self.former {
            Some(_) => slice.controller == self.former,
            None => self.facts.is_none() && slice.controller.is_some(),
        };
        is_former || self.owns(slice)
    }

    fn backends(&self, port: Port, families: &[Family]) -> Backends {
        let Some(facts) = &self.facts else { return Backends::default() };
        let is_it = |candidate: &&crate::facts::PortFacts| match port {
            Port::Service(port) => {
                (candidate.protocol, candidate.port) == (port.protocol, port.port)
            }
            Port::Node(port) => {
                (candidate.protocol, candidate.node_port) == (port.protocol, Some(port.port))
            }
        };
        let Some(named) = facts.ports.iter().find(is_it) else { return Backends::default() };
        let slices = self.slices.iter().map(|(_, slice)| &**slice).filter(|slice| self.owns(slice));
        let endpoints = chosen(slices, (&named.name, named.protocol), families);
        Backends { affinity: facts.affinity, endpoints }
    }
}

/// Whether some of the endpoints are left out, in a family.
fn is_crowded(backends: &Backends) -> bool {
    let count = |family: Family| {
        let endpoints = backends.endpoints.iter();
        endpoints.filter(|end| Family::of(end.address) == family).count()
    };
    Family::ALL.into_iter().any(|family| count(family) > portolan_nft::ENDPOINTS_MAX)
}

/// Endpoints of a port: those that are ready, and in a family where none is, those that go but
/// still answer, as Kubernetes has it.
fn chosen<'a>(
    slices: impl Iterator<Item = &'a SliceFacts>,
    port: (&str, Protocol),
    families: &[Family],
) -> Endpoints {
    let mut all = Vec::new();
    for slice in slices {
        let is_it = |(name, protocol, _): &&(Box<str>, Protocol, u16)| (&**name, *protocol) == port;
        let Some((_, _, number)) = slice.ports.iter().find(is_it) else { continue };
        all.extend(slice.endpoints.iter().map(|endpoint| (endpoint, *number)));
    }
    let mut chosen = Vec::new();
    for family in families {
        let of_family = all.iter().filter(|(end, _)| Family::of(end.address) == *family);
        let pick = |wanted: fn(&EndpointFacts) -> bool| {
            let wanted = of_family.clone().filter(move |(end, _)| wanted(end));
            wanted.map(|(end, port)| Endpoint {
                address: end.address,
                port: *port,
                local: end.local,
            })
        };
        let ready: Vec<_> = pick(|end| end.ready).collect();
        match ready.is_empty() {
            true => chosen.extend(pick(|end| end.last_resort)),
            false => chosen.extend(ready),
        }
    }
    chosen.into_iter().collect()
}
