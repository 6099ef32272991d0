//! Internal names of http-only services, and the change between them and addresses of their own.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use portolan_api::conditions::reason;
use portolan_api::{App, AppVersion, labels};
use portolan_cluster::wait::until_seen;
use serde_json::{Value, json};

use crate::stage::{Stage, with_controller};

/// Applies the App `chat` with a version in which its service `irc` has these ports, and lets it
/// follow that version.
async fn follow(stage: &Stage, version: &str, ports: &Value) -> App {
    let apps: Api<App> = Api::namespaced(stage.client.clone(), &stage.ours);
    let params = PatchParams::apply("l4-tests").force();
    let app = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "App", "metadata": { "name": "chat" },
        "spec": { "image": "example/chat:1", "services": [{ "name": "irc", "port": 3000 }] },
    });
    let app = apps.patch("chat", &params, &Patch::Apply(&app)).await.expect("the App is accepted");
    let versions: Api<AppVersion> = Api::namespaced(stage.client.clone(), &stage.ours);
    let service = json!({
        "name": "irc", "ports": ports,
        "scale": { "min": 0, "max": 1, "concurrency": "Soft" },
        "sandbox": { "image": "example/chat:1", "ports": ports,
            "terminationGraceSeconds": 30, "listenTimeoutSeconds": 15 },
    });
    let object = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "AppVersion",
        "metadata": { "name": version, "ownerReferences": [app.controller_owner_ref(&())] },
        "spec": { "app": "chat", "hashVersion": 1, "digest": "0".repeat(64),
            "services": [service] },
    });
    let object: AppVersion = serde_json::from_value(object).expect("a version");
    versions.create(&PostParams::default(), &object).await.expect("the version is accepted");
    let status = json!({ "status": { "activation": { "version": version, "epoch": 1 } } });
    let params = PatchParams::default();
    apps.patch_status("chat", &params, &Patch::Merge(&status)).await.expect("it follows")
}

fn http(port: i32) -> Value {
    json!([{ "name": "http", "port": port, "type": "http" }])
}

/// What there is under the name: whose it is, and its ports. `None`: nothing, or it goes.
async fn seen(stage: &Stage) -> Option<(String, Vec<i32>)> {
    let service = stage.services().get_opt("chat-irc").await.expect("read")?;
    let owner = service.owner_references().first().map(|owner| owner.kind.clone());
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let going = service.metadata.deletion_timestamp.is_some();
    let owner = owner.unwrap_or_else(|| "nobody".into());
    (!going).then(|| (owner, ports.iter().map(|port| port.port).collect()))
}

async fn until_there(stage: &Stage, owner: &str, ports: &[i32]) {
    let expected = Some((owner.to_owned(), ports.to_vec()));
    until_seen(&format!("{owner} has {ports:?}"), || seen(stage), |seen| *seen == expected).await;
}

#[tokio::test]
async fn an_http_only_service_has_a_name_that_follows_its_version() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        follow(&stage, "chat-1", &http(3000)).await;
        until_there(&stage, "App", &[80, 3000]).await;
        let service = stage.services().get("chat-irc").await.unwrap();
        let addresses = service.spec.unwrap().cluster_ips.unwrap();
        assert_eq!(service.metadata.labels.unwrap()[labels::SERVICE_PROXY], "portolan");
        follow(&stage, "chat-2", &http(8080)).await;
        until_there(&stage, "App", &[80, 8080]).await;
        let service = stage.services().get("chat-irc").await.unwrap();
        assert_eq!(service.spec.unwrap().cluster_ips.unwrap(), addresses, "it keeps its address");

        stage.services().delete("chat-irc", &DeleteParams::default()).await.unwrap();
        until_there(&stage, "App", &[80, 8080]).await;
    })
    .await
}

#[tokio::test]
async fn a_name_is_handed_to_an_address_and_back() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        follow(&stage, "chat-1", &http(3000)).await;
        until_there(&stage, "App", &[80, 3000]).await;
        // The new version has a tcp port: its AppService waits until the name is free.
        let both = json!([{ "name": "http", "port": 3000, "type": "http" },
            { "name": "irc", "port": 6667, "type": "tcp" }]);
        let ports = [("http", 3000, "http", None), ("irc", 6667, "tcp", None)];
        stage.apply_as(&stage.ours, ("chat-irc", "irc"), None, &ports).await;
        let message = stage.until_says(&stage.ours, "chat-irc", reason::STARTING).await;
        assert!(message.starts_with("waits for the Service"), "{message}");
        follow(&stage, "chat-2", &both).await;
        until_there(&stage, "AppService", &[3000, 6667]).await;
        stage.until_idle(&stage.ours, "chat-irc").await;

        // Back: the garbage collector takes the Service with its AppService.
        follow(&stage, "chat-3", &http(3000)).await;
        stage.delete(&stage.ours, "chat-irc").await;
        until_there(&stage, "App", &[80, 3000]).await;
    })
    .await
}

#[tokio::test]
async fn a_service_that_somebody_made_is_left_to_them() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let theirs = serde_json::from_value(json!({
            "metadata": { "name": "chat-irc" },
            "spec": { "selector": { "app": "theirs" }, "ports": [{ "port": 9000 }] },
        }));
        let theirs = stage.services().create(&PostParams::default(), &theirs.unwrap()).await;
        let theirs = theirs.unwrap();
        let app = follow(&stage, "chat-1", &http(3000)).await;
        let told = || async { stage.told(&app.uid().unwrap()).await };
        let told = until_seen("the App is told", told, |told| !told.is_empty()).await;
        assert!(told[0].contains("Service chat-irc is not this App's"), "{told:?}");
        assert_eq!(stage.services().get("chat-irc").await.unwrap(), theirs, "it is as it was");
        stage.services().delete("chat-irc", &DeleteParams::default()).await.unwrap();
        until_there(&stage, "App", &[80, 3000]).await;
    })
    .await
}
