//! Many clients at once on several threads: what holds for one request holds for all of them.

use std::time::Duration;

use portolan_ingress::{Concurrency, SandboxPhase, Slots};
use tokio::task::JoinSet;

use crate::client::{fetch, get, h1, post};
use crate::gateway::{App, Gateway, soon, until};
use crate::program::{Program, free_address};

const CLIENT_COUNT: usize = 24;
const REQUEST_COUNT: usize = 40;
const SLOTS: u32 = 3;

/// Two sandboxes with three slots each.
async fn pair(concurrency: Concurrency) -> (Gateway, App, [Program; 2]) {
    let gateway = Gateway::start();
    let first = Program::start().await;
    let port = first.address.port();
    let second = Program::start_at("second", ([127, 0, 0, 2], port).into()).await;
    let app = gateway.app("shop", port);
    app.configure(&app.pool, port, |config| config.concurrency = concurrency);
    for (name, program) in [("one", &first), ("two", &second)] {
        app.sandbox(name, program.address.ip(), SandboxPhase::Ready, Slots::Limited(SLOTS));
    }
    (gateway, app, [first, second])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_answered_once() {
    let (gateway, app, programs) = pair(Concurrency::Soft).await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENT_COUNT {
        let address = gateway.http;
        clients.spawn(async move {
            let mut sender = h1(address).await;
            for number in 0..REQUEST_COUNT {
                let text = format!("{client}-{number}");
                sender.ready().await.unwrap();
                let request = post("/echo", text.clone());
                let response = soon("a response", sender.send_request(request)).await.unwrap();
                let reply = crate::client::Reply::read(response).await;
                assert_eq!(reply.status, 200);
                assert!(reply.body.ends_with(&format!("\n\n{text}")), "{text}: {}", reply.body);
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let begun: usize = programs.iter().map(Program::begun).sum();
    assert_eq!(begun, CLIENT_COUNT * REQUEST_COUNT);
    for program in &programs {
        assert!(program.peak() <= SLOTS as usize, "{} at once", program.peak());
        assert!(program.begun() > 0, "both take part");
    }
    app.reaches(0, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_holds_while_clients_come_and_go() {
    let (gateway, app, programs) = pair(Concurrency::Strict).await;
    let mut clients = JoinSet::new();
    for client in 0..CLIENT_COUNT {
        let address = gateway.http;
        clients.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(client as u64);
            for _ in 0..REQUEST_COUNT {
                // Some give up while they wait, some while the program works.
                let patience = Duration::from_micros(rng.u64(..4_000));
                let _ = tokio::time::timeout(patience, fetch(address, get("/stubborn"))).await;
            }
        });
    }
    for program in &programs {
        program.open_gate(CLIENT_COUNT * REQUEST_COUNT);
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    app.reaches(0, 0).await;
    for program in &programs {
        assert!(program.peak() <= SLOTS as usize, "{} at once", program.peak());
    }
    let demand = app.demand();
    assert!(demand.sandboxes.iter().all(|sandbox| !sandbox.retired), "{demand:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_sleeping_apps_wake_at_once() {
    const APP_COUNT: usize = 100;
    let gateway = Gateway::start();
    let address = free_address().await;
    let apps: Vec<_> = (0..APP_COUNT)
        .map(|number| gateway.app(&format!("app-{number}"), address.port()))
        .collect();
    let mut requests = JoinSet::new();
    for number in 0..APP_COUNT {
        let mut request = get("/echo");
        let host = format!("app-{number}.example").parse().unwrap();
        request.headers_mut().insert("host", host);
        requests.spawn(fetch(gateway.http, request));
    }
    let mut seen = std::collections::BTreeSet::new();
    until("demand for each", || {
        let changes = gateway.ingress.take_changes();
        let awaited = changes.into_iter().filter(|demand| demand.queued > 0);
        seen.extend(awaited.map(|demand| demand.pool));
        if seen.len() == APP_COUNT { Ok(()) } else { Err(seen.len()) }
    })
    .await;
    for app in &apps {
        app.sandbox("one", address.ip(), SandboxPhase::Scheduled, Slots::Limited(1));
    }
    let _program = Program::start_at("all", address).await;
    while let Some(reply) = soon("an answer", requests.join_next()).await {
        assert_eq!(reply.unwrap().status, 200);
    }
}
