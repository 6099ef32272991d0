//! People who ask one gateway for one page, again and again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::node_name;
use portolan_cluster::wait;
use portolan_soak::inside::Inside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The port of gateways inside the cluster.
const PORT: u16 = 8080;
/// How long somebody waits for an answer: longer than anything here makes them wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// Between two requests of one of them, so that the machine has something left for others.
const PAUSE: Duration = Duration::from_millis(50);

/// What people got until they left.
pub(crate) struct Left {
    /// Answers with 200.
    pub(crate) answers: usize,
    /// What they got instead.
    pub(crate) failures: Vec<String>,
}

/// People at one gateway.
pub(crate) struct Crowd {
    inside: Inside<Vec<String>>,
    answers: Arc<AtomicUsize>,
}

impl Crowd {
    /// So many people begin to ask at this gateway itself, from the first node.
    pub(crate) fn gather(
        cluster: &Cluster,
        gateway: IpAddr,
        people: usize,
        host: &str,
        path: &str,
    ) -> anyhow::Result<Self> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answers = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&answers);
        let inside = Inside::start(cluster, &node_name(1), move |stop| async move {
            let mut crowd = JoinSet::new();
            for _ in 0..people {
                let (request, counted, stop) = (request.clone(), counted.clone(), stop.clone());
                crowd.spawn(visit((gateway, PORT).into(), request, counted, stop));
            }
            crowd.join_all().await.concat()
        })?;
        Ok(Self { inside, answers })
    }

    /// How many have been answered 200 so far.
    pub(crate) fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits until they have got more than so many answers.
    pub(crate) async fn until_more_than(&self, count: usize) -> anyhow::Result<()> {
        wait::until("people to be answered", wait::PATIENCE, async || {
            let answers = self.answers();
            ensure!(answers > count, "{answers}, not more than {count}");
            anyhow::Ok(())
        })
        .await
    }

    /// Lets everybody get the answer that they wait for.
    pub(crate) async fn leave(self) -> anyhow::Result<Left> {
        let failures = self.inside.end().await?;
        Ok(Left { answers: self.answers.load(Ordering::Relaxed), failures })
    }
}

async fn visit(
    gateway: SocketAddr,
    request: String,
    answers: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.is_cancelled() {
        match timeout(ANSWER_LIMIT, ask(gateway, &request)).await {
            Ok(Ok(_)) => {
                answers.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Err(error)) => failures.push(format!("{error:#}")),
            Err(_) => failures.push(format!("no answer in {ANSWER_LIMIT:?}")),
        }
        tokio::time::sleep(PAUSE).await;
    }
    failures
}

/// Asks on a connection of its own; the whole answer, if it is a good one.
async fn ask(address: SocketAddr, request: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    stream.write_all(request.as_bytes()).await.context("ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("read the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "answered {answer:?}");
    Ok(answer)
}
