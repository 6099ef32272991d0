//! Requests that come before there is anything to answer them.

use std::time::Duration;

use portolan_ingress::{
    BootFailure, FailureKind, PoolName, Probe, SandboxConfig, SandboxPhase, Slots,
};

use crate::client::{Reply, fetch, get, post, send};
use crate::gateway::{App, Gateway, mk_pool, mk_sandbox, soon, until};
use crate::program::{Program, free_address};

#[tokio::test]
async fn a_sleeping_app_is_woken_and_says_where_the_time_went() {
    let gateway = Gateway::start();
    let address = free_address().await;
    let app = gateway.app("shop", address.port());
    let _ = gateway.ingress.take_changes();

    let request = tokio::spawn(fetch(gateway.http, post("/echo", "hello")));
    soon("demand", gateway.ingress.changed()).await;
    app.reaches(1, 0).await;
    let changes = gateway.ingress.take_changes();
    assert_eq!(changes.iter().map(|demand| demand.queued).collect::<Vec<_>>(), [1]);

    let mut sandbox = SandboxConfig {
        id: mk_sandbox("one"),
        address: None,
        phase: SandboxPhase::Created,
        slots: Slots::Limited(1),
    };
    gateway.ingress.upsert_sandbox(&app.pool, &sandbox);
    sandbox.phase = SandboxPhase::Scheduled;
    sandbox.address = Some(address.ip());
    gateway.ingress.upsert_sandbox(&app.pool, &sandbox);
    // The feed never says that it is ready: the gateway finds out.
    let _program = Program::start_at("woken", address).await;

    let reply = soon("the woken app", request).await.unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.body.ends_with("\n\nhello"), "the body came along: {}", reply.body);
    let timing = reply.header("server-timing").expect("a woken request says where its time went");
    for stage in ["queue", "create", "schedule", "start", "connect"] {
        assert!(timing.contains(&format!("{stage};dur=")), "{timing}");
    }
    app.reaches(0, 0).await;
    let warm = fetch(gateway.http, get("/echo")).await;
    assert_eq!(warm.header("server-timing"), None, "a warm request did not wait");
    gateway.ended().await;
}

