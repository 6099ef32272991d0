//! A cluster without a service address left, and what an administrator does about it.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use portolan_api::conditions::reason;
use portolan_cluster::wait;
use serde_json::json;

use crate::clients::{Outcome, Talk};
use crate::scene::{Scene, TEAM, addresses_of};

/// An App that comes when there is nothing left.
const LATE: &str = "
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: { name: late, namespace: node }
spec:
  image: docker.io/portolan/sample-echo:dev
  env: [{ name: LISTEN_ADDRESS, value: '::' }, { name: TCP_PORT, value: '7777' }]
  services:
  # A single port in its short form, which is also PORT: the program's http has to be elsewhere.
  - { name: irc, port: 7777, portType: tcp, args: [--port, '8080'] }
";

/// What the condition advises.
const MORE: &str = "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: { name: more }
spec: { cidrs: [10.93.0.0/24] }
";

pub(crate) async fn an_app_without_an_address_gets_one_when_there_are_more(
    scene: &mut Scene,
) -> anyhow::Result<()> {
    take_what_is_left(scene)?;
    scene.apply(LATE)?;
    wait::until("the App to say that it has no address", wait::PATIENCE, async || {
        let status = scene.service("late-irc")?;
        let ready = &status["conditions"][0];
        ensure!(ready["reason"] == reason::ADDRESSES_EXHAUSTED, "{ready}");
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(ready["status"] == "False" && message.contains("ServiceCIDR"), "{ready}");
        anyhow::Ok(())
    })
    .await?;
    scene.apply(MORE)?;
    let addresses = wait::until("the App to have addresses", wait::PATIENCE, async || {
        addresses_of(&scene.service("late-irc")?)
    })
    .await?;
    ensure!(addresses.len() == 2, "{addresses:?}");
    for (place, address) in crate::each(&scene.nodes(), addresses) {
        wait::until(&format!("{address} to answer on {place}"), wait::PATIENCE, async || {
            let outcome = place.ask(SocketAddr::new(address, 7777), Talk::Tcp);
            ensure!(outcome == Outcome::Echo, "{outcome:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    scene.kubectl(&["-n", TEAM, "delete", "app", "late"])?;
    // kube-proxy takes in what the administrator added.
    scene.tables = scene.rested_tables().await?;
    Ok(())
}

/// Services of somebody else who has a proxy of his own, more than there are addresses.
fn take_what_is_left(scene: &Scene) -> anyhow::Result<()> {
    let service = |number: usize| {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": format!("taken-{number}"),
                "namespace": TEAM,
                "labels": { "service.kubernetes.io/service-proxy-name": "example.com" },
            },
            "spec": { "ports": [{ "port": 80 }] },
        });
        format!("{service}\n---\n")
    };
    let services: String = (0..32).map(service).collect();
    let refused = scene.apply(&services).err().context("the range of Services has no end")?;
    ensure!(format!("{refused:#}").contains("failed to allocate"), "{refused:#}");
    Ok(())
}
