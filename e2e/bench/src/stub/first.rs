//! What an applied App costs the API server until it is Ready, and until nothing more follows.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use k8s_openapi::api::networking::v1::{IPAddress, NetworkPolicy};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use portolan_api::{App, AppVersion, Claim, GatewayReport, Route, SandboxPool};
use portolan_cluster::wait;
use tokio::time::timeout;

use super::counts::Writes;
use super::{LIMIT, NAMESPACE, app, route};

/// How many Apps, each with a Route, one after the other.
const APPS: u32 = 10;
/// They stay awake: neither what going to sleep costs belongs to it, nor the fake kubelet's part
/// in that.
const STAYS_AWAKE: u32 = 86_400;
/// Once nothing was written for so long, all that follows from the apply has been: word that may
/// wait waits for less.
const QUIET: Duration = Duration::from_secs(5);
/// How long writes may go on after an App is Ready.
const QUIET_LIMIT: Duration = Duration::from_secs(60);

/// What was written for these Apps, without what their user wrote and what the kubelet and the
/// scheduler did.
#[derive(Debug)]
pub(super) struct First {
    /// Until nothing more came.
    all: Writes,
    /// Of those, after the App was Ready.
    late: u32,
}

impl First {
    /// Writes from the apply of an App with a Route until it is Ready.
    pub(super) fn until_ready(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
        let all = self.all.total() as f64;
        (all - f64::from(self.late)) / f64::from(APPS)
    }

    /// What they were, and how they were counted.
    pub(super) fn note(&self) -> String {
        format!(
            "Writes from apply to Ready: {APPS} Apps with a Route that stay awake, one after the \
             other; all but the user's two, until none came for {} s ({}), less the {:.2} after \
             the App was Ready.",
            QUIET.as_secs(),
            self.all.text(f64::from(APPS)),
            f64::from(self.late) / f64::from(APPS)
        )
    }
}

/// Applies Apps with Routes, counts what is written, and takes them away again.
pub(super) async fn writes_until_ready(client: &Client) -> anyhow::Result<First> {
    let apps: Api<App> = Api::namespaced(client.clone(), NAMESPACE);
    let routes: Api<Route> = Api::namespaced(client.clone(), NAMESPACE);
    let before = Writes::settled(client, QUIET, QUIET_LIMIT).await?;
    let mut late = 0;
    for number in 0..APPS {
        let name = name(number);
        apps.create(&PostParams::default(), &app(&name, STAYS_AWAKE)?).await?;
        routes.create(&PostParams::default(), &route(&name, &name)?).await?;
        let ready = timeout(LIMIT, ready_version(&apps, &name)).await;
        let ready = ready.with_context(|| format!("App {name} was not Ready in time"))??;
        Writes::settled(client, QUIET, QUIET_LIMIT).await?;
        late += written_after(client, &ready).await?;
    }
    let all = Writes::read(client).await?.since(&before);
    take_away(client, &apps, &routes).await?;
    let count = u64::from(APPS);
    // The scheduler says of each Pod where it put it.
    let events = all.get("events").min(count);
    Ok(First { all: all.less("apps", count).less("routes", count).less("events", events), late })
}

/// The version of the write that first says that the App is Ready.
async fn ready_version(apps: &Api<App>, name: &str) -> anyhow::Result<String> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = pin!(watcher::watcher(apps.clone(), config).default_backoff());
    while let Some(change) = changes.next().await {
        // What is interrupted is begun again.
        let Ok(watcher::Event::InitApply(app) | watcher::Event::Apply(app)) = change else {
            continue;
        };
        if is_ready(&app) {
            return app.metadata.resource_version.context("an App without a version");
        }
    }
    bail!("the watch of {name} ended")
}

/// How many writes came after this version; those of Pods are left out, as their kubelet writes.
async fn written_after(client: &Client, ready: &str) -> anyhow::Result<u32> {
    let here = [
        ApiResource::erase::<App>(&()),
        ApiResource::erase::<AppVersion>(&()),
        ApiResource::erase::<SandboxPool>(&()),
        ApiResource::erase::<Route>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<Event>(&()),
    ];
    let here = here.map(|kind| Api::namespaced_with(client.clone(), NAMESPACE, &kind));
    let elsewhere = [
        ApiResource::erase::<GatewayReport>(&()),
        ApiResource::erase::<Claim>(&()),
        ApiResource::erase::<IPAddress>(&()),
    ];
    let elsewhere = elsewhere.map(|kind| Api::all_with(client.clone(), &kind));
    let counts = here.into_iter().chain(elsewhere).map(|kind| changes_since(kind, ready));
    Ok(try_join_all(counts).await?.into_iter().sum())
}

/// How many changes the API server remembers since a version: a watch gets them at once.
async fn changes_since(kind: Api<DynamicObject>, version: &str) -> anyhow::Result<u32> {
    const LONGEST: u32 = 2;
    let changes = kind.watch_metadata(&WatchParams::default().timeout(LONGEST), version).await?;
    let mut changes = pin!(changes);
    let mut count = 0;
    while let Some(change) = changes.next().await {
        match change? {
            WatchEvent::Error(status) => bail!("a watch from {version}: {}", status.message),
            WatchEvent::Bookmark(_) => {}
            _ => count += 1,
        }
    }
    Ok(count)
}

async fn take_away(client: &Client, apps: &Api<App>, routes: &Api<Route>) -> anyhow::Result<()> {
    for number in 0..APPS {
        let name = name(number);
        apps.delete(&name, &DeleteParams::background()).await.context("delete an App")?;
        routes.delete(&name, &DeleteParams::default()).await.context("delete a Route")?;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    wait::until("what belonged to them to be gone", LIMIT * 3, async || {
        let left = pods.list_metadata(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} Pods are left");
        Ok(())
    })
    .await
}

fn name(number: u32) -> String {
    format!("first-{number:03}")
}

fn is_ready(app: &App) -> bool {
    let Some(status) = &app.status else { return false };
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    ready.is_some_and(|ready| {
        ready.status == "True" && ready.observed_generation == app.metadata.generation
    })
}
