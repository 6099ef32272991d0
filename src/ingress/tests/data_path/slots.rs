//! How many requests run where, and who is next.

use std::time::Duration;

use portolan_ingress::{Probe, SandboxPhase, Slots};

use crate::client::{fetch, get, h1, post, read_until, send};
use crate::gateway::{App, Gateway, mk_pool, soon, until};
use crate::program::{Program, free_address};

#[tokio::test]
async fn never_more_than_the_granted_slots() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(4));
    let requests: Vec<_> =
        (0..20).map(|_| tokio::spawn(fetch(gateway.http, get("/hold")))).collect();
    app.reaches(16, 4).await;
    program.begins(4).await;
    program.open_gate(20);
    for request in requests {
        assert_eq!(soon("an answer", request).await.unwrap().status, 200);
    }
    assert_eq!(program.peak(), 4);
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn slots_go_to_the_head_of_the_queue() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let mut requests = Vec::new();
    for number in 0..5_u32 {
        let path = format!("/hold/{number}");
        requests.push(tokio::spawn(fetch(gateway.http, get(&path))));
        app.reaches(number, 1).await;
    }
    program.open_gate(5);
    for request in requests {
        assert_eq!(soon("an answer", request).await.unwrap().status, 200);
    }
    let expected: Vec<_> = (0..5).map(|number| format!("/hold/{number}")).collect();
    assert_eq!(*program.state.order.lock(), expected);
}

#[tokio::test]
async fn raising_the_grant_serves_those_who_wait() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(0));
    let requests: Vec<_> =
        (0..3).map(|_| tokio::spawn(fetch(gateway.http, get("/echo")))).collect();
    app.reaches(3, 0).await;
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Limited(2));
    for request in requests {
        assert_eq!(soon("an answer", request).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_queue() {
    let gateway = Gateway::start();
    let app = gateway.app("shop", 1);
    let request = tokio::spawn(send(gateway.http, get("/")));
    app.reaches(1, 0).await;
    request.abort();
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_given_up_request_frees_its_slot_with_its_connection() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let request = tokio::spawn(send(gateway.http, get("/never")));
    app.reaches(0, 1).await;
    request.abort();
    app.reaches(0, 0).await;
    until("the program notices", || {
        let running = program.state.running.load(std::sync::atomic::Ordering::SeqCst);
        if running == 0 { Ok(()) } else { Err(running) }
    })
    .await;
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
}

#[tokio::test]
async fn a_response_given_up_midway_frees_its_slot() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let response = send(gateway.http, get("/ticks")).await;
    program.tick("one");
    app.reaches(0, 1).await;
    drop(response);
    app.reaches(0, 0).await;
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
}

#[tokio::test]
async fn a_switch_takes_the_waiting_along_and_leaves_the_running() {
    let (old, new) = (Program::start().await, Program::start().await);
    let (gateway, app) = Gateway::serving(old.address, Slots::Limited(1));
    let running = tokio::spawn(fetch(gateway.http, get("/hold")));
    app.reaches(0, 1).await;
    let waiting = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 1).await;

    let pool = mk_pool("shop-next", "uid-1");
    app.configure(&pool, new.address.port(), |_| {});
    app.activate(2, &pool);
    app.reaches(0, 1).await;
    app.reaches_in(&pool, 1, 0).await;
    app.sandbox_in(&pool, "two", new.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    assert_eq!(soon("the waiting one", waiting).await.unwrap().status, 200);
    assert_eq!((old.begun(), new.begun()), (1, 1));

    // An epoch from before is ignored; the same app made again is not.
    app.activate(1, &app.pool);
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
    assert_eq!((old.begun(), new.begun()), (1, 2));

    old.open_gate(1);
    assert_eq!(soon("the running one", running).await.unwrap().status, 200);
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_draining_sandbox_ends_what_runs_and_takes_nothing() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    let running = tokio::spawn(fetch(gateway.http, get("/hold")));
    app.reaches(0, 1).await;
    let ip = program.address.ip();
    app.sandbox("one", ip, SandboxPhase::Draining { epoch: 3 }, Slots::Unlimited);
    let waiting = tokio::spawn(send(gateway.http, get("/echo")));
    app.reaches(1, 1).await;
    let load = app.demand().sandboxes.remove(0);
    assert_eq!((load.draining, load.running), (Some(3), 1));
    program.open_gate(1);
    assert_eq!(soon("the running one", running).await.unwrap().status, 200);
    app.reaches(1, 0).await;
    waiting.abort();
}

#[tokio::test]
async fn a_removed_sandbox_stays_counted_until_it_is_free() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Unlimited);
    let running = tokio::spawn(fetch(gateway.http, get("/hold")));
    app.reaches(0, 1).await;
    gateway.ingress.remove_sandbox(&app.pool, "one-uid");
    let demand = app.demand();
    assert_eq!((demand.running, demand.sandboxes.len()), (1, 0));
    program.open_gate(1);
    assert_eq!(soon("the running one", running).await.unwrap().status, 200);
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_dead_sandbox_is_tried_once_and_the_body_is_not_lost() {
    let dead = free_address().await;
    let alive = Program::start_at("alive", ([127, 0, 0, 2], dead.port()).into()).await;
    let gateway = Gateway::start();
    let app = gateway.app("shop", dead.port());
    app.sandbox("dead", dead.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let body = "x".repeat(100_000);
    let request = tokio::spawn(fetch(gateway.http, post("/echo", body.clone())));
    until("the dead one is found out", || {
        if gateway.metric("retries_total") == 1.0 { Ok(()) } else { Err(()) }
    })
    .await;
    app.reaches(1, 0).await;
    app.sandbox("alive", alive.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let reply = soon("the other one", request).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("x-program")), (200, Some("alive")));
    assert!(reply.body.ends_with(&body), "the whole body arrived");
    assert_eq!(alive.begun(), 1);
    for _ in 0..10 {
        assert_eq!(fetch(gateway.http, get("/echo")).await.header("x-program"), Some("alive"));
    }
    assert!(gateway.metric("retries_total") == 1.0, "the dead one is forgotten");
}

