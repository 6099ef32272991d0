//! As many requests as a proxy takes: wrk on kept connections.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::peers;
use crate::program::Program;
use crate::roles::HOST;

/// What one turn of one proxy gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Requests per second.
    pub(crate) rate: f64,
    /// CPU time of the proxy per request, in microseconds.
    pub(crate) cpu: f64,
}

/// Loads a proxy for a while. Any answer but 200 and any broken connection is an error: what fails
/// fast is no measure.
pub(crate) async fn turn(
    proxy: &Program,
    connections: u32,
    time: Duration,
) -> anyhow::Result<Turn> {
    let before = proxy.cpu_seconds()?;
    let mut wrk = peers::wrk()?;
    wrk.args(["--threads", "1", "--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", time.as_secs())])
        .args(["--header", &format!("Host: {HOST}")])
        .arg(format!("http://{}/", proxy.address));
    let output = wrk.output().await.context("run wrk")?;
    let after = proxy.cpu_seconds()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    let (requests, rate) = read(&text).with_context(|| format!("read wrk's report:\n{text}"))?;
    Ok(Turn { rate, cpu: (after - before) * 1e6 / requests })
}

/// Requests and requests per second of a report without failures.
fn read(report: &str) -> anyhow::Result<(f64, f64)> {
    ensure!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "requests failed");
    let before = |marker: &str| report.split(marker).next()?.split_whitespace().last();
    let requests = before(" requests in ").context("no count of requests")?.parse()?;
    let rate = report.split("Requests/sec:").nth(1).and_then(|rest| rest.split_whitespace().next());
    Ok((requests, rate.context("no rate")?.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 50 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n  40000 requests in 2.00s, 5.1MB read\n\
        Requests/sec:  20000.50\nTransfer/sec:      2.5MB\n";

    #[test]
    fn a_report_gives_count_and_rate() {
        assert_eq!(read(REPORT).unwrap(), (40000.0, 20000.5));
    }

    #[test]
    fn a_report_with_failures_is_no_measure() {
        assert!(read(&format!("{REPORT}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(read(&format!("{REPORT}  Socket errors: connect 0, read 1\n")).is_err());
    }
}
