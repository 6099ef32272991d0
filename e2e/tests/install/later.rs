//! The kinds of a later release come, and go again, under the programs of this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::{env, process};

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::paths::Paths;
use portolan_cluster::{command, wait};
use portolan_e2e::visitor::{ask, is_good};

use crate::lifecycle::{helm, team};

const KINDS: &str = "templates/apps.portolan.dev.yaml";
/// A field that a later release has, and a column that shows it.
const COLUMN: (&str, &str) = (
    "  - additionalPrinterColumns:\n",
    "    - jsonPath: .spec.later\n      name: Later\n      type: string\n",
);
const FIELD: (&str, &str) = (
    "            description: What is wanted.\n            properties:\n",
    "              later:\n                description: A later release has it.\n                \
     type: string\n",
);
const SET: &str = r#"{"spec":{"later":"today"}}"#;

const HOST: &str = "later.portolan.test";
const ROUTE: &str = "
apiVersion: portolan.dev/v1alpha1
kind: Route
metadata: { name: later, namespace: portolan-samples }
spec: { host: later.portolan.test, app: echo }
";

/// Both charts' order: the kinds first. The programs go on with a field that they do not know, and
/// see what changes under either definition; a field that is no longer defined is no longer shown,
/// and the object that had it stays.
pub(crate) async fn kinds_come_and_go(cluster: &Cluster) -> anyhow::Result<()> {
    let chart = Folder::with_later_kinds()?;
    let path = chart.0.to_str().context("a path in UTF-8")?;
    helm(cluster, &["upgrade", "portolan-crds", path])?;
    wait::until("the column of the later release", wait::PATIENCE, async || {
        team(cluster, &["patch", "app", "echo", "--type=merge", "-p", SET])?;
        let table = team(cluster, &["get", "app", "echo"])?;
        ensure!(table.contains("LATER") && table.contains("today"), "{table}");
        anyhow::Ok(())
    })
    .await?;
    changes_are_seen(cluster).await.context("under the later kinds")?;
    helm(cluster, &["rollback", "portolan-crds", "1"])?;
    wait::until("the field to be gone", wait::PATIENCE, async || {
        let app = team(cluster, &["get", "app", "echo", "-o", "jsonpath={.spec}"])?;
        ensure!(!app.contains("today"), "{app}");
        anyhow::Ok(())
    })
    .await?;
    changes_are_seen(cluster).await.context("after the rollback")?;
    team(cluster, &["wait", "--for=condition=Ready", "app/echo", wait::KUBECTL_PATIENCE]).map(drop)
}

/// A Route that is made is served, and one that is deleted is not.
async fn changes_are_seen(cluster: &Cluster) -> anyhow::Result<()> {
    let port = cluster.state().ports.http;
    command::feed(cluster.program("kubectl").args(["apply", "-f", "-"]), ROUTE)?;
    wait::until("a new Route to be served", wait::PATIENCE, async || {
        let answer = ask(port, HOST).await?;
        ensure!(is_good(&answer), "{answer}");
        anyhow::Ok(())
    })
    .await?;
    team(cluster, &["delete", "route", "later"])?;
    wait::until("a deleted Route to be denied", wait::PATIENCE, async || {
        let answer = ask(port, HOST).await?;
        ensure!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        anyhow::Ok(())
    })
    .await
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    /// The chart of the kinds as a later release may have it.
    fn with_later_kinds() -> anyhow::Result<Self> {
        let chart = Paths::discover().repository.join("charts/portolan-crds");
        let folder = Self(env::temp_dir().join(format!("portolan-later-{}", process::id())));
        copy(&chart, &folder.0)?;
        let path = folder.0.join(KINDS);
        let mut kinds = fs::read_to_string(&path).context("read the kind")?;
        for (place, addition) in [COLUMN, FIELD] {
            let (before, after) = kinds.split_once(place).context("a place for it")?;
            kinds = [before, place, addition, after].concat();
        }
        fs::write(&path, kinds).context("write the kind")?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it is the system's to clean up.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.context("list a chart")?;
        let (path, copied) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &copied)?;
        } else {
            fs::copy(&path, &copied).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}
