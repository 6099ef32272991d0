//! Somebody from outside the cluster who asks for a host, through whatever happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Somebody who asks all the time, and takes no other answer than 200.
#[derive(Debug)]
pub struct Visitor {
    stop: CancellationToken,
    asking: JoinHandle<anyhow::Result<()>>,
    answers: Arc<AtomicU32>,
}

impl Visitor {
    /// Begins to ask for a host at a loopback port, one request after the other.
    #[must_use]
    pub fn start(port: u16, host: &'static str) -> Self {
        let (stop, answers) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let (told, counted) = (stop.clone(), Arc::clone(&answers));
        let asking = tokio::spawn(async move {
            while !told.is_cancelled() {
                let answer = ask(port, host).await?;
                let count = counted.fetch_add(1, Ordering::Relaxed);
                ensure!(is_good(&answer), "request {count} was answered {answer}");
            }
            Ok(())
        });
        Self { stop, asking, answers }
    }

    /// Stops asking.
    ///
    /// # Errors
    /// With the first request that was not answered 200, or when there were only a few.
    pub async fn leave(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.asking.await??;
        let count = self.answers.load(Ordering::Relaxed);
        ensure!(count > 100, "only {count} requests were answered meanwhile");
        Ok(())
    }
}

/// Whether an answer is one that a [`Visitor`] takes.
#[must_use]
pub fn is_good(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

/// One request on a connection of its own; the whole answer.
///
/// # Errors
/// When the connection breaks.
pub async fn ask(port: u16, host: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("send a request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("read the answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
