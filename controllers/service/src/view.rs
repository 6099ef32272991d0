//! What is kept of objects that others own: small, and only what a decision needs. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use portolan_api::{App, AppService, NodeReport, SandboxPool, Transport, labels};
use portolan_reconcile::{ObjectKey, Packed};
use serde::Serialize;

use crate::ports::NodePort;

/// Whose an object is that has a name which is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Belongs {
    /// To this AppService.
    Here,
    /// To an AppService of this name that is gone, or to the same App or one of its name that is
    /// gone, which gave the service an internal name while it was http-only; or it is going itself:
    /// the name becomes free.
    Former,
    /// To somebody else.
    Elsewhere,
}

impl Belongs {
    /// Ownership is by UID; the kind and name of the owner only tell what will go by itself.
    pub(crate) fn of(object: &impl Resource, to: &AppService) -> Self {
        let meta = object.meta();
        let Some(owner) = controller(object) else { return Self::Elsewhere };
        let is_here = to.metadata.uid.as_ref() == Some(&owner.uid);
        let is_namesake = owner.kind == AppService::kind(&())
            && to.metadata.name.as_deref() == Some(owner.name.as_str());
        // Of two Apps of one name one is gone, so by name this is the same one or a former one.
        let is_apps = owner.kind == App::kind(&()) && owner.name == to.spec.app;
        let is_namesake = is_namesake || is_apps;
        match (is_here, is_namesake) {
            (true, _) if meta.deletion_timestamp.is_none() => Self::Here,
            (true, _) | (_, true) => Self::Former,
            (false, false) => Self::Elsewhere,
        }
    }
}

/// A Service, whoever made it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceView {
    /// Its name.
    pub(crate) key: ObjectKey,
    /// The ports that it has on every node.
    pub(crate) node_ports: BTreeSet<NodePort>,
    /// The ports that it has at addresses from outside the cluster, which may be those of nodes.
    pub(crate) outside: BTreeSet<(IpAddr, NodePort)>,
    /// All of it, if Portolan's proxy serves it or an App or AppService controls it; others are not
    /// ours whatever is in them. By the label alone, one that lost it could not get it back.
    pub(crate) ours: Option<Packed<Service>>,
}

impl ServiceView {
    pub(crate) fn of(service: Service) -> Option<Self> {
        let key = ObjectKey::of(&service);
        let (node_ports, outside) = (node_ports(&service), outside(&service));
        let is_ours = is_ours(&service);
        let ours = is_ours.then(|| Packed::of(service)).flatten();
        Some(Self { key, node_ports, outside, ours })
    }

    /// All ports that it may have on nodes.
    pub(crate) fn ports(&self) -> impl Iterator<Item = NodePort> {
        self.node_ports.iter().copied().chain(self.outside.iter().map(|(_, port)| *port))
    }

    /// Whether it has this port on some node; `is_nodes` says which addresses are a node's.
    pub(crate) fn has(&self, port: NodePort, is_nodes: impl Fn(IpAddr) -> bool) -> bool {
        let mut outside = self.outside.iter().filter(|(_, other)| *other == port);
        self.node_ports.contains(&port) || outside.any(|(address, _)| is_nodes(*address))
    }
}

/// Whether a Service may be one that Portolan made: whose it is, the UID of its controller says.
pub(crate) fn is_ours(service: &Service) -> bool {
    let proxy = service.metadata.labels.as_ref().and_then(|all| all.get(labels::SERVICE_PROXY));
    let is_controlled = |owner: &OwnerReference| is_a::<AppService>(owner) || is_a::<App>(owner);
    proxy.is_some_and(|proxy| proxy == labels::MANAGER)
        || controller(service).is_some_and(is_controlled)
}

/// The owner that controls an object.
pub(crate) fn controller(object: &impl Resource) -> Option<&OwnerReference> {
    let mut owners = object.meta().owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// Whether an owner is of this kind of Portolan's, in whatever version.
pub(crate) fn is_a<K: Resource<DynamicType = ()>>(owner: &OwnerReference) -> bool {
    let group = owner.api_version.split_once('/').map(|(group, _)| group);
    group.is_some_and(|group| group == K::group(&())) && owner.kind == K::kind(&())
}

fn node_ports(service: &Service) -> BTreeSet<NodePort> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let ports =
        spec.ports.iter().flatten().filter_map(|port| {
            Some(NodePort { number: port.node_port?, transport: transport(port)? })
        });
    let health = spec.health_check_node_port.into_iter();
    let health = health.map(|number| NodePort { number, transport: Transport::Tcp });
    ports.chain(health).filter(|port| port.number > 0).collect()
}

