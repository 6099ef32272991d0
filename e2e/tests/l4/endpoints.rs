//! The endpoints of an AppService.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use portolan_api::conditions::reason;
use portolan_cluster::wait::until_seen;
use serde_json::json;
use tokio::time::sleep;

use crate::stage::{Stage, alone, with_controller};

const PORTS: [(&str, i32, &str, Option<i32>); 1] = [("irc", 6667, "tcp", None)];

#[tokio::test]
async fn the_slices_hold_the_sandboxes_of_the_pool_and_no_others() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let first = stage.pool("irc-1", "irc", false).await;
        let second = stage.pool("irc-2", "irc", false).await;
        let sibling = stage.pool("web-1", "web", false).await;
        stage.sandbox(&first, "irc-1", "irc-1-0-1", "10.1.0.1").await;
        stage.sandbox(&first, "irc-1", "irc-1-1-1", "10.1.0.2").await;
        stage.sandbox(&second, "irc-2", "irc-2-0-1", "10.1.0.3").await;
        // Labels can be anything; ownership cannot.
        stage.sandbox(&sibling, "irc-1", "impostor", "10.1.0.4").await;
        stage.apply(&stage.ours, "irc", Some("irc-1"), &PORTS).await;
        stage.until_endpoints("irc", &["10.1.0.1 yyn", "10.1.0.2 yyn"]).await;
        let message = stage.until_says(&stage.ours, "irc", reason::AVAILABLE).await;
        assert!(message.starts_with("2 sandboxes behind "), "{message}");

        stage.apply(&stage.ours, "irc", Some("irc-2"), &PORTS).await;
        // Those of before take nothing new, and are listed until they are gone.
        let former = ["10.1.0.1 nny", "10.1.0.2 nny"];
        stage.until_endpoints("irc", &[former[0], former[1], "10.1.0.3 yyn"]).await;
        stage.sandbox(&second, "irc-2", "irc-2-1-1", "10.1.0.5").await;
        let now = ["10.1.0.3 yyn", "10.1.0.5 yyn"];
        stage.until_endpoints("irc", &[former[0], former[1], now[0], now[1]]).await;
        stage.remove("irc-1-0-1").await;
        stage.until_endpoints("irc", &[former[1], now[0], now[1]]).await;
        stage.remove("irc-1-1-1").await;
        stage.until_endpoints("irc", &now).await;
    })
    .await
}

#[tokio::test]
async fn pools_of_previews_and_of_other_services_are_refused() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let preview = stage.pool("irc-pr-7", "irc", true).await;
        let sibling = stage.pool("web-1", "web", false).await;
        stage.sandbox(&preview, "irc-pr-7", "irc-pr-7-0-1", "10.1.0.1").await;
        stage.sandbox(&sibling, "web-1", "web-1-0-1", "10.1.0.2").await;
        for pool in ["irc-pr-7", "web-1", "missing"] {
            stage.apply(&stage.ours, "irc", Some(pool), &PORTS).await;
            let message = stage.until_says(&stage.ours, "irc", reason::NO_ENDPOINTS).await;
            assert!(message.contains(pool), "{message}");
            assert_eq!(stage.endpoints("irc").await, [""; 0], "{pool}");
        }
    })
    .await
}

#[tokio::test]
async fn endpoints_follow_what_the_sandboxes_do() -> anyhow::Result<()> {
    with_controller(async |stage: Stage| {
        let pool = stage.pool("irc-1", "irc", false).await;
        stage.apply(&stage.ours, "irc", Some("irc-1"), &PORTS).await;
        stage.until_says(&stage.ours, "irc", reason::NO_ENDPOINTS).await;
        stage.sandbox(&pool, "irc-1", "a", "10.1.0.1").await;
        stage.sandbox(&pool, "irc-1", "b", "10.1.0.2").await;
        stage.until_endpoints("irc", &["10.1.0.1 yyn", "10.1.0.2 yyn"]).await;
        stage.say("a", "10.1.0.1", false).await;
        stage.drain("b").await;
        stage.until_endpoints("irc", &["10.1.0.1 nnn", "10.1.0.2 nyy"]).await;
        stage.until_says(&stage.ours, "irc", reason::NO_ENDPOINTS).await;
        stage.say("a", "10.1.0.1", true).await;
        stage.remove("b").await;
        stage.until_endpoints("irc", &["10.1.0.1 yyn"]).await;
        stage.remove("a").await;
        stage.until_endpoints("irc", &[]).await;
        let empty = stage.slices().get("irc-ipv4").await.unwrap();
        assert_eq!(empty.ports.map(|ports| ports.len()), Some(1), "the slice stays");
    })
    .await
}

#[tokio::test]
async fn slices_outlive_their_app_service_until_their_sandboxes_are_gone() -> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let pool = stage.pool("irc-1", "irc", false).await;
        stage.sandbox(&pool, "irc-1", "a", "10.1.0.1").await;
        stage.sandbox(&pool, "irc-1", "b", "10.1.0.2").await;
        stage.apply(&stage.ours, "irc", Some("irc-1"), &PORTS).await;
        let running = stage.start(stage.client.clone());
        stage.until_endpoints("irc", &["10.1.0.1 yyn", "10.1.0.2 yyn"]).await;
        stage.delete(&stage.ours, "irc").await;
        stage.until_endpoints("irc", &["10.1.0.1 nny", "10.1.0.2 nny"]).await;
        // Nobody remembers them but the slice.
        running.stop().await;
        stage.remove("a").await;
        let running = stage.start(stage.client.clone());
        stage.until_endpoints("irc", &["10.1.0.2 nny"]).await;
        // Another of the name takes it over, and need not wait.
        let next = stage.pool("irc-2", "irc", false).await;
        stage.sandbox(&next, "irc-2", "c", "10.1.0.3").await;
        stage.apply(&stage.ours, "irc", Some("irc-2"), &PORTS).await;
        stage.until_endpoints("irc", &["10.1.0.2 nny", "10.1.0.3 yyn"]).await;
        stage.delete(&stage.ours, "irc").await;
        stage.until_endpoints("irc", &["10.1.0.2 nny", "10.1.0.3 nny"]).await;
        stage.remove("b").await;
        stage.remove("c").await;
        let slice = || async { stage.slices().get_opt("irc-ipv4").await.expect("read") };
        until_seen("nothing is left", slice, Option::is_none).await;
        running.stop().await;
    })
    .await
}

#[tokio::test]
async fn a_heartbeat_writes_nothing() -> anyhow::Result<()> {
    alone(async |stage: Stage| {
        let pool = stage.pool("irc-1", "irc", false).await;
        stage.sandbox(&pool, "irc-1", "a", "10.1.0.1").await;
        stage.apply(&stage.ours, "irc", Some("irc-1"), &PORTS).await;
        let running = stage.start(stage.client.clone());
        stage.until_says(&stage.ours, "irc", reason::AVAILABLE).await;
        let before = running.writes();
        for beat in 0..5 {
            let status = json!({ "status": { "message": format!("beat {beat}") } });
            let params = PatchParams::default();
            stage.pods().patch_status("a", &params, &Patch::Merge(&status)).await.unwrap();
        }
        // A change that does count comes after the others, so they have been looked at by then.
        stage.say("a", "10.1.0.9", true).await;
        stage.until_endpoints("irc", &["10.1.0.9 yyn"]).await;
        let written = || async { running.writes() - before };
        until_seen("one write", written, |writes| *writes >= 1).await;
        sleep(Duration::from_millis(200)).await;
        assert_eq!(written().await, 1, "one slice, once");
        running.stop().await;
    })
    .await
}
