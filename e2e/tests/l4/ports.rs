//! Node ports: who holds them, and who is told why not.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use portolan_api::NodeReport;
use portolan_api::conditions::{self, reason};
use portolan_cluster::wait::until_seen;
use serde_json::{from_value, json};
use tokio::time::Instant;

use crate::stage::{RESERVED, Stage, alone, free_port, with_controller};

#[tokio::test]
async fn one_holds_the_port_and_the_other_names_it_until_it_goes() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let mut times = Vec::new();
        for _ in 0..5 {
            let port = free_port();
            stage.apply_port(ours, "irc", port).await;
            stage.until_idle(ours, "irc").await;
            stage.apply_port(theirs, "game", port).await;
            let message = stage.until_says(theirs, "game", reason::NODE_PORT_CONFLICT).await;
            let expected =
                format!("node port {port}/TCP (port irc) is held by AppService {ours}/irc;");
            assert!(message.starts_with(&expected), "{message}");
            stage.delete(ours, "irc").await;
            let released = Instant::now();
            stage.until_idle(theirs, "game").await;
            times.push(released.elapsed());
            assert_eq!(stage.holder(port).await, Some(format!("{theirs}/game")));
            stage.delete(theirs, "game").await;
            until_seen("it is free", || stage.held(), Vec::is_empty).await;
        }
        times.sort();
        // The median, because other tests may have the processor.
        assert!(times[2] < Duration::from_secs(1), "taken over after {times:?}");
    })
    .await
}

#[tokio::test]
async fn a_port_that_is_dropped_goes_to_who_waits() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let (ours, theirs, port) = (&stage.ours, &stage.theirs, free_port());
        stage.apply_port(ours, "irc", port).await;
        stage.until_idle(ours, "irc").await;
        stage.apply_port(theirs, "game", port).await;
        stage.until_says(theirs, "game", reason::NODE_PORT_CONFLICT).await;
        stage.apply(ours, "irc", None, &[("irc", 6667, "tcp", None)]).await;
        stage.until_idle(theirs, "game").await;
        let status = stage.app_services(theirs).get("game").await.unwrap().status.unwrap();
        assert_eq!(status.node_ports.iter().map(|one| one.port).collect::<Vec<_>>(), [port]);
        stage.until_idle(ours, "irc").await;
        let status = stage.app_services(ours).get("irc").await.unwrap().status.unwrap();
        assert_eq!(status.node_ports, []);
    })
    .await
}

#[tokio::test]
async fn tcp_and_udp_are_two_ports() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let port = free_port();
        let ports = [("a", 53, "tcp", Some(port)), ("b", 53, "udp", Some(port))];
        stage.apply(&stage.ours, "dns", None, &ports).await;
        stage.until_idle(&stage.ours, "dns").await;
        let mut values: Vec<_> = stage.held().await.into_iter().map(|(value, _)| value).collect();
        values.sort();
        assert_eq!(values, [format!("{port}/tcp"), format!("{port}/udp")]);
    })
    .await
}

#[tokio::test]
async fn reserved_ports_are_refused() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        stage.apply_port(&stage.ours, "irc", RESERVED).await;
        let message = stage.until_says(&stage.ours, "irc", reason::NODE_PORT_RESERVED).await;
        assert!(message.contains("is reserved by the installation"), "{message}");
        assert_eq!(stage.holder(RESERVED).await, None);
    })
    .await
}

#[tokio::test]
async fn a_port_of_a_kubernetes_service_is_refused_while_it_has_it() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let service: Service = from_value(json!({
            "metadata": { "name": "outside" },
            "spec": { "type": "NodePort", "ports": [{ "port": 80 }] },
        }))
        .unwrap();
        let service = stage.services().create(&PostParams::default(), &service).await.unwrap();
        let port = service.spec.unwrap().ports.unwrap()[0].node_port.unwrap();
        stage.apply_port(&stage.ours, "irc", port).await;
        let message = stage.until_says(&stage.ours, "irc", reason::NODE_PORT_TAKEN).await;
        assert!(message.contains(&format!("Service {}/outside", stage.ours)), "{message}");
        stage.services().delete("outside", &DeleteParams::default()).await.unwrap();
        stage.until_idle(&stage.ours, "irc").await;
        assert_eq!(stage.holder(port).await, Some(format!("{}/irc", stage.ours)));
    })
    .await
}

