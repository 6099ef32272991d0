//! The names of services inside the cluster, and who is told them.

use http::Request;
use portolan_ingress::{HostPattern, SandboxPhase, Slots};

use crate::client::{Body, Reply, empty, fetch, h2};
use crate::gateway::{App, Gateway, soon};
use crate::program::{Program, free_address};

fn ask(host: &str) -> Request<Body> {
    Request::get("/echo").header("host", host).body(empty()).unwrap()
}

/// A gateway that serves the service `web` of `shop` in `team-a` by its name, and as a route.
async fn serving() -> (Gateway, App, Program) {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(10));
    app.name();
    (gateway, app, program)
}

#[tokio::test]
async fn a_service_is_answered_in_every_form_of_its_name() {
    let (gateway, _app, _program) = serving().await;
    for host in [
        "shop-web.team-a",
        "shop-web.team-a:8080",
        "Shop-Web.Team-A",
        "shop-web.team-a.",
        "shop-web.team-a.svc",
        "shop-web.team-a.svc:80",
        "shop-web.team-a.svc.cluster.local",
        "shop-web.team-a.svc.cluster.local.:3000",
        "SHOP-WEB.team-a.SVC.Cluster.Local",
    ] {
        let reply = fetch(gateway.internal, ask(host)).await;
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
        assert!(!reply.headers.contains_key("location"), "nothing is redirected inside");
    }
    assert!(gateway.metric("requests_total{listener=\"internal\",class=\"2xx\"}") == 9.0);
    assert!(gateway.metric("requests_total{listener=\"public\",class=\"2xx\"}") == 0.0);
    gateway.ended().await;
}

#[tokio::test]
async fn other_hosts_are_unknown_inside() {
    let (gateway, app, program) = serving().await;
    // A default route is for visitors: callers inside do not get what they did not name.
    app.route(|config| config.host = HostPattern::Default);
    for host in [
        "shop-web",
        "shop.example",
        "shop-api.team-a",
        "other-web.team-a",
        "shop-web.team-b",
        "shop-web.team-a.cluster.local",
        "shop-web.team-a.svc.other.local",
        "shop-web.team-a.pod.cluster.local",
        "team-a.svc.cluster.local",
        "10.0.0.1",
    ] {
        fetch(gateway.internal, ask(host)).await.assert_error(404, "no_route");
    }
    for host in ["label.shop-web.team-a", "label.shop-web.team-a.svc.cluster.local"] {
        fetch(gateway.internal, ask(host)).await.assert_error(404, "unknown_preview");
    }
    assert_eq!(program.begun(), 0, "nothing of it came through");
}

#[tokio::test]
async fn visitors_cannot_ask_for_names() {
    let (gateway, _app, program) = serving().await;
    for host in ["shop-web.team-a", "shop-web.team-a.svc", "shop-web.team-a.svc.cluster.local"] {
        fetch(gateway.http, ask(host)).await.assert_error(404, "no_route");
    }
    assert_eq!(program.begun(), 0, "nothing of it came through");
    assert_eq!(fetch(gateway.http, ask("shop.example")).await.status, 200, "the route is there");
}

#[tokio::test]
async fn a_name_that_goes_is_answered_no_longer() {
    let (gateway, app, _program) = serving().await;
    gateway.ingress.set_service_name("shop-web.team-a", None);
    fetch(gateway.internal, ask("shop-web.team-a")).await.assert_error(404, "no_route");
    assert_eq!(fetch(gateway.http, ask("shop.example")).await.status, 200, "the route stays");
    assert!(gateway.metric("names") == 0.0);
    app.name();
    assert_eq!(fetch(gateway.internal, ask("shop-web.team-a")).await.status, 200);
}

#[tokio::test]
async fn what_was_not_read_is_not_denied_inside() {
    let gateway = Gateway::unsynced();
    fetch(gateway.internal, ask("shop-web.team-a")).await.assert_error(503, "not_synced");
}

#[tokio::test]
async fn a_call_from_inside_wakes_and_waits_as_a_visitor_does() {
    let gateway = Gateway::start();
    let address = free_address().await;
    let app = App::new(&gateway, "shop");
    app.name();
    app.configure(&app.pool, address.port(), |_| {});
    app.activate(1, &app.pool);
    let calls: Vec<_> =
        (0..2).map(|_| tokio::spawn(fetch(gateway.internal, ask("shop-web.team-a")))).collect();
    app.reaches(2, 0).await;
    let _program = Program::start_at("woken", address).await;
    // One slot: the second call waits for the first, whatever door they came by.
    app.sandbox("one", address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    for call in calls {
        let reply: Reply = soon("the woken service", call).await.unwrap();
        assert_eq!(reply.status, 200);
        assert!(reply.header("server-timing").is_some(), "it says where the time went");
    }
    app.reaches(0, 0).await;
    gateway.ended().await;
}

#[tokio::test]
async fn http2_is_spoken_inside() {
    let (gateway, _app, _program) = serving().await;
    let mut sender = h2(gateway.internal).await;
    let request = Request::get("http://shop-web.team-a.svc/echo").body(empty()).unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    assert_eq!(Reply::read(response).await.status, 200);
}
