//! Names that Pods call services by: cluster DNS answers them, and a call wakes who sleeps.

use anyhow::{Context, ensure};
use portolan_cluster::wait;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;
use serde_json::{Value, json};

#[tokio::test]
async fn a_name_wakes_its_service_and_goes_with_it() -> anyhow::Result<()> {
    with_platform("names", async |space| {
        let namespace = space.namespace();
        space.apply(&app("caller", &json!({}))).await?;
        let sleeper = json!({
            "port": 8080,
            "scale": { "mode": "Auto", "min": 0, "max": 1, "scaleDownDelaySeconds": 1 },
        });
        space.apply(&app("quiet", &sleeper)).await?;
        let apps =
            ["wait", "--for=condition=Ready", "app/caller", "app/quiet", wait::KUBECTL_PATIENCE];
        space.kubectl(&apps).await?;
        wait::until("the service to sleep", wait::PATIENCE, async || {
            let awake = pods(space, "quiet").await?;
            ensure!(awake.is_empty(), "{awake:?}");
            anyhow::Ok(())
        })
        .await?;
        let name = format!("quiet-web.{namespace}");
        for host in [
            name.clone(),
            format!("{name}.svc"),
            format!("{name}.svc.cluster.local"),
            format!("{name}.svc.cluster.local."),
            format!("{name}:8080"),
            name.to_uppercase(),
        ] {
            let answer = call(space, &host, "/").await.with_context(|| host.clone())?;
            ensure!(answer.contains("in sandbox quiet-"), "{host}: {answer}");
        }
        let unknown = call(space, &format!("quiet-other.{namespace}"), "/").await;
        ensure!(unknown.is_err(), "{unknown:?}");

        space.kubectl(&["delete", "app", "quiet"]).await?;
        wait::until("the name to go", wait::PATIENCE, async || {
            let left = space.kubectl(&["get", "services", "-o", "name"]).await?;
            ensure!(!left.contains("quiet-web"), "{left}");
            let answer = call(space, &name, "/").await;
            ensure!(answer.is_err(), "{answer:?}");
            anyhow::Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_name_leads_to_an_address_of_its_own_while_the_service_has_one() -> anyhow::Result<()> {
    with_platform("names-l4", async |space| {
        space.apply(&app("caller", &json!({}))).await?;
        let (http, both) = (
            json!({ "port": 8080 }),
            json!({ "ports": [
                { "name": "http", "port": 8080 },
                { "name": "wire", "port": 7000, "type": "tcp" },
            ] }),
        );
        space.apply(&app("turns", &http)).await?;
        let apps =
            ["wait", "--for=condition=Ready", "app/caller", "app/turns", wait::KUBECTL_PATIENCE];
        space.kubectl(&apps).await?;
        let host = format!("turns-web.{}", space.namespace());
        until_it_answers(space, &host).await?;

        space.apply(&app("turns", &both)).await?;
        let address = address_of_its_own(space).await?;
        until_it_answers(space, &format!("{host}:8080")).await?;
        // An update keeps the address.
        let mut newer: Value = serde_json::from_str(&app("turns", &both))?;
        newer["spec"]["env"] = json!([{ "name": "VERSION", "value": "2" }]);
        space.apply(&newer.to_string()).await?;
        wait::until("the new version to answer at the name", wait::PATIENCE, async || {
            let answer = call(space, &format!("{host}:8080"), "/").await?;
            ensure!(answer.contains("version 2 "), "{answer}");
            anyhow::Ok(())
        })
        .await?;
        ensure!(address_of_its_own(space).await? == address, "another address than {address}");

        // Back to the gateways, under the same name.
        space.apply(&app("turns", &http)).await?;
        wait::until("the address to go", wait::PATIENCE, async || {
            let left = space.kubectl(&["get", "appservices", "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            anyhow::Ok(())
        })
        .await?;
        until_it_answers(space, &host).await?;
        space.kubectl(&["delete", "app", "turns"]).await?;
        wait::until("everything to go with the App", wait::PATIENCE, async || {
            let kinds = "services,appservices,claims,endpointslices";
            let selector = "portolan.dev/app=turns";
            let left = space.kubectl(&["get", kinds, "-l", selector, "-o", "name"]).await?;
            ensure!(left.trim().is_empty(), "{left}");
            anyhow::Ok(())
        })
        .await
    })
    .await
}

/// The echo program as an App with one service `web`.
fn app(name: &str, service: &Value) -> String {
    let mut web = json!({ "name": "web", "terminationGracePeriodSeconds": 1 });
    if service["ports"].is_null() {
        web["port"] = json!(8080);
    }
    let fields = service.as_object().cloned().unwrap_or_default();
    web.as_object_mut().expect("a service is an object").extend(fields);
    let app = json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "App",
        "metadata": { "name": name },
        "spec": { "image": "docker.io/portolan/sample-echo:dev", "services": [web] },
    });
    app.to_string()
}

/// What a page answers to a sandbox of the App `caller`.
async fn call(space: &Space, host: &str, path: &str) -> anyhow::Result<String> {
    let pods = pods(space, "caller").await?;
    let pod = pods.first().context("the caller runs")?;
    let page = format!("http://{host}{path}");
    space.kubectl(&["exec", pod, "--", "/sample-echo", "--get", &page]).await
}

async fn until_it_answers(space: &Space, host: &str) -> anyhow::Result<()> {
    wait::until(&format!("{host} to answer"), wait::PATIENCE, async || {
        let answer = call(space, host, "/").await?;
        ensure!(answer.contains("in sandbox turns-"), "{answer}");
        anyhow::Ok(())
    })
    .await
}

async fn address_of_its_own(space: &Space) -> anyhow::Result<String> {
    wait::until("an address", wait::PATIENCE, async || {
        let path = "jsonpath={.status.clusterIPs[0]}";
        let address = space.kubectl(&["get", "appservice", "turns-web", "-o", path]).await?;
        ensure!(!address.is_empty(), "none yet");
        anyhow::Ok(address)
    })
    .await
}

/// The sandboxes of an App that are not on their way out.
async fn pods(space: &Space, app: &str) -> anyhow::Result<Vec<String>> {
    let selector = format!("portolan.dev/app={app}");
    let text = space.kubectl(&["get", "pods", "-l", &selector, "-o", "json"]).await?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().context("a list")?;
    let alive = items.iter().map(|pod| &pod["metadata"]);
    let alive = alive.filter(|metadata| metadata["deletionTimestamp"].is_null());
    Ok(alive.filter_map(|metadata| metadata["name"].as_str().map(str::to_owned)).collect())
}
