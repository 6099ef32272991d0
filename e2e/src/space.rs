//! A namespace of one test.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::wait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::ingress::Ingress;

/// How long a namespace may take to go: its sandboxes drain first.
const REMOVAL_LIMIT: Duration = Duration::from_secs(120);

/// A namespace of its own, and what a test needs to work in it.
pub struct Space {
    cluster: Cluster,
    client: Client,
    namespace: String,
}

impl Space {
    pub(crate) async fn create(cluster: Cluster, name: &str) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{name}-{}-{count}", std::process::id());
        let client = cluster.client().await?;
        let labels = BTreeMap::from([(
            "pod-security.kubernetes.io/enforce".to_owned(),
            "restricted".to_owned(),
        )]);
        let metadata = ObjectMeta {
            name: Some(namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        };
        let object = Namespace { metadata, ..Namespace::default() };
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("make the namespace {namespace}"))?;
        Ok(Self { cluster, client, namespace })
    }

    /// The namespace's name, which is like no other.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A client with an administrator's rights. It belongs to the runtime of this test.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The cluster, for a test that stops a component. Such a test must bring it back.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The visitors' way in.
    #[must_use]
    pub fn ingress(&self) -> Ingress {
        Ingress::new(self.cluster.state().ports)
    }

    /// Applies manifests as a user does.
    ///
    /// # Errors
    /// With what kubectl says.
    pub async fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.run(&["apply", "-f", "-"], manifests).await.map(drop)
    }

    /// Runs kubectl in the namespace and returns what it printed.
    ///
    /// # Errors
    /// With what kubectl says.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.run(args, "").await
    }

    async fn run(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        let mut kubectl = Command::from(self.cluster.program("kubectl"));
        kubectl.args(["--namespace", &self.namespace]).args(args).kill_on_drop(true);
        kubectl.stdin(std::process::Stdio::piped());
        kubectl.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = kubectl.spawn().context("start kubectl")?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        // kubectl may fail before it has read all; what it says is the better error then.
        let written = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.context("wait for kubectl")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", args.join(" "), said.trim());
        }
        written.context("give kubectl its input")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes the namespace and waits until nothing of it is left.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces
            .delete(&self.namespace, &DeleteParams::default())
            .await
            .with_context(|| format!("delete the namespace {}", self.namespace))?;
        let awaited = format!("the end of the namespace {}", self.namespace);
        wait::until(&awaited, REMOVAL_LIMIT, async || {
            match namespaces.get_opt(&self.namespace).await? {
                None => Ok(()),
                Some(namespace) => {
                    let status = namespace.status.and_then(|status| status.conditions);
                    let open = status.into_iter().flatten().filter(|entry| entry.status == "True");
                    let open: Vec<_> = open.filter_map(|entry| entry.message).collect();
                    bail!("it is still there: {}", open.join("; "))
                }
            }
        })
        .await
    }
}