#[tokio::test]
async fn a_gateway_that_starts_beside_running_sandboxes_waits_for_none() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(10));
    let reply = fetch(gateway.http, get("/echo")).await;
    assert_eq!((reply.status.as_u16(), reply.header("server-timing")), (200, None));
    assert!(gateway.metric("wait_seconds_count") == 0.0, "nobody waited, so nobody asked for more");
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_sandbox_without_an_address_gets_nothing() {
    let program = Program::start().await;
    let gateway = Gateway::start();
    let app = gateway.app("shop", program.address.port());
    let nowhere = SandboxConfig {
        id: mk_sandbox("one"),
        address: None,
        phase: SandboxPhase::Ready,
        slots: Slots::Limited(1),
    };
    gateway.ingress.upsert_sandbox(&app.pool, &nowhere);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_http_probe_waits_for_success() {
    let gateway = Gateway::start();
    let program = Program::start().await;
    let app = gateway.app("shop", program.address.port());
    app.configure(&app.pool, program.address.port(), |config| {
        let (port, timeout) = (config.port, Duration::from_secs(1));
        let host = Some("probe".into());
        config.probe = Probe::Http { port, path: "/hold".into(), host, timeout };
    });
    let ip = program.address.ip();
    app.sandbox("one", ip, SandboxPhase::Scheduled, Slots::Unlimited);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    program.open_gate(100);
    assert_eq!(soon("the probe succeeds", request).await.unwrap().status, 200);
    assert_eq!(program.state.order.lock().iter().filter(|path| *path == "/echo").count(), 1);
}

#[tokio::test]
async fn an_http_probe_waits_as_long_as_it_says() {
    let gateway = Gateway::start();
    let program = Program::start().await;
    let app = gateway.app("shop", program.address.port());
    app.configure(&app.pool, program.address.port(), |config| {
        let (port, timeout) = (config.port, Duration::from_secs(5));
        config.probe = Probe::Http { port, path: "/slow".into(), host: None, timeout };
    });
    app.sandbox("one", program.address.ip(), SandboxPhase::Scheduled, Slots::Unlimited);
    assert_eq!(soon("an answer", fetch(gateway.http, get("/echo"))).await.status, 200);
    assert_eq!(*program.state.order.lock(), ["/slow", "/echo"]);
}

#[tokio::test]
async fn an_exec_probe_is_the_feeds() {
    let gateway = Gateway::start();
    let program = Program::start().await;
    let app = gateway.app("shop", program.address.port());
    app.configure(&app.pool, program.address.port(), |config| config.probe = Probe::Feed);
    let ip = program.address.ip();
    app.sandbox("one", ip, SandboxPhase::Scheduled, Slots::Unlimited);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    assert_eq!(program.connections(), 0, "nobody probes");
    app.sandbox("one", ip, SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_feeds_order_does_not_matter() {
    let gateway = Gateway::start();
    let program = Program::start().await;
    let app = App::new(&gateway, "shop");
    let (ip, port) = (program.address.ip(), program.address.port());
    // Sandbox, activation, route, and only then the pool.
    app.sandbox("one", ip, SandboxPhase::Ready, Slots::Unlimited);
    app.activate(1, &app.pool);
    app.route(|_| {});
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    tokio::task::yield_now().await;
    app.configure(&app.pool, port, |_| {});
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_pool_made_again_under_its_name_inherits_nothing() {
    let gateway = Gateway::start();
    let (old, new) = (Program::start().await, Program::start().await);
    let app = gateway.app("shop", old.address.port());
    app.sandbox("one", old.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);

    let again = mk_pool("shop", "uid-2");
    assert_eq!(again.name, PoolName { ..app.pool.name.clone() });
    app.configure(&again, new.address.port(), |_| {});
    gateway.ingress.remove_pool(&app.pool);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches_in(&again, 1, 0).await;
    app.sandbox_in(&again, "two", new.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
    assert_eq!(old.begun(), 1, "the old sandbox gets nothing more");
}

#[tokio::test]
async fn a_failed_start_is_told_at_once() {
    let gateway = Gateway::start();
    let app = gateway.app("shop", 1);
    let request = tokio::spawn(fetch(gateway.http, get("/")));
    app.reaches(1, 0).await;
    let failure = BootFailure { kind: FailureKind::Boot, reason: "CrashLooping".into() };
    let sandbox = SandboxConfig {
        id: mk_sandbox("one"),
        address: None,
        phase: SandboxPhase::Created,
        slots: Slots::Unlimited,
    };
    gateway.ingress.upsert_sandbox(&app.pool, &sandbox);
    gateway.ingress.set_pool_failure(&app.pool, Some(failure));
    let reply = soon("the waiting request fails", request).await.unwrap();
    reply.assert_error(503, "boot_failed");
    assert_eq!(reply.header("retry-after"), Some("10"));
    assert!(reply.body.contains("CrashLooping"), "{}", reply.body);

    let mut later = get("/");
    later.headers_mut().insert("accept", "application/json".parse().unwrap());
    let reply = fetch(gateway.http, later).await;
    reply.assert_error(503, "boot_failed");
    let json: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(json["error"]["reason"], "CrashLooping");
    assert_eq!(json["error"]["requestId"].as_str(), reply.header("x-request-id"));

    // A failure without a sandbox is history: the next request asks for one.
    gateway.ingress.remove_sandbox(&app.pool, "one-uid");
    let request = tokio::spawn(send(gateway.http, get("/")));
    app.reaches(1, 0).await;
    request.abort();
    app.reaches(0, 0).await;
    let kind = FailureKind::NoCapacity;
    let request = tokio::spawn(fetch(gateway.http, get("/")));
    app.reaches(1, 0).await;
    let failure = BootFailure { kind, reason: "Unschedulable".into() };
    gateway.ingress.set_pool_failure(&app.pool, Some(failure));
    soon("an answer", request).await.unwrap().assert_error(503, "no_capacity");
}

#[tokio::test]
async fn a_repaired_version_does_not_inherit_the_failures_of_the_broken_one() {
    let gateway = Gateway::start();
    let repaired = Program::start().await;
    let app = gateway.app("shop", 1);
    for number in 0..9 {
        let dead = SandboxConfig {
            id: mk_sandbox(&format!("dead-{number}")),
            address: None,
            phase: SandboxPhase::Created,
            slots: Slots::Unlimited,
        };
        gateway.ingress.upsert_sandbox(&app.pool, &dead);
    }
    let failure = BootFailure { kind: FailureKind::Boot, reason: "CrashLooping".into() };
    gateway.ingress.set_pool_failure(&app.pool, Some(failure));
    fetch(gateway.http, get("/echo")).await.assert_error(503, "boot_failed");

    let pool = mk_pool("shop-repaired", "uid-1");
    app.configure(&pool, repaired.address.port(), |_| {});
    app.activate(2, &pool);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches_in(&pool, 1, 0).await;
    app.sandbox_in(&pool, "new", repaired.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_wait_is_bounded_in_number_and_time() {
    let gateway = Gateway::start_with(|settings| {
        settings.queue_limit = 2;
        settings.wait = Duration::from_millis(300);
    });
    let app = gateway.app("shop", 1);
    let waiting: Vec<_> = (0..2).map(|_| tokio::spawn(fetch(gateway.http, get("/")))).collect();
    app.reaches(2, 0).await;
    let reply = fetch(gateway.http, get("/")).await;
    reply.assert_error(503, "queue_full");
    assert_eq!(reply.header("retry-after"), Some("5"));
    for request in waiting {
        let reply: Reply = soon("the wait ends", request).await.unwrap();
        reply.assert_error(503, "wait_timeout");
    }
    app.reaches(0, 0).await;
    assert!(gateway.metric("requests_queued") == 0.0);
}

#[tokio::test]
async fn a_service_without_a_version_says_so() {
    let gateway = Gateway::start();
    let app = App::new(&gateway, "shop");
    app.route(|_| {});
    fetch(gateway.http, get("/")).await.assert_error(503, "no_version");
    app.activate(1, &app.pool);
    gateway.ingress.deactivate(&app.service);
    fetch(gateway.http, get("/")).await.assert_error(503, "no_version");
}

#[tokio::test]
async fn who_asks_before_the_activation_is_seen_is_answered_all_the_same() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| {
        settings.no_version_wait = Duration::from_secs(60);
    });
    let app = App::new(&gateway, "shop");
    app.route(|_| {});
    let asked = tokio::spawn(fetch(gateway.http, get("/echo")));
    until("the request to be there", || {
        let running = gateway.metric("requests_in_flight");
        if running == 1.0 { Ok(()) } else { Err(running) }
    })
    .await;
    app.configure(&app.pool, program.address.port(), |_| {});
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    app.activate(1, &app.pool);
    assert_eq!(soon("an answer", asked).await.unwrap().status, 200);
}
