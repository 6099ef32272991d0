//! Programs that do not work. The App says why, in words that help; what serves goes on serving;
//! and once the cause is gone, everything comes up by itself.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portolan_cluster::wait;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;
use serde_json::{Value, json};

use crate::load::Load;
use crate::support::{Echo, message, said, text};

/// Visitors of what cannot start are told within this time, not after the longest wait of 60 s.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// A way to be broken.
struct Broken {
    /// Names the namespace.
    name: &'static str,
    /// What the service says that does not work.
    service: Value,
    /// The reason of `Ready`.
    reason: &'static str,
    /// A part of the message that the owner can act on.
    hint: &'static str,
    /// What is there before the broken version.
    obstacle: Option<Value>,
    cure: Cure,
}

/// What ends the trouble.
enum Cure {
    /// A third version, without what was broken.
    Manifest,
    /// This object; nothing is applied to the App.
    Object(Value),
}

impl Broken {
    fn new(name: &'static str, service: Value, reason: &'static str, hint: &'static str) -> Self {
        Self { name, service, reason, hint, obstacle: None, cure: Cure::Manifest }
    }
}

/// Breaks an App that serves, and one that is new, in the same way.
async fn check(broken: Broken) -> anyhow::Result<()> {
    with_platform(broken.name, async |space| {
        let serving = Echo { space, name: "serving" };
        let new = Echo { space, name: "new" };
        serving.route().await?;
        new.route().await?;
        serving.apply("1", alone(json!({}))).await?;
        serving.ready().await?;
        let claimed =
            ["wait", "--for=condition=HostClaimed", "route", "--all", wait::KUBECTL_PATIENCE];
        space.kubectl(&claimed).await?;
        serving.until_it_answers("1").await?;

        let load = Load::start(&serving);
        if let Some(obstacle) = &broken.obstacle {
            space.apply(&obstacle.to_string()).await?;
        }
        serving.apply("2", alone(broken.service.clone())).await?;
        new.apply("2", alone(broken.service.clone())).await?;
        says_what_is_broken(&serving, &broken, "version serving-").await?;
        says_what_is_broken(&new, &broken, "no version serves yet").await?;
        let app = serving.object("app", serving.name).await?;
        ensure!(
            said(&app, "ServicesReady").starts_with("True "),
            "{}",
            said(&app, "ServicesReady")
        );
        ensure!(said(&app, "Progressing") == "True RollingOut", "{}", said(&app, "Progressing"));
        ensure!(serving.version().await? == "1", "a broken version must not serve");
        nobody_serves(&new).await?;

        let cured = match &broken.cure {
            Cure::Manifest => {
                serving.apply("3", alone(json!({}))).await?;
                new.apply("3", alone(json!({}))).await?;
                "3"
            }
            Cure::Object(object) => {
                space.apply(&object.to_string()).await?;
                "2"
            }
        };
        serving.ready().await?;
        new.ready().await?;
        serving.until_it_answers(cured).await?;
        new.until_it_answers(cured).await?;
        let tally = load.all_were_answered().await?;
        ensure!(
            tally.answers.keys().all(|version| version == "1" || version == cured),
            "{tally:?}"
        );
        Ok(())
    })
    .await
}

/// A service of one sandbox: on a machine that stands still for seconds, even a light load asks for
/// more, which a quota counts.
fn alone(mut service: Value) -> Value {
    service["scale"]["max"] = json!(1);
    service
}

/// Waits until `Ready` has the reason, and a message with the hint that also says who serves.
async fn says_what_is_broken(
    echo: &Echo<'_>,
    broken: &Broken,
    serving: &str,
) -> anyhow::Result<()> {
    let Broken { reason, hint, .. } = broken;
    echo.until(&format!("{} to be {reason} with {hint:?}", echo.name), async || {
        let app = echo.object("app", echo.name).await?;
        let (said, message) = (said(&app, "Ready"), message(&app, "Ready"));
        let helps = message.contains("service web: ") && message.contains(hint);
        let is_said = said == format!("False {reason}") && helps && message.contains(serving);
        ensure!(is_said, "{said}: {message}");
        Ok(())
    })
    .await
}

