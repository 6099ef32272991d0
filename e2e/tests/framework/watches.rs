//! Watches of the real API server: malformed objects, gaps, our own writes, what is kept.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::ConfigMap};
use kube::{
    Client, Resource, ResourceExt,
    api::{DeleteParams, PostParams},
    client::Body,
    core::{ObjectMeta, PartialObjectMeta},
};
use portolan_cluster::wait::until_seen;
use portolan_reconcile::{Cache, ObjectKey, Target, Watch, Watched, testing};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use crate::support::{Place, in_a_namespace};

/// ConfigMaps as a program might want them: with a number. The API server stores others, too.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Numbered {
    metadata: ObjectMeta,
    data: Number,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Number {
    #[serde(rename = "number")]
    Of(Digit),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Digit {
    #[serde(rename = "1")]
    One,
    #[serde(rename = "2")]
    Two,
}

impl Resource for Numbered {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        ConfigMap::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ConfigMap::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ConfigMap::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ConfigMap::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn start<K: Watched, T: Send + Sync + 'static>(
    client: Client,
    watch: Watch<K, T>,
) -> (Cache<K, T>, JoinHandle<()>) {
    let context = testing::context(client);
    let (cache, task) = watch.start(&context, "demo");
    (cache, tokio::spawn(async move { task.await.expect("the watch runs") }))
}

fn names<K, T>(cache: &Cache<K, T>) -> Vec<String> {
    let names = cache.keys().into_iter().map(|key| key.name);
    names.filter(|name| name != "kube-root-ca.crt").collect()
}

async fn create(place: &Place, name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let object = place.config(name, data);
    place.configs().create(&PostParams::default(), &object).await.expect("created")
}

#[tokio::test]
async fn one_malformed_object_never_stops_the_rest() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        create(&place, "one", &[("number", "1")]).await;
        create(&place, "odd", &[("number", "many")]).await;
        let watch = Watch::<Numbered>::new().in_namespace(&place.namespace);
        let (cache, task) = start(place.client.clone(), watch);
        cache.synced().await;
        assert_eq!(names(&cache), ["one"], "listed beside a malformed one");
        create(&place, "odd-too", &[]).await;
        create(&place, "two", &[("number", "2")]).await;
        let both = ["one".to_owned(), "two".to_owned()];
        until_seen("the next good one is seen", async || names(&cache), |seen| *seen == both).await;
        let odd = cache.observed(&ObjectKey::new(&place.namespace, "odd"));
        assert!(odd.is_unknown(), "{odd:?}");
        // Mended, it is as the others.
        let mended = place.config("odd", &[("number", "1")]);
        place.configs().replace("odd", &PostParams::default(), &mended).await.unwrap();
        let key = ObjectKey::new(&place.namespace, "odd");
        until_seen("it is mended", async || cache.observed(&key), |odd| odd.present().is_some())
            .await;
        task.abort();
    })
    .await
}

#[tokio::test]
async fn creation_change_and_deletion_in_a_gap_are_told() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        for name in ["changed", "deleted", "same"] {
            create(&place, name, &[("a", "1")]).await;
        }
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        // The API server's own one may come at any time.
        let watch = Watch::<ConfigMap>::new()
            .in_namespace(&place.namespace)
            .fields("metadata.name!=kube-root-ca.crt")
            .on_change(move |change| {
                let change = (change.key.name.clone(), change.old.is_some(), change.new.is_some());
                telling.lock().unwrap().push(change);
            });
        let line = Line::default();
        let (cache, task) = start(line.client(place.client.clone()), watch);
        cache.synced().await;
        told.lock().unwrap().clear();
        let listed = cache.unbroken_since().expect("everything was listed");

        line.cut();
        let broken = async || cache.unbroken_since();
        until_seen("the watch is interrupted", broken, Option::is_none).await;
        create(&place, "created", &[]).await;
        let changed = place.config("changed", &[("a", "2")]);
        place.configs().replace("changed", &PostParams::default(), &changed).await.unwrap();
        place.configs().delete("deleted", &DeleteParams::default()).await.unwrap();
        line.mend();
        until_seen(
            "the watch is back",
            async || names(&cache),
            |seen| *seen == ["changed", "created", "same"],
        )
        .await;
        let mut told = told.lock().unwrap().clone();
        told.sort();
        let expected = [
            ("changed".to_owned(), true, true),
            ("created".to_owned(), false, true),
            ("deleted".to_owned(), true, false),
        ];
        assert_eq!(told, expected, "exactly what happened, each once");
        let back = cache.unbroken_since().expect("the watch is back");
        assert!(back > listed, "what was missed came late: {back} is not after {listed}");
        task.abort();
    })
    .await
}

