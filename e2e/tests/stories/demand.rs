//! Sandboxes follow the requests: from none to one, to several, and back; and no sandbox gets more
//! at once than its program was promised.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use http::Response;
use hyper::body::Bytes;
use portolan_cluster::wait;
use portolan_e2e::with_platform;
use serde_json::{Value, json};

use crate::support::{Echo, text};
use crate::visitor::{self, Reply, get, soon};

/// What a request and its answer may take beside the wait for a sandbox.
const REQUEST_TIME: Duration = Duration::from_millis(500);

/// Runs a test on an App with this scale that has been put to sleep.
async fn with_sleeping(
    name: &str,
    service: Value,
    test: impl AsyncFnOnce(&Echo<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_platform(name, async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", service).await?;
        echo.ready().await?;
        let claimed = ["wait", "--for=condition=Ready", "route/echo", wait::KUBECTL_PATIENCE];
        space.kubectl(&claimed).await?;
        until_asleep(&echo).await?;
        test(&echo).await
    })
    .await
}

async fn until_asleep(echo: &Echo<'_>) -> anyhow::Result<()> {
    echo.until_it_says("Ready", "True Asleep").await?;
    echo.until("no sandbox to be left", async || {
        let pods = echo.list("pods").await?.len();
        ensure!(pods == 0, "{pods} sandboxes");
        Ok(())
    })
    .await
}

/// That many visitors at once, all of whom the program must answer.
async fn visit(echo: &Echo<'_>, count: usize, path: &str) -> anyhow::Result<Vec<Response<Bytes>>> {
    let answers = try_join_all((0..count).map(|_| echo.get(path))).await?;
    for answer in &answers {
        let code = answer.headers().get("x-portolan-error");
        ensure!(answer.status() == 200, "{}, {code:?}", answer.status());
    }
    Ok(answers)
}

/// The sandboxes that answered.
fn answered(answers: &[Response<Bytes>]) -> anyhow::Result<BTreeSet<String>> {
    let names = answers.iter().map(|answer| {
        let name = answer.headers().get("x-sandbox").context("the program names its sandbox")?;
        Ok(name.to_str()?.to_owned())
    });
    names.collect()
}

/// The most requests that each sandbox served at once, as its program counted.
async fn most_at_once(echo: &Echo<'_>) -> anyhow::Result<Vec<u64>> {
    let namespace = echo.space.namespace();
    let mut most = Vec::new();
    for name in echo.sandboxes().await? {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:8080/proxy/concurrency");
        let counts = echo.space.kubectl(&["get", "--raw", &path]).await?;
        let counts: Value = serde_json::from_str(&counts).context("read what was counted")?;
        most.push(counts["max"].as_u64().context("a count")?);
    }
    Ok(most)
}

#[tokio::test]
async fn fifty_visitors_at_once_wake_an_app_and_are_all_answered() -> anyhow::Result<()> {
    let scale = json!({ "requestsPerInstance": 25, "max": 3, "scaleDownDelaySeconds": 2 });
    with_sleeping("fifty", json!({ "scale": scale }), async |echo| {
        let answers = visit(echo, 50, "/slow?ms=100").await?;
        let sandboxes = answered(&answers)?;
        ensure!((1..=3).contains(&sandboxes.len()), "{sandboxes:?}");
        until_asleep(echo).await
    })
    .await
}

#[tokio::test]
async fn sandboxes_are_added_as_requests_need_them_and_go_when_they_do_not() -> anyhow::Result<()> {
    let scale = json!({ "requestsPerInstance": 1, "max": 3, "scaleDownDelaySeconds": 3 });
    with_sleeping("outward", json!({ "scale": scale }), async |echo| {
        // As long as the third sandbox may need to start beside the two others.
        let answers = visit(echo, 6, "/slow?ms=3000").await?;
        let sandboxes = answered(&answers)?;
        ensure!(sandboxes.len() == 3, "{sandboxes:?}");
        until_asleep(echo).await
    })
    .await
}

#[tokio::test]
async fn a_strict_program_never_serves_more_at_once_than_it_was_promised() -> anyhow::Result<()> {
    let scale = json!({
        "requestsPerInstance": 1, "max": 3, "scaleDownDelaySeconds": 30, "concurrency": "Strict",
    });
    with_platform("strict", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({ "scale": scale })).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        visit(&echo, 5, "/slow?ms=500").await?;
        visit(&echo, 5, "/slow?ms=500").await?;
        let most = most_at_once(&echo).await?;
        ensure!(!most.is_empty() && most.iter().all(|count| *count == 1), "{most:?}");
        Ok(())
    })
    .await
}

