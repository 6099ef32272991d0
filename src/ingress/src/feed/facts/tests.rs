use super::*;
use serde_json::{Value, json};

fn pool(sandbox: &Value, conditions: &Value) -> Option<PoolFacts> {
    let mut base = json!({
        "image": "x", "terminationGraceSeconds": 30, "listenTimeoutSeconds": 15,
        "ports": [{ "name": "http", "port": 3000, "type": "http" }],
    });
    for (key, value) in sandbox.as_object().expect("an object") {
        base[key] = value.clone();
    }
    let pool = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool",
        "metadata": { "namespace": "team", "name": "shop-web", "uid": "uid" },
        "spec": {
            "app": "shop", "service": "web", "sandbox": base, "role": "Active",
            "scale": { "min": 0, "max": 20, "requestsPerInstance": 10,
                "scaleDownDelaySeconds": 900, "concurrency": "Soft" },
        },
        "status": { "conditions": conditions },
    });
    PoolFacts::of(serde_json::from_value(pool).expect("a pool"))
}

#[track_caller]
fn check_probe(readiness: &Value, expected: Probe) {
    let facts = pool(&json!({ "readiness": readiness }), &json!([])).expect("it has an http port");
    assert_eq!(facts.config.probe, expected, "{readiness}");
}

#[test]
fn the_gateway_runs_the_probes_it_can_and_dials_no_other_address() {
    check_probe(&json!({ "tcpSocket": { "port": 3000 } }), Probe::Tcp { port: 3000 });
    check_probe(&json!({ "tcpSocket": { "port": "http" } }), Probe::Tcp { port: 3000 });
    check_probe(&json!({ "tcpSocket": { "port": "nosuch" } }), Probe::Feed);
    check_probe(&json!({ "tcpSocket": { "port": 70000 } }), Probe::Feed);
    let http = |host: Option<&str>, seconds| Probe::Http {
        port: 3000,
        path: "/health".into(),
        host: host.map(Into::into),
        timeout: Duration::from_secs(seconds),
    };
    let get = json!({ "port": 3000, "path": "/health" });
    check_probe(&json!({ "httpGet": get }), http(None, 1));
    check_probe(&json!({ "httpGet": get, "timeoutSeconds": 5 }), http(None, 5));
    let named = json!({ "port": 3000, "path": "/health",
        "httpHeaders": [{ "name": "host", "value": "shop.test" }] });
    check_probe(&json!({ "httpGet": named }), http(Some("shop.test"), 1));
    for foreign in [
        json!({ "port": 3000, "path": "/health", "host": "169.254.169.254" }),
        json!({ "port": 3000, "path": "/health", "scheme": "HTTPS" }),
        json!({ "port": 3000, "path": "/a b\r\nx: y" }),
        json!({ "port": 3000, "path": "health" }),
        json!({ "port": 3000, "httpHeaders": [{ "name": "Authorization", "value": "x" }] }),
    ] {
        check_probe(&json!({ "httpGet": foreign }), Probe::Feed);
    }
    check_probe(&json!({ "exec": { "command": ["true"] } }), Probe::Feed);
    check_probe(&json!({ "grpc": { "port": 3000 } }), Probe::Feed);
}

#[test]
fn a_pool_without_an_http_port_is_none_of_the_gateways_business() {
    assert_eq!(pool(&json!({ "ports": [] }), &json!([])), None);
    let irc = json!({ "ports": [{ "name": "irc", "port": 6667, "type": "tcp" }] });
    assert_eq!(pool(&irc, &json!([])), None);
}

#[test]
fn the_protocol_of_a_port_is_followed() {
    let ports = json!({ "ports": [{ "name": "grpc", "port": 50051, "type": "http",
        "appProtocol": "kubernetes.io/h2c" }] });
    let facts = pool(&ports, &json!([])).expect("it has an http port");
    assert_eq!((facts.config.port, facts.config.protocol), (50051, AppProtocol::H2c));
}

