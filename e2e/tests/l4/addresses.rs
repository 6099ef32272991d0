//! The address of an AppService.

use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use portolan_api::conditions::reason;
use portolan_api::labels;
use portolan_cluster::wait::until_seen;
use serde_json::{Value, from_value, json, to_value};

use crate::stage::{Stage, with_controller};

fn mk_service(name: &str) -> Service {
    from_value(json!({
        "metadata": { "name": name },
        "spec": { "selector": { "app": "theirs" }, "ports": [{ "port": 80 }] },
    }))
    .expect("a Service")
}

async fn ports(stage: &Stage, name: &str) -> Value {
    let service = stage.services().get(name).await.expect("it is there");
    to_value(service.spec.and_then(|spec| spec.ports)).expect("ports are plain values")
}

#[tokio::test]
async fn the_address_is_allocated_once_and_stays_when_ports_change() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let both = [("irc", 6667, "tcp", None), ("voice", 6667, "udp", None)];
        stage.apply(&stage.ours, "irc", None, &both).await;
        stage.until_idle(&stage.ours, "irc").await;
        let addresses = stage.addresses("irc").await;
        let service = stage.services().get("irc").await.unwrap();
        assert_eq!(service.spec.unwrap().cluster_ips.unwrap(), addresses);
        let proxy = service.metadata.labels.unwrap().remove(labels::SERVICE_PROXY);
        assert_eq!(proxy.as_deref(), Some("portolan"));

        let other = [("irc", 7000, "tcp", None)];
        let applied = stage.apply(&stage.ours, "irc", None, &other).await;
        let expected =
            json!([{ "name": "irc", "port": 7000, "protocol": "TCP", "targetPort": 7000 }]);
        until_seen("the ports follow", || ports(&stage, "irc"), |seen| *seen == expected).await;
        stage.until_idle(&stage.ours, "irc").await;
        assert_eq!(stage.addresses("irc").await, addresses, "{applied:?}");
    })
    .await
}

#[tokio::test]
async fn what_somebody_does_to_the_service_is_undone() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        stage.apply(&stage.ours, "irc", None, &[("irc", 6667, "tcp", None)]).await;
        stage.until_idle(&stage.ours, "irc").await;
        let expected = ports(&stage, "irc").await;
        let addresses = stage.addresses("irc").await;
        let edit = json!({ "spec": { "type": "NodePort", "selector": { "app": "theirs" } } });
        let params = PatchParams::default();
        stage.services().patch("irc", &params, &Patch::Merge(&edit)).await.unwrap();
        let spec = || async { stage.services().get("irc").await.unwrap().spec.unwrap() };
        let undone = until_seen("it is undone", spec, |spec| spec.selector.is_none()).await;
        assert_eq!(undone.type_.as_deref(), Some("ClusterIP"));
        assert_eq!(undone.cluster_ips.as_ref(), Some(&addresses));
        assert_eq!(to_value(undone.ports).unwrap(), expected);

        stage.services().delete("irc", &DeleteParams::default()).await.unwrap();
        let made_again = || async { stage.services().get_opt("irc").await.unwrap().is_some() };
        until_seen("it is made again", made_again, |there| *there).await;
    })
    .await
}

#[tokio::test]
async fn a_service_of_somebody_else_is_left_alone() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let theirs = stage.services().create(&PostParams::default(), &mk_service("irc")).await;
        let theirs = theirs.unwrap();
        stage.apply(&stage.ours, "irc", None, &[("irc", 6667, "tcp", None)]).await;
        let message = stage.until_says(&stage.ours, "irc", reason::NAME_CONFLICT).await;
        assert!(message.starts_with("Service irc exists and is not Portolan's"), "{message}");
        assert_eq!(stage.addresses("irc").await, [""; 0]);
        assert_eq!(stage.services().get("irc").await.unwrap(), theirs, "it is as it was");

        stage.services().delete("irc", &DeleteParams::default()).await.unwrap();
        stage.until_idle(&stage.ours, "irc").await;
        assert_ne!(stage.addresses("irc").await, [""; 0]);
    })
    .await
}

#[tokio::test]
async fn endpoints_of_somebody_else_are_left_alone() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let theirs = from_value(json!({
            "metadata": { "name": "irc-ipv4" }, "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.1.2.3"] }],
        }))
        .unwrap();
        stage.slices().create(&PostParams::default(), &theirs).await.unwrap();
        stage.apply(&stage.ours, "irc", None, &[("irc", 6667, "tcp", None)]).await;
        let message = stage.until_says(&stage.ours, "irc", reason::NAME_CONFLICT).await;
        assert!(message.starts_with("EndpointSlice irc-ipv4 exists"), "{message}");
        assert_eq!(stage.endpoints("irc").await, ["10.1.2.3 nnn"]);
    })
    .await
}

#[tokio::test]
async fn one_made_again_gets_an_address_of_its_own() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let ports = [("irc", 6667, "tcp", None)];
        stage.apply(&stage.ours, "irc", None, &ports).await;
        stage.until_idle(&stage.ours, "irc").await;
        stage.delete(&stage.ours, "irc").await;
        let again = stage.apply(&stage.ours, "irc", None, &ports).await;
        stage.until_idle(&stage.ours, "irc").await;
        let owner = || async {
            let service = stage.services().get_opt("irc").await.unwrap();
            service.and_then(|one| Some(one.metadata.owner_references?.first()?.uid.clone()))
        };
        until_seen("it is the new one's", owner, |owner| *owner == again.metadata.uid).await;
        stage.until_idle(&stage.ours, "irc").await;
    })
    .await
}