#[tokio::test]
async fn two_dead_sandboxes_are_enough() {
    let dead = free_address().await;
    let gateway = Gateway::start();
    let app = gateway.app("shop", dead.port());
    for (name, ip) in [("one", [127, 0, 0, 1]), ("two", [127, 0, 0, 2])] {
        app.sandbox(name, ip.into(), SandboxPhase::Ready, Slots::Unlimited);
    }
    fetch(gateway.http, get("/")).await.assert_error(502, "upstream_connect");
}

#[tokio::test]
async fn a_program_that_listens_again_is_found_again() {
    let gateway = Gateway::start();
    let address = free_address().await;
    let app = gateway.app("shop", address.port());
    app.sandbox("one", address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    let _program = Program::start_at("again", address).await;
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn it_is_found_again_however_slowly_it_answers_its_own_probe() {
    let gateway = Gateway::start();
    let address = free_address().await;
    let app = gateway.app("shop", address.port());
    app.configure(&app.pool, address.port(), |config| {
        let (port, timeout) = (config.port, Duration::from_millis(100));
        config.probe = Probe::Http { port, path: "/slow".into(), host: None, timeout };
    });
    app.sandbox("one", address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    let program = Program::start_at("again", address).await;
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
    assert_eq!(*program.state.order.lock(), ["/echo"], "the feed's word on its health holds");
}

#[tokio::test]
async fn readiness_taken_back_stops_new_requests() {
    let gateway = Gateway::start();
    let program = Program::start().await;
    let app = gateway.app("shop", program.address.port());
    app.configure(&app.pool, program.address.port(), |config| {
        config.probe = Probe::Feed;
    });
    let ip = program.address.ip();
    app.sandbox("one", ip, SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
    app.sandbox("one", ip, SandboxPhase::Scheduled, Slots::Unlimited);
    let request = tokio::spawn(fetch(gateway.http, get("/echo")));
    app.reaches(1, 0).await;
    app.sandbox("one", ip, SandboxPhase::Ready, Slots::Unlimited);
    assert_eq!(soon("an answer", request).await.unwrap().status, 200);
}

#[tokio::test]
async fn connections_to_a_sandbox_are_used_again() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    let mut sender = h1(gateway.http).await;
    for _ in 0..20 {
        sender.ready().await.unwrap();
        let response = sender.send_request(get("/echo")).await.unwrap();
        crate::client::Reply::read(response).await;
    }
    assert_eq!(program.connections(), 1);
    assert!(gateway.metric("upstream_connections_idle") == 1.0);
    until("unused connections are closed", || {
        let open = gateway.metric("upstream_connections");
        if open == 0.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert!(gateway.metric("upstream_connections_idle") == 0.0);
}

#[tokio::test]
async fn a_connection_the_program_closed_costs_no_request() {
    use tokio::io::AsyncWriteExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (gateway, _app) = Gateway::serving(address, Slots::Unlimited);
    // A program that says keep-alive and closes nevertheless.
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    });
    for _ in 0..50 {
        let reply = fetch(gateway.http, get("/")).await;
        assert_eq!(reply.status, 200);
        // Its end may arrive together with the next request; that one would be lost, and may not
        // be repeated. Here it has arrived.
        until("the end of the connection arrives", || {
            let open = gateway.metric("upstream_connections");
            if open == 0.0 { Ok(()) } else { Err(open) }
        })
        .await;
    }
}

#[tokio::test]
async fn an_address_that_is_used_again_belongs_to_its_new_sandbox() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
    app.sandbox("two", program.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    // The news of the end of the old one comes late.
    gateway.ingress.remove_sandbox(&app.pool, "one-uid");
    for _ in 0..3 {
        assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
    }
    assert_eq!(program.connections(), 2, "a connection to the old one is of no use to the new one");
    let sandboxes = app.demand().sandboxes;
    assert_eq!(sandboxes.len(), 1, "{sandboxes:?}");
}

#[tokio::test]
async fn two_apps_do_not_meet() {
    let (one, two) = (Program::start().await, Program::start().await);
    let (gateway, app) = Gateway::serving(one.address, Slots::Limited(1));
    let other: App = gateway.app("other", two.address.port());
    other.sandbox("two", two.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    let held = tokio::spawn(send(gateway.http, get("/hold")));
    app.reaches(0, 1).await;
    let mut request = get("/echo");
    request.headers_mut().insert("host", "other.example".parse().unwrap());
    assert_eq!(fetch(gateway.http, request).await.status, 200);
    held.abort();
}