/// The slot is granted to one of two gateways; the visitors of the other get it lent.
#[tokio::test]
async fn a_single_strict_slot_serves_the_visitors_of_every_gateway() -> anyhow::Result<()> {
    let scale = json!({
        "requestsPerInstance": 1, "max": 1, "scaleDownDelaySeconds": 30, "concurrency": "Strict",
    });
    with_platform("one-slot", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({ "scale": scale })).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        for _ in 0..3 {
            visit(&echo, 20, "/slow?ms=20").await?;
        }
        let most = most_at_once(&echo).await?;
        ensure!(most == [1], "one sandbox, one at a time: {most:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_woken_visitor_is_told_where_the_wait_went() -> anyhow::Result<()> {
    let slow = json!([{ "name": "START_DELAY_MS", "value": "1500" }]);
    let service = json!({ "env": slow, "scale": { "scaleDownDelaySeconds": 2 } });
    with_sleeping("timing", service, async |echo| {
        // One connection, so one gateway: another one may learn of the sandbox a moment later.
        let mut sender = visitor::http1(visitor::plain(echo.space).await?).await?;
        let mut ask = async || {
            sender.ready().await.context("the connection is kept")?;
            let answer = sender.send_request(get(&echo.host(), "/whoami"));
            Reply::read(soon("an answer", answer).await??).await
        };
        let asked = Instant::now();
        let woken = ask().await?;
        let took = asked.elapsed();
        ensure!(woken.status == 200, "{woken:?}");
        let timing = woken.header("server-timing");
        let stages = stages(timing)?;
        let names: Vec<_> = stages.iter().map(|(name, _)| name.as_str()).collect();
        ensure!(names == ["queue", "create", "schedule", "start", "connect"], "{timing:?}");
        let sum: Duration = stages.iter().map(|(_, time)| *time).sum();
        ensure!(sum <= took && took - sum < REQUEST_TIME, "{took:?} were told as {timing:?}");
        let (_, start) = &stages[3];
        ensure!(*start > Duration::from_millis(1500), "the program took 1.5 s: {timing:?}");
        let warm = ask().await?;
        ensure!(warm.status == 200 && warm.header("server-timing").is_empty(), "{warm:?}");
        Ok(())
    })
    .await
}

/// `name;dur=milliseconds, …`.
fn stages(timing: &str) -> anyhow::Result<Vec<(String, Duration)>> {
    let stages = timing.split(", ").map(|stage| {
        let (name, time) = stage.split_once(";dur=").context("a stage with its duration")?;
        Ok((name.to_owned(), Duration::from_secs_f64(time.parse::<f64>()? / 1000.0)))
    });
    stages.collect()
}

#[tokio::test]
async fn a_visitor_who_leaves_during_a_cold_start_has_woken_the_app_for_the_next()
-> anyhow::Result<()> {
    let slow = json!([{ "name": "START_DELAY_MS", "value": "500" }]);
    let service = json!({ "env": slow, "scale": { "scaleDownDelaySeconds": 8 } });
    with_sleeping("leaves", service, async |echo| {
        let mut sender = visitor::http1(visitor::plain(echo.space).await?).await?;
        let request = tokio::spawn(sender.send_request(get(&echo.host(), "/slow?ms=1000")));
        echo.until("a sandbox to be made", async || {
            let pods = echo.list("pods").await?.len();
            ensure!(pods == 1, "{pods} sandboxes");
            Ok(())
        })
        .await?;
        request.abort();
        drop(sender);
        echo.until("the boot to be completed", async || {
            let pods = echo.list("pods").await?;
            let conditions = pods.iter().flat_map(|pod| pod["status"]["conditions"].as_array());
            let mut ready = conditions.flatten().filter(|condition| condition["type"] == "Ready");
            let status = ready.next().map(|ready| text(&ready["status"])).unwrap_or_default();
            ensure!(status == "True", "Ready is {status:?}");
            Ok(())
        })
        .await?;
        let booted = echo.sandboxes().await?;
        let asked = Instant::now();
        let warm = visit(echo, 1, "/whoami").await?;
        let took = asked.elapsed();
        ensure!(answered(&warm)?.into_iter().eq(booted), "another sandbox was made");
        ensure!(took < REQUEST_TIME, "the next visitor waited {took:?}");
        Ok(())
    })
    .await
}
