//! Manifests as users write them, sent to the real API server as `kubectl apply` sends them: with
//! strict field validation, and as a dry run, so that nothing is stored.

use anyhow::{Context as _, ensure};
use http::{Method, Request};
use kube::Client;
use kube::client::Body;
use portolan_cluster::cluster::Cluster;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

/// Expectation of a manifest that is accepted.
pub(crate) const ACCEPTED: &str = "";

/// Rows of a table: a fragment of YAML, and [`ACCEPTED`] or the parts of the refusal, separated by
/// ` | `: the field, and what is said about it.
pub(crate) type Rows<'a> = &'a [(&'a str, &'a str)];

/// Sends each fragment, made a manifest by `build`, and compares the answers.
pub(crate) async fn check(build: impl Fn(Value) -> Value, rows: Rows<'_>) -> anyhow::Result<()> {
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
pub(crate) struct Answer {
    /// Values of the `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// The object, or why not.
    pub(crate) outcome: Result<Value, String>,
}

impl Answer {
    /// Compares with an expectation, as in [`Rows`].
    pub(crate) fn compare(&self, expected: &str) -> anyhow::Result<()> {
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
    pub(crate) fn object(self) -> anyhow::Result<Value> {
        self.outcome.map_err(anyhow::Error::msg)
    }
}

/// Whether a write is only tried.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DryRun {
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
pub(crate) async fn create(
    client: &Client,
    manifest: &Value,
    dry: DryRun,
) -> anyhow::Result<Answer> {
    let path = format!("{}?{}", collection(manifest), dry.query());
    send(client, Method::POST, &path, manifest).await
}

/// Tries to put `value` at `pointer` of a stored object, through its own door or through that of a
/// subresource. As a patch, which does not mind what controllers write meanwhile.
pub(crate) async fn change(
    client: &Client,
    stored: &Value,
    subresource: Option<&str>,
    (pointer, value): (&str, Value),
) -> anyhow::Result<Answer> {
    let door = subresource.map(|name| format!("/{name}")).unwrap_or_default();
    let path = format!("{}{door}?{}", path(stored), DryRun::Yes.query());
    let patch = json!([{ "op": "add", "path": pointer, "value": value }]);
    send(client, Method::PATCH, &path, &patch).await
}

/// Deletes an object.
pub(crate) async fn delete(client: &Client, manifest: &Value) -> anyhow::Result<()> {
    send(client, Method::DELETE, &path(manifest), &json!({})).await?.object()?;
    Ok(())
}

/// A namespace for objects that are stored, and what was stored outside of it.
pub(crate) struct Scratch {
    client: Client,
    namespace: Value,
    outside: Mutex<Vec<Value>>,
}

impl Scratch {
    /// Makes a namespace, does the work, and removes what was stored, whatever came of it.
    pub(crate) async fn with(
        client: &Client,
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "generateName": "schema-" },
        });
        let namespace = create(client, &namespace, DryRun::No).await?.object()?;
        let scratch = Self { client: client.clone(), namespace, outside: Mutex::default() };
        let outcome = work(&scratch).await;
        scratch.remove().await?;
        outcome
    }

    /// The namespace's name, which is like no other.
    pub(crate) fn name(&self) -> &str {
        self.namespace["metadata"]["name"].as_str().expect("the API server has named it")
    }

    /// Stores an object, in the namespace if its kind has one.
    pub(crate) async fn store(&self, mut manifest: Value) -> anyhow::Result<Value> {
        if is_namespaced(&manifest) {
            manifest["metadata"]["namespace"] = self.namespace["metadata"]["name"].clone();
        }
        let stored = create(&self.client, &manifest, DryRun::No).await?.object()?;
        if !is_namespaced(&stored) {
            self.outside.lock().await.push(stored.clone());
        }
        Ok(stored)
    }

    async fn remove(self) -> anyhow::Result<()> {
        for object in self.outside.into_inner().iter().chain([&self.namespace]) {
            delete(&self.client, object).await?;
        }
        Ok(())
    }
}

/// Reads anything.
pub(crate) async fn get(client: &Client, path: &str, accept: &str) -> anyhow::Result<Value> {
    let request = Request::get(path).header("accept", accept).body(Body::empty())?;
    answer(client, request).await?.object()
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> anyhow::Result<Answer> {
    let content = match method {
        Method::PATCH => "application/json-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content)
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
        "ValidatingAdmissionPolicy" => "validatingadmissionpolicies".into(),
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

/// A client of the test cluster, on which the first caller installs Portolan with its CRDs.
pub(crate) async fn client() -> anyhow::Result<Client> {
    cluster().await?.client().await
}

/// The test cluster.
pub(crate) async fn cluster() -> anyhow::Result<Cluster> {
    static NAME: OnceCell<String> = OnceCell::const_new();
    let install = async || {
        let mut name = String::new();
        portolan_e2e::with_platform("schema", async |space| {
            name.clone_from(&space.cluster().files().name);
            Ok(())
        })
        .await?;
        anyhow::Ok(name)
    };
    Cluster::open(NAME.get_or_try_init(install).await?)
}

/// Reads a fragment of a test.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An object of ours with this spec.
pub(crate) fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    })
}
