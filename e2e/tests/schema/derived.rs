//! What Portolan makes itself: `AppVersion`, `SandboxPool`, `Claim`, `GatewayReport`. What says
//! how sandboxes run never changes; how many of them run does.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    ACCEPTED, DryRun, Rows, Scratch, change, check, client, create, object, yaml,
};

#[tokio::test]
async fn a_version_never_changes() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{}", ACCEPTED),
        ("{app: other}", "an AppVersion never changes; change the App"),
        ("{hashVersion: 2}", "an AppVersion never changes"),
        ("{services: [{name: web, sandbox: {image: b}}]}", "an AppVersion never changes"),
    ];
    changes(object("AppVersion", "shop-0a1b2c3d", &version()), rows).await
}

#[tokio::test]
async fn a_pool_changes_its_role_and_number_only() -> anyhow::Result<()> {
    const NEVER: &str = "app, service and sandbox of a pool never change";
    let rows: Rows<'_> = &[
        ("{role: Retired}", ACCEPTED),
        ("{replicas: 0, floor: 3}", ACCEPTED),
        ("{scale: {max: 5}}", ACCEPTED),
        ("{app: other}", NEVER),
        ("{service: other}", NEVER),
        ("{sandbox: {image: b}}", NEVER),
        ("{replicas: -1}", "spec.replicas | greater than or equal to 0"),
        ("{replicas: 1001}", "spec.replicas | less than or equal to 1000"),
        ("{role: Idle}", "spec.role: Unsupported value | \"Active\", \"Candidate\", \"Retired\""),
    ];
    changes(object("SandboxPool", "shop-web-0a1b2c3d", &pool()), rows).await
}

#[tokio::test]
async fn a_claim_never_changes() -> anyhow::Result<()> {
    const NEVER: &str = "a Claim never changes; delete it to release it";
    let rows: Rows<'_> = &[
        ("{}", ACCEPTED),
        ("{value: 6698/TCP}", NEVER),
        ("{kind: Host}", NEVER),
        ("{holder: {uid: other}}", NEVER),
    ];
    let name = format!("nodeport-schema-{}", std::process::id());
    // Of a kind that no controller answers for: one of a holder that is gone would be swept.
    let spec = "{kind: NodePort, value: 6697/TCP, \
                 holder: {kind: Nobody, namespace: a, name: b, uid: c}}";
    changes(object("Claim", &name, &yaml(spec)), rows).await
}

#[tokio::test]
async fn a_claim_says_what_is_held_and_by_whom() -> anyhow::Result<()> {
    const HOLDER: &str = "holder: {kind: Route, namespace: a, name: b, uid: c}";
    let refused = |spec: &str| spec.replace("HOLDER", HOLDER);
    let rows: Rows<'_> = &[
        (&refused("{kind: Host, value: a.example, HOLDER}"), ACCEPTED),
        (&refused("{kind: NodePort, value: 6697/TCP, HOLDER}"), ACCEPTED),
        (&refused("{kind: Port, value: a, HOLDER}"), "spec.kind: Unsupported value"),
        (&refused("{kind: Host, value: '', HOLDER}"), "spec.value | at least 1 chars"),
        ("{kind: Host, value: a}", "spec.holder: Required value"),
        (
            "{kind: Host, value: a, holder: {kind: Route, namespace: a, name: b}}",
            "spec.holder.uid: Required value",
        ),
    ];
    check(|spec| object("Claim", "host.a.example", &spec), rows).await
}

#[tokio::test]
async fn a_report_holds_raw_counts() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{gateway: gateway-0, shard: Demand}", ACCEPTED),
        (
            "{gateway: gateway-0, shard: Demand, pools: [{namespace: a, name: b, queued: 1}]}",
            ACCEPTED,
        ),
        (
            "{gateway: gateway-0, shard: State, epochs: [{namespace: a, name: b, epoch: 3}]}",
            ACCEPTED,
        ),
        ("{shard: State}", "spec.gateway: Required value"),
        ("{gateway: gateway-0, shard: Other}", "spec.shard: Unsupported value"),
        ("{gateway: a, shard: State, epochs: [{namespace: a, name: b}]}", "epoch: Required value"),
    ];
    check(|spec| object("GatewayReport", "gateway-0", &spec), rows).await
}

#[tokio::test]
async fn a_new_pool_starts_with_one_sandbox() -> anyhow::Result<()> {
    let pool = object("SandboxPool", "shop-web-0a1b2c3d", &pool());
    let stored = create(&client().await?, &pool, DryRun::Yes).await?.object()?;
    ensure!(stored["spec"]["replicas"] == 1, "{stored:#}");
    Ok(())
}

/// A rule that a later release tightens must not refuse a version or pool that exists.
#[tokio::test]
async fn a_resolved_sandbox_is_not_judged_again() -> anyhow::Result<()> {
    let mut version = version();
    version["services"][0]["sandbox"]["template"] =
        yaml("{volumeMounts: [{name: gone, mountPath: /a}], labels: {portolan.dev/x: z}}");
    check(|_| object("AppVersion", "shop-0a1b2c3d", &version), &[("{}", ACCEPTED)]).await
}

/// Stores `manifest`, then tries each fragment merged into its spec.
async fn changes(manifest: Value, rows: Rows<'_>) -> anyhow::Result<()> {
    let client = client().await?;
    Scratch::with(&client, async |scratch| {
        let stored = scratch.store(manifest).await?;
        let mut wrong = Vec::new();
        for (fragment, expected) in rows {
            let mut spec = stored["spec"].clone();
            merge(&mut spec, yaml(fragment));
            let answer = change(&client, &stored, None, ("/spec", spec)).await?;
            if let Err(complaint) = answer.compare(expected) {
                wrong.push(format!("{fragment}\n    {complaint:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{} rows are wrong:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    })
    .await
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(fields) => {
            fields.into_iter().for_each(|(key, value)| merge(&mut into[key], value));
        }
        Value::Array(items) if into.is_array() => {
            items.into_iter().enumerate().for_each(|(i, item)| merge(&mut into[i], item));
        }
        other => *into = other,
    }
}

fn sandbox() -> Value {
    yaml(
        "{image: a, ports: [{name: http, port: 3000, type: http}], \
         terminationGraceSeconds: 30, listenTimeoutSeconds: 15}",
    )
}

fn scale() -> Value {
    yaml("{min: 0, max: 20, requestsPerInstance: 10, concurrency: Soft}")
}

fn version() -> Value {
    let service = json!({ "name": "web", "sandbox": sandbox(), "scale": scale() });
    let digest = "0".repeat(64);
    json!({ "app": "shop", "hashVersion": 1, "digest": digest, "services": [service] })
}

fn pool() -> Value {
    json!({
        "app": "shop",
        "service": "web",
        "sandbox": sandbox(),
        "role": "Candidate",
        "scale": scale(),
    })
}
