//! The NetworkPolicy of an App. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use portolan_api::{App, AppVersion, labels, names};

/// The label that Kubernetes puts on every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Who may reach the sandboxes of these versions: ports of http-only services are open to gateways
/// and the App's own sandboxes, ports of services with an address of their own also to the App's
/// namespace, because there they are reached without a gateway, and node ports to everyone; all
/// else is closed. Probes come from the node, which a NetworkPolicy does not keep out.
pub(crate) fn network_policy(
    app: &App,
    versions: &[&AppVersion],
    system_namespace: &str,
) -> NetworkPolicy {
    let name = app.metadata.name.clone().unwrap_or_default();
    let ports = ports(versions);
    let of_app = BTreeMap::from([(labels::APP.to_string(), names::label_value(&name))]);
    let own = pods(of_app.clone());
    let rule = |reach: Reach, peers: Option<Vec<NetworkPolicyPeer>>| {
        let ports: Vec<_> =
            ports.iter().filter(|(_, of)| **of == reach).map(|(port, _)| port_of(port)).collect();
        (!ports.is_empty()).then_some(NetworkPolicyIngressRule { from: peers, ports: Some(ports) })
    };
    let rules = [
        rule(Reach::Gateways, Some(vec![gateways(system_namespace), own.clone()])),
        rule(
            Reach::Namespace,
            Some(vec![
                gateways(system_namespace),
                own,
                NetworkPolicyPeer {
                    pod_selector: Some(LabelSelector::default()),
                    ..NetworkPolicyPeer::default()
                },
            ]),
        ),
        rule(Reach::Everyone, None),
    ];
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(names::network_policy(&name)),
            namespace: app.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (labels::APP.into(), names::label_value(&name)),
                (labels::MANAGED_BY.into(), labels::MANAGER.into()),
            ])),
            owner_references: app.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(of_app),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(rules.into_iter().flatten().collect()),
            egress: None,
        }),
    }
}

/// Who may reach a port, from the fewest to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Gateways,
    Namespace,
    Everyone,
}

/// Number and transport.
type Number = (i32, &'static str);

/// Each port with the widest reach that any service gives it: one policy covers all of them.
fn ports(versions: &[&AppVersion]) -> BTreeMap<Number, Reach> {
    let mut ports = BTreeMap::new();
    for service in versions.iter().flat_map(|version| &version.spec.services) {
        for port in &service.ports {
            let reach = match port.node_port {
                Some(_) => Reach::Everyone,
                None if service.has_l4() => Reach::Namespace,
                None => Reach::Gateways,
            };
            let entry = ports.entry((port.port, port.r#type.transport())).or_insert(reach);
            *entry = reach.max(*entry);
        }
    }
    ports
}

fn port_of((number, transport): &Number) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(*number)),
        protocol: Some((*transport).into()),
        end_port: None,
    }
}

fn gateways(system_namespace: &str) -> NetworkPolicyPeer {
    let namespace = BTreeMap::from([(NAMESPACE_NAME.to_string(), system_namespace.to_string())]);
    let component =
        BTreeMap::from([(labels::COMPONENT.to_string(), labels::COMPONENT_GATEWAY.to_string())]);
    NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some(namespace),
            ..LabelSelector::default()
        }),
        ..pods(component)
    }
}

fn pods(labels: BTreeMap<String, String>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_labels: Some(labels),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    }
}

/// Distinct names of the services that never sleep, although they would by their scale.
pub(crate) fn sleepless(version: &AppVersion) -> BTreeSet<&str> {
    let services = version.spec.services.iter();
    services
        .filter(|s| !s.can_sleep() && s.scale.min == 0)
        .map(|service| service.name.as_str())
        .collect()
}
