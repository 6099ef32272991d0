//! Every write a controller makes: one field manager, preconditions, outcomes instead of errors
//! for what the plan must expect, and a count per verb.

use std::fmt::Debug;

use kube::{
    Client, Resource,
    api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions},
    core::{Request, Status},
};
use portolan_process::ErrorChain;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    APPLIED_HASH, ObjectKey, Observed, Retry, compare,
    metrics::{ReconcileMetrics, WriteLabel},
};

/// What can be written: a typed kind.
pub trait Writable: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Debug {}

impl<K> Writable for K where K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Debug {}

/// The object that a write is about, as the plan saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Target {
    /// Its name.
    pub key: ObjectKey,
    /// Its identity: a write never reaches another object of the same name.
    pub uid: String,
    /// The version the plan saw, where the write must not follow a later one.
    pub resource_version: Option<String>,
}

impl Target {
    /// The object, whatever its version. An object without UID, which the API server never
    /// returns, is met by no write.
    pub fn of(object: &impl Resource) -> Self {
        let uid = object.meta().uid.clone().unwrap_or_default();
        Self { key: ObjectKey::of(object), uid, resource_version: None }
    }

    /// The object at exactly the version that was read.
    pub fn at(object: &impl Resource) -> Self {
        let resource_version = object.meta().resource_version.clone();
        Self { resource_version, ..Self::of(object) }
    }
}

/// What came of [`Writer::apply_if_changed`].
#[derive(Clone, Debug, PartialEq)]
pub enum Applied<K> {
    /// It is as desired already; nothing was sent.
    Unchanged,
    /// It was written; this is the object now.
    Written(Box<K>),
    /// The object has changed since the plan saw it, or another has the name. A watch of it shows
    /// what came between; trying again before that would be refused again.
    Outdated,
}

/// What came of a write to an object that must be the one the plan saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Precondition<K> {
    /// It was; this is the object now.
    Met(Box<K>),
    /// There is no object of that name.
    Gone,
    /// Another object has the name, or the object has changed since the plan saw it. To
    /// [`Writer::apply_fields`] the API server answers this for an object that is gone, too.
    Conflict,
}

/// What came of [`Writer::apply_status`].
#[derive(Clone, Debug, PartialEq)]
pub enum StatusWrite<K> {
    /// The status says the same already; nothing was sent.
    Unchanged,
    /// It was written; this is the object now.
    Written(Box<K>),
    /// The object is gone; nothing was created.
    Gone,
    /// Another object has the name, or the object has changed since the plan saw it.
    Conflict,
}

/// What came of [`Writer::create`].
#[derive(Clone, Debug, PartialEq)]
pub enum Created<K> {
    /// It was created; this is the object now.
    Created(Box<K>),
    /// An object of that name exists, whoever made it.
    AlreadyExists,
}

/// What came of [`Writer::delete`].
#[derive(Clone, Debug, PartialEq)]
pub enum Deleted<K> {
    /// It will go when its grace period has passed and its finalizers are done.
    Terminating(Box<K>),
    /// It is gone by this call.
    Deleted,
    /// There was no object of that name.
    Gone,
    /// Another object has the name, or the object has changed since the plan saw it.
    Conflict,
}

/// A request to the API server that failed in a way no plan expects.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {kind} {key}")]
pub struct WriteError {
    /// What was tried, such as `apply`.
    pub verb: &'static str,
    /// The kind of the object.
    pub kind: String,
    /// The object.
    pub key: ObjectKey,
    /// What the client or the API server said.
    pub source: WriteCause,
}

/// Who said that a request failed. The client prints a refusal twice, and once with all its
/// fields; so a refusal is kept by itself.
#[derive(Debug, thiserror::Error)]
pub enum WriteCause {
    /// The API server refused.
    #[error("{}", .0.message)]
    Refused(Box<Status>),
    /// There was no answer, or none that could be understood.
    #[error(transparent)]
    Failed(Box<kube::Error>),
}

