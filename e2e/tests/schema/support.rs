//! Manifests as users write them, sent to the real API server as `kubectl apply` sends them: with
//! strict field validation, and as a dry run, so that nothing is stored.

use std::sync::LazyLock;

use anyhow::{Context as _, ensure};
use http::{Method, Request};
use kube::Client;
use kube::client::Body;
use portolan_cluster::cluster::Cluster;
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// Expectation of a manifest that is accepted.
pub const ACCEPTED: &str = "";

/// Rows of a table: a fragment of YAML, and [`ACCEPTED`] or the parts of the refusal, separated by
/// ` | `: the field, and what is said about it.
pub type Rows<'a> = &'a [(&'a str, &'a str)];

/// Sends each fragment, made a manifest by `build`, and compares the answers.
pub async fn check(build: impl Fn(Value) -> Value, rows: Rows<'_>) -> anyhow::Result<()> {
    let client = client().await?;
    let mut wrong = Vec::new();
    for (fragment, expected) in rows {
        let manifest = build(yaml(fragment));
        let answer = create(&client, &manifest, DryRun::Yes).await?;
        if let Err(complaint) = answer.compare(expected) {
            wrong.push(format!("{fragment}\n    {complaint:#}"));
        }
    }
    ensure!(wrong.is_empty(), "{} rows are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// What the API server said.
#[derive(Debug)]
pub struct Answer {
    /// Values of the `Warning` headers.
    pub warnings: Vec<String>,
    /// The object, or why not.
    pub outcome: Result<Value, String>,
}

impl Answer {
    /// Compares with an expectation, as in [`Rows`].
    pub fn compare(&self, expected: &str) -> anyhow::Result<()> {
        let said = match &self.outcome {
            Ok(_) if expected == ACCEPTED => return Ok(()),
            Ok(_) => anyhow::bail!("was accepted, expected: {expected}"),
            Err(said) => said,
        };
        ensure!(expected != ACCEPTED, "was refused: {said}");
        for part in expected.split(" | ") {
            ensure!(said.contains(part), "was refused without saying '{part}': {said}");
        }
        Ok(())
    }

    /// The object of an answer that must be one.
    pub fn object(self) -> anyhow::Result<Value> {
        self.outcome.map_err(anyhow::Error::msg)
    }
}

/// Whether a write is only tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DryRun {
    /// All checks, nothing is stored.
    Yes,
    /// Stored.
    No,
}

impl DryRun {
    fn query(self) -> &'static str {
        match self {
            Self::Yes => "fieldValidation=Strict&dryRun=All",
            Self::No => "fieldValidation=Strict",
        }
    }
}

/// Creates an object.
pub async fn create(client: &Client, manifest: &Value, dry: DryRun) -> anyhow::Result<Answer> {
    let path = format!("{}?{}", collection(manifest), dry.query());
    send(client, Method::POST, &path, manifest).await
}

/// Replaces an object with a changed copy of what the API server gave.
pub async fn replace(client: &Client, manifest: &Value, dry: DryRun) -> anyhow::Result<Answer> {
    send(client, Method::PUT, &format!("{}?{}", path(manifest), dry.query()), manifest).await
}

/// Replaces a subresource of an object.
pub async fn put(
    client: &Client,
    manifest: &Value,
    subresource: &str,
    dry: DryRun,
) -> anyhow::Result<Answer> {
    let path = format!("{}/{subresource}?{}", path(manifest), dry.query());
    send(client, Method::PUT, &path, manifest).await
}

/// A namespace for objects that are stored, and what was stored outside of it.
pub struct Scratch {
    client: Client,
    namespace: Value,
    outside: Mutex<Vec<Value>>,
}

impl Scratch {
    /// Makes a namespace.
    pub async fn new(client: &Client) -> anyhow::Result<Self> {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "generateName": "schema-" },
        });
        let namespace = create(client, &namespace, DryRun::No).await?.object()?;
        Ok(Self { client: client.clone(), namespace, outside: Mutex::default() })
    }

    /// Stores an object, in the namespace if its kind has one.
    pub async fn store(&self, mut manifest: Value) -> anyhow::Result<Value> {
        if is_namespaced(&manifest) {
            manifest["metadata"]["namespace"] = self.namespace["metadata"]["name"].clone();
        }
        let stored = create(&self.client, &manifest, DryRun::No).await?.object()?;
        if !is_namespaced(&stored) {
            self.outside.lock().await.push(stored.clone());
        }
        Ok(stored)
    }

    /// Removes what was stored.
    pub async fn remove(self) -> anyhow::Result<()> {
        for object in self.outside.into_inner().iter().chain([&self.namespace]) {
            send(&self.client, Method::DELETE, &path(object), &json!({})).await?.object()?;
        }
        Ok(())
    }
}

/// Reads anything.
pub async fn get(client: &Client, path: &str, accept: &str) -> anyhow::Result<Value> {
    let request = Request::get(path).header("accept", accept).body(Body::empty())?;
    answer(client, request).await?.object()
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> anyhow::Result<Answer> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string().into_bytes()))?;
    answer(client, request).await
}

async fn answer(client: &Client, request: Request<Body>) -> anyhow::Result<Answer> {
    let uri = request.uri().clone();
    let (parts, body) = client.send(request).await.with_context(|| uri.to_string())?.into_parts();
    let warnings = parts.headers.get_all("warning").iter();
    let warnings = warnings.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
    let body: Value = serde_json::from_slice(&body.collect_bytes().await?)?;
    let refusal = || body["message"].as_str().unwrap_or("no message").to_owned();
    let outcome = if parts.status.is_success() { Ok(body.clone()) } else { Err(refusal()) };
    Ok(Answer { warnings: warnings.collect(), outcome })
}

/// Namespace of what is only tried.
const NAMESPACE: &str = "default";

fn path(manifest: &Value) -> String {
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    format!("{}/{name}", collection(manifest))
}

fn collection(manifest: &Value) -> String {
    let version = manifest["apiVersion"].as_str().unwrap_or_default();
    let root = if version == "v1" { "/api/v1".into() } else { format!("/apis/{version}") };
    let plural = match manifest["kind"].as_str().unwrap_or_default() {
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    if !is_namespaced(manifest) {
        return format!("{root}/{plural}");
    }
    let namespace = manifest["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE);
    format!("{root}/namespaces/{namespace}/{plural}")
}

fn is_namespaced(manifest: &Value) -> bool {
    let ours = ["App", "AppVersion", "GatewayReport", "Route", "SandboxPool"];
    manifest["kind"].as_str().is_some_and(|kind| ours.contains(&kind))
}

/// A client of the test cluster.
pub async fn client() -> anyhow::Result<Client> {
    static STARTED: LazyLock<Mutex<()>> = LazyLock::new(Default::default);
    let _one_at_a_time = STARTED.lock().await;
    Cluster::ensure("test", 1).await?.client().await
}

/// Reads a fragment of a test.
pub fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An object of ours with this spec.
pub fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    })
}
