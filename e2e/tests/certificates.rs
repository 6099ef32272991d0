//! What a Route says about its certificate, from the first refusal to a Secret that breaks, with
//! the gateways as they are installed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kube::Api;
use portolan_api::Route;
use portolan_api::conditions::{CERTIFICATE_READY, READY, reason};
use portolan_cluster::wait;
use portolan_e2e::space::Space;

/// A gateway asks again for a Secret that it may not read after at most half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// The reason of a condition for the present generation, and its message.
async fn said(space: &Space, type_: &str) -> anyhow::Result<(String, String)> {
    let routes: Api<Route> = Api::namespaced(space.client(), space.namespace());
    let route = routes.get("shop").await?;
    let conditions = route.status.context("there is no status yet")?.conditions;
    let mut now = conditions
        .into_iter()
        .filter(|condition| condition.observed_generation == route.metadata.generation);
    let found = now.find(|condition| condition.type_ == type_).context("nothing is said yet")?;
    Ok((found.reason, found.message))
}

/// Waits until the certificate's condition has this reason; returns its message.
async fn until_said(space: &Space, expected: &str) -> anyhow::Result<String> {
    wait::until(&format!("{CERTIFICATE_READY} to say {expected}"), PATIENCE, async || {
        let (reason, message) = said(space, CERTIFICATE_READY).await?;
        ensure!(reason == expected, "{reason}: {message}");
        anyhow::Ok(message)
    })
    .await
}

/// Runs the commands that a message gives after `allow it with:`, as a user would.
async fn follow(space: &Space, message: &str) -> anyhow::Result<()> {
    let (_, commands) = message.split_once("allow it with: ").context("commands are given")?;
    for command in commands.split(" && ") {
        let words: Vec<_> = command.split_whitespace().collect();
        let ["kubectl", "-n", namespace, args @ ..] = words.as_slice() else {
            anyhow::bail!("this is no kubectl command: {command}");
        };
        ensure!(*namespace == space.namespace(), "{command}");
        space.kubectl(args).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_route_tells_how_to_get_its_certificate_into_use() -> anyhow::Result<()> {
    portolan_e2e::with_platform("certificates", async |space| {
        let host = format!("shop.{}.test", space.namespace());
        let route = serde_json::json!({
            "apiVersion": "portolan.dev/v1alpha1",
            "kind": "Route",
            "metadata": { "name": "shop" },
            "spec": { "host": host, "app": "shop", "tls": { "secretName": "shop-tls" } },
        });
        space.apply(&route.to_string()).await?;

        let message = until_said(space, reason::SECRET_FORBIDDEN).await?;
        follow(space, &message).await?;
        until_said(space, reason::SECRET_NOT_FOUND).await?;

        let secret = |certificate: &str, key: &str| {
            let data = serde_json::json!({ "tls.crt": certificate, "tls.key": key });
            serde_json::json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": { "name": "shop-tls" },
                "type": "kubernetes.io/tls",
                "stringData": data,
            })
            .to_string()
        };
        let made = rcgen::generate_simple_self_signed([host.clone()])?;
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        space.apply(&secret(&certificate, &key)).await?;
        until_said(space, reason::CERTIFICATE_IN_USE).await?;

        space.apply(&secret("none", &key)).await?;
        let message = until_said(space, reason::CERTIFICATE_INVALID).await?;
        ensure!(message.contains("Secret shop-tls"), "{message}");
        let (ready, _) = said(space, READY).await?;
        // There is no App; of two things that are wrong the first in order is told.
        ensure!(ready == reason::APP_NOT_FOUND, "{ready}");
        Ok(())
    })
    .await
}
