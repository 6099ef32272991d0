//! All reads of a pass. Reads caches; asks the API server only about the holder of a Claim that
//! the caches do not confirm, and about a pool that they do not have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_api::{AppService, Claim, NodeReport, SandboxPool};
use portolan_claims::{Claims, HolderState, holder_key};
use portolan_reconcile::{Cache, ObjectKey, Observed, Writer};

use crate::REALM;
use crate::error::Error;
use crate::ports::NodePort;
use crate::slices::{self, Family};
use crate::view::{Belongs, Listeners, PoolView, Sandbox, ServiceView};

/// AppServices by `namespace/name` of their pool.
pub(crate) const BY_POOL: &str = "pool";
/// EndpointSlices by `namespace/name` of the Pods that they list.
pub(crate) const BY_POD: &str = "pod";
/// AppServices, Services and reports by the node ports that they ask for, may have, or see in use.
pub(crate) const BY_NODE_PORT: &str = "node-port";
/// Services by their addresses from outside the cluster, and reports by those of the node.
pub(crate) const BY_ADDRESS: &str = "address";

/// Everything that a pass over one AppService may know.
#[derive(Clone, Debug)]
pub(crate) struct Situation {
    /// The AppService.
    pub(crate) service: Arc<AppService>,
    /// The Service of its name.
    pub(crate) address: Slot<Service>,
    /// The node ports that it asks for, in its order.
    pub(crate) asked: Vec<Asked>,
    /// The Claims that it holds, on these ports and on others.
    pub(crate) held: Vec<Arc<Claim>>,
    /// The sandboxes of its pool; `None`: it has no pool yet.
    pub(crate) sandboxes: Option<Observed<Vec<Arc<Sandbox>>>>,
    /// Sandboxes that its slices list and that are of another pool or going, as long as their
    /// Pods are there. One has an entry for each of its addresses.
    pub(crate) former: Vec<Arc<Sandbox>>,
    /// The slices of its name, by family.
    pub(crate) slices: BTreeMap<Family, Slot<EndpointSlice>>,
}

/// A slice whose AppService is gone.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    pub(crate) family: Family,
    pub(crate) slice: Arc<EndpointSlice>,
    /// Those of its sandboxes that are not gone.
    pub(crate) there: Vec<Arc<Sandbox>>,
}

/// What is under a name that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Slot<T> {
    /// Nothing that is known of.
    Free,
    /// What this AppService made.
    Ours(Box<T>),
    /// Something that goes by itself; its name will be free.
    Leaving,
    /// Something of somebody else.
    Taken,
    /// Something that could not be understood.
    Unknown(String),
}

/// A node port that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The name of the AppService's port.
    pub(crate) name: String,
    /// The node port.
    pub(crate) port: NodePort,
    /// The Claim that has the name for it; `None`: it is free.
    pub(crate) claim: Option<(Arc<Claim>, HolderState)>,
    /// The Kubernetes Services that have it, in the order of their names.
    pub(crate) services: Vec<ObjectKey>,
    /// The nodes on which a process listens on it.
    pub(crate) nodes: Vec<String>,
}

/// Where a pass reads.
pub(crate) struct Sources {
    pub(crate) writer: Writer,
    pub(crate) claims: Claims,
    pub(crate) app_services: Cache<AppService>,
    pub(crate) services: Cache<Service, ServiceView>,
    pub(crate) slices: Cache<EndpointSlice>,
    pub(crate) pods: Cache<Pod, Sandbox>,
    pub(crate) pools: Cache<SandboxPool, PoolView>,
    pub(crate) reports: Cache<NodeReport, Listeners>,
}

