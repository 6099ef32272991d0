//! Two teams on one cluster: neither takes from the other, reads the other's or reaches it.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use portolan_cluster::platform::NAMESPACE as SYSTEM;
use portolan_cluster::wait;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;
use serde_json::{Value, json};

use crate::peers::{Peer, Target, allows};
use crate::support::{Echo, message, said, text};

/// Runs a test in the namespaces of two teams.
async fn with_teams(
    name: &str,
    test: impl AsyncFnOnce(&Space, &Space) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (ours, theirs) = (format!("{name}-ours"), format!("{name}-theirs"));
    with_platform(&ours, async |ours| {
        with_platform(&theirs, async |theirs| test(ours, theirs).await).await
    })
    .await
}

/// The echo program of a namespace, running.
async fn serving<'a>(space: &'a Space, version: &str) -> anyhow::Result<Echo<'a>> {
    let echo = Echo { space, name: "echo" };
    echo.apply(version, json!({ "scale": { "max": 1 } })).await?;
    echo.ready().await?;
    Ok(echo)
}

fn route(host: &str, app: &str) -> Value {
    json!({
        "apiVersion": "portolan.dev/v1alpha1",
        "kind": "Route",
        "metadata": { "name": "echo" },
        "spec": { "host": host, "app": app },
    })
}

/// Waits for a condition of the Route `echo`, and returns its message.
async fn until_route(space: &Space, condition: &str, expected: &str) -> anyhow::Result<String> {
    let echo = Echo { space, name: "echo" };
    let mut told = String::new();
    echo.until(&format!("{condition} of the Route to be {expected}"), async || {
        let route = echo.object("route", "echo").await?;
        told = message(&route, condition);
        ensure!(said(&route, condition) == expected, "{}: {told}", said(&route, condition));
        Ok(())
    })
    .await?;
    Ok(told)
}