#[test]
fn a_pool_that_cannot_start_fails_its_visitors_fast() {
    let failure = |status: &str, reason: &str| {
        let ready = json!([{ "type": "Ready", "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        let failure = pool(&json!({}), &ready).expect("it has an http port").failure;
        failure.map(|failure| failure.kind)
    };
    assert_eq!(failure("False", "CrashLooping"), Some(FailureKind::Boot));
    assert_eq!(failure("False", "NotListening"), Some(FailureKind::Boot));
    assert_eq!(failure("False", "Unschedulable"), Some(FailureKind::NoCapacity));
    assert_eq!(failure("False", "PodRefused"), Some(FailureKind::NoCapacity));
    assert_eq!(failure("False", "Degraded"), None);
    assert_eq!(failure("Unknown", "Starting"), None);
    assert_eq!(failure("True", "Available"), None);
}

fn pod(metadata: &Value, status: &Value) -> Option<PodFacts> {
    let mut pod = json!({
        "metadata": {
            "namespace": "team", "name": "shop-web-0-1", "uid": "pod-uid",
            "ownerReferences": [{ "apiVersion": "portolan.dev/v1alpha1", "kind": "SandboxPool",
                "name": "shop-web", "uid": "uid", "controller": true }],
        },
        "spec": { "containers": [], "nodeName": "node1" },
        "status": status,
    });
    for (key, value) in metadata.as_object().expect("an object") {
        pod["metadata"][key] = value.clone();
    }
    let started = jiff::Timestamp::from_millisecond(10).expect("a time");
    let identity = Identity::new("system".into(), "gw-1".into(), None, started);
    PodFacts::of(&serde_json::from_value(pod).expect("a Pod"), &identity)
}

#[test]
fn a_pod_is_a_sandbox_only_of_the_pool_that_controls_it() {
    let owner = |kind: &str, controller: bool| {
        json!({ "ownerReferences": [{ "apiVersion": "x", "kind": kind, "name": "shop-web",
            "uid": "uid", "controller": controller }] })
    };
    assert!(pod(&json!({}), &json!({})).is_some());
    assert_eq!(pod(&owner("SandboxPool", false), &json!({})), None);
    assert_eq!(pod(&owner("ReplicaSet", true), &json!({})), None);
    assert_eq!(pod(&json!({ "ownerReferences": [] }), &json!({})), None);
    assert_eq!(pod(&json!({}), &json!({ "phase": "Failed" })), None);
    assert_eq!(pod(&json!({}), &json!({ "phase": "Succeeded" })), None);
}

#[test]
fn a_sandbox_is_as_far_as_its_pod() {
    let phase =
        |metadata: Value, status: Value| pod(&metadata, &status).expect("a sandbox").sandbox.phase;
    let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
    assert_eq!(phase(json!({}), json!({})), SandboxPhase::Scheduled);
    assert_eq!(phase(json!({}), ready.clone()), SandboxPhase::Ready);
    let marked = json!({ "annotations": { "portolan.dev/drain": "7" } });
    assert_eq!(phase(marked, ready.clone()), SandboxPhase::Draining { epoch: 7 });
    let deleted = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
    assert_eq!(phase(deleted, ready), SandboxPhase::Draining { epoch: 0 });
}

#[test]
fn a_gateway_has_the_slots_that_are_granted_to_it() {
    let slots = |grants: Option<&str>| {
        let metadata = match grants {
            Some(grants) => json!({ "annotations": { "portolan.dev/slots": grants } }),
            None => json!({}),
        };
        pod(&metadata, &json!({})).expect("a sandbox").sandbox.slots
    };
    assert_eq!(slots(None), Slots::Unlimited);
    assert_eq!(slots(Some("gw-1.a=5,gw-2.a=5")), Slots::Limited(5));
    assert_eq!(slots(Some("gw-2.a=5, gw-1.a=3")), Slots::Limited(3));
    assert_eq!(slots(Some("gw-1.9=4")), Slots::Limited(0), "an earlier process of the Pod");
    assert_eq!(slots(Some("gw-1=2")), Slots::Limited(2), "by a controller of a release before");
    for none in ["gw-2=5", "", "gw-1", "gw-1=x", "gw-1=-1", "gw-10=4"] {
        assert_eq!(slots(Some(none)), Slots::Limited(0), "{none}");
    }
}

#[test]
fn soft_slots_of_an_earlier_process_are_used_until_there_are_new_ones() {
    let usable = |grants: &str, concurrency: &str, absent: &Absent| {
        let metadata = json!({ "annotations": { "portolan.dev/slots": grants } });
        let pod = pod(&metadata, &json!({})).expect("a sandbox");
        let scale = json!({ "min": 0, "max": 1, "concurrency": concurrency });
        let spec = json!({
            "app": "shop", "service": "web", "role": "Active", "scale": scale,
            "sandbox": { "image": "x", "terminationGraceSeconds": 1, "listenTimeoutSeconds": 1,
                "ports": [{ "name": "http", "port": 80, "type": "http" }] },
        });
        let metadata = json!({ "namespace": "team", "name": "shop-web-1", "uid": &*pod.pool.uid });
        let pool = json!({ "metadata": metadata, "spec": spec });
        let pool = PoolFacts::of(serde_json::from_value(pool).expect("a pool"));
        let nobody = Absent::default();
        assert_eq!(pod.usable(None, &nobody).slots, pod.sandbox.slots, "a pool that is not known");
        pod.usable(pool.as_ref(), absent).slots
    };
    let slots = |grants: &str, concurrency: &str| usable(grants, concurrency, &Absent::default());
    assert_eq!(slots("gw-1.9=4,gw-2.a=4", "Soft"), Slots::Limited(4));
    assert_eq!(slots("gw-1.9=4,gw-2.a=4", "Strict"), Slots::Limited(0));
    assert_eq!(slots("gw-1.9=4,gw-1.a=3", "Soft"), Slots::Limited(3), "granted anew");
    for none in ["gw-2.9=4", "gw-10.9=4", "gw-19=4", ""] {
        assert_eq!(slots(none, "Soft"), Slots::Limited(0), "{none}");
    }
    // What other gateways had that are there no more is divided among those that are.
    let absent = |others| Absent { instances: [Arc::from("gw-2.a")].into(), others };
    assert_eq!(usable("gw-2.a=4", "Soft", &absent(0)), Slots::Limited(4));
    assert_eq!(usable("gw-1.a=3,gw-2.a=4", "Soft", &absent(0)), Slots::Limited(7));
    assert_eq!(usable("gw-1.9=3,gw-2.a=4", "Soft", &absent(0)), Slots::Limited(7));
    assert_eq!(usable("gw-2.a=4,gw-3.a=4", "Soft", &absent(2)), Slots::Limited(2));
    assert_eq!(usable("gw-2.b=4", "Soft", &absent(1)), Slots::Limited(0), "it is there again");
    assert_eq!(usable("gw-1.a=3,gw-2.a=4", "Strict", &absent(0)), Slots::Limited(3));
}

#[test]
fn an_app_is_followed_from_its_first_activation() {
    let app = |status: Value| {
        let app = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "App",
            "metadata": { "namespace": "team", "name": "shop", "uid": "uid" },
            "spec": { "image": "x", "services": [{ "name": "web" }] },
            "status": status,
        });
        AppFacts::of(serde_json::from_value(app).expect("an App"))
    };
    assert_eq!(app(json!({})), None);
    let status = json!({ "activation": { "version": "shop-1", "epoch": 3 }, "settledEpoch": 2,
        "services": [{ "name": "api", "pool": "shop-api-1" },
            { "name": "web", "pool": "shop-web-1" }] });
    let facts = app(status).expect("it is active");
    assert_eq!((facts.epoch, facts.is_settled), (3, false));
    let services: Vec<_> =
        facts.services.iter().map(|(key, pool)| (&*key.service, &*pool.name)).collect();
    assert_eq!(services, [("api", "shop-api-1"), ("web", "shop-web-1")], "each its own pool");
    let settled = json!({ "activation": { "version": "shop-1", "epoch": 3 }, "settledEpoch": 3 });
    assert!(app(settled).expect("it is active").is_settled);
}

#[test]
fn a_route_says_how_its_host_is_served() {
    let route = |spec: Value| {
        let route = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Route",
            "metadata": { "namespace": "team", "name": "shop", "uid": "uid" }, "spec": spec,
        });
        RouteFacts::of(serde_json::from_value(route).expect("a Route"))
    };
    let plain = route(json!({ "host": "shop.test", "app": "shop" })).expect("it is valid").config;
    assert_eq!(plain.timeouts, RouteTimeouts::standard());
    assert_eq!((plain.plain_http, plain.request_body_max), (PlainHttp::Redirect, None));
    assert_eq!(&*plain.service.service, "web");
    let full = route(json!({ "host": "*.shop.test", "app": "shop", "service": "api",
        "redirect": "Disabled", "maxBodyBytes": 10,
        "timeouts": { "responseSeconds": 5, "idleSeconds": 7 } }));
    let full = full.expect("it is valid").config;
    let seconds = Duration::from_secs;
    assert_eq!(full.timeouts.response_header, seconds(5));
    assert_eq!((full.timeouts.idle, full.timeouts.upgrade_idle), (seconds(7), seconds(7)));
    assert_eq!((full.plain_http, full.request_body_max), (PlainHttp::Serve, Some(10)));
    assert_eq!(route(json!({ "host": "no host", "app": "shop" })), None);
}