#[tokio::test]
async fn a_port_that_a_load_balancer_has_at_a_node_is_refused() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let (port, node) = (free_port(), format!("node-of-{}", stage.ours));
        // Of a range for documentation; others of this run have other ports.
        let address = "198.51.100.7";
        let report: NodeReport = from_value(json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "NodeReport",
            "metadata": { "name": node },
            "spec": { "kernel": "6.1.0", "addresses": [address] },
        }))
        .unwrap();
        stage.reports().create(&PostParams::default(), &report).await.unwrap();
        let service: Service = from_value(json!({
            "metadata": { "name": "balanced" },
            "spec": { "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                "ports": [{ "port": port }] },
        }))
        .unwrap();
        stage.services().create(&PostParams::default(), &service).await.unwrap();
        let led = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": address }] } } });
        let params = PatchParams::default();
        stage.services().patch_status("balanced", &params, &Patch::Merge(led)).await.unwrap();
        // Not before the controller can know: what is free is taken at once.
        stage.apply_port(&stage.ours, "first", free_port()).await;
        stage.until_idle(&stage.ours, "first").await;
        stage.apply_port(&stage.ours, "irc", port).await;
        let message = stage.until_says(&stage.ours, "irc", reason::NODE_PORT_TAKEN).await;
        assert!(message.contains(&format!("Service {}/balanced", stage.ours)), "{message}");
        // The node goes, and with it who would have come first.
        stage.reports().delete(&node, &DeleteParams::default()).await.unwrap();
        stage.until_idle(&stage.ours, "irc").await;
        stage.services().delete("balanced", &DeleteParams::default()).await.unwrap();
    })
    .await
}

/// The port stays where it leads, but its owner is told, until the other goes.
#[tokio::test]
async fn a_service_that_comes_to_a_held_port_is_told_until_it_goes() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        // Within the cluster's own range, and not yet anybody's.
        let service = |name: &str, port: Option<i32>| -> Service {
            from_value(json!({
                "metadata": { "name": name },
                "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] },
            }))
            .unwrap()
        };
        let params = PostParams::default();
        let probe = stage.services().create(&params, &service("probe", None)).await.unwrap();
        let port = probe.spec.unwrap().ports.unwrap()[0].node_port.unwrap();
        stage.services().delete("probe", &DeleteParams::default()).await.unwrap();
        stage.apply_port(&stage.ours, "irc", port).await;
        stage.until_idle(&stage.ours, "irc").await;
        let dispute = || async {
            let service = stage.app_services(&stage.ours).get("irc").await.unwrap();
            let status = service.status.unwrap();
            assert_eq!(status.node_ports.len(), 1, "it keeps the port");
            let mut conditions = status.conditions.into_iter();
            conditions.find(|one| one.type_ == conditions::NODE_PORTS_EXCLUSIVE)
        };
        stage.services().create(&params, &service("late", Some(port))).await.unwrap();
        let said = until_seen("it is told", &dispute, |seen| {
            seen.as_ref().is_some_and(|seen| seen.status == "False")
        });
        let said = said.await.unwrap().message;
        let holder = format!("Service {}/late", stage.ours);
        assert!(said.contains(&holder), "{said}");
        let uid = stage.app_services(&stage.ours).get("irc").await.unwrap().metadata.uid.unwrap();
        let told = || stage.told(&uid);
        until_seen("an Event names it", told, |notes| {
            notes.iter().any(|note| note.contains(&holder))
        })
        .await;
        stage.services().delete("late", &DeleteParams::default()).await.unwrap();
        until_seen("it is over", dispute, |seen| {
            seen.as_ref().is_some_and(|seen| seen.status == "True")
        })
        .await;
    })
    .await
}

#[tokio::test]
async fn a_port_that_a_process_listens_on_is_refused_while_it_does() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let (port, node) = (free_port(), format!("node-of-{}", stage.ours));
        let report = |listening: serde_json::Value| {
            json!({
                "apiVersion": "portolan.dev/v1alpha1", "kind": "NodeReport",
                "metadata": { "name": node },
                "spec": { "kernel": "6.1.0", "listening": listening },
            })
        };
        let listens = report(json!([{ "port": port, "transport": "TCP" }]));
        let listens: NodeReport = from_value(listens).unwrap();
        stage.reports().create(&PostParams::default(), &listens).await.unwrap();
        // Not before the controller can know: what is free is taken at once.
        stage.apply_port(&stage.ours, "first", free_port()).await;
        stage.until_idle(&stage.ours, "first").await;
        stage.apply_port(&stage.ours, "irc", port).await;
        let message = stage.until_says(&stage.ours, "irc", reason::NODE_PORT_TAKEN).await;
        assert!(message.contains(&format!("a process on node {node}")), "{message}");
        let closed = Patch::Merge(report(json!([])));
        stage.reports().patch(&node, &PatchParams::default(), &closed).await.unwrap();
        stage.until_idle(&stage.ours, "irc").await;
        stage.reports().delete(&node, &DeleteParams::default()).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn what_nobody_saw_go_is_swept() -> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let port = free_port();
        let running = stage.start(stage.client.clone());
        stage.apply_port(&stage.ours, "irc", port).await;
        stage.until_idle(&stage.ours, "irc").await;
        running.stop().await;
        stage.delete(&stage.ours, "irc").await;
        // Made again under its name, it is another one, and asks for another port.
        stage.apply_port(&stage.ours, "irc", free_port()).await;
        let running = stage.start(stage.client.clone());
        until_seen("it is free", || stage.holder(port), Option::is_none).await;
        stage.until_idle(&stage.ours, "irc").await;
        running.stop().await;
    })
    .await
}
