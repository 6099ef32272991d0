//! How many requests the sample program serves at once, by its own count.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PORT: u16 = 8080;
/// How long a program may take to say; one that starts or ends does not say.
const ANSWER_MAX: Duration = Duration::from_secs(1);
const REQUEST: &[u8] = b"GET /concurrency HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n";

/// Requests of one program, this question not counted.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Concurrency {
    /// That it serves now.
    pub now: u64,
    /// That it served at once at most, since it started.
    pub max: u64,
}

impl Concurrency {
    /// Asks the program in a sandbox; from a network namespace that reaches it.
    ///
    /// # Errors
    /// When it does not answer in a second, or not with its counts.
    pub async fn of(sandbox: IpAddr) -> anyhow::Result<Self> {
        let answer = timeout(ANSWER_MAX, async {
            let mut stream = TcpStream::connect((sandbox, PORT)).await.context("connect")?;
            stream.write_all(REQUEST).await.context("ask")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.context("read the answer")?;
            anyhow::Ok(answer)
        });
        let answer = answer.await.context("wait for the program")??;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "answered {answer:?}");
        let (_, page) = answer.split_once("\r\n\r\n").context("a page")?;
        Self::read(page)
    }

    /// Reads the program's page.
    ///
    /// # Errors
    /// When it says something else.
    pub fn read(page: &str) -> anyhow::Result<Self> {
        serde_json::from_str(page).context("read a program's counts")
    }
}
