//! What a Route reports, and that a settled one is left alone.

use kube::Api;
use kube::api::{Patch, PatchParams};
use portolan_api::App;
use portolan_api::conditions::{BACKEND_RESOLVED, READY, reason};
use portolan_cluster::wait::until_seen;
use serde_json::{Value, json};

use crate::stage::{Stage, alone, manifest, with_controller};

async fn apply_app(stage: &Stage, services: Value) {
    let app = manifest(
        "App",
        "shop",
        &json!({ "image": "docker.io/portolan/none:dev", "services": services }),
    );
    let apps: Api<App> = Api::namespaced(stage.client.clone(), &stage.ours);
    let applied = apps.patch("shop", &PatchParams::apply("user"), &Patch::Apply(&app)).await;
    applied.expect("the App is accepted");
}

#[tokio::test]
async fn a_route_follows_its_app() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, host) = (&stage.ours, stage.host("shop"));
        let route = (ours.as_str(), "shop");
        stage.apply(ours, "shop", &host).await;
        stage.until_says(route, BACKEND_RESOLVED, ("False", reason::APP_NOT_FOUND)).await;
        stage.until_says(route, READY, ("False", reason::APP_NOT_FOUND)).await;
        apply_app(&stage, json!([{ "name": "other", "port": 80 }])).await;
        let missing = ("False", reason::SERVICE_NOT_FOUND);
        let message = stage.until_says(route, BACKEND_RESOLVED, missing).await;
        assert!(message.contains("it has: other"), "{message}");
        apply_app(&stage, json!([{ "name": "web", "port": 80, "portType": "tcp" }])).await;
        stage.until_says(route, BACKEND_RESOLVED, ("False", reason::NO_HTTP_PORT)).await;
        apply_app(&stage, json!([{ "name": "web", "port": 80 }])).await;
        stage.until_says(route, READY, ("True", reason::CLAIMED)).await;
        let status = stage.routes(ours).get("shop").await.expect("read").status;
        assert_eq!(status.and_then(|status| status.url), Some(format!("http://{host}")));
    })
    .await
}

#[tokio::test]
async fn what_is_settled_is_not_written_again() -> anyhow::Result<()> {
    alone(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let running = stage.start(stage.client.clone());
        stage.domain(&stage.host("corp"), &[ours]).await;
        for (name, host) in [("shop", "shop"), ("corp", "x.corp"), ("wide", "*.wide")] {
            stage.apply(ours, name, &stage.host(host)).await;
            stage.until_claimed(ours, name).await;
        }
        stage.apply(theirs, "shop", &stage.host("shop")).await;
        stage.until_refused(theirs, "shop", reason::HOST_CONFLICT).await;
        assert!(running.writes() > 0);
        running.stop().await;

        // A new process looks at everything once.
        let running = stage.start(stage.client.clone());
        let passes = || async { running.settled_passes() };
        until_seen("every Route had its pass", passes, |passes| *passes >= 4).await;
        assert_eq!(running.writes(), 0);
        running.stop().await;
    })
    .await
}
