//! A client that passes everything on and keeps what was written.

use std::{fmt, sync::Arc};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::Value;
use tower::BoxError;

/// One write, as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The method.
    pub method: Method,
    /// `resource` or `resource/subresource`.
    pub resource: String,
    /// The object's name; empty where the API server was asked to make one up or to read it from
    /// the body.
    pub name: String,
    /// Who wrote; empty where nobody said so.
    pub manager: String,
    /// What was written; null when there was no body or it was no JSON.
    pub body: Value,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, resource, name, manager, body: _ } = self;
        write!(f, "{method} {resource} {name} by {manager}")
    }
}

/// Records the writes of one or more clients, Events among them. Renewals of Leases are none: they
/// come with the time and not with what there is to do.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    writes: Arc<Mutex<Vec<Write>>>,
}

impl Recorder {
    /// A client through which all requests go on.
    pub fn client(&self, client: Client) -> Client {
        let recorder = self.clone();
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request| {
            let (recorder, client) = (recorder.clone(), client.clone());
            async move { recorder.send(&client, request).await }
        });
        Client::new(service, namespace)
    }

    /// Everything that was written, in the order in which it was sent.
    pub fn writes(&self) -> Vec<Write> {
        self.writes.lock().clone()
    }

    async fn send(
        &self,
        client: &Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        if request.method() == Method::GET || request.uri().path().contains("/leases/") {
            return Ok(client.send(request).await?);
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        self.writes.lock().push(write(&head, serde_json::from_slice(&body).unwrap_or_default()));
        Ok(client.send(Request::from_parts(head, Body::from(body))).await?)
    }
}

/// Takes a path of the API apart (<https://kubernetes.io/docs/reference/using-api/api-concepts/>).
fn write(head: &http::request::Parts, body: Value) -> Write {
    let mut parts = head.uri.path().split('/').filter(|part| !part.is_empty());
    // The core group has no name.
    let prefix = if parts.next() == Some("api") { 1 } else { 2 };
    let mut parts: Vec<_> = parts.skip(prefix).collect();
    if parts.first() == Some(&"namespaces") && parts.len() > 2 {
        parts.drain(..2);
    }
    let part = |index: usize| parts.get(index).copied();
    let resource = part(0).unwrap_or_default();
    let query = head.uri.query().unwrap_or_default();
    let manager = query.split('&').find_map(|pair| pair.strip_prefix("fieldManager="));
    Write {
        method: head.method.clone(),
        resource: part(2).map_or(resource.to_owned(), |sub| format!("{resource}/{sub}")),
        name: part(1).or(body["metadata"]["name"].as_str()).unwrap_or_default().to_owned(),
        manager: manager.unwrap_or_default().to_owned(),
        body,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Answer, Wire};

    #[tokio::test]
    async fn writes_are_kept_and_reads_and_leases_are_not() {
        let (_, client) = Wire::answering(|_| Answer::Json(200, json!({})));
        let recorder = Recorder::default();
        let client = recorder.client(client);
        let requests = [
            ("GET", "/apis/portolan.dev/v1alpha1/apps"),
            ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/system/leases/portolan-app"),
            (
                "PATCH",
                "/apis/portolan.dev/v1alpha1/namespaces/team/apps/shop/status?&force=true&fieldManager=portolan-app",
            ),
            ("POST", "/apis/portolan.dev/v1alpha1/claims?&fieldManager=portolan-route"),
            ("POST", "/api/v1/namespaces"),
            ("DELETE", "/api/v1/namespaces/team/pods/shop-1"),
        ];
        for (method, uri) in requests {
            let body = r#"{"metadata":{"name":"named"}}"#.as_bytes().to_vec();
            let request = Request::builder().method(method).uri(uri).body(body);
            client.request::<Value>(request.expect("a request")).await.expect("answered");
        }
        let writes: Vec<_> = recorder.writes().iter().map(ToString::to_string).collect();
        let expected = [
            "PATCH apps/status shop by portolan-app",
            "POST claims named by portolan-route",
            "POST namespaces named by ",
            "DELETE pods shop-1 by ",
        ];
        assert_eq!(writes, expected);
    }
}