impl Sources {
    /// Reads all that a pass over this AppService may know.
    pub(crate) async fn observe(&self, service: Arc<AppService>) -> Situation {
        let mut asked = Vec::new();
        for port in &service.spec.ports {
            if let Some(node_port) = NodePort::asked(port) {
                asked.push(self.asked(&service, port.name.clone(), node_port).await);
            }
        }
        let sandboxes = match &service.spec.pool {
            Some(pool) => Some(self.sandboxes(&service, pool).await),
            None => None,
        };
        let slices =
            BTreeMap::from(Family::ALL.map(|family| (family, self.slice(&service, family))));
        let mut former = Vec::new();
        for slot in slices.values() {
            // Of what is not known the slices stay as they are.
            if let Slot::Ours(slice) = slot
                && !matches!(sandboxes, Some(Observed::Unknown(_)))
            {
                former.extend(self.former(slice, sandboxes.as_ref()).await);
            }
        }
        Situation {
            address: self.address(&service),
            asked,
            held: self.claims.held_by(service.as_ref()),
            sandboxes,
            former,
            slices,
            service,
        }
    }

    /// What an AppService that is gone has left: its slices, with the sandboxes that are there.
    pub(crate) async fn left_by(&self, of: &ObjectKey) -> Vec<Left> {
        let mut left = Vec::new();
        for family in Family::ALL {
            let key = ObjectKey::new(&*of.namespace, family.slice(&of.name));
            let slice = self.slices.get(&key);
            if let Some(slice) = slice.filter(|slice| slices::is_left_by(slice, &of.name)) {
                let there = self.former(&slice, None).await;
                left.push(Left { family, slice, there });
            }
        }
        left
    }

    /// The sandboxes that a slice lists and that are not among those of now, but whose Pods are
    /// still there. That one is gone is asked of the API server: connections to it are ended then,
    /// which must not happen because a cache lags.
    async fn former(
        &self,
        slice: &EndpointSlice,
        now: Option<&Observed<Vec<Arc<Sandbox>>>>,
    ) -> Vec<Arc<Sandbox>> {
        let now = match now {
            Some(Observed::Present(now)) => now.as_slice(),
            _ => &[],
        };
        let mut former = Vec::new();
        for listed in slices::listed(slice) {
            let is_now = now.iter().any(|one| one.is_at(&listed));
            if !is_now && self.is_there(&listed).await {
                former.push(Arc::new(listed));
            }
        }
        former
    }

    async fn is_there(&self, listed: &Sandbox) -> bool {
        if let Some(pod) = self.pods.get(&listed.key)
            && pod.is_at(listed)
        {
            return true;
        }
        match self.writer.get::<Pod>(&listed.key).await {
            Observed::Present(live) => Sandbox::of(live).is_some_and(|pod| pod.is_at(listed)),
            Observed::Absent => false,
            Observed::Unknown(_) => true,
        }
    }

    fn address(&self, of: &AppService) -> Slot<Service> {
        slot(self.services.observed(&ObjectKey::of(of)), |view| {
            let ours = view.ours.as_ref()?.unpack();
            Some((Belongs::of(&ours, of), ours))
        })
    }

    fn slice(&self, of: &AppService, family: Family) -> Slot<EndpointSlice> {
        let own = ObjectKey::of(of);
        let key = ObjectKey::new(own.namespace, family.slice(&own.name));
        slot(self.slices.observed(&key), |slice| Some((slices::belongs(slice, of), slice.clone())))
    }

    async fn asked(&self, of: &AppService, name: String, port: NodePort) -> Asked {
        let value = port.value();
        let claim = match self.claims.named(&value) {
            Some(claim) => {
                let holder = self.holder(&claim, of, port).await;
                Some((claim, holder))
            }
            None => None,
        };
        let own = ObjectKey::of(of);
        let is_nodes = |address: IpAddr| {
            !self.reports.keys_by_index(BY_ADDRESS, &address.to_string()).is_empty()
        };
        let services = self.services.by_index(BY_NODE_PORT, &value).into_iter();
        let services = services.filter(|one| one.key != own && one.has(port, is_nodes));
        let nodes = self.reports.by_index(BY_NODE_PORT, &value).into_iter();
        Asked {
            name,
            port,
            claim,
            services: services.map(|one| one.key.clone()).collect(),
            nodes: nodes.map(|one| one.node.clone()).collect(),
        }
    }

