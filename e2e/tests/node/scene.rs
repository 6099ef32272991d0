//! Two nodes with agents, and an App with a sandbox on each.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use portolan_cluster::addresses::Stack;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::{OUTSIDE, namespace_file, node_name};
use portolan_cluster::{addresses, command, platform, wait};
use portolan_e2e::pods::{Running, running};
use serde_json::{Value, json};

use crate::clients::{Place, Talk};

pub(crate) const TEAM: &str = "node";
/// The namespace of the agents.
pub(crate) const AGENTS: &str = "portolan-system-node";

/// The families of the cluster.
pub(crate) const STACK: Stack = Stack::Dual;

/// A port of the App.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) talk: Talk,
}

pub(crate) const HTTP: Port = Port { number: 8080, talk: Talk::Tcp };
pub(crate) const IRC: Port = Port { number: 6667, talk: Talk::Tcp };
pub(crate) const DNS: Port = Port { number: 5353, talk: Talk::Udp };

const APP: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: node }
---
apiVersion: portolan.dev/v1alpha1
kind: App
metadata: { name: chat, namespace: node }
spec:
  image: docker.io/portolan/sample-echo:dev
  env:
  - { name: LISTEN_ADDRESS, value: '::' }
  - { name: TCP_PORT, value: '6667' }
  - { name: UDP_PORT, value: '5353' }
  services:
  - name: irc
    ports:
    - { name: http, port: 8080 }
    - { name: irc, port: 6667, type: tcp, nodePort: 6667 }
    - { name: dns, port: 5353, type: udp, nodePort: 5353 }
    scale: { mode: Fixed, instances: 2 }
    template:
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: { matchLabels: { portolan.dev/app: chat } }
";

pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    /// The virtual addresses of the App's service, one of each family.
    pub(crate) vips: Vec<IpAddr>,
    /// What others had in each node's kernel before there was a service.
    pub(crate) tables: Vec<String>,
}

