//! The gateway's own readiness probe: asks a new sandbox again and again until it answers.
//!
//! The kubelet probes once a second at best and its word travels through the API server; a request
//! that waits for a cold start should not pay for either.

use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::pool::Pool;
use crate::model::{Probe, SandboxId};

/// First pause between two attempts: below what a fast program needs to start.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause while the sandbox is new: bounds what the last attempt adds to a slow start.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Longest wait for a connection: a packet lost while the address is being set up must not cost a
/// TCP retransmission of one second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Wait for an answer, within which the probe's own limit counts: no program is asked more hastily
/// than it would be connected to, and one that answers after all is asked again before long.
const ANSWER_TIMEOUT_MIN: Duration = CONNECT_TIMEOUT;
const ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Bytes of a response read at most; its status line fits.
const RESPONSE_SIZE_MAX: usize = 512;

/// Probes one sandbox at one address.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) sandbox: SandboxId,
    pub(super) address: IpAddr,
    pub(super) probe: Probe,
}

impl Task {
    /// Ends when the sandbox answers, or when the pool says that the answer is of no use.
    pub(super) async fn run(self, pool: Weak<Pool>) {
        let Some(window) = pool.upgrade().map(|pool| pool.probe_window()) else { return };
        let began = Instant::now();
        let mut probe = self.probe.clone();
        let mut pause = PAUSE_MIN;
        loop {
            let succeeded = attempt(self.address, &probe).await;
            let Some(pool) = pool.upgrade() else { return };
            if succeeded {
                tracing::debug!(sandbox = %self.sandbox.name, "Sandbox answers the probe");
                return pool.probe_succeeded(&self);
            }
            match pool.next_probe(&self, began.elapsed() < window) {
                Some(next) => probe = next,
                None => return,
            }
            drop(pool);
            // A quarter either way, so that a hundred sandboxes woken at once spread out.
            sleep(pause.mul_f64(0.75 + fastrand::f64() * 0.5)).await;
            pause = (pause * 3 / 2).min(PAUSE_MAX);
        }
    }
}

/// One attempt; whatever goes wrong means "not yet".
async fn attempt(address: IpAddr, probe: &Probe) -> bool {
    match probe {
        Probe::Tcp { port } => connect((address, *port).into()).await.is_some(),
        Probe::Http { port, path, host, timeout: limit } => {
            let address = (address, *port).into();
            let Some(stream) = connect(address).await else { return false };
            let limit = (*limit).clamp(ANSWER_TIMEOUT_MIN, ANSWER_TIMEOUT_MAX);
            let status = timeout(limit, get(stream, address, path, host.as_deref())).await;
            status.ok().flatten().is_some_and(is_success)
        }
        Probe::Feed => false,
    }
}

async fn connect(address: SocketAddr) -> Option<TcpStream> {
    timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.ok()?.ok()
}

/// The kubelet's rule.
fn is_success(status: u16) -> bool {
    (200..400).contains(&status)
}

/// The status of a `GET`. Written by hand: a status line is all we want, and the text we send is
/// built from a path and a host that the feed has validated.
async fn get(
    mut stream: TcpStream,
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Option<u16> {
    let authority = match host {
        Some(host) => host.to_owned(),
        None => address.to_string(),
    };
    if [path, &authority].iter().any(|text| text.bytes().any(|b| b <= b' ' || b == 0x7f)) {
        return None;
    }
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: portolan-probe\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = Vec::with_capacity(RESPONSE_SIZE_MAX);
    let mut stream = stream.take(RESPONSE_SIZE_MAX as u64);
    while !response.contains(&b'\n') {
        if stream.read_buf(&mut response).await.ok()? == 0 {
            return None;
        }
    }
    status_of(&response)
}

fn status_of(response: &[u8]) -> Option<u16> {
    let status = response.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(status).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{is_success, status_of};

    #[test]
    fn a_status_line_is_read() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 503\r\n"), Some(503));
        assert_eq!(status_of(b"SSH-2.0-OpenSSH\r\n"), None);
        assert_eq!(status_of(b"HTTP/1.1 \n"), None);
    }

    #[test]
    fn redirects_count_as_success() {
        assert!(is_success(200) && is_success(399));
        assert!(!is_success(199) && !is_success(400));
    }
}