    /// A holder that the cache confirms needs no request; one that it does not confirm is read
    /// from the API server, because a Claim must not be lost to a cache that lags.
    async fn holder(&self, claim: &Claim, of: &AppService, port: NodePort) -> HolderState {
        let (key, value) = (holder_key(claim), port.value());
        let asks = |other: &AppService| asks(other, port);
        let cached = self.app_services.get(&key);
        let seen = portolan_claims::confirmed(REALM, (claim, &value), of, cached.as_deref(), asks);
        match seen {
            Some(state) => state,
            None => {
                let live = self.writer.get::<AppService>(&key).await;
                portolan_claims::judged(claim, live.as_ref(), asks)
            }
        }
    }

    /// The sandboxes of a pool that is this service's own. What cannot be seen at the moment is
    /// not taken for absent: connections would be refused by a watch that lags.
    async fn sandboxes(&self, of: &AppService, pool: &str) -> Observed<Vec<Arc<Sandbox>>> {
        let namespace = of.metadata.namespace.clone().unwrap_or_default();
        let key = ObjectKey::new(namespace, pool);
        let view = match self.pools.get(&key) {
            Some(view) => Observed::Present(view.as_ref().clone()),
            None => match self.writer.get::<SandboxPool>(&key).await {
                Observed::Present(live) => Observed::from_read(Ok::<_, String>(PoolView::of(live))),
                Observed::Absent => Observed::Absent,
                Observed::Unknown(why) => Observed::Unknown(why),
            },
        };
        let pool = match view {
            Observed::Present(pool) if is_of(&pool, of) => pool,
            Observed::Present(_) | Observed::Absent => return Observed::Absent,
            Observed::Unknown(why) => return Observed::Unknown(why),
        };
        let mut sandboxes = self.pods.by_index(BY_POOL, &key.to_string());
        sandboxes.retain(|sandbox| sandbox.owner.as_ref() == Some(&pool.uid));
        if sandboxes.is_empty() && self.pods.interrupted_since().is_some() {
            return Observed::Unknown("the watch of Pods is interrupted".into());
        }
        Observed::Present(sandboxes)
    }
}

/// Whether an AppService asks for this node port.
pub(crate) fn asks(service: &AppService, port: NodePort) -> bool {
    service.spec.ports.iter().any(|one| NodePort::asked(one) == Some(port))
}

/// A pool of another service, or of a preview, is none of this service whoever named it.
fn is_of(pool: &PoolView, of: &AppService) -> bool {
    !pool.is_preview && pool.of == (of.spec.app.clone(), of.spec.service.clone())
}

fn slot<T, V>(found: Observed<Arc<V>>, whose: impl Fn(&V) -> Option<(Belongs, T)>) -> Slot<T> {
    match found {
        Observed::Absent => Slot::Free,
        Observed::Unknown(why) => Slot::Unknown(why),
        Observed::Present(view) => match whose(&view) {
            Some((Belongs::Here, object)) => Slot::Ours(Box::new(object)),
            Some((Belongs::Former, _)) => Slot::Leaving,
            Some((Belongs::Elsewhere, _)) | None => Slot::Taken,
        },
    }
}

impl Situation {
    /// What could not be seen and so was left as it is.
    pub(crate) fn unknown(&self) -> Option<Error> {
        let unknown = |what, why: &String| Some(Error::Unknown { what, why: why.clone() });
        if let Slot::Unknown(why) = &self.address {
            return unknown("the service", why);
        }
        if let Some(Observed::Unknown(why)) = &self.sandboxes {
            return unknown("the sandboxes", why);
        }
        let slices = self.slices.values();
        let slice = slices.filter_map(|slot| match slot {
            Slot::Unknown(why) => Some(why),
            _ => None,
        });
        let claim = self.asked.iter().filter_map(|asked| match &asked.claim {
            Some((_, HolderState::Unknown(why))) => Some(why),
            _ => None,
        });
        let mut slice = slice;
        let mut claim = claim;
        slice
            .next()
            .and_then(|why| unknown("the endpoints", why))
            .or_else(|| claim.next().and_then(|why| unknown("the holder of a node port", why)))
    }
}