impl Scene {
    pub(crate) async fn set(cluster: Cluster) -> anyhow::Result<Self> {
        tokio::task::block_in_place(|| platform::install(&cluster, &[]))?;
        let mut scene = Self { cluster, vips: Vec::new(), tables: Vec::new() };
        scene.tables = scene.rested_tables().await?;
        scene.apply(APP)?;
        scene.vips = wait::until("the service to be available", wait::PATIENCE, async || {
            let status = scene.service("chat-irc")?;
            ensure!(status["readyEndpoints"] == 2, "{status}");
            let ready = &status["conditions"][0];
            ensure!(ready["status"] == "True", "{ready}");
            addresses_of(&status)
        })
        .await?;
        let families: Vec<_> = scene.vips.iter().map(IpAddr::is_ipv4).collect();
        ensure!(families == [true, false], "{:?}", scene.vips);
        for place in scene.nodes() {
            wait::until("the agents to know the sandboxes", wait::PATIENCE, async || {
                let table = place.output("nft", &["list", "table", "inet", "portolan"])?;
                // The slices of the two families come one after the other.
                let words = ["-n", TEAM, "get", "pods", "-l", "portolan.dev/app=chat", "-o"];
                let addresses = "jsonpath={.items[*].status.podIPs[*].ip}";
                let addresses = scene.kubectl(&[&words[..], &[addresses]].concat())?;
                let known = addresses.split(' ').all(|address| table.contains(address));
                ensure!(known, "{addresses} are not all in {table}");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(scene)
    }

    pub(crate) fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut kubectl = self.cluster.program("kubectl");
        tokio::task::block_in_place(|| command::output(kubectl.args(words)))
    }

    pub(crate) fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        command::feed(self.cluster.program("kubectl").args(["apply", "-f", "-"]), manifest)
    }

    /// The status of an AppService.
    pub(crate) fn service(&self, name: &str) -> anyhow::Result<Value> {
        let found = self.kubectl(&["-n", TEAM, "get", "asvc", name, "-o", "json"])?;
        let mut found: Value = serde_json::from_str(&found)?;
        Ok(found["status"].take())
    }

    /// A port of the virtual addresses.
    pub(crate) fn addresses(&self, port: u16) -> Vec<SocketAddr> {
        self.vips.iter().map(|vip| SocketAddr::new(*vip, port)).collect()
    }

    pub(crate) fn nodes(&self) -> [Place; 2] {
        [1, 2].map(|number| self.machine(&node_name(number)))
    }

    /// The addresses of each node, IPv4 first.
    pub(crate) fn node_addresses(&self) -> [Vec<IpAddr>; 2] {
        [1, 2].map(|number| STACK.node(number))
    }

    pub(crate) fn outside(&self) -> Place {
        self.machine(OUTSIDE)
    }

    fn machine(&self, name: &str) -> Place {
        let network = namespace_file(&self.cluster.files().namespace(name));
        Place { name: name.to_owned(), network }
    }

    /// The sandboxes of the App that stay.
    pub(crate) fn running(&self) -> anyhow::Result<Vec<Running>> {
        running(&self.cluster, TEAM, "portolan.dev/app=chat")
    }

    /// The networks of the sandboxes, the one of the first node first.
    pub(crate) fn sandboxes(&self) -> anyhow::Result<Vec<Place>> {
        let mut pods = self.running()?;
        pods.sort_by(|one, other| one.node.cmp(&other.node));
        ensure!(pods.len() == 2 && pods[0].node != pods[1].node, "{pods:?}");
        let place =
            |pod: Running| Ok(Place { network: pod.process()?.join("ns/net"), name: pod.name });
        pods.into_iter().map(place).collect()
    }

    pub(crate) fn agents(&self) -> anyhow::Result<Vec<Running>> {
        running(&self.cluster, AGENTS, "app.kubernetes.io/component=node")
    }

    /// The agent of one node.
    pub(crate) fn agent(&self, node: &str) -> anyhow::Result<Running> {
        let mut agents = self.agents()?.into_iter();
        agents.find(|agent| agent.node == node).with_context(|| node.to_owned())
    }

    /// All that others, such as kube-proxy and the network plugin, have in the nodes' kernels,
    /// without counts.
    pub(crate) fn tables_of_others(&self) -> anyhow::Result<Vec<String>> {
        self.nodes()
            .iter()
            .map(|node| {
                let tables = node.output("nft", &["list", "tables"])?;
                let others = tables.lines().filter(|line| !line.contains(" portolan"));
                let listings = others.map(|line| {
                    let words: Vec<_> = ["-s", "list"].into_iter().chain(line.split(' ')).collect();
                    node.output("nft", &words)
                });
                listings.collect::<anyhow::Result<String>>()
            })
            .collect()
    }

    /// The same, once kube-proxy has taken in what was installed.
    pub(crate) async fn rested_tables(&self) -> anyhow::Result<Vec<String>> {
        let (mut before, mut rested) = (Vec::new(), 0);
        wait::until("kube-proxy to come to rest", wait::PATIENCE, async || {
            let now = self.tables_of_others()?;
            rested = if now == before { rested + 1 } else { 0 };
            before = now;
            ensure!(rested >= 20, "seen {rested} times");
            Ok(before.clone())
        })
        .await
    }

    /// Writes a node's report with the token of an agent; a dry run.
    pub(crate) fn report_as(&self, agent: &Running, node: &str) -> anyhow::Result<()> {
        let bound = format!("--bound-object-name={}", agent.name);
        let uid = format!("--bound-object-uid={}", agent.uid());
        let words = [
            "-n",
            AGENTS,
            "create",
            "token",
            "portolan-node",
            "--bound-object-kind=Pod",
            &bound,
            &uid,
        ];
        let token = self.kubectl(&words)?;
        let report = json!({
            "apiVersion": "portolan.dev/v1alpha1",
            "kind": "NodeReport",
            "metadata": { "name": node },
            "spec": { "kernel": "an agent's word" },
        });
        let mut kubectl = self.cluster.program("kubectl");
        // The certificate of the administrator would win over the token.
        kubectl.env("KUBECONFIG", self.without_user()?).arg(format!("--token={}", token.trim()));
        kubectl.args([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "-f",
            "-",
        ]);
        command::feed(&mut kubectl, &report.to_string())
    }

    /// A kubeconfig that knows the cluster and nobody.
    fn without_user(&self) -> anyhow::Result<PathBuf> {
        let path = self.cluster.files().run.join("nobody.kubeconfig");
        let whole = std::fs::read_to_string(self.cluster.files().kubeconfig())?;
        let mut config: Value = serde_saphyr::from_str(&whole)?;
        config["users"] = json!([]);
        for context in config["contexts"].as_array_mut().into_iter().flatten() {
            context["context"]["user"] = json!("");
        }
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }
}

/// The addresses of who is outside, IPv4 first.
pub(crate) fn outside_addresses() -> [IpAddr; 2] {
    [addresses::OUTSIDE.into(), addresses::v6(addresses::OUTSIDE).into()]
}

/// The addresses that an AppService or a Service reports.
pub(crate) fn addresses_of(reported: &Value) -> anyhow::Result<Vec<IpAddr>> {
    let all = reported["clusterIPs"].as_array().context("addresses")?.iter();
    all.map(|address| Ok(address.as_str().context("an address")?.parse()?)).collect()
}

impl Place {
    /// Removes what an agent left in the kernel of this node.
    pub(crate) fn clean_up(&self) -> anyhow::Result<()> {
        let program =
            portolan_cluster::paths::Paths::discover().target().join("debug/portolan-node");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network.display())).arg(program).arg("--cleanup");
        tokio::task::block_in_place(|| command::output(&mut command)).map(drop)
    }
}