/// The node's kernel leads these too, and what the agent leads comes first.
fn outside(service: &Service) -> BTreeSet<(IpAddr, NodePort)> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    // One in the mode `Proxy` is the load balancer's own: nodes do not know it.
    let is_led = |one: &&LoadBalancerIngress| matches!(one.ip_mode.as_deref(), None | Some("VIP"));
    let balanced = ingress.iter().filter(is_led).filter_map(|one| one.ip.as_ref());
    let addresses = spec.external_ips.iter().flatten().chain(balanced);
    let addresses: BTreeSet<IpAddr> = addresses.filter_map(|text| text.parse().ok()).collect();
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| Some(NodePort { number: port.port, transport: transport(port)? }));
    let at = |port| addresses.iter().map(move |address| (*address, port));
    ports.flat_map(at).collect()
}

/// `None` for a transport that no App can ask for.
fn transport(port: &ServicePort) -> Option<Transport> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(Transport::Tcp),
        Some("UDP") => Some(Transport::Udp),
        Some(_) => None,
    }
}

/// A Pod with the pool label, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Its name.
    pub(crate) key: ObjectKey,
    /// Its UID.
    pub(crate) uid: String,
    /// The pool that the label names. An index only: whose it is, `owner` says.
    pub(crate) pool: ObjectKey,
    /// UID of the controller reference.
    pub(crate) owner: Option<String>,
    /// At most one of each family; empty before its network is set up.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where it runs.
    pub(crate) node: Option<String>,
    /// The kubelet says that it serves.
    pub(crate) serving: bool,
    /// It is to get nothing new: it drains, or somebody deleted it.
    pub(crate) leaving: bool,
}

impl Sandbox {
    /// `None` for a Pod without the label, and for one in which nothing runs any more.
    pub(crate) fn of(pod: Pod) -> Option<Self> {
        let key = ObjectKey::of(&pod);
        let owner = controller(&pod).map(|owner| owner.uid.clone());
        let meta = pod.metadata;
        let pool = meta.labels.as_ref()?.get(labels::POOL)?;
        let status = pod.status.unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            return None;
        }
        let is_marked = meta.annotations.is_some_and(|all| all.contains_key(labels::DRAIN));
        let mut conditions = status.conditions.iter().flatten();
        // Older kubelets say only `podIP`.
        let primary = status.pod_ip.filter(|_| status.pod_ips.iter().flatten().count() == 0);
        let addresses = status.pod_ips.into_iter().flatten().map(|address| address.ip);
        let addresses = addresses.chain(primary).filter_map(|address| address.parse().ok());
        Some(Self {
            pool: ObjectKey::new(key.namespace.clone(), pool.clone()),
            uid: meta.uid.unwrap_or_default(),
            owner,
            addresses: addresses.collect(),
            node: pod.spec.and_then(|spec| spec.node_name),
            serving: conditions.any(|one| one.type_ == "Ready" && one.status == "True"),
            leaving: is_marked || meta.deletion_timestamp.is_some(),
            key,
        })
    }

    /// Whether it is the same Pod, and has the addresses of the other.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        let mut addresses = other.addresses.iter();
        self.uid == other.uid && addresses.all(|address| self.addresses.contains(address))
    }
}

/// A pool: enough to know whether a service may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolView {
    /// Its UID, by which it owns its Pods.
    pub(crate) uid: String,
    /// The App and the service that it belongs to.
    pub(crate) of: (String, String),
    /// It runs a preview, which no production address leads to.
    pub(crate) is_preview: bool,
}

impl PoolView {
    pub(crate) fn of(pool: SandboxPool) -> Option<Self> {
        let labels = pool.metadata.labels.unwrap_or_default();
        Some(Self {
            uid: pool.metadata.uid?,
            of: (pool.spec.app, pool.spec.service),
            is_preview: labels.contains_key(labels::EPHEMERAL),
        })
    }
}