/// An App of which nothing ever ran is answered for at once, in a way that programs understand.
async fn nobody_serves(echo: &Echo<'_>) -> anyhow::Result<()> {
    let asked = Instant::now();
    let answer = echo.get("/").await?;
    let took = asked.elapsed();
    let code = answer.headers().get("x-portolan-error").context("the gateway's own answer")?;
    ensure!(answer.status() == 503 && code == "no_version", "{} {code:?}", answer.status());
    ensure!(answer.headers().contains_key("retry-after"), "when to come back");
    ensure!(took < TOLD_WITHIN, "told after {took:?}");
    Ok(())
}

#[tokio::test]
async fn an_image_that_does_not_exist() -> anyhow::Result<()> {
    // Nothing listens on that port of the node: no registry is asked.
    let image = json!({ "image": "localhost:1/no-such:1" });
    check(Broken::new("no-image", image, "ImagePullFailed", "localhost:1/no-such:1")).await
}

#[tokio::test]
async fn a_variable_from_a_secret_that_does_not_exist() -> anyhow::Result<()> {
    let from = json!({ "secretKeyRef": { "name": "absent", "key": "token" } });
    let service = json!({ "env": [{ "name": "TOKEN", "valueFrom": from }] });
    let cure = Cure::Object(secret("absent"));
    let hint = r#"secret "absent" not found"#;
    check(Broken { cure, ..Broken::new("no-secret", service, "ConfigMissing", hint) }).await
}

#[tokio::test]
async fn a_volume_from_a_secret_that_does_not_exist() -> anyhow::Result<()> {
    let volume = json!({ "name": "token", "secret": { "secretName": "absent" } });
    let mount = json!({ "name": "token", "mountPath": "/token" });
    let service = json!({ "template": { "volumes": [volume], "volumeMounts": [mount] } });
    let cure = Cure::Object(secret("absent"));
    check(Broken { cure, ..Broken::new("no-volume", service, "ConfigMissing", "Secret absent") })
        .await
}

#[tokio::test]
async fn a_command_that_does_not_exist() -> anyhow::Result<()> {
    let service = json!({ "command": ["/no/such/program"] });
    check(Broken::new("no-command", service, "StartFailed", "/no/such/program")).await
}

#[tokio::test]
async fn a_program_that_crashes_at_once() -> anyhow::Result<()> {
    let service = json!({ "args": ["--no-such-option"] });
    let hint = "exited with code 2, restarted once; its last output: error: unexpected argument";
    check(Broken::new("crashes", service, "CrashLooping", hint)).await
}

#[tokio::test]
async fn a_program_that_never_listens() -> anyhow::Result<()> {
    let env = json!([{ "name": "START_DELAY_MS", "value": "86400000" }]);
    let service = json!({ "env": env, "listenTimeoutSeconds": 2 });
    check(Broken::new("silent", service, "NotListening", "listen on 0.0.0.0:$PORT")).await
}

#[tokio::test]
async fn a_program_that_listens_on_loopback_only() -> anyhow::Result<()> {
    let env = json!([{ "name": "LISTEN_ADDRESS", "value": "127.0.0.1" }]);
    let service = json!({ "env": env, "listenTimeoutSeconds": 2 });
    check(Broken::new("loopback", service, "NotListening", "not on 127.0.0.1")).await
}

#[tokio::test]
async fn a_program_that_listens_on_another_port() -> anyhow::Result<()> {
    let service = json!({ "args": ["--port", "9999"], "listenTimeoutSeconds": 2 });
    check(Broken::new("elsewhere", service, "NotListening", "no connection on port 8080")).await
}

#[tokio::test]
async fn a_program_whose_probe_fails() -> anyhow::Result<()> {
    let get = json!({ "path": "/status/500", "port": 8080 });
    let health = json!({ "readiness": { "httpGet": get, "periodSeconds": 1 } });
    let service = json!({ "health": health, "listenTimeoutSeconds": 2 });
    let hint = "GET /status/500 on port 8080 fails";
    check(Broken::new("unhealthy", service, "ProbeFailing", hint)).await
}

