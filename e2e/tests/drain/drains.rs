//! The node of an App's only sandbox is drained.

use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_cluster::network::OUTSIDE;
use portolan_soak::inside::Inside;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scene::{Scene, door};

/// A request that is under way when the drain begins, and ends within what a sandbox is given to
/// end: 30 s unless the App says otherwise.
const LONG: &str = "GET /slow?ms=20000 HTTP/1.1\r\nHost: shop.portolan.test\r\n\
                    Connection: close\r\n\r\n";

/// How long a visitor may wait while the only sandbox is replaced: a start, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(15);

pub(crate) async fn the_only_sandbox_moves(scene: &mut Scene) -> anyhow::Result<()> {
    let before = scene.sandbox()?;
    let node = before.node.clone();
    let tally = scene
        .visited(async |scene| {
            let (asked, begun) = tokio::sync::oneshot::channel();
            let long = Inside::start(&scene.cluster, OUTSIDE, |_| ask_long(asked))?;
            begun.await.context("the long request")?;
            scene.kubectl("default", &drain(&node))?;
            let answer = long.end().await??;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "the long request: {answer}");
            Ok(())
        })
        .await?;
    let after = scene.sandbox()?;
    ensure!(after.uid() != before.uid() && after.node != node, "{before:?}, now {after:?}");
    let longest = tally.quantile(1.0);
    eprintln!("    of {} visitors nobody waited longer than {longest:?}", tally.asked());
    ensure!(longest < WAIT_MAX, "somebody waited {longest:?}");
    scene.kubectl("default", &["uncordon", &node])?;
    scene.ready()
}

fn drain(node: &str) -> [&str; 6] {
    let limit = "--timeout=180s";
    ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", limit]
}

/// Asks what takes long, says when it is asked, and gives the whole answer.
async fn ask_long(asked: tokio::sync::oneshot::Sender<()>) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(door()).await.context("connect")?;
    stream.write_all(LONG.as_bytes()).await.context("ask")?;
    // Whoever waits for it has gone only if the test failed.
    let _ = asked.send(());
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.context("read the answer")?;
    Ok(answer)
}
