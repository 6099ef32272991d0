//! How many requests the sample program serves at once, by its own count.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::time::timeout;

use crate::get::get;

const PORT: u16 = 8080;
/// How long a program may take to say; one that starts or ends does not say.
const ANSWER_MAX: Duration = Duration::from_secs(1);

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
        let page = timeout(ANSWER_MAX, get((sandbox, PORT).into(), "it", "/concurrency"));
        Self::read(&page.await.context("wait for the program")??)
    }

    /// Reads the program's page.
    pub(crate) fn read(page: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(page).context("read a program's counts")
    }
}