/// What processes of one node listen on, and where node ports answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listeners {
    /// The node.
    pub(crate) node: String,
    /// The ports.
    pub(crate) ports: BTreeSet<NodePort>,
    /// The node's addresses.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl Listeners {
    pub(crate) fn of(report: NodeReport) -> Option<Self> {
        let ports = report.spec.listening.into_iter().map(NodePort::from).collect();
        let addresses = report.spec.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        Some(Self { node: report.metadata.name?, ports, addresses })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn tcp(number: i32) -> NodePort {
        NodePort { number, transport: Transport::Tcp }
    }

    #[test]
    fn the_node_ports_of_a_service_are_all_it_opens() {
        let service = from_value(json!({
            "metadata": { "name": "lb", "namespace": "team-a" },
            "spec": { "healthCheckNodePort": 31000, "ports": [
                { "port": 80, "nodePort": 30080, "protocol": "TCP" },
                { "port": 53, "nodePort": 30053, "protocol": "UDP" },
                { "port": 99, "nodePort": 30099, "protocol": "SCTP" },
                { "port": 81, "protocol": "TCP" },
            ] },
        }));
        let view = ServiceView::of(service.unwrap()).unwrap();
        let udp = NodePort { number: 30053, transport: Transport::Udp };
        assert_eq!(view.node_ports, [udp, tcp(30080), tcp(31000)].into());
        assert_eq!(view.ours, None);
    }

    #[test]
    fn a_service_has_its_ports_at_addresses_of_nodes_too() {
        let service = from_value(json!({
            "metadata": { "name": "lb", "namespace": "team-a" },
            "spec": { "externalIPs": ["192.0.2.10", "no address"], "ports": [
                { "port": 6697 }, { "port": 53, "protocol": "UDP" },
                { "port": 99, "protocol": "SCTP" },
            ] },
            "status": { "loadBalancer": { "ingress": [
                { "ip": "2001:DB8::10", "ipMode": "VIP" }, { "ip": "192.0.2.20" },
                { "ip": "192.0.2.30", "ipMode": "Proxy" }, { "hostname": "lb.example" },
            ] } },
        }));
        let view = ServiceView::of(service.unwrap()).unwrap();
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let udp = NodePort { number: 53, transport: Transport::Udp };
        let expected = ["192.0.2.10", "192.0.2.20", "2001:db8::10"].map(ip);
        let expected = expected.into_iter().flat_map(|at| [(at, tcp(6697)), (at, udp)]);
        assert_eq!(view.outside, expected.collect());
        assert_eq!(view.ports().collect::<BTreeSet<_>>(), [tcp(6697), udp].into());
        assert!(view.has(udp, |at| at == ip("192.0.2.20")));
        assert!(!view.has(tcp(6697), |at| at == ip("192.0.2.30")), "another machine's");
        assert!(!view.has(tcp(53), |_| true), "the other transport");
    }

    #[test]
    fn a_service_is_kept_for_its_label_or_for_its_controller() {
        let is_kept = |label: &str, version: &str, kind: &str| {
            let owner = json!({ "apiVersion": version, "kind": kind, "name": "chat-irc",
                "uid": "1", "controller": true });
            let service = from_value(json!({ "metadata": { "name": "chat-irc",
                "labels": { labels::SERVICE_PROXY: label }, "ownerReferences": [owner] } }));
            ServiceView::of(service.unwrap()).unwrap().ours.is_some()
        };
        assert!(is_kept("portolan", "v1", "ConfigMap"));
        assert!(is_kept("theirs", "portolan.dev/v1alpha1", "AppService"));
        assert!(is_kept("theirs", "portolan.dev/v1", "App"), "whatever the version");
        assert!(!is_kept("theirs", "portolan.dev/v1alpha1", "Route"));
        assert!(!is_kept("theirs", "example.dev/v1alpha1", "App"));
    }

    #[track_caller]
    fn check_sandbox(change: Value, expected: impl Fn(&Sandbox) -> bool) {
        let mut pod = json!({
            "metadata": { "name": "p", "namespace": "team-a", "uid": "1",
                "labels": { labels::POOL: "shop-irc" } },
            "spec": { "containers": [], "nodeName": "node-1" },
            "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.7" }, { "ip": "fd00::7" }],
                "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        for (path, value) in change.as_object().into_iter().flatten() {
            *pod.pointer_mut(path).unwrap() = value.clone();
        }
        let sandbox = Sandbox::of(from_value(pod).unwrap());
        assert!(sandbox.as_ref().is_some_and(expected), "{change}: {sandbox:?}");
    }

    #[test]
    fn a_sandbox_is_what_the_kubelet_and_the_pool_controller_say() {
        check_sandbox(json!({}), |one| one.serving && !one.leaving && one.addresses.len() == 2);
        check_sandbox(json!({ "/status": { "podIP": "10.0.0.7" } }), |one| {
            !one.serving && one.addresses == ["10.0.0.7".parse::<IpAddr>().unwrap()]
        });
        let marked = json!({ "name": "p", "labels": { labels::POOL: "shop-irc" },
            "annotations": { labels::DRAIN: "7" } });
        check_sandbox(json!({ "/metadata": marked }), |one| one.serving && one.leaving);
    }
}
