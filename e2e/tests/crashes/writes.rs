//! What an App costs the API server, Events and all, from its apply to its rest.

use std::time::Duration;

use anyhow::ensure;
use kube::Api;
use portolan_api::Route;
use portolan_cluster::wait;
use portolan_reconcile::metrics::PassLabel;
use portolan_reconcile::testing::{self, Recorder};
use serde_json::json;

use crate::stage::{Place, start};

/// Images are there and nothing else happens.
const PATIENCE: Duration = Duration::from_secs(60);
/// Writes of all controllers for an App of one service with a Route, until both are ready and
/// nothing remains to be done.
const WRITES_MAX: usize = 20;

#[tokio::test]
async fn an_app_with_a_route_costs_few_writes_and_nothing_at_rest() -> anyhow::Result<()> {
    let place = Place::make().await?;
    let told = story(&place).await;
    place.remove().await?;
    told
}

async fn story(place: &Place) -> anyhow::Result<()> {
    let recorder = Recorder::default();
    let life = start(&testing::context(recorder.client(place.client.clone())));
    let service = json!({ "name": "web", "port": 8080 });
    place.apply(&json!([service])).await?;
    place.route().await?;
    wait::until("the App and its Route to settle", PATIENCE, async || {
        place.is_settled(1).await?;
        is_ready(place.api::<Route>()).await
    })
    .await?;
    drop(life);
    let writes = recorder.writes();
    let list: Vec<_> = writes.iter().map(ToString::to_string).collect();
    println!("{} writes:\n{}", list.len(), list.join("\n"));
    ensure!(list.len() <= WRITES_MAX, "{} writes:\n{}", list.len(), list.join("\n"));
    rests(place).await
}

/// Every object is looked at anew by controllers that know nothing of the past.
async fn rests(place: &Place) -> anyhow::Result<()> {
    let recorder = Recorder::default();
    let ctx = testing::context(recorder.client(place.client.clone()));
    let _life = start(&ctx);
    wait::until("every controller to have had its pass", PATIENCE, async || {
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
