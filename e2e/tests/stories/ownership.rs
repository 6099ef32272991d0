//! Who owns what: foreign hands on our children, deletion, and Apps that come again.

use anyhow::ensure;
use portolan_e2e::with_platform;
use serde_json::json;

use crate::support::{Echo, text};

#[tokio::test]
async fn what_others_change_on_our_children_is_put_right() -> anyhow::Result<()> {
    with_platform("foreign", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.apply("1", json!({ "scale": { "mode": "Fixed", "instances": 1 } })).await?;
        echo.ready().await?;
        let pool = text(&echo.list("sandboxpools").await?[0]["metadata"]["name"]);
        let edits = [
            ("sandboxpool", pool.as_str(), r#"{"spec":{"role":"Retired"}}"#, "/spec/role"),
            ("sandboxpool", &pool, r#"{"spec":{"replicas":3}}"#, "/spec/replicas"),
            ("sandboxpool", &pool, r#"{"spec":{"scale":{"max":7}}}"#, "/spec/scale/max"),
            (
                "sandboxpool",
                &pool,
                r#"{"metadata":{"labels":{"portolan.dev/app":"x"}}}"#,
                "/metadata/labels/portolan.dev~1app",
            ),
            ("networkpolicy", "portolan-echo", r#"{"spec":{"ingress":[{}]}}"#, "/spec/ingress"),
        ];
        for (kind, name, edit, field) in edits {
            let before = echo.object(kind, name).await?.pointer(field).cloned();
            let patch = ["patch", kind, name, "--type=merge", "-p", edit];
            space.kubectl(&[&patch[..], &["--field-manager=somebody"]].concat()).await?;
            echo.until(&format!("{field} of {kind} to be put right"), async || {
                let now = echo.object(kind, name).await?.pointer(field).cloned();
                ensure!(now == before, "{now:?} instead of {before:?}");
                Ok(())
            })
            .await?;
        }
        echo.until("one sandbox to be left", async || {
            let names = echo.sandboxes().await?;
            ensure!(names.len() == 1, "{names:?}");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn an_app_deleted_during_a_rollout_takes_everything_along_and_nothing_else()
-> anyhow::Result<()> {
    with_platform("deleted", async |space| {
        let echo = Echo { space, name: "echo" };
        let other = Echo { space, name: "other" };
        other.apply("1", json!({})).await?;
        echo.route().await?;
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        other.ready().await?;
        let others = other.sandboxes().await?.into_iter().filter(|name| name.starts_with("other"));
        let others: Vec<_> = others.collect();
        // A version that never becomes ready: the rollout is under way for as long as we like.
        echo.apply("2", json!({ "args": ["--no-such-option"] })).await?;
        echo.until("the rollout to be under way", async || {
            let versions = echo.list("appversions").await?.len();
            ensure!(versions == 3, "{versions} versions");
            Ok(())
        })
        .await?;
        space.kubectl(&["delete", "app", "echo"]).await?;
        for kind in ["appversions", "sandboxpools", "pods", "networkpolicies"] {
            echo.until(&format!("the {kind} of the App to be gone"), async || {
                let left: Vec<_> = echo
                    .list(kind)
                    .await?
                    .iter()
                    .map(|object| text(&object["metadata"]["name"]))
                    .filter(|name| !name.contains("other"))
                    .collect();
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
            .await?;
        }
        ensure!(other.sandboxes().await? == others, "its neighbour was not touched");
        ensure!(echo.list("routes").await?.len() == 1, "the Route is the user's");
        let answer = echo.get("/").await?;
        ensure!(answer.status() == 503 || answer.status() == 404, "{}", answer.status());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_app_made_again_under_its_name_starts_anew() -> anyhow::Result<()> {
    with_platform("anew", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        let before = echo.object("app", "echo").await?;
        ensure!(echo.version().await? == "1");
        space.kubectl(&["delete", "app", "echo", "--wait=false"]).await?;
        echo.apply("1", json!({})).await?;
        echo.until("the App to be made again", async || {
            let uid = echo.object("app", "echo").await?["metadata"]["uid"].clone();
            ensure!(uid != before["metadata"]["uid"], "it is still the old one");
            Ok(())
        })
        .await?;
        echo.ready().await?;
        ensure!(echo.version().await? == "1");
        let versions = echo.list("appversions").await?;
        let app = echo.object("app", "echo").await?;
        ensure!(versions.len() == 1);
        ensure!(versions[0]["metadata"]["ownerReferences"][0]["uid"] == app["metadata"]["uid"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pool_that_two_versions_share_outlives_one_of_them() -> anyhow::Result<()> {
    with_platform("shared", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        let before = echo.sandboxes().await?;
        echo.apply("1", json!({ "scale": { "max": 5 } })).await?;
        echo.ready().await?;
        let pools = echo.list("sandboxpools").await?;
        ensure!(pools.len() == 1, "the template is the same, so the pool is");
        ensure!(pools[0]["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.len() == 2));
        let limit = r#"{"spec":{"revisionHistoryLimit":0}}"#;
        space.kubectl(&["patch", "app", "echo", "--type=merge", "-p", limit]).await?;
        echo.until("one version and one owner to be left", async || {
            let versions = echo.list("appversions").await?;
            let pools = echo.list("sandboxpools").await?;
            let owners = pools[0]["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len);
            ensure!(
                (versions.len(), owners) == (1, 1),
                "{} versions, {owners} owners",
                versions.len()
            );
            Ok(())
        })
        .await?;
        ensure!(echo.sandboxes().await? == before, "no sandbox was restarted");
        ensure!(echo.version().await? == "1");
        Ok(())
    })
    .await
}
