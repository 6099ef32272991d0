//! The cluster itself: what every other test takes for granted.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::ListParams;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::{command, kwok, wait};

/// A cluster of this file alone: its tests stop components and take it down.
const NAME: &str = "harness";
const LIMIT: Duration = Duration::from_secs(60);

/// Two servers that are kept on different nodes, behind one node port. CoreDNS, because its image is
/// on every node from the start.
const SERVERS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: servers }
spec:
  replicas: 2
  selector: { matchLabels: { app: servers } }
  template:
    metadata: { labels: { app: servers } }
    spec:
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: { matchLabels: { app: servers } }
      containers:
      - name: server
        image: docker.io/portolan/coredns:dev
        imagePullPolicy: Never
        args: [-conf, /config/Corefile]
        readinessProbe:
          httpGet: { path: /health, port: 8080 }
          periodSeconds: 1
        volumeMounts:
        - { name: config, mountPath: /config }
      volumes:
      - name: config
        configMap: { name: servers }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: servers }
data:
  Corefile: |
    .:1053 {
      health :8080
    }
---
apiVersion: v1
kind: Service
metadata: { name: servers }
spec:
  type: NodePort
  selector: { app: servers }
  ports:
  - { port: 80, targetPort: 8080, nodePort: 30080 }
"#;

/// One test, because each step stands on the state that the one before it left.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_two_nodes_serves_survives_and_leaves_nothing() -> anyhow::Result<()> {
    let result = async {
        let mut cluster = Cluster::ensure(NAME, 2).await?;
        servers_run_on_both_nodes(&cluster).await?;
        services_and_names_work(&cluster).await?;
        traffic_flows_without_the_api_server(&mut cluster).await?;
        fake_nodes_come_and_go(&mut cluster).await
    };
    let result = result.await;
    let removed = Cluster::down(NAME).and_then(|()| nothing_is_left());
    result.and(removed)
}

async fn servers_run_on_both_nodes(cluster: &Cluster) -> anyhow::Result<()> {
    command::feed(cluster.program("kubectl").args(["apply", "-f", "-"]), SERVERS)?;
    let client = cluster.client().await?;
    let deployments = Api::<Deployment>::default_namespaced(client.clone());
    wait::until("two ready servers", LIMIT, async || {
        let status = deployments.get("servers").await?.status.unwrap_or_default();
        ensure!(status.ready_replicas == Some(2), "ready: {:?}", status.ready_replicas);
        anyhow::Ok(())
    })
    .await?;
    let pods = Api::<Pod>::default_namespaced(client);
    let pods = pods.list(&ListParams::default().labels("app=servers")).await?;
    let nodes: Vec<_> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    ensure!(nodes.len() == 2 && nodes[0] != nodes[1], "the servers are on {nodes:?}");
    Ok(())
}

async fn services_and_names_work(cluster: &Cluster) -> anyhow::Result<()> {
    let services = Api::<Service>::default_namespaced(cluster.client().await?);
    let spec = services.get("servers").await?.spec.context("the service has a spec")?;
    let address: Ipv4Addr = spec.cluster_ip.context("the service has an address")?.parse()?;
    for node in ["node1", "node2"] {
        // Often enough that both servers are hit, the one on this node and the other.
        for _ in 0..8 {
            ensure!(from(node, &format!("http://{address}/health"))? == "OK");
        }
    }
    let mut exec = cluster.program("kubectl");
    let version =
        command::output(exec.args(["exec", "deploy/servers", "--", "/coredns", "-version"]));
    ensure!(version?.contains("CoreDNS"), "kubectl exec runs a program");
    ensure!(visit(cluster)? == "OK", "a node port answers a host outside");
    Ok(())
}

async fn traffic_flows_without_the_api_server(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.stop_api_server()?;
    let visited = visit(cluster);
    let listed = command::output(cluster.program("kubectl").args(["get", "nodes"]));
    cluster.start_api_server().await?;
    ensure!(visited? == "OK", "a node port answers while the API server is stopped");
    ensure!(listed.is_err(), "kubectl cannot have had an answer");
    command::output(cluster.program("kubectl").args(["get", "nodes"]))?;
    Ok(())
}

async fn fake_nodes_come_and_go(cluster: &mut Cluster) -> anyhow::Result<()> {
    kwok::scale(cluster, 20).await?;
    kwok::scale(cluster, 3).await?;
    kwok::scale(cluster, 0).await
}

/// Asks a node port as a host outside the cluster.
fn visit(cluster: &Cluster) -> anyhow::Result<String> {
    let words = cluster.outside();
    let mut curl = Command::new(&words[0]);
    curl.args(&words[1..]).args(["curl", "-sS", "--max-time", "10"]);
    command::output(curl.arg("http://10.90.0.12:30080/health"))
}

/// Asks from a node itself.
fn from(node: &str, url: &str) -> anyhow::Result<String> {
    let namespace = format!("--net=/run/netns/portolan-{NAME}-{node}");
    command::output(Command::new("nsenter").arg(namespace).args([
        "curl",
        "-sS",
        "--max-time",
        "10",
        url,
    ]))
}

fn nothing_is_left() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let mark = format!("portolan-{NAME}");
    ensure!(!mounts.contains(&mark), "a mount is left: {mounts}");
    ensure!(!mounts.contains(&format!("portolan-cluster/{NAME}")), "a mount is left: {mounts}");
    for folder in ["/run/portolan-cluster", "/var/tmp/portolan-cluster"] {
        let left = Path::new(folder).join(NAME);
        ensure!(!left.exists(), "{} is left", left.display());
    }
    let namespaces = command::output(Command::new("ip").args(["netns", "list"]))?;
    ensure!(!namespaces.contains(&mark), "a network namespace is left: {namespaces}");
    Ok(())
}
