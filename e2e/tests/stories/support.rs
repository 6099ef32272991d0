//! What the stories share: an App of the echo program, questions to it, and waiting for words.

use anyhow::{Context, ensure};
use http::Response;
use hyper::body::Bytes;
use portolan_cluster::wait;
use portolan_e2e::space::Space;
use serde_json::{Value, json};

/// The echo program as an App with one service `web`, merged with `service`, and a Route.
/// `version` is what the program says of itself in `x-version`.
pub(crate) struct Echo<'a> {
    pub(crate) space: &'a Space,
    pub(crate) name: &'a str,
}

impl Echo<'_> {
    /// The host that only this test uses.
    pub(crate) fn host(&self) -> String {
        format!("{}.{}.portolan.test", self.name, self.space.namespace())
    }

    /// The manifest of the App.
    pub(crate) fn manifest(&self, version: &str, service: &Value) -> Value {
        // Kubernetes looks again at a namespace that goes after half of its Pods' grace.
        let mut web = json!({
            "name": "web", "port": 8080, "terminationGracePeriodSeconds": 1,
        });
        let fields = service.as_object().cloned().unwrap_or_default();
        web.as_object_mut().expect("a service is an object").extend(fields);
        json!({
            "apiVersion": "portolan.dev/v1alpha1",
            "kind": "App",
            "metadata": { "name": self.name },
            "spec": {
                "image": "docker.io/portolan/sample-echo:dev",
                "env": [{ "name": "VERSION", "value": version }],
                "services": [web],
            },
        })
    }

    /// Applies the App.
    pub(crate) async fn apply(&self, version: &str, service: Value) -> anyhow::Result<()> {
        self.space.apply(&self.manifest(version, &service).to_string()).await
    }

    /// Applies the Route.
    pub(crate) async fn route(&self) -> anyhow::Result<()> {
        let route = json!({
            "apiVersion": "portolan.dev/v1alpha1",
            "kind": "Route",
            "metadata": { "name": self.name },
            "spec": { "host": self.host(), "app": self.name },
        });
        self.space.apply(&route.to_string()).await
    }

    /// Waits as a user does, until the App is ready for what was last applied.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let app = format!("app/{}", self.name);
        let args = ["wait", "--for=condition=Ready", &app, wait::KUBECTL_PATIENCE];
        self.space.kubectl(&args).await.map(drop)
    }

    /// Asks the program through the gateway.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Response<Bytes>> {
        self.space.ingress().get(&self.host(), path).await
    }

    /// The version that answers.
    pub(crate) async fn version(&self) -> anyhow::Result<String> {
        let answer = self.get("/").await?;
        ensure!(answer.status() == 200, "answered {}: {:?}", answer.status(), answer.body());
        let version = answer.headers().get("x-version").context("the program names its version")?;
        Ok(version.to_str()?.to_owned())
    }

    /// Waits until this version answers. Gateways learn of a Route and of a switch by watching.
    pub(crate) async fn until_it_answers(&self, version: &str) -> anyhow::Result<()> {
        self.until(&format!("version {version} to answer on {}", self.host()), async || {
            let seen = self.version().await?;
            ensure!(seen == version, "version {seen} answers");
            Ok(())
        })
        .await
    }

    /// An object of this namespace.
    pub(crate) async fn object(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let text = self.space.kubectl(&["get", kind, name, "-o", "json"]).await?;
        serde_json::from_str(&text).context("read what kubectl printed")
    }

    /// The objects of a kind in this namespace.
    pub(crate) async fn list(&self, kind: &str) -> anyhow::Result<Vec<Value>> {
        let text = self.space.kubectl(&["get", kind, "-o", "json"]).await?;
        let list: Value = serde_json::from_str(&text).context("read what kubectl printed")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The sandboxes that are not on their way out, by name.
    pub(crate) async fn sandboxes(&self) -> anyhow::Result<Vec<String>> {
        let pods = self.list("pods").await?;
        let alive = pods.iter().filter(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null()
                && pod["metadata"]["annotations"]["portolan.dev/drain"].is_null()
        });
        let mut names: Vec<_> = alive.map(|pod| text(&pod["metadata"]["name"])).collect();
        names.sort();
        Ok(names)
    }

    /// The App's condition as `status reason`.
    pub(crate) async fn says(&self, condition: &str) -> anyhow::Result<String> {
        Ok(said(&self.object("app", self.name).await?, condition))
    }

    /// Waits until the App's condition is `status reason`.
    pub(crate) async fn until_it_says(
        &self,
        condition: &str,
        expected: &str,
    ) -> anyhow::Result<()> {
        let awaited = format!("{condition} of app/{} to be {expected}", self.name);
        wait::until(&awaited, wait::PATIENCE, async || {
            let seen = self.says(condition).await.map_err(|error| format!("{error:#}"))?;
            if seen == expected { Ok(()) } else { Err(seen) }
        })
        .await
    }

    /// Waits until `probe` holds; its error is what was seen instead.
    pub(crate) async fn until(
        &self,
        awaited: &str,
        probe: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        wait::until(awaited, wait::PATIENCE, probe).await
    }
}

/// A condition of an object as `status reason`; empty when there is none.
pub(crate) fn said(object: &Value, condition: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|entry| entry["type"] == condition);
    found.map(|c| format!("{} {}", text(&c["status"]), text(&c["reason"]))).unwrap_or_default()
}

/// The message of an object's condition; empty when there is none.
pub(crate) fn message(object: &Value, condition: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|entry| entry["type"] == condition);
    found.map(|entry| text(&entry["message"])).unwrap_or_default()
}

/// A string of a JSON value; empty when it is none.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