#[tokio::test]
async fn a_program_that_wants_to_be_root() -> anyhow::Result<()> {
    let context = json!({ "runAsNonRoot": false, "runAsUser": 0 });
    let service = json!({ "template": { "securityContext": context } });
    let hint = r#"violates PodSecurity "restricted"#;
    check(Broken::new("root", service, "PodRefused", hint)).await
}

#[tokio::test]
async fn a_program_that_wants_every_privilege() -> anyhow::Result<()> {
    let context = json!({ "privileged": true });
    let service = json!({ "template": { "containerSecurityContext": context } });
    check(Broken::new(
        "privileged",
        service,
        "PodRefused",
        "must not set securityContext.privileged",
    ))
    .await
}

#[tokio::test]
async fn a_program_that_fits_no_node() -> anyhow::Result<()> {
    let service = json!({ "template": { "resources": { "requests": { "cpu": "1000" } } } });
    check(Broken::new("huge", service, "Unschedulable", "Insufficient cpu")).await
}

#[tokio::test]
async fn a_quota_that_is_used_up() -> anyhow::Result<()> {
    let obstacle = Some(quota(1));
    let cure = Cure::Object(quota(10));
    let changed = json!({ "env": [{ "name": "CHANGED", "value": "yes" }] });
    // How many are used is not ours to say.
    let hint = "exceeded quota: pods, requested: pods=1, used: pods=";
    check(Broken { obstacle, cure, ..Broken::new("quota", changed, "PodRefused", hint) }).await
}

