//! The admin pages, asked over a real socket.

use std::net::SocketAddr;

use portolan_process::{AdminServer, Metrics, Readiness};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

struct Running {
    address: SocketAddr,
    readiness: Readiness,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn start() -> Running {
    let readiness = Readiness::new();
    let stop = CancellationToken::new();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server =
        AdminServer::bind(any, Metrics::new("portolan"), readiness.clone()).await.expect("bind");
    let address = server.address();
    let serving = server.serve(stop.clone());
    let task = tokio::spawn(async move { serving.await.expect("served") });
    Running { address, readiness, stop, task }
}

impl Running {
    #[track_caller]
    fn check(response: &str, status: &str, body: &str) {
        let (head, found) = response.split_once("\r\n\r\n").expect("a whole response");
        let line = head.lines().next().expect("a status line");
        assert_eq!((line, found), (format!("HTTP/1.1 {status}").as_str(), body));
    }

    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let request = format!("{request} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("text until the end");
        response
    }
}

#[tokio::test]
async fn readiness_lists_the_gates_that_are_closed() {
    let running = start().await;
    let mut gate = running.readiness.gate("app.caches");
    let closed = "503 Service Unavailable";
    Running::check(&running.ask("GET /readyz").await, closed, "not ready: app.caches\n");
    gate.open();
    Running::check(&running.ask("GET /readyz").await, "200 OK", "ready\n");
}

#[tokio::test]
async fn liveness_does_not_depend_on_readiness() {
    let running = start().await;
    let _closed = running.readiness.gate("api");
    Running::check(&running.ask("GET /healthz").await, "200 OK", "ok\n");
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let running = start().await;
    let response = running.ask("GET /metrics").await;
    assert!(response.contains("application/openmetrics-text; version=1.0.0"), "{response}");
    Running::check(&response, "200 OK", "# EOF\n");
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let running = start().await;
    let not_found = running.ask("GET /").await;
    Running::check(&not_found, "404 Not Found", "see /metrics, /healthz, /readyz\n");
    let refused = running.ask("POST /metrics").await;
    Running::check(&refused, "405 Method Not Allowed", "only GET and HEAD\n");
}

#[tokio::test]
async fn a_cancelled_token_ends_the_server() {
    let running = start().await;
    running.stop.cancel();
    running.task.await.unwrap();
    assert!(TcpStream::connect(running.address).await.is_err(), "the socket must be closed");
}
