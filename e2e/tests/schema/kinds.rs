//! What `kubectl` shows: the definitions themselves, columns, short names, explanations, status.

use anyhow::ensure;
use portolan_api::crds;
use serde_json::{Value, json};

use crate::support::{DryRun, Scratch, change, client, create, get, object, yaml};

#[tokio::test]
async fn the_api_server_accepts_the_definitions_without_a_warning() -> anyhow::Result<()> {
    let client = client().await?;
    for mut manifest in crds::manifests() {
        // Under a group of its own, because the cluster has the kinds already.
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        manifest["metadata"]["name"] = name.replace("portolan.dev", "schema.portolan.dev").into();
        manifest["spec"]["group"] = "schema.portolan.dev".into();
        let answer = create(&client, &manifest, DryRun::Yes).await?;
        ensure!(answer.warnings.is_empty(), "{:?}", answer.warnings);
        answer.object()?;
    }
    Ok(())
}

#[tokio::test]
async fn columns_answer_the_first_question() -> anyhow::Result<()> {
    let client = client().await?;
    let expected = [
        ("apps", "Name Ready Reason Version URL Age"),
        ("appversions", "Name App Ready Status Image Age"),
        ("sandboxpools", "Name App Service Role Wanted Ready Reason Age"),
        ("routes", "Name Host App Service Ready Reason Age"),
        ("domains", "Name Suffix Namespaces Ready Reason Age"),
        ("claims", "Name Kind Value Namespace Holder Age"),
        ("gatewayreports", "Name Gateway Shard Age"),
    ];
    for (plural, columns) in expected {
        let path = format!("/apis/portolan.dev/v1alpha1/{plural}");
        let table = get(&client, &path, "application/json;as=Table;g=meta.k8s.io;v=v1").await?;
        let shown: Vec<_> = list(&table["columnDefinitions"])
            .iter()
            .filter(|column| column["priority"] == 0)
            .filter_map(|column| column["name"].as_str())
            .collect();
        ensure!(shown.join(" ") == columns, "{plural}: {shown:?}");
    }
    Ok(())
}

#[tokio::test]
async fn kinds_have_short_names_and_a_category() -> anyhow::Result<()> {
    let resources =
        get(&client().await?, "/apis/portolan.dev/v1alpha1", "application/json").await?;
    let resources = list(&resources["resources"]);
    let expected = [
        ("apps", json!(["papp"])),
        ("appversions", json!(["av"])),
        ("sandboxpools", json!(["pool"])),
        ("routes", json!(["rt"])),
        ("domains", json!(["dom"])),
        ("claims", Value::Null),
        ("gatewayreports", json!(["gwr"])),
    ];
    for (plural, short_names) in expected {
        let found = resources.iter().find(|resource| resource["name"] == plural);
        let Some(found) = found else { anyhow::bail!("{plural} is not served") };
        ensure!(found["shortNames"] == short_names, "{found:#}");
        ensure!(found["categories"] == json!(["portolan"]), "{found:#}");
    }
    let subresources = ["apps/status", "sandboxpools/status", "sandboxpools/scale"];
    for name in subresources {
        ensure!(resources.iter().any(|resource| resource["name"] == name), "{name} is not served");
    }
    Ok(())
}

/// `kubectl explain` reads this document.
#[tokio::test]
async fn every_kind_explains_itself() -> anyhow::Result<()> {
    let path = "/openapi/v3/apis/portolan.dev/v1alpha1";
    let document = get(&client().await?, path, "application/json").await?;
    for crd in crds::manifests() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
        let schema = &document["components"]["schemas"][format!("dev.portolan.v1alpha1.{kind}")];
        let text = schema["description"].as_str().unwrap_or_default();
        ensure!(!text.is_empty() && !text.contains("generated"), "{kind}: {text:?}");
    }
    Ok(())
}

#[tokio::test]
async fn defaults_are_filled_in_and_null_means_absent() -> anyhow::Result<()> {
    let spec = "{image: a, version: null, services: \
                 [{name: web, image: null, ports: [{name: http, port: 80}], scale: {min: null}}]}";
    let app = object("App", "shop", &yaml(spec));
    let stored = create(&client().await?, &app, DryRun::Yes).await?.object()?;
    let expected = yaml(
        "{image: a, revisionHistoryLimit: 10, progressDeadlineSeconds: 600, services: \
          [{name: web, ports: [{name: http, port: 80, type: http}], scale: {}}]}",
    );
    ensure!(stored["spec"] == expected, "{:#}", stored["spec"]);
    let route = object("Route", "shop", &yaml("{host: a.example, app: shop}"));
    let stored = create(&client().await?, &route, DryRun::Yes).await?.object()?;
    ensure!(stored["spec"]["service"] == "web", "{:#}", stored["spec"]);
    Ok(())
}

#[tokio::test]
async fn status_is_written_through_its_own_door() -> anyhow::Result<()> {
    let client = client().await?;
    Scratch::with(&client, async |scratch| {
        let route = object("Route", "shop", &yaml("{host: a.schema.example, app: shop}"));
        let route = scratch.store(route).await?;
        let url = json!("https://other.example");
        let status = ("/status", json!({ "url": url }));
        let changed = change(&client, &route, None, status.clone()).await?.object()?;
        ensure!(changed["status"]["url"] != url, "the spec's door wrote a status: {changed:#}");
        let changed = change(&client, &route, Some("status"), status).await?.object()?;
        ensure!(changed["status"]["url"] == url, "{changed:#}");
        let app = ("/spec/app", json!("other"));
        let changed = change(&client, &route, Some("status"), app).await?.object()?;
        ensure!(changed["spec"]["app"] == "shop", "the status' door wrote a spec: {changed:#}");
        let condition = yaml(
            "{type: Ready, status: 'Yes', reason: Available, message: '', \
              lastTransitionTime: '2026-11-20T10:00:00Z'}",
        );
        let status = ("/status", json!({ "conditions": [condition] }));
        let refused = change(&client, &route, Some("status"), status).await?;
        refused.compare("status.conditions[0].status: Unsupported value | \"True\"")?;
        Ok(())
    })
    .await
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
