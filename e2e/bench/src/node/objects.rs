//! AppServices and EndpointSlices, made as the service controller makes them.

use std::net::Ipv4Addr;

use anyhow::Context;
use futures::{StreamExt, stream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use portolan_api::{AppService, labels};
use serde_json::{Value, json};

use super::ground::{NAMESPACE, NODE, SANDBOXES};
use super::workload::{endpoint, service};

/// Requests under way at once.
const REQUESTS: usize = 32;
/// Endpoints of each service but the first, which has one sandbox and speaks UDP.
pub(super) const ENDPOINTS: u32 = 3;
/// The port that sandboxes listen on.
pub(super) const PORT: u16 = 8080;

/// The name of a service, its slice and its App.
pub(super) fn name(number: u32) -> String {
    format!("app-{number:05}")
}

/// So many services. The last exists when this returns, but nobody may have seen it yet.
pub(super) async fn make(client: &Client, count: u32) -> anyhow::Result<()> {
    let services: Api<AppService> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let (services, slices) = (&services, &slices);
    let made = stream::iter(0..count).map(async |number| {
        let new = wanted(number)?;
        let made = services.create(&PostParams::default(), &new).await;
        let made = made.context("make an AppService")?;
        let status = Patch::Merge(json!({ "status": {
            "clusterIPs": [service(number).ip()],
            "readyEndpoints": ENDPOINTS,
        } }));
        let patched = services.patch_status(&name(number), &PatchParams::default(), &status).await;
        patched.context("set the status of an AppService")?;
        let slice = slice(number, made.metadata.uid.as_deref().context("no UID")?)?;
        slices.create(&PostParams::default(), &slice).await.context("make a slice")?;
        anyhow::Ok(())
    });
    let mut made = made.buffer_unordered(REQUESTS);
    while let Some(made) = made.next().await {
        made?;
    }
    Ok(())
}

/// Endpoints elsewhere, as a slice has them.
pub(super) fn elsewhere(addresses: impl IntoIterator<Item = Ipv4Addr>) -> Value {
    ends(addresses, "another")
}

/// A sandbox on the agent's node, as a slice has it.
pub(super) fn here(sandbox: Ipv4Addr) -> Value {
    ends([sandbox], NODE)
}

/// The addresses of a service's endpoints as they are at first.
pub(super) fn addresses(number: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..ENDPOINTS).filter_map(move |index| match endpoint(number * ENDPOINTS + index).ip() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    })
}

fn ends(addresses: impl IntoIterator<Item = Ipv4Addr>, node: &str) -> Value {
    let ends = addresses.into_iter().map(|address| {
        json!({
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": node,
        })
    });
    ends.collect()
}

fn wanted(number: u32) -> anyhow::Result<AppService> {
    let kind = if number == 0 { "udp" } else { "tcp" };
    let service = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "AppService",
        "metadata": { "name": name(number), "namespace": NAMESPACE },
        "spec": {
            "app": name(number),
            "service": "main",
            "pool": name(number),
            "ports": [{ "name": "main", "port": 80, "type": kind, "targetPort": PORT }],
        },
    });
    serde_json::from_value(service).context("word an AppService")
}

fn slice(number: u32, owner: &str) -> anyhow::Result<EndpointSlice> {
    let (protocol, endpoints) = match number {
        0 => ("UDP", here(SANDBOXES[0])),
        _ => ("TCP", elsewhere(addresses(number))),
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name(number),
            "namespace": NAMESPACE,
            "labels": {
                labels::SLICE_MANAGED_BY: labels::SLICE_MANAGER,
                labels::SLICE_SERVICE: name(number),
            },
            "ownerReferences": [{
                "apiVersion": "portolan.dev/v1alpha1",
                "kind": "AppService",
                "name": name(number),
                "uid": owner,
                "controller": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "main", "port": PORT, "protocol": protocol }],
    });
    serde_json::from_value(slice).context("word a slice")
}
