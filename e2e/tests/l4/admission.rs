//! What the chart's admission policies say to an App that asks for a node port which it cannot
//! have. The policies are the chart's own, rendered by Helm, under names of their own and for the
//! test's namespaces only.

use std::process::Stdio;

use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait::until_seen;
use portolan_e2e::BARE_CLUSTER;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::stage::{Stage, free_port, with_controller};

/// A port that the chart reserves.
const CHART_RESERVES: i32 = 6443;

/// Runs a program of the cluster; what it printed, or what it complained of.
async fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let cluster = Cluster::open(BARE_CLUSTER).expect("the cluster runs");
    let mut command = Command::from(cluster.program(program));
    command.args(args).kill_on_drop(true).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Stores the chart's policies for the namespaces of this stage; the manifests.
async fn install(stage: &Stage) -> String {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/portolan");
    let args = ["template", "portolan", chart, "-s", "templates/nodeports.yaml"];
    let rendered = run("helm", &args, "").await.expect("the chart renders");
    let only = format!(
        "matchConstraints:\n    namespaceSelector:\n      matchExpressions:\n      - key: \
         kubernetes.io/metadata.name\n        operator: In\n        values: [{}, {}]\n",
        stage.ours, stage.theirs
    );
    let ours = rendered
        .replace("matchConstraints:\n", &only)
        .replace("portolan-node-port", &format!("{}-node-port", stage.ours));
    run("kubectl", &["apply", "-f", "-"], &ours).await.expect("the policies are accepted");
    ours
}

/// Applies an App `chat` whose service `irc` asks for a node port.
async fn apply(namespace: &str, port: i32, kind: &str, image: &str) -> Result<String, String> {
    send(namespace, (port, kind, image), "none").await
}

/// What would come of applying such an App over TCP. Waiting for a refusal must store nothing: what
/// an App asked for before is not held against it.
async fn try_out(namespace: &str, port: i32) -> Result<String, String> {
    send(namespace, (port, "tcp", "a"), "server").await
}

async fn send(
    namespace: &str,
    (port, kind, image): (i32, &str, &str),
    dry_run: &str,
) -> Result<String, String> {
    let app = format!(
        "apiVersion: portolan.dev/v1alpha1\nkind: App\nmetadata: {{ name: chat }}\nspec:\n  image: \
         {image}\n  services:\n  - name: irc\n    ports: [{{ name: irc, port: 6667, type: {kind}, \
         nodePort: {port} }}]\n"
    );
    let dry_run = format!("--dry-run={dry_run}");
    run("kubectl", &["apply", "--namespace", namespace, &dry_run, "-f", "-"], &app).await
}

#[tokio::test]
async fn an_app_is_refused_a_node_port_that_it_cannot_have() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let (ours, theirs, port) = (&stage.ours, &stage.theirs, free_port());
        let policies = install(&stage).await;
        stage.apply_port(theirs, "game-lobby", port).await;
        stage.until_idle(theirs, "game-lobby").await;

        // The API server learns of policies and Claims through watches.
        let refused = || try_out(ours, port);
        let held = format!("node port {port}/tcp is held by AppService {theirs}/game-lobby; ");
        let says = |answer: &Result<String, String>| {
            answer.as_ref().is_err_and(|answer| answer.contains(&held))
        };
        let _told = until_seen("the conflict is told", refused, says).await;
        let reserved = || try_out(ours, CHART_RESERVES);
        let limit = format!("Apps may not have node port {CHART_RESERVES}");
        let says = |answer: &Result<String, String>| {
            answer.as_ref().is_err_and(|answer| answer.contains(&limit))
        };
        let _told = until_seen("the limit is told", reserved, says).await;

        apply(ours, port, "udp", "a").await.expect("UDP is another port");
        apply(theirs, free_port(), "tcp", "a").await.expect("a free port is accepted");
        // What was asked for before is not held against it: the controller tells of that.
        apply(ours, port, "udp", "b").await.expect("another image is accepted");
        let clean = run("kubectl", &["delete", "--ignore-not-found", "-f", "-"], &policies).await;
        clean.expect("the policies go");
    })
    .await
}

#[tokio::test]
async fn an_app_that_waits_for_its_port_can_be_changed() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let (ours, theirs, port) = (&stage.ours, &stage.theirs, free_port());
        // Both asked before there was a policy.
        apply(ours, port, "tcp", "a").await.expect("nothing refuses it yet");
        stage.apply_port(theirs, "game-lobby", port).await;
        stage.until_idle(theirs, "game-lobby").await;
        let policies = install(&stage).await;
        let in_force = || try_out(theirs, port);
        // This one's own AppServices are called chat-…, so it is another App's port for it too.
        let refused = until_seen("the policy is in force", in_force, Result::is_err).await;
        refused.expect_err("it is refused");
        apply(ours, port, "tcp", "b").await.expect("it asked before");
        let clean = run("kubectl", &["delete", "--ignore-not-found", "-f", "-"], &policies).await;
        clean.expect("the policies go");
    })
    .await
}
