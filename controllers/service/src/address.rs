//! The Service that gives an `AppService` its address. Pure.
//!
//! Kubernetes allocates the address, which makes it unique in the cluster and known to its DNS.
//! The Service has no selector, so nobody but us makes endpoints for it, and it names a proxy, so
//! kube-proxy leaves it to the node agents.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use portolan_api::{AppService, SessionAffinity, labels};

use crate::ports::transport_name;

/// The Service as it is created.
pub(crate) fn new(of: &AppService) -> Service {
    let metadata = ObjectMeta {
        name: of.metadata.name.clone(),
        namespace: of.metadata.namespace.clone(),
        owner_references: of.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = ServiceSpec {
        // One address of each family that the cluster has.
        ip_family_policy: Some("PreferDualStack".into()),
        ..ServiceSpec::default()
    };
    brought_up(&Service { metadata, spec: Some(spec), status: None }, of)
}

/// The Service as it is, with what the `AppService` says now. Its addresses stay.
pub(crate) fn brought_up(live: &Service, of: &AppService) -> Service {
    let mut service = live.clone();
    let ours = service.metadata.labels.get_or_insert_default();
    ours.extend(labels_of(of));
    ours.insert(labels::SERVICE_PROXY.into(), labels::MANAGER.into());
    let spec = service.spec.get_or_insert_default();
    spec.type_ = Some("ClusterIP".into());
    spec.selector = None;
    spec.ports = Some(ports(of));
    let affinity = match of.spec.session_affinity.unwrap_or_default() {
        SessionAffinity::None => "None",
        SessionAffinity::ClientIP => "ClientIP",
    };
    if spec.session_affinity.as_deref() != Some(affinity) {
        // The API server refuses a time-out of what is not there, and adds one where it is needed.
        spec.session_affinity_config = None;
    }
    spec.session_affinity = Some(affinity.into());
    service
}

/// The labels by which people find what belongs to a service.
pub(crate) fn labels_of(of: &AppService) -> BTreeMap<String, String> {
    [
        (labels::APP.into(), of.spec.app.clone()),
        (labels::SERVICE.into(), of.spec.service.clone()),
        (labels::MANAGED_BY.into(), labels::MANAGER.into()),
    ]
    .into()
}

/// The addresses of a Service; none of one that has none, or none yet.
pub(crate) fn addresses(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let all = spec.and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
    all.into_iter().filter(|address| address.parse::<IpAddr>().is_ok()).collect()
}

fn ports(of: &AppService) -> Vec<ServicePort> {
    let port = |port: &portolan_api::AppServicePort| ServicePort {
        name: Some(port.name.clone()),
        port: port.port,
        protocol: Some(transport_name(port.r#type.into()).into()),
        target_port: Some(IntOrString::Int(port.target_port)),
        ..ServicePort::default()
    };
    of.spec.ports.iter().map(port).collect()
}
