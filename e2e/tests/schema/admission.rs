//! What the chart's admission policy warns of. The policy is the chart's own, rendered by Helm,
//! under a name of its own and for the test's namespace only.

use anyhow::{Context as _, bail, ensure};
use kube::Client;
use portolan_cluster::wait;
use serde_json::{Value, json};

use crate::support::{DryRun, Scratch, change, client, cluster, create, object, yaml};

const PINS: &str = "spec.version pins shop-0a1b2c3d: this change is stored and not rolled out";

/// New specs of an App that was `pinned("a")`, and what the warning says; empty: none.
const ROWS: &[(&str, &str)] = &[
    ("{image: b, version: shop-0a1b2c3d, services: [{name: web}]}", PINS),
    ("{image: a, version: shop-0a1b2c3d, services: [{name: web}]}", ""),
    ("{image: b, services: [{name: web}]}", ""),
    ("{image: a, version: shop-0a1b2c3d, services: [{name: web, port: 1}]}", PINS),
    ("{image: a, version: shop-0a1b2c3d, env: [{name: A}], services: [{name: web}]}", PINS),
    ("{image: a, version: shop-0a1b2c3d, revisionHistoryLimit: 3, services: [{name: web}]}", ""),
    (
        "{image: a, services: [{name: web, port: 25, portType: tcp}]}",
        "services web have a port that is not http, or a nodePort, or no port, and only http wakes",
    ),
    (
        "{image: a, services: [{name: b, scale: {mode: Auto}, \
         ports: [{name: http, port: 1, nodePort: 26697}]}]}",
        "services b have a port that is not http, or a nodePort",
    ),
    ("{image: a, services: [{name: irc, port: 25, portType: tcp}]}", ""),
    ("{image: a, services: [{name: web, port: 25, portType: tcp, scale: {min: 1}}]}", ""),
];

#[tokio::test]
async fn an_author_is_warned_of_what_will_not_happen() -> anyhow::Result<()> {
    let client = client().await?;
    Scratch::with(&client, async |scratch| {
        let policy = install(scratch).await?;
        let app = scratch.store(object("App", "shop", &pinned("a"))).await?;
        until_in_force(&client, &app, &policy).await?;
        for (spec, expected) in ROWS {
            let said = warnings(&client, &app, &yaml(spec), &policy).await?;
            match said.as_slice() {
                [] => ensure!(expected.is_empty(), "no warning for {spec}, expected: {expected}"),
                [one] => ensure!(!expected.is_empty() && one.contains(expected), "{spec}: {one}"),
                more => bail!("{spec}: {more:?}"),
            }
        }
        let mut new = object("App", "new", &yaml(ROWS[6].0));
        new["metadata"]["namespace"] = json!(scratch.name());
        let answer = create(&client, &new, DryRun::Yes).await?;
        let told = answer.warnings.iter().any(|text| text.contains(ROWS[6].1));
        ensure!(told, "a new App is not warned: {answer:?}");
        Ok(())
    })
    .await
}

fn pinned(image: &str) -> Value {
    json!({ "image": image, "version": "shop-0a1b2c3d", "services": [{ "name": "web" }] })
}

/// Stores the chart's policy and its binding; the policy's name.
async fn install(scratch: &Scratch) -> anyhow::Result<String> {
    let name = scratch.name().to_owned();
    for mut manifest in rendered().await? {
        manifest["metadata"]["name"] = json!(name);
        if manifest["kind"] == "ValidatingAdmissionPolicyBinding" {
            manifest["spec"]["policyName"] = json!(name);
        } else {
            manifest["spec"]["matchConstraints"]["namespaceSelector"] =
                json!({ "matchLabels": { "kubernetes.io/metadata.name": name } });
        }
        scratch.store(manifest).await?;
    }
    Ok(name)
}

async fn rendered() -> anyhow::Result<Vec<Value>> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/portolan");
    let mut helm = cluster().await?.program("helm");
    let helm = helm.args(["template", "portolan", chart, "-s", "templates/admission.yaml"]);
    let output = helm.output().context("helm template")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split("\n---").filter(|part| part.contains("kind:")).map(yaml).collect())
}

/// The API server learns of a policy through a watch.
async fn until_in_force(client: &Client, app: &Value, policy: &str) -> anyhow::Result<()> {
    wait::until("the policy to warn", wait::PATIENCE, async || {
        let said = warnings(client, app, &pinned("b"), policy).await?;
        ensure!(!said.is_empty(), "no warning");
        Ok(())
    })
    .await
}

/// What this policy says to a change of the App to `spec`.
async fn warnings(
    client: &Client,
    app: &Value,
    spec: &Value,
    policy: &str,
) -> anyhow::Result<Vec<String>> {
    let answer = change(client, app, None, ("/spec", spec.clone())).await?;
    let said = answer.warnings.clone();
    answer.object()?;
    Ok(said.into_iter().filter(|text| text.contains(policy)).collect())
}