impl From<kube::Error> for WriteCause {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
            other => Self::Failed(Box::new(other)),
        }
    }
}

impl WriteError {
    /// `namespace_gone` for a namespace that is deleted or being deleted, `api_conflict`,
    /// `api_forbidden`, `api_invalid`, `api_not_found`, `api_throttled`, `api_error` for other
    /// answers, a conflict over another object among them, `api_unreachable` without any.
    pub fn category(&self) -> &'static str {
        let Some(status) = self.status() else { return "api_unreachable" };
        match status.code {
            _ if is_of_another_uid(status) => "api_conflict",
            _ if is_without_namespace(status) => "namespace_gone",
            _ if is_over_quota_object(status) => "api_error",
            403 => "api_forbidden",
            404 => "api_not_found",
            409 => "api_conflict",
            400 | 422 => "api_invalid",
            429 => "api_throttled",
            _ => "api_error",
        }
    }

    /// What is invalid, or has no namespace any more, stays so until somebody changes something.
    /// Everything else may pass: also a missing Role, whose coming no watch reports.
    pub fn retry(&self) -> Retry {
        match self.category() {
            "api_invalid" | "namespace_gone" => Retry::WaitForChange,
            _ => Retry::Backoff,
        }
    }

    /// Whether the API server refused the object as invalid.
    pub fn is_invalid(&self) -> bool {
        self.category() == "api_invalid"
    }

    /// Whether the API server did not let us.
    pub fn is_forbidden(&self) -> bool {
        self.category() == "api_forbidden"
    }

    /// The API server's own words if it refused the object for what it is, by validation, admission,
    /// quota or size: it will again until somebody changes something, so a condition says it.
    pub fn refusal(&self) -> Option<&str> {
        let answer = self.answer()?;
        // These come as errors of the server: from etcd, from a webhook that must be asked, and from
        // a range of addresses that is full.
        let is_told = answer.contains("request is too large")
            || answer.contains("failed calling webhook")
            || answer.contains("failed to allocate")
            || self.status().is_some_and(|status| status.code == 413);
        (self.is_invalid() || self.is_forbidden() || is_told).then_some(answer)
    }

    /// The API server's own words, for a condition's message; `None` when it did not answer.
    pub fn answer(&self) -> Option<&str> {
        self.status().map(|status| status.message.as_str())
    }

    fn status(&self) -> Option<&Status> {
        match &self.source {
            WriteCause::Refused(status) => Some(status),
            WriteCause::Failed(_) => None,
        }
    }
}

/// Writes to the API server on behalf of one controller. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    controller: &'static str,
    manager: String,
    metrics: ReconcileMetrics,
}

impl Writer {
    pub(crate) fn new(client: Client, controller: &'static str, metrics: ReconcileMetrics) -> Self {
        Self { client, controller, manager: format!("portolan-{controller}"), metrics }
    }

    /// Our field manager, `portolan-<controller>`.
    pub fn manager(&self) -> &str {
        &self.manager
    }

    /// Applies an object of ours, taking over its fields from whoever changed them.
    ///
    /// A UID in `desired.metadata` keeps the write from creating the object and from reaching
    /// another one of that name.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success; a UID that does not match is `api_conflict`.
    pub async fn apply<K: Writable>(&self, desired: &K) -> Result<K, WriteError> {
        let desired = body::<K>(desired);
        self.apply_body(&desired).await
    }

