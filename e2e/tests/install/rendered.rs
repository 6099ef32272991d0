//! Whatever the values, the API server takes what the chart renders, with
//! no field it does not know. Nothing is changed: all of it is a dry run.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use portolan_cluster::command;
use portolan_cluster::paths::Paths;
use portolan_cluster::platform::NAMESPACE;
use portolan_e2e::with_platform;
use serde_json::Value;

/// Kinds of others, which the cluster of the tests does not have.
const FOREIGN: [&str; 2] = ["PodMonitor", "ServiceMonitor"];

#[tokio::test]
async fn the_api_server_takes_every_set_of_values() -> anyhow::Result<()> {
    with_platform("rendered", async |space| {
        let chart = Paths::discover().repository.join("charts/portolan");
        let mut files = vec![chart.join("values.yaml")];
        for entry in fs::read_dir(chart.join("ci"))? {
            files.push(entry?.path());
        }
        for values in files {
            let objects = render(&chart, &values)?;
            ensure!(objects.len() > 10, "{} renders little", values.display());
            for mut object in objects {
                // The namespaces of tenants in the values are examples.
                let namespace = &mut object["metadata"]["namespace"];
                if namespace.as_str().is_some_and(|name| name != NAMESPACE) {
                    *namespace = space.namespace().into();
                }
                let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
                let mut kubectl = space.cluster().program("kubectl");
                kubectl.args(["apply", "--server-side", "--dry-run=server", "--validate=strict"]);
                // As Helm does it: in lists that are sets, the words of two managers add up.
                kubectl.args(["--field-manager=helm", "--force-conflicts", "-f", "-"]);
                command::feed(&mut kubectl, &object.to_string())
                    .with_context(|| format!("{name} of {}", values.display()))?;
            }
        }
        Ok(())
    })
    .await
}

fn render(chart: &Path, values: &Path) -> anyhow::Result<Vec<Value>> {
    let mut helm = std::process::Command::new(Paths::discover().programs().join("helm"));
    helm.args(["template", "portolan", "--namespace", NAMESPACE]).arg(chart).arg("-f").arg(values);
    let rendered = command::output(&mut helm)?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
    let is_known =
        |object: &Value| object["kind"].as_str().is_some_and(|kind| !FOREIGN.contains(&kind));
    Ok(objects.into_iter().filter(is_known).collect())
}
