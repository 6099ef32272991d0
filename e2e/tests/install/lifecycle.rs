//! Install, upgrade, roll back, uninstall, install again: on a cluster of its own, because other
//! tests need Portolan meanwhile.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::platform::{self, NAMESPACE};
use portolan_cluster::{command, wait};
use portolan_e2e::on_own_cluster;
use portolan_e2e::visitor::{Visitor, ask, is_good};
use serde_json::Value;

use crate::later;

const CLUSTER: &str = "install";
const TEAM: &str = "portolan-samples";
const HOST: &str = "echo.portolan.test";

/// How long what was removed may take to be gone: sandboxes and gateways drain first.
const REMOVAL_LIMIT: Duration = Duration::from_secs(90);

/// What Kubernetes itself puts into every namespace.
const OF_KUBERNETES: [&str; 2] = ["configmap/kube-root-ca.crt", "serviceaccount/default"];

#[tokio::test(flavor = "multi_thread")]
async fn what_users_have_outlives_upgrade_rollback_and_removal() -> anyhow::Result<()> {
    on_own_cluster(CLUSTER, story()).await
}

async fn story() -> anyhow::Result<()> {
    let cluster = Cluster::ensure(CLUSTER, 1).await?;
    install(&cluster, &[])?;
    for sample in ["00-namespaces.yaml", "02-echo.yaml"] {
        apply(&cluster, sample)?;
    }
    let wait = ["wait", "--for=condition=Ready", "app/echo", "route/echo", "--timeout=90s"];
    team(&cluster, &wait)?;
    let before = Belongings::of(&cluster)?;
    let visitor = Visitor::start(cluster.state().ports.http, HOST);

    // The namespace of a team that is gone holds nobody up.
    let values = ["logs.filter=debug", "gateway.tls.namespaces.no-such-team={tls}"];
    install(&cluster, &values).context("upgrade")?;
    ensure!(Belongings::of(&cluster)? == before, "the upgrade changed what users have");
    helm(&cluster, &["rollback", "portolan", "1", "--wait", "--timeout", "120s"])?;
    ensure!(Belongings::of(&cluster)? == before, "the rollback changed what users have");
    later::kinds_come_and_go(&cluster).await?;
    ensure!(Belongings::of(&cluster)? == before, "other kinds changed what users have");
    visitor.leave().await?;

    helm(&cluster, &["uninstall", "portolan", "--wait"])?;
    helm(&cluster, &["uninstall", "portolan-crds", "--wait"])?;
    wait::until("nothing to be left of the charts", REMOVAL_LIMIT, async || {
        let left = left(&cluster)?;
        ensure!(left.is_empty(), "{}", left.join(", "));
        Ok(())
    })
    .await?;
    let after = Belongings::of(&cluster)?;
    ensure!(after == before, "the removal changed what users have: {after:?}, was {before:?}");

    install(&cluster, &["logs.filter=warn"]).context("install again")?;
    team(&cluster, &wait)?;
    let answer = ask(cluster.state().ports.http, HOST).await?;
    ensure!(is_good(&answer), "installed again, it answers {answer}");
    team(&cluster, &["delete", "apps,routes", "--all", wait::KUBECTL_PATIENCE])?;
    wait::until("nothing to be left of the App", REMOVAL_LIMIT, async || {
        let kinds = "pods,networkpolicies,sandboxpools,appversions";
        let left = team(&cluster, &["get", kinds, "-o", "name"])?;
        ensure!(left.trim().is_empty(), "{left}");
        let claims =
            command::output(cluster.program("kubectl").args(["get", "claims", "-o", "name"]))?;
        ensure!(claims.trim().is_empty(), "{claims}");
        Ok(())
    })
    .await
}

/// What must not change: the kinds, the App, and the sandbox that never sleeps, by UID.
#[derive(Debug, PartialEq)]
struct Belongings {
    kinds: Vec<String>,
    app: String,
    sandboxes: Vec<String>,
}

impl Belongings {
    fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut kubectl = cluster.program("kubectl");
        let crds: Value =
            serde_json::from_str(&command::output(kubectl.args(["get", "crds", "-o", "json"]))?)?;
        let ours = |crd: &&Value| crd["spec"]["group"] == portolan_api::GROUP;
        let crds = crds["items"].as_array().context("a list")?.iter().filter(ours);
        let kinds: Vec<_> = crds.map(|crd| crd["metadata"]["uid"].to_string()).collect();
        ensure!(!kinds.is_empty(), "there are no kinds of ours");
        let uid = "jsonpath={.metadata.uid}";
        let uids = "jsonpath={.items[*].metadata.uid}";
        let sandboxes =
            team(cluster, &["get", "pods", "-l", "portolan.dev/service=wire", "-o", uids])?;
        Ok(Self {
            kinds,
            app: team(cluster, &["get", "app", "echo", "-o", uid])?,
            sandboxes: sandboxes.split_whitespace().map(ToOwned::to_owned).collect(),
        })
    }
}

/// What is in the system's namespace, and what of the cluster's bears our name, but for the kinds.
fn left(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut kubectl = cluster.program("kubectl");
    let namespaced = ["api-resources", "--namespaced", "--verbs=list", "-o", "name"];
    let kinds = command::output(kubectl.args(namespaced))?;
    // Events tell of what was and go by themselves; metrics are no objects.
    let kinds: Vec<_> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let mut kubectl = cluster.program("kubectl");
    let get = ["get", &kinds.join(","), "-n", NAMESPACE, "-o", "name"];
    let objects = command::output(kubectl.args(get))?;
    let mut left: Vec<String> = objects
        .lines()
        .filter(|object| !OF_KUBERNETES.contains(object))
        .map(ToOwned::to_owned)
        .collect();
    let kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,\
                 validatingadmissionpolicybindings,priorityclasses,apiservices,\
                 flowschemas,prioritylevelconfigurations";
    let mut kubectl = cluster.program("kubectl");
    let objects = command::output(kubectl.args(["get", kinds, "-o", "name"]))?;
    // The API server makes an APIService of each group that is served.
    let ours = objects.lines().filter(|object| object.contains("portolan"));
    left.extend(ours.filter(|object| !object.ends_with(".portolan.dev")).map(ToOwned::to_owned));
    Ok(left)
}

fn install(cluster: &Cluster, values: &[&str]) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| platform::install(cluster, values))
}

fn apply(cluster: &Cluster, sample: &str) -> anyhow::Result<()> {
    let path = portolan_cluster::paths::Paths::discover().repository.join("docs/samples");
    let manifest = fs::read_to_string(path.join(sample)).with_context(|| sample.to_owned())?;
    command::feed(cluster.program("kubectl").args(["apply", "-f", "-"]), &manifest)
}

pub(crate) fn team(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
    let mut kubectl = cluster.program("kubectl");
    kubectl.args(["--namespace", TEAM]).args(arguments);
    tokio::task::block_in_place(|| command::output(&mut kubectl))
}

pub(crate) fn helm(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<()> {
    let mut helm = cluster.program("helm");
    helm.args(arguments).args(["--namespace", NAMESPACE]);
    match tokio::task::block_in_place(|| command::output(&mut helm)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("helm {}: {error:#}", arguments.join(" ")),
    }
}