    /// Applies an object of ours unless what was observed already says all of it.
    ///
    /// The object gets the annotation [`APPLIED_HASH`], by which a field that is no longer sent is
    /// noticed. A foreign edit of a field that is sent is noticed by comparison, and undone.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success, and conflict where `desired` has a UID or a
    /// version. Without them nothing was asked of the object that could be outdated.
    pub async fn apply_if_changed<K: Writable>(
        &self,
        desired: &K,
        observed: Option<&K>,
    ) -> Result<Applied<K>, WriteError> {
        let mut desired = body::<K>(desired);
        let preconditions = take_preconditions(&mut desired);
        let hash = compare::hash(&desired);
        desired["metadata"]["annotations"][APPLIED_HASH] = Value::String(hash);
        if observed.is_some_and(|observed| compare::covers(&desired, &body::<K>(observed))) {
            return Ok(Applied::Unchanged);
        }
        let is_guarded = !preconditions.is_empty();
        for (field, value) in preconditions {
            desired["metadata"][field] = value;
        }
        match self.apply_body(&desired).await {
            Ok(live) => Ok(Applied::Written(Box::new(live))),
            Err(error) if is_guarded && error.category() == "api_conflict" => Ok(Applied::Outdated),
            Err(error) => Err(error),
        }
    }

    /// Applies some fields of an object that exists; `fields` serializes to its top-level fields,
    /// for example `{"spec": {…}}` or `{"metadata": {"annotations": {…}}}`.
    ///
    /// What this writer applied to the object before and `fields` omits is removed.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success, not found and conflict.
    pub async fn apply_fields<K: Writable, P: Serialize>(
        &self,
        target: &Target,
        fields: &P,
    ) -> Result<Precondition<K>, WriteError> {
        let body = partial::<K>(target, fields);
        let patch = (&self.apply_params(), &Patch::Apply(&body));
        let request = resource::<K>(&target.key).patch(&target.key.name, patch.0, patch.1);
        met(self.send::<K, K>("apply_fields", &target.key, request).await)
    }

    /// Applies the status, unless `observed` says the same. Never creates the object.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success, not found and conflict.
    pub async fn apply_status<K: Writable, S: Serialize>(
        &self,
        target: &Target,
        status: &S,
        observed: Option<&S>,
    ) -> Result<StatusWrite<K>, WriteError> {
        if observed.is_some_and(|observed| compare::same(&value(status), &value(observed))) {
            return Ok(StatusWrite::Unchanged);
        }
        let body = partial::<K>(target, &json!({ "status": value(status) }));
        let (params, patch) = (self.apply_params(), Patch::Apply(&body));
        let name = &target.key.name;
        let request = resource::<K>(&target.key).patch_subresource("status", name, &params, &patch);
        let sent = self.send::<K, K>("apply_status", &target.key, request).await;
        Ok(match met(sent)? {
            Precondition::Met(object) => StatusWrite::Written(object),
            Precondition::Gone => StatusWrite::Gone,
            Precondition::Conflict => StatusWrite::Conflict,
        })
    }