#[tokio::test]
async fn metadata_is_all_that_a_metadata_watch_keeps() -> anyhow::Result<()> {
    in_a_namespace(|place| async move {
        create(&place, "chat", &[("a", "1")]).await;
        let watch = Watch::<PartialObjectMeta<ConfigMap>>::new().in_namespace(&place.namespace);
        let (cache, task) = start(place.client.clone(), watch);
        cache.synced().await;
        let seen = cache.get(&ObjectKey::new(&place.namespace, "chat")).expect("listed");
        assert_eq!(seen.name_any(), "chat");
        let (writer, _) = place.writer();
        writer.delete::<ConfigMap>(&Target::of(&*seen)).await.unwrap();
        until_seen("it is gone", async || names(&cache), Vec::is_empty).await;
        task.abort();
    })
    .await
}

/// The line to the API server's watches. While it is cut, running watches end and new ones fail;
/// once it is mended, the first watch is told that its version is too old.
#[derive(Clone, Default)]
struct Line {
    cut: Arc<Mutex<CancellationToken>>,
    is_stale: Arc<AtomicBool>,
}

impl Line {
    fn cut(&self) {
        self.is_stale.store(true, Ordering::SeqCst);
        self.token().cancel();
    }

    fn mend(&self) {
        *self.cut.lock().expect("no test panics holding it") = CancellationToken::new();
    }

    fn token(&self) -> CancellationToken {
        self.cut.lock().expect("no test panics holding it").clone()
    }

    fn client(&self, client: Client) -> Client {
        let line = self.clone();
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request| {
            let (line, client) = (line.clone(), client.clone());
            async move { line.send(&client, request).await }
        });
        Client::new(service, namespace)
    }

    async fn send(
        &self,
        client: &Client,
        request: Request<Body>,
    ) -> Result<Response<LineBody>, BoxError> {
        let query = request.uri().query().unwrap_or_default();
        if !query.contains("watch=true") {
            return Ok(client.send(request).await?.map(whole));
        }
        let cut = self.token();
        if cut.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            return Err("the line is cut".into());
        }
        let resumes = !query.contains("sendInitialEvents");
        if resumes && self.is_stale.swap(false, Ordering::SeqCst) {
            let status = testing::Answer::failure(410, "Expired", "too old resource version");
            let testing::Answer::Json(code, body) = status else { return Err("no status".into()) };
            let body = Body::from(body.to_string().into_bytes());
            return Ok(Response::builder().status(code).body(whole(body))?);
        }
        let (head, body) = client.send(request).await?.into_parts();
        Ok(Response::from_parts(head, until_cut(body, cut)))
    }
}

type LineBody = UnsyncBoxBody<Bytes, BoxError>;

fn whole(body: Body) -> LineBody {
    body.map_err(BoxError::from).boxed_unsync()
}

/// The body, ending when the line is cut.
fn until_cut(body: Body, cut: CancellationToken) -> LineBody {
    let frames = whole(body).into_data_stream().map(|data| data.map(Frame::data));
    StreamBody::new(frames.take_until(cut.cancelled_owned())).boxed_unsync()
}