/// Waits until visitors of a host get this version.
async fn until_host_answers(space: &Space, host: &str, version: &str) -> anyhow::Result<()> {
    let echo = Echo { space, name: "echo" };
    echo.until(&format!("version {version} on {host}"), async || {
        let answer = space.ingress().get(host, "/").await?;
        let seen = answer.headers().get("x-version").context("an answer of a program")?;
        ensure!(seen == version, "{seen:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_host_that_another_team_holds_cannot_be_taken_only_inherited() -> anyhow::Result<()> {
    with_teams("host", async |ours, theirs| {
        let host = serving(ours, "ours").await?.host();
        serving(theirs, "theirs").await?;
        ours.apply(&route(&host, "echo").to_string()).await?;
        until_route(ours, "HostClaimed", "True Claimed").await?;
        until_host_answers(ours, &host, "ours").await?;

        theirs.apply(&route(&host, "echo").to_string()).await?;
        let told = until_route(theirs, "Ready", "False HostConflict").await?;
        ensure!(told.contains(&format!("namespace {}", ours.namespace())), "{told}");
        ensure!(!told.contains("Route echo"), "no more than the namespace is told: {told}");
        until_host_answers(ours, &host, "ours").await?;
        let claim = ours.kubectl(&["get", "claims", "-o", "json"]).await?;
        let claims: Value = serde_json::from_str(&claim)?;
        let mut claims = claims["items"].as_array().context("a list")?.iter();
        let claim = claims.find(|claim| claim["spec"]["value"] == host).context("a Claim")?;
        ensure!(claim["spec"]["holder"]["namespace"] == ours.namespace(), "{claim}");
        let edit = r#"{"spec":{"holder":{"name":"other"}}}"#;
        let name = text(&claim["metadata"]["name"]);
        let patch = ["patch", "claim", &name, "--type=merge", "-p", edit];
        let refused = ours.kubectl(&patch).await.err().context("a Claim never changes")?;
        ensure!(refused.to_string().contains("a Claim never changes"), "{refused}");

        ours.kubectl(&["delete", "route", "echo"]).await?;
        until_route(theirs, "HostClaimed", "True Claimed").await?;
        until_host_answers(theirs, &host, "theirs").await
    })
    .await
}

#[tokio::test]
async fn a_domain_decides_who_may_have_the_hosts_under_it() -> anyhow::Result<()> {
    with_teams("domain", async |ours, theirs| {
        let host = serving(ours, "ours").await?.host();
        serving(theirs, "theirs").await?;
        // Exactly this host, so that no other test is concerned.
        let domain = |namespace: &str| {
            let domain = json!({
                "apiVersion": "portolan.dev/v1alpha1",
                "kind": "Domain",
                "metadata": { "name": ours.namespace() },
                "spec": { "suffix": host, "namespaces": [namespace] },
            });
            domain.to_string()
        };
        let told = async {
            ours.apply(&domain(ours.namespace())).await?;
            theirs.apply(&route(&host, "echo").to_string()).await?;
            let told = until_route(theirs, "Ready", "False DomainDenied").await?;
            let answer = theirs.ingress().get(&host, "/").await?;
            ensure!(answer.status() == 404, "nobody holds the host: {}", answer.status());
            ours.apply(&route(&host, "echo").to_string()).await?;
            until_route(ours, "HostClaimed", "True Claimed").await?;
            until_host_answers(ours, &host, "ours").await?;
            // The administrator gives it to the other team.
            ours.apply(&domain(theirs.namespace())).await?;
            until_route(ours, "HostClaimed", "False DomainDenied").await?;
            until_route(theirs, "HostClaimed", "True Claimed").await?;
            until_host_answers(theirs, &host, "theirs").await?;
            anyhow::Ok(told)
        }
        .await;
        // It belongs to the cluster, so it does not go with a namespace.
        ours.kubectl(&["delete", "domain", ours.namespace(), "--ignore-not-found"]).await?;
        let told = told?;
        ensure!(
            told.contains(theirs.namespace()) && told.contains("ask an administrator"),
            "{told}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn neither_an_app_nor_a_secret_of_another_team_can_be_named() -> anyhow::Result<()> {
    with_teams("names", async |ours, theirs| {
        serving(ours, "ours").await?;
        let issued = rcgen::generate_simple_self_signed(["shop.portolan.test".to_owned()])?;
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": "shared" },
            "type": "kubernetes.io/tls",
            "stringData": {
                "tls.crt": issued.cert.pem(), "tls.key": issued.signing_key.serialize_pem(),
            },
        });
        ours.apply(&secret.to_string()).await?;
        let role = ["create", "role", "read", "--verb=get,list,watch", "--resource=secrets"];
        ours.kubectl(&role).await?;
        let account = format!("--serviceaccount={SYSTEM}:portolan-gateway");
        ours.kubectl(&["create", "rolebinding", "read", "--role=read", &account]).await?;

        // The gateway may read our Secret, and theirs has the same name and does not exist.
        let host = format!("echo.{}.portolan.test", theirs.namespace());
        let mut wish = route(&host, "echo");
        wish["spec"]["tls"] = json!({ "secretName": "shared" });
        theirs.apply(&wish.to_string()).await?;
        let told = until_route(theirs, "BackendResolved", "False AppNotFound").await?;
        ensure!(told.contains("no App echo in this namespace"), "{told}");
        let told = until_route(theirs, "CertificateReady", "False SecretForbidden").await?;
        ensure!(told.contains(&format!("-n {} create role", theirs.namespace())), "{told}");
        let answer = theirs.ingress().get(&host, "/").await?;
        ensure!(
            answer.status() != 200 && !answer.headers().contains_key("x-version"),
            "{answer:?}"
        );
        let root = issued.cert.der();
        let handshake = crate::visitor::tls(theirs, "shop.portolan.test", root, b"h2").await;
        ensure!(handshake.is_err(), "a certificate that no served Route names");

        for path in ["../ours/echo", "ours/echo", "echo.ours"] {
            let refused = theirs.apply(&route(&host, path).to_string()).await;
            ensure!(refused.is_err(), "{path} is no name of an App");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_team_edits_apps_and_routes_and_only_reads_what_is_made_of_them() -> anyhow::Result<()> {
    with_platform("rights", async |space| {
        let echo = serving(space, "1").await?;
        space.kubectl(&["create", "serviceaccount", "tenant"]).await?;
        let account = format!("--serviceaccount={}:tenant", space.namespace());
        space.kubectl(&["create", "rolebinding", "tenant", "--clusterrole=edit", &account]).await?;
        let pool = text(&echo.list("sandboxpools").await?[0]["metadata"]["name"]);
        let version = text(&echo.list("appversions").await?[0]["metadata"]["name"]);
        let user = format!("--as=system:serviceaccount:{}:tenant", space.namespace());
        let attempt = async |kind: &str, name: &str, patch: &str| {
            let args = ["patch", kind, name, "--type=merge", "-p", patch, &user];
            space.kubectl(&args).await
        };
        let note = r#"{"metadata":{"annotations":{"note":"x"}}}"#;
        // A binding is in force a moment after it was made.
        echo.until("the team to edit its App", async || {
            attempt("app", "echo", note).await.map(drop)
        })
        .await?;
        for (kind, name) in [("sandboxpool", pool.as_str()), ("appversion", &version)] {
            space.kubectl(&["get", kind, name, &user]).await.context("it may look")?;
            let refused = attempt(kind, name, note).await.err().context("it may not touch")?;
            ensure!(refused.to_string().contains("forbidden"), "{refused}");
        }
        let status = r#"{"status":{"activeVersion":"forged"}}"#;
        let args = ["patch", "app", "echo", "--subresource=status", "--type=merge", "-p", status];
        let refused = space.kubectl(&[&args[..], &[&user]].concat()).await;
        ensure!(refused.is_err_and(|error| error.to_string().contains("forbidden")), "status");
        may(space).await
    })
    .await
}

/// The whole table of what the team may do, as the API server decides it.
async fn may(space: &Space) -> anyhow::Result<()> {
    const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
    const READ: [&str; 3] = ["get", "list", "watch"];
    let table: [(&str, bool, bool); 7] = [
        ("apps", true, true),
        ("routes", true, true),
        ("appversions", true, false),
        ("sandboxpools", true, false),
        ("gatewayreports", false, false),
        ("claims", false, false),
        ("domains", false, false),
    ];
    for (resource, reads, writes) in table {
        let verbs = READ.iter().map(|verb| (verb, reads));
        for (verb, expected) in verbs.chain(WRITE.iter().map(|verb| (verb, writes))) {
            let is_allowed = is_allowed(space, verb, resource).await?;
            ensure!(is_allowed == expected, "{verb} {resource}: {is_allowed}");
        }
    }
    Ok(())
}

async fn is_allowed(space: &Space, verb: &str, resource: &str) -> anyhow::Result<bool> {
    let namespace = space.namespace();
    let groups = ["system:serviceaccounts", "system:authenticated"].map(ToOwned::to_owned);
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:tenant")),
            groups: Some(groups.into()),
            resource_attributes: Some(ResourceAttributes {
                group: Some("portolan.dev".to_owned()),
                namespace: Some(namespace.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews = Api::<SubjectAccessReview>::all(space.client());
    let reviewed = reviews.create(&PostParams::default(), &review).await.context("ask")?;
    Ok(reviewed.status.context("an answer")?.allowed)
}

#[tokio::test]
async fn a_pod_with_forged_labels_gets_no_traffic() -> anyhow::Result<()> {
    with_teams("forged", async |ours, theirs| {
        let echo = serving(ours, "1").await?;
        echo.route().await?;
        echo.until_it_answers("1").await?;
        let sandboxes = echo.list("pods").await?;
        let genuine = &sandboxes[0]["metadata"];
        let pool = &genuine["ownerReferences"][0];
        // Beside the pool, and in another team's namespace with a claim to be controlled by it.
        ours.apply(&forged("labels", genuine, json!([])).to_string()).await?;
        theirs.apply(&forged("labels", genuine, json!([])).to_string()).await?;
        theirs.apply(&forged("owned", genuine, json!([pool])).to_string()).await?;
        for space in [ours, theirs] {
            let ready = ["wait", "--for=condition=Ready", "pod/labels", wait::KUBECTL_PATIENCE];
            space.kubectl(&ready).await?;
        }
        let mut seen = BTreeSet::new();
        for _ in 0..50 {
            seen.insert(echo.version().await?);
        }
        ensure!(seen == BTreeSet::from(["1".to_owned()]), "{seen:?}");
        let pool = echo.object("sandboxpool", &text(&pool["name"])).await?;
        ensure!(pool["status"]["readyReplicas"] == 1, "it is not counted: {}", pool["status"]);
        ours.kubectl(&["get", "pod", "labels"]).await.context("nor touched").map(drop)
    })
    .await
}

/// A Pod that looks like a sandbox.
fn forged(name: &str, genuine: &Value, owners: Value) -> Value {
    let security = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let container = json!({
        "name": "app",
        "image": "docker.io/portolan/sample-echo:dev",
        "env": [{ "name": "VERSION", "value": "forged" }, { "name": "PORT", "value": "8080" }],
        "readinessProbe": { "tcpSocket": { "port": 8080 }, "periodSeconds": 1 },
        "securityContext": security,
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": genuine["labels"], "ownerReferences": owners },
        "spec": { "containers": [container], "terminationGracePeriodSeconds": 1 },
    })
}

#[tokio::test]
async fn sandboxes_run_restricted_unless_asked_otherwise() -> anyhow::Result<()> {
    with_platform("restricted", async |space| {
        let echo = serving(space, "1").await?;
        let pods = echo.list("pods").await?;
        let spec = &pods[0]["spec"];
        ensure!(spec["automountServiceAccountToken"] == false, "{spec}");
        ensure!(spec["volumes"].as_array().is_none_or(Vec::is_empty), "no token: {spec}");
        ensure!(spec["enableServiceLinks"] == false, "{spec}");
        for host in ["hostNetwork", "hostPID", "hostIPC"] {
            ensure!(spec[host].is_null() || spec[host] == false, "{host}");
        }
        ensure!(spec["securityContext"]["runAsNonRoot"] == true, "{spec}");
        ensure!(spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "{spec}");
        let container = &spec["containers"][0]["securityContext"];
        ensure!(container["allowPrivilegeEscalation"] == false, "{container}");
        ensure!(container["capabilities"]["drop"] == json!(["ALL"]), "{container}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_network_policy_lets_in_whom_each_port_is_for() -> anyhow::Result<()> {
    with_teams("network", async |ours, theirs| {
        let echo = Echo { space: ours, name: "echo" };
        let ports = json!([
            { "name": "http", "port": 8080 },
            { "name": "tcp", "port": 7000, "type": "tcp" },
            { "name": "udp", "port": 7001, "type": "udp" },
            { "name": "node", "port": 7002, "type": "tcp", "nodePort": 17002 },
        ]);
        let mut app = echo.manifest("1", &json!({ "ports": ports }));
        app["spec"]["services"][0].as_object_mut().context("a service")?.remove("port");
        ours.apply(&app.to_string()).await?;
        echo.ready().await?;
        let sandbox = echo.list("pods").await?[0]["metadata"]["labels"].clone();
        let target = Target { namespace: ours.namespace(), labels: &sandbox };
        let web = Echo { space: ours, name: "web" };
        web.apply("1", json!({})).await?;
        web.ready().await?;
        let policies = echo.list("networkpolicies").await?;

        let gateways = ["get", "pods", "-n", SYSTEM, "-o", "json", "-l"];
        let component = "app.kubernetes.io/component=gateway";
        let gateways = ours.kubectl(&[&gateways[..], &[component]].concat()).await?;
        let gateways: Value = serde_json::from_str(&gateways)?;
        let gateway = &gateways["items"][0]["metadata"]["labels"];
        let neighbour = json!({ "app": "other" });
        // Who pretends, from another namespace, to be a gateway or a sandbox of the App.
        let mut peers = Vec::new();
        for (who, namespace, labels) in [
            ("the gateway", SYSTEM, gateway),
            ("a sandbox of the App", ours.namespace(), &sandbox),
            ("a Pod of the namespace", ours.namespace(), &neighbour),
            ("a Pod of another namespace", theirs.namespace(), &neighbour),
            ("a forged gateway", theirs.namespace(), gateway),
            ("a forged sandbox", theirs.namespace(), &sandbox),
            ("another Pod of the system", SYSTEM, &neighbour),
        ] {
            let object = echo.object("namespace", namespace).await?;
            let namespace_labels = object["metadata"]["labels"].clone();
            let (namespace, labels) = (namespace.to_owned(), labels.clone());
            peers.push((who, Peer::Pod { namespace, labels, namespace_labels }));
        }
        peers.push(("an address outside", Peer::Outside));

        // In the order of the peers.
        let table = [
            (8080, "TCP", [true, true, true, false, false, false, false, false]),
            (7000, "TCP", [true, true, true, false, false, false, false, false]),
            (7001, "UDP", [true, true, true, false, false, false, false, false]),
            (7002, "TCP", [true; 8]),
            // The same number over the other transport, and a port that nobody declared.
            (8080, "UDP", [false; 8]),
            (9090, "TCP", [false; 8]),
        ];
        for (port, protocol, expected) in table {
            for ((who, peer), expected) in peers.iter().zip(expected) {
                let is_allowed = allows(&policies, &target, peer, port, protocol)?;
                ensure!(is_allowed == expected, "{who} on {port}/{protocol}: {is_allowed}");
            }
        }
        // A service without an address of its own: neighbours go through a gateway.
        let labels = json!({ "portolan.dev/app": "web" });
        let target = Target { namespace: ours.namespace(), labels: &labels };
        for (index, (who, peer)) in peers.iter().enumerate() {
            let is_allowed = allows(&policies, &target, peer, 8080, "TCP")?;
            ensure!(is_allowed == (index == 0), "{who} on the port of web: {is_allowed}");
        }
        Ok(())
    })
    .await
}