    /// Creates an object; the name must be free.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success and already exists.
    pub async fn create<K: Writable>(&self, object: &K) -> Result<Created<K>, WriteError> {
        let key = ObjectKey::of(object);
        let params = PostParams { field_manager: Some(self.manager.clone()), dry_run: false };
        let body = value(object).to_string().into_bytes();
        let request = resource::<K>(&key).create(&params, body);
        match self.send::<K, K>("create", &key, request).await {
            Ok(created) => Ok(Created::Created(Box::new(created))),
            Err(error) if error.status().is_some_and(Status::is_already_exists) => {
                Ok(Created::AlreadyExists)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces an object by what was read of it and changed since. Its UID and resource version
    /// keep the write from reaching another object and from undoing another's write.
    ///
    /// For objects that must be created and never taken over: what creation has set, an apply
    /// could not remove again, because server-side apply counts it as another writer's.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success, not found and conflict.
    pub async fn replace<K: Writable>(&self, object: &K) -> Result<Precondition<K>, WriteError> {
        let key = ObjectKey::of(object);
        let params = PostParams { field_manager: Some(self.manager.clone()), dry_run: false };
        let body = value(object).to_string().into_bytes();
        let request = resource::<K>(&key).replace(&key.name, &params, body);
        met(self.send::<K, K>("replace", &key, request).await)
    }

    /// Deletes exactly the target; what it owns goes with it, in the background.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success, not found and conflict.
    pub async fn delete<K: Writable>(&self, target: &Target) -> Result<Deleted<K>, WriteError> {
        let preconditions = Preconditions {
            uid: Some(target.uid.clone()),
            resource_version: target.resource_version.clone(),
        };
        let params = DeleteParams::background().preconditions(preconditions);
        let request = resource::<K>(&target.key).delete(&target.key.name, &params);
        // The answer is the object while it terminates, else a Status; both have `kind`.
        let sent = self.send::<K, Value>("delete", &target.key, request).await;
        let answer = match met(sent)? {
            Precondition::Met(answer) => answer,
            Precondition::Gone => return Ok(Deleted::Gone),
            Precondition::Conflict => return Ok(Deleted::Conflict),
        };
        if answer["kind"] == "Status" {
            return Ok(Deleted::Deleted);
        }
        let object = serde_json::from_value::<K>(*answer);
        let object = object.map_err(|source| WriteError {
            verb: "delete",
            kind: K::kind(&()).into_owned(),
            key: target.key.clone(),
            source: kube::Error::SerdeError(source).into(),
        })?;
        // An object without finalizers and grace comes back whole although it is gone.
        let meta = object.meta();
        let waits = meta.finalizers.as_ref().is_some_and(|list| !list.is_empty())
            || meta.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0);
        Ok(if waits { Deleted::Terminating(Box::new(object)) } else { Deleted::Deleted })
    }

    /// Sets the number of replicas through the scale subresource.
    ///
    /// # Errors
    ///
    /// [`WriteError`] for every answer but success, not found and conflict.
    pub async fn scale<K: Writable>(
        &self,
        target: &Target,
        replicas: i32,
    ) -> Result<Precondition<()>, WriteError> {
        let mut body = json!({
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": metadata(target),
            "spec": { "replicas": replicas },
        });
        body["metadata"]["name"] = Value::String(target.key.name.clone());
        let (params, patch) = (self.apply_params(), Patch::Apply(&body));
        let name = &target.key.name;
        let request = resource::<K>(&target.key).patch_subresource("scale", name, &params, &patch);
        let sent = self.send::<K, Ignored>("scale", &target.key, request).await;
        met(sent.map(|Ignored {}| ()))
    }

    /// Reads an object from the API server itself, for decisions that a cache must not make.
    pub async fn get<K: Writable>(&self, key: &ObjectKey) -> Observed<K> {
        let request = resource::<K>(key).get(&key.name, &GetParams::default());
        match self.request::<K, K>("get", key, request).await {
            Ok(found) => Observed::Present(found),
            Err(error) if error.status().is_some_and(Status::is_not_found) => Observed::Absent,
            Err(error) => Observed::Unknown(ErrorChain(&error).to_string()),
        }
    }

    async fn apply_body<K: Writable>(&self, desired: &Value) -> Result<K, WriteError> {
        let text = |field: &str| desired["metadata"][field].as_str().unwrap_or_default();
        let key = ObjectKey::new(text("namespace"), text("name"));
        let (params, patch) = (self.apply_params(), Patch::Apply(desired));
        let request = resource::<K>(&key).patch(&key.name, &params, &patch);
        self.send::<K, K>("apply", &key, request).await
    }

    fn apply_params(&self) -> PatchParams {
        PatchParams::apply(&self.manager).force()
    }

    async fn send<K: Writable, R: DeserializeOwned>(
        &self,
        verb: &'static str,
        key: &ObjectKey,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<R, WriteError> {
        let label = WriteLabel { controller: self.controller, verb };
        self.metrics.writes.get_or_create(&label).inc();
        tracing::debug!(verb, kind = %K::kind(&()), %key, "Writing");
        self.request::<K, R>(verb, key, request).await
    }

    async fn request<K: Writable, R: DeserializeOwned>(
        &self,
        verb: &'static str,
        key: &ObjectKey,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<R, WriteError> {
        let answered = match request {
            Ok(request) => self.client.request::<R>(request).await,
            Err(error) => Err(kube::Error::BuildRequest(error)),
        };
        answered.map_err(|source| WriteError {
            verb,
            kind: K::kind(&()).into_owned(),
            key: key.clone(),
            source: source.into(),
        })
    }
}

/// An answer of which nothing is needed.
#[derive(Deserialize)]
struct Ignored {}

fn resource<K: Writable>(key: &ObjectKey) -> Request {
    Request::new(K::url_path(&(), key.scope()))
}

/// The object as it is sent: with its kind, without what only the API server writes.
fn body<K: Writable>(object: &K) -> Value {
    let mut body = value(object);
    body["apiVersion"] = Value::String(K::api_version(&()).into_owned());
    body["kind"] = Value::String(K::kind(&()).into_owned());
    for field in ["managedFields", "creationTimestamp", "generation"] {
        if let Some(metadata) = body["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    if let Some(fields) = body.as_object_mut() {
        fields.remove("status");
    }
    body
}

/// Some fields of the target, with what identifies it.
fn partial<K: Writable>(target: &Target, fields: &impl Serialize) -> Value {
    let mut body = value(fields);
    body["apiVersion"] = Value::String(K::api_version(&()).into_owned());
    body["kind"] = Value::String(K::kind(&()).into_owned());
    let identity = metadata(target);
    match body["metadata"].as_object_mut() {
        Some(given) => given.extend(identity.as_object().cloned().unwrap_or_default()),
        None => body["metadata"] = identity,
    }
    body
}

/// The UID makes the API server refuse to create the object or to touch another of that name.
fn metadata(target: &Target) -> Value {
    let mut metadata = json!({ "name": target.key.name, "uid": target.uid });
    if let Some(namespace) = target.key.scope() {
        metadata["namespace"] = Value::String(namespace.to_owned());
    }
    if let Some(version) = &target.resource_version {
        metadata["resourceVersion"] = Value::String(version.clone());
    }
    metadata
}

/// Takes out what a plan may add once the object exists: it is no part of what is wished.
fn take_preconditions(desired: &mut Value) -> Vec<(&'static str, Value)> {
    let Some(metadata) = desired["metadata"].as_object_mut() else { return Vec::new() };
    let fields = ["uid", "resourceVersion"];
    fields.into_iter().filter_map(|field| Some((field, metadata.remove(field)?))).collect()
}

fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("our types have string keys and no failing serializer")
}

fn met<R>(sent: Result<R, WriteError>) -> Result<Precondition<R>, WriteError> {
    match sent {
        Ok(answer) => Ok(Precondition::Met(Box::new(answer))),
        Err(error) => match error.category() {
            "api_not_found" => Ok(Precondition::Gone),
            "api_conflict" => Ok(Precondition::Conflict),
            _ => Err(error),
        },
    }
}

/// Nothing can be created in a namespace that is going, or written in one that is gone; what is in
/// it goes with it, and needs nothing any more.
fn is_without_namespace(status: &Status) -> bool {
    let Some(details) = &status.details else { return false };
    let is_going = details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating");
    is_going || (status.code == 404 && details.kind == "namespaces")
}

/// Whoever lost a race for what is left of a ResourceQuota is answered as if its own object had
/// changed; only the details name the quota. Nothing about the object is outdated.
fn is_over_quota_object(status: &Status) -> bool {
    let kind = status.details.as_ref().map(|details| details.kind.as_str());
    status.code == 409 && kind == Some("resourcequotas")
}

/// Applying over an object of another UID is answered as an attempt to change the UID, as invalid.
fn is_of_another_uid(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 422 && causes.into_iter().any(|cause| cause.field == "metadata.uid")
}
