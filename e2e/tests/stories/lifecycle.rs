//! An App from its manifest to an answer, to sleep and back, to another version and back.

use anyhow::{Context, ensure};
use portolan_cluster::wait;
use portolan_e2e::with_platform;
use serde_json::json;

use crate::load::Load;
use crate::support::{Echo, said, text};

#[tokio::test]
async fn an_app_runs_answers_sleeps_and_wakes() -> anyhow::Result<()> {
    with_platform("sleeps", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.apply("1", json!({ "scale": { "scaleDownDelaySeconds": 2 } })).await?;
        echo.route().await?;
        echo.ready().await?;
        let claimed = ["wait", "--for=condition=Ready", "route/echo", wait::KUBECTL_PATIENCE];
        space.kubectl(&claimed).await?;
        ensure!(echo.version().await? == "1");
        echo.until_it_says("Ready", "True Asleep").await?;
        echo.until("no sandbox to be left", async || {
            let pods = echo.list("pods").await?;
            ensure!(pods.is_empty(), "{} sandboxes", pods.len());
            Ok(())
        })
        .await?;
        let woken = echo.get("/whoami").await?;
        ensure!(woken.status() == 200, "woken: {}", woken.status());
        let timing = woken.headers().get("server-timing").context("a woken request says why")?;
        let timing = timing.to_str()?;
        for stage in ["queue", "create", "schedule", "start", "connect"] {
            ensure!(timing.contains(stage), "{stage} is missing from {timing}");
        }
        // Each gateway finds out for itself that the sandbox answers; from then on nobody waits.
        echo.until("a request that waits for nothing", async || {
            let warm = echo.get("/whoami").await?;
            let timing = warm.headers().get("server-timing");
            ensure!(timing.is_none(), "a warm request was woken: {timing:?}");
            Ok(())
        })
        .await?;
        // That it woke is told a moment later, if it is awake then.
        echo.until("it to say that it is awake", async || {
            echo.get("/whoami").await?;
            let app = echo.object("app", "echo").await?;
            ensure!(said(&app, "Ready") == "True Available", "{}", said(&app, "Ready"));
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn applying_an_old_manifest_again_is_the_rollback() -> anyhow::Result<()> {
    with_platform("rollback", async |space| {
        let echo = Echo { space, name: "echo" };
        // On a machine that stands still for seconds, even a light load asks for a second one.
        let alone = json!({ "scale": { "max": 1 } });
        echo.route().await?;
        echo.apply("1", alone.clone()).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        let load = Load::start(&echo);
        let first = echo.object("app", "echo").await?["status"]["activeVersion"].clone();
        echo.apply("2", alone.clone()).await?;
        echo.ready().await?;
        ensure!(echo.version().await? == "2", "a ready App answers with what was applied");
        echo.apply("1", alone.clone()).await?;
        echo.ready().await?;
        ensure!(echo.version().await? == "1");
        let app = echo.object("app", "echo").await?;
        ensure!(app["status"]["activeVersion"] == first, "the same manifest, the same version");
        ensure!(app["status"]["activation"]["epoch"] == 3, "{}", app["status"]["activation"]);
        ensure!(echo.list("appversions").await?.len() == 2);
        // The sandboxes of the version before go; those that serve stay.
        echo.until("one sandbox to be left", async || {
            let pods = echo.list("pods").await?;
            ensure!(pods.len() == 1, "{} sandboxes", pods.len());
            Ok(())
        })
        .await?;
        let tally = load.all_were_answered().await?;
        ensure!(tally.answers.len() == 2, "both versions served: {tally:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn applying_the_same_manifest_again_changes_nothing() -> anyhow::Result<()> {
    with_platform("again", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        let before = echo.sandboxes().await?;
        echo.apply("1", json!({ "scale": {} })).await?;
        echo.ready().await?;
        ensure!(echo.sandboxes().await? == before);
        ensure!(echo.list("appversions").await?.len() == 1);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pinned_app_stays_where_it_is_and_says_so() -> anyhow::Result<()> {
    with_platform("pinned", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        let first = text(&echo.object("app", "echo").await?["status"]["activeVersion"]);
        let pin = json!({ "spec": { "version": first } }).to_string();
        space.kubectl(&["patch", "app", "echo", "--type=merge", "-p", &pin]).await?;
        echo.until_it_says("Progressing", "True Pinned").await?;
        let change = r#"{"spec":{"env":[{"name":"VERSION","value":"2"}]}}"#;
        space.kubectl(&["patch", "app", "echo", "--type=merge", "-p", change]).await?;
        echo.ready().await?;
        ensure!(echo.version().await? == "1");
        ensure!(echo.list("appversions").await?.len() == 1, "nothing is made while pinned");
        let unpin = r#"[{"op":"remove","path":"/spec/version"}]"#;
        space.kubectl(&["patch", "app", "echo", "--type=json", "-p", unpin]).await?;
        echo.ready().await?;
        ensure!(echo.version().await? == "2");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_restart_is_a_rollout_of_the_same_configuration() -> anyhow::Result<()> {
    with_platform("restart", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({ "scale": { "mode": "Fixed", "instances": 2 } })).await?;
        echo.ready().await?;
        let before = echo.sandboxes().await?;
        let now = r#"{"spec":{"restartedAt":"2026-01-02T03:04:05Z"}}"#;
        space.kubectl(&["patch", "app", "echo", "--type=merge", "-p", now]).await?;
        echo.ready().await?;
        ensure!(echo.version().await? == "1");
        echo.until("two other sandboxes", async || {
            let after = echo.sandboxes().await?;
            ensure!(
                after.len() == 2 && after.iter().all(|name| !before.contains(name)),
                "{after:?}"
            );
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn three_rollouts_at_once_end_with_the_last() -> anyhow::Result<()> {
    with_platform("rapid", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        for version in ["1", "2", "3"] {
            echo.apply(version, json!({})).await?;
        }
        echo.ready().await?;
        ensure!(echo.version().await? == "3");
        echo.until("only the sandboxes of the last version", async || {
            let pods = echo.list("pods").await?;
            ensure!(pods.len() == 1, "{} sandboxes", pods.len());
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn a_killed_sandbox_is_replaced_at_once() -> anyhow::Result<()> {
    with_platform("killed", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({ "scale": { "mode": "Fixed", "instances": 1 } })).await?;
        echo.ready().await?;
        let [name] = &echo.sandboxes().await?[..] else { anyhow::bail!("one sandbox runs") };
        space.kubectl(&["delete", "pod", name, "--wait=false"]).await?;
        echo.until("another sandbox", async || {
            let names = echo.sandboxes().await?;
            ensure!(names.len() == 1 && names[0] != *name, "{names:?}");
            Ok(())
        })
        .await?;
        ensure!(echo.version().await? == "1");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn history_keeps_its_limit() -> anyhow::Result<()> {
    with_platform("history", async |space| {
        let echo = Echo { space, name: "echo" };
        for version in ["1", "2", "3", "4"] {
            echo.apply(version, json!({})).await?;
            echo.ready().await?;
        }
        ensure!(echo.list("appversions").await?.len() == 4);
        let limit = r#"{"spec":{"revisionHistoryLimit":1}}"#;
        space.kubectl(&["patch", "app", "echo", "--type=merge", "-p", limit]).await?;
        echo.until("two versions and two pools to be left", async || {
            let versions = echo.list("appversions").await?.len();
            let pools = echo.list("sandboxpools").await?.len();
            ensure!((versions, pools) == (2, 2), "{versions} versions, {pools} pools");
            Ok(())
        })
        .await?;
        ensure!(said(&echo.object("app", "echo").await?, "Ready") == "True Available");
        Ok(())
    })
    .await
}