#[tokio::test]
async fn a_version_that_takes_too_long_is_called_late_and_may_still_come() -> anyhow::Result<()> {
    with_platform("late", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        let load = Load::start(&echo);
        let delay = json!({ "env": [{ "name": "START_DELAY_MS", "value": "8000" }] });
        let mut late = echo.manifest("2", &delay);
        late["spec"]["progressDeadlineSeconds"] = json!(3);
        space.apply(&late.to_string()).await?;
        echo.until_it_says("Progressing", "False DeadlineExceeded").await?;
        let app = echo.object("app", "echo").await?;
        ensure!(said(&app, "Ready") == "False DeadlineExceeded", "{}", said(&app, "Ready"));
        ensure!(message(&app, "Progressing").contains("not ready within 3 s"));
        ensure!(message(&app, "Progressing").contains("nothing was torn down"));
        ensure!(echo.version().await? == "1");
        echo.until_it_says("Progressing", "True Complete").await?;
        echo.until_it_answers("2").await?;
        load.all_were_answered().await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_program_that_crashes_later_says_so_and_is_rolled_back() -> anyhow::Result<()> {
    with_platform("later", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        echo.apply("1", json!({})).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        let load = Load::start(&echo);
        echo.apply("2", json!({})).await?;
        echo.until_it_answers("2").await?;
        tokio::select! {
            never = crash_whenever_it_runs(&echo) => match never {},
            told = crash_is_told(&echo) => told?,
        }
        echo.apply("1", json!({})).await?;
        echo.until_it_answers("1").await?;
        echo.ready().await?;
        // What no platform can keep from the visitors, and the proof that the load sees failures.
        let tally = load.end().await?;
        ensure!(!tally.failures.is_empty(), "{tally:?}");
        Ok(())
    })
    .await
}

/// Asks for a crash all the while: a program that crashed only now and then is not in a loop.
async fn crash_whenever_it_runs(echo: &Echo<'_>) -> Infallible {
    loop {
        // No answer is what is asked for, and it may not run at this moment.
        echo.get("/crash?code=1").await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until the owner and the visitors are told of a program that crashes again and again.
async fn crash_is_told(echo: &Echo<'_>) -> anyhow::Result<()> {
    // In one look: between two crashes it runs, and is ready.
    echo.until("ServicesReady to tell of the crash", async || {
        let app = echo.object("app", "echo").await?;
        let (said, told) = (said(&app, "ServicesReady"), message(&app, "ServicesReady"));
        let is_told = told.contains("exited with code 1");
        ensure!(said == "False CrashLooping" && is_told, "{said}: {told}");
        Ok(())
    })
    .await?;
    is_told(echo, "boot_failed", "CrashLooping").await
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_replaced_without_a_failed_request() -> anyhow::Result<()>
{
    with_platform("stubborn", async |space| {
        let echo = Echo { space, name: "echo" };
        echo.route().await?;
        let ignore = json!([{ "name": "ON_TERM", "value": "ignore" }]);
        let service = json!({ "env": ignore, "terminationGracePeriodSeconds": 1 });
        echo.apply("1", service).await?;
        echo.ready().await?;
        echo.until_it_answers("1").await?;
        let stubborn = echo.sandboxes().await?;
        let load = Load::start(&echo);
        echo.apply("2", json!({})).await?;
        echo.ready().await?;
        echo.until("the stubborn sandbox to be gone", async || {
            let pods = echo.list("pods").await?;
            let names: Vec<_> = pods.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
            ensure!(stubborn.iter().all(|name| !names.contains(name)), "{names:?}");
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
async fn visitors_of_a_sleeping_app_that_cannot_wake_are_told_soon() -> anyhow::Result<()> {
    with_platform("insomnia", async |space| {
        let echo = Echo { space, name: "echo" };
        space.apply(&secret("needed").to_string()).await?;
        let from = json!({ "secretKeyRef": { "name": "needed", "key": "token" } });
        let env = json!([{ "name": "TOKEN", "valueFrom": from }]);
        echo.route().await?;
        echo.apply("1", json!({ "env": env, "scale": { "scaleDownDelaySeconds": 1 } })).await?;
        echo.ready().await?;
        until_nothing_runs(&echo).await?;

        space.kubectl(&["delete", "secret", "needed"]).await?;
        is_told(&echo, "boot_failed", "ConfigMissing").await?;
        echo.until_it_says("Ready", "False ConfigMissing").await?;
        space.apply(&secret("needed").to_string()).await?;
        echo.until_it_answers("1").await?;

        until_nothing_runs(&echo).await?;
        space.apply(&quota(0).to_string()).await?;
        until_quota_counts(space).await?;
        is_told(&echo, "no_capacity", "PodRefused").await?;
        space.kubectl(&["delete", "resourcequota", "pods"]).await?;
        echo.until_it_answers("1").await
    })
    .await
}

/// The next visitor gets this code and reason, long before the longest wait is over.
async fn is_told(echo: &Echo<'_>, code: &str, reason: &str) -> anyhow::Result<()> {
    echo.until(&format!("visitors to be told {code}"), async || {
        let asked = Instant::now();
        let answer = echo.get("/").await?;
        let took = asked.elapsed();
        let said = answer.headers().get("x-portolan-error").map(|code| code.to_str());
        let body = String::from_utf8_lossy(answer.body());
        ensure!(said.transpose()? == Some(code), "{} after {took:?}: {body}", answer.status());
        ensure!(answer.status() == 503 && body.contains(reason), "{body}");
        ensure!(took < TOLD_WITHIN, "told after {took:?}");
        Ok(())
    })
    .await
}

async fn until_nothing_runs(echo: &Echo<'_>) -> anyhow::Result<()> {
    echo.until_it_says("Ready", "True Asleep").await?;
    echo.until("no sandbox to be left", async || {
        let pods = echo.list("pods").await?.len();
        ensure!(pods == 0, "{pods} sandboxes");
        Ok(())
    })
    .await
}

async fn until_quota_counts(space: &Space) -> anyhow::Result<()> {
    wait::until("the quota to count", wait::PATIENCE, async || {
        let get = ["get", "resourcequota", "pods", "-o", "jsonpath={.status.hard.pods}"];
        let counted = space.kubectl(&get).await?;
        ensure!(counted == "0", "{counted:?}");
        Ok(())
    })
    .await
}

fn secret(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name },
        "stringData": { "token": "not a secret" },
    })
}

fn quota(pods: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": { "name": "pods" },
        "spec": { "hard": { "pods": pods.to_string() } },
    })
}
