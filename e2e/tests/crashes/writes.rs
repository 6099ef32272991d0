//! What an App costs the API server, Events and all, from its apply to its rest.

use std::fmt::Debug;

use anyhow::{Context, ensure};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Resource};
use portolan_api::{App, AppVersion, Claim, Route, SandboxPool};
use portolan_cluster::wait;
use portolan_reconcile::metrics::PassLabel;
use portolan_reconcile::testing::{self, Recorder, Write};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::stage::{Place, start};

/// Writes of all controllers for an App of one service with a Route, up to the one that says that
/// the App is ready.
const READY_MAX: usize = 9;
/// The same until nothing remains to be done: the pool has its role and the version its word.
const REST_MAX: usize = 12;
/// Times that a slow node may be met.
const TRIES: usize = 3;

#[tokio::test]
async fn an_app_with_a_route_costs_few_writes_and_nothing_at_rest() -> anyhow::Result<()> {
    for _ in 0..TRIES {
        let place = Place::make().await?;
        let told = story(&place).await;
        place.remove().await?;
        let writes = told?;
        if writes.iter().any(is_word_of_a_start) {
            println!("The sandbox was slow, and the controllers said so");
            continue;
        }
        let list = writes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let ready = writes.iter().position(|write| says(write, "apps/status", "True"));
        let ready = ready.context("nothing said that the App is ready")? + 1;
        ensure!(ready <= READY_MAX, "{ready} writes until it is ready:\n{list}");
        ensure!(writes.len() <= REST_MAX, "{} writes:\n{list}", writes.len());
        return Ok(());
    }
    anyhow::bail!("no sandbox was ready in time")
}

fn is_word_of_a_start(write: &Write) -> bool {
    says(write, "sandboxpools/status", "Unknown")
}

/// Whether this is a status of such an object with this verdict on `Ready`.
fn says(write: &Write, resource: &str, verdict: &str) -> bool {
    let conditions = write.body["status"]["conditions"].as_array();
    write.resource == resource
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == verdict)
}

/// What is written for an App with a Route until it rests; then nothing more may be.
async fn story(place: &Place) -> anyhow::Result<Vec<Write>> {
    // Controllers see all namespaces, and would write for what is left in another one.
    none_left::<Route>(place).await?;
    none_left::<App>(place).await?;
    none_left::<AppVersion>(place).await?;
    none_left::<SandboxPool>(place).await?;
    // What the controllers of the story before had no time to release.
    let claims = Api::<Claim>::all(place.client.clone());
    claims.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    let recorder = Recorder::default();
    let life = start(&testing::context(recorder.client(place.client.clone())));
    let service = json!({ "name": "web", "port": 8080 });
    place.apply(&json!([service])).await?;
    place.route().await?;
    wait::until("the App and its Route to settle", wait::PATIENCE, async || {
        place.is_settled(1).await?;
        is_ready(place.api::<Route>()).await
    })
    .await?;
    drop(life);
    rests(place).await?;
    Ok(recorder.writes())
}

/// Waits until there are no objects of a kind in any namespace.
async fn none_left<K>(place: &Place) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    wait::until("what was here before to go", wait::PATIENCE, async || {
        let all = Api::<K>::all(place.client.clone()).list_metadata(&ListParams::default()).await?;
        ensure!(all.items.is_empty(), "{} {} are left", all.items.len(), K::plural(&()));
        anyhow::Ok(())
    })
    .await
}

/// Every object is looked at anew by controllers that know nothing of the past.
async fn rests(place: &Place) -> anyhow::Result<()> {
    let recorder = Recorder::default();
    let ctx = testing::context(recorder.client(place.client.clone()));
    let _life = start(&ctx);
    wait::until("every controller to have had its pass", wait::PATIENCE, async || {
        for controller in ["app", "version", "pool", "route"] {
            let passes = |result| {
                let label = PassLabel { controller, result };
                ctx.metrics().passes.get_or_create(&label).get()
            };
            let done = passes("settled") + passes("requeued");
            ensure!(done > 0, "{controller} has had none");
        }
        Ok(())
    })
    .await?;
    let writes = recorder.writes();
    ensure!(writes.is_empty(), "{writes:#?}");
    Ok(())
}

async fn is_ready(routes: Api<Route>) -> anyhow::Result<()> {
    let status = routes.get("shop").await?.status.unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    ensure!(ready.is_some_and(|ready| ready.status == "True"), "{ready:?}");
    Ok(())
}
