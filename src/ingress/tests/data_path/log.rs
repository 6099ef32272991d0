//! The access log: one event per request, nothing in it that is not ours to keep.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use portolan_ingress::{AccessLog, SandboxPhase, Slots};
use serde_json::Value;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use crate::client::{fetch, get, post, send};
use crate::gateway::{Gateway, until};
use crate::program::Program;

/// What was logged of requests.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Begins to collect, until the guard is dropped. The runtime of a test has one thread, which
    /// is the one that calls this.
    pub(crate) fn collect() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_env_filter("access=info")
            .with_writer(lines.clone())
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn read(&self) -> Vec<Value> {
        let bytes = self.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) async fn reach(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} lines"), || {
            let lines = self.read();
            if lines.len() == count { Ok(()) } else { Err(lines) }
        })
        .await;
        self.read()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn requests_are_logged_without_secrets() {
    let (lines, _logging) = Lines::collect();
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| settings.access_log = AccessLog::On);
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);

    let reply = fetch(gateway.http, post("/echo?token=secret", "body")).await;
    let logged = lines.reach(1).await;
    assert_eq!((&logged[0]["target"], &logged[0]["level"]), (&"access".into(), &"INFO".into()));
    let fields = &logged[0]["fields"];
    let expected = serde_json::json!({
        "message": "Request",
        "method": "POST",
        "host": "shop.example",
        "path": "/echo",
        "status": 200,
        "bytes": reply.body.len(),
        "duration_ms": fields["duration_ms"],
        "request_id": reply.header("x-request-id"),
    });
    assert_eq!(*fields, expected);
    assert!(fields["duration_ms"].as_f64().unwrap() > 0.0);

    fetch(gateway.http, get("/.well-known/miren/x")).await.assert_error(404, "blocked");
    assert_eq!(lines.reach(2).await[1]["fields"]["code"], "blocked");

    let given_up = tokio::spawn(send(gateway.http, get("/never")));
    app.reaches(0, 1).await;
    given_up.abort();
    assert_eq!(lines.reach(3).await[2]["fields"]["status"], 499);
    assert!(gateway.metric("requests_cancelled_total") == 1.0);
}

#[tokio::test]
async fn a_long_path_is_cut() {
    let (lines, _logging) = Lines::collect();
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| settings.access_log = AccessLog::On);
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let path = format!("/{}", "x".repeat(5_000));
    assert_eq!(fetch(gateway.http, get(&path)).await.status, 200);
    assert_eq!(lines.reach(1).await[0]["fields"]["path"], path[..2048]);
}
