//! A namespace for each test, a writer, and waiting for a state.

use std::{future::Future, sync::LazyLock};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    core::ObjectMeta,
};
use portolan_cluster::cluster::Cluster;
use portolan_reconcile::{Context, Controller, Settings, Writer, testing};

/// A test's own namespace and client.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

/// Runs a test in a namespace of its own, which is deleted whatever comes of the test.
pub(crate) async fn in_a_namespace<F>(test: impl FnOnce(Place) -> F) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    static STARTED: LazyLock<tokio::sync::Mutex<()>> = LazyLock::new(Default::default);
    let client = {
        let _one_at_a_time = STARTED.lock().await;
        Cluster::ensure("test", 1).await?.client().await?
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let metadata =
        ObjectMeta { generate_name: Some("framework-".to_owned()), ..ObjectMeta::default() };
    let namespace = Namespace { metadata, ..Namespace::default() };
    let namespace = namespaces.create(&PostParams::default(), &namespace).await?;
    let name = namespace.metadata.name.unwrap_or_default();
    let ended = tokio::spawn(test(Place { client, namespace: name.clone() })).await;
    // A test may have deleted it.
    match namespaces.delete(&name, &DeleteParams::background()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
        deleted => drop(deleted?),
    }
    match ended.map_err(|error| error.try_into_panic()) {
        Ok(()) => Ok(()),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(error)) => Err(error.into()),
    }
}

impl Place {
    /// The writer of a controller `demo`, and the context that counts its writes.
    pub(crate) fn writer(&self) -> (Writer, Context) {
        let context = testing::context_with(self.client.clone(), Settings::standard("e2e"));
        (Controller::new(&context, "demo").writer(), context)
    }

    pub(crate) fn configs(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn config(&self, name: &str, data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        ConfigMap { metadata: self.named(name), data: Some(data), ..ConfigMap::default() }
    }

    pub(crate) fn named(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            ..ObjectMeta::default()
        }
    }
}
