//! The chart of the definitions through its life, under a group of its own: the cluster's own
//! definitions are in use.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use anyhow::{Context as _, ensure};
use kube::Client;
use portolan_api::crds;
use portolan_cluster::wait;
use serde_json::{Value, json};

use crate::support::{DryRun, Scratch, client, cluster, create, delete, get, object, yaml};

const GROUP: &str = "schema-chart.portolan.dev";

#[tokio::test]
async fn definitions_are_upgraded_and_rolled_back_and_outlive_the_chart() -> anyhow::Result<()> {
    let client = client().await?;
    let chart = Copied::new()?;
    let outcome = Scratch::with(&client, async |scratch| {
        // A run that was killed may have left definitions of this group.
        let install = ["install", "--take-ownership", "--namespace", scratch.name()];
        helm(&[&install[..], &["definitions", chart.path()]].concat()).await?;
        let route = stored(&client, scratch.name()).await?;
        ensure!(short_names(&client).await? == json!(["rt"]));

        chart.edit("routes", "shortNames:", "shortNames:\n    - later")?;
        helm(&["upgrade", "--namespace", scratch.name(), "definitions", chart.path()]).await?;
        ensure!(short_names(&client).await? == json!(["later", "rt"]), "not upgraded");

        helm(&["rollback", "--namespace", scratch.name(), "definitions"]).await?;
        ensure!(short_names(&client).await? == json!(["rt"]), "not rolled back");

        helm(&["uninstall", "--namespace", scratch.name(), "definitions"]).await?;
        let path = format!("/apis/{GROUP}/v1alpha1/namespaces/{}/routes/shop", scratch.name());
        let kept = get(&client, &path, "application/json").await?;
        ensure!(kept["metadata"]["uid"] == route["metadata"]["uid"], "the objects are gone");
        Ok(())
    })
    .await;
    let removed = remove(&client).await;
    outcome.and(removed)
}

/// An object of the chart's kinds, as soon as they are served.
async fn stored(client: &Client, namespace: &str) -> anyhow::Result<Value> {
    let mut route = object("Route", "shop", &yaml("{host: a.example, app: shop}"));
    route["apiVersion"] = json!(format!("{GROUP}/v1alpha1"));
    route["metadata"]["namespace"] = json!(namespace);
    wait::until("the definitions to be served", wait::PATIENCE, async || {
        create(client, &route, DryRun::No).await?.object()
    })
    .await
}

async fn short_names(client: &Client) -> anyhow::Result<Value> {
    let path = format!("{DEFINITIONS}/routes.{GROUP}");
    let mut definition = get(client, &path, "application/json").await?;
    Ok(definition["spec"]["names"]["shortNames"].take())
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Removes the definitions, which the chart does not.
async fn remove(client: &Client) -> anyhow::Result<()> {
    for mut manifest in crds::manifests() {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        manifest["metadata"]["name"] = json!(renamed(name));
        delete(client, &manifest).await?;
    }
    Ok(())
}

async fn helm(arguments: &[&str]) -> anyhow::Result<()> {
    let output = cluster().await?.program("helm").args(arguments).output().context("helm")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// A copy of the chart whose kinds are in [`GROUP`]; removed when dropped.
struct Copied {
    folder: PathBuf,
}

impl Copied {
    fn new() -> anyhow::Result<Self> {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/portolan-crds");
        let folder = env::temp_dir().join(format!("portolan-schema-chart-{}", process::id()));
        fs::create_dir_all(folder.join("templates"))?;
        fs::copy(original.join("Chart.yaml"), folder.join("Chart.yaml"))?;
        for manifest in crds::manifests() {
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let file = format!("templates/{name}.yaml");
            let text = fs::read_to_string(original.join(&file)).context(file.clone())?;
            let text = text
                .replace(&format!("name: {name}"), &format!("name: {}", renamed(&name)))
                .replace("group: portolan.dev", &format!("group: {GROUP}"));
            fs::write(folder.join(file), text)?;
        }
        Ok(Self { folder })
    }

    fn path(&self) -> &str {
        self.folder.to_str().expect("the folder for temporary files has a plain name")
    }

    fn edit(&self, plural: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let file = self.folder.join(format!("templates/{plural}.{}.yaml", portolan_api::GROUP));
        fs::write(&file, fs::read_to_string(&file)?.replacen(from, to, 1))?;
        Ok(())
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // What stays behind is a folder of a few files among other temporary ones.
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn renamed(name: &str) -> String {
    name.replace(portolan_api::GROUP, GROUP)
}
