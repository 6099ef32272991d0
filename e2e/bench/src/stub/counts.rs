//! How many writes reached the API server, from its own metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Request;
use kube::Client;
use tokio::time::{Instant, sleep};

/// Requests that change something, by `resource` or `resource/subresource`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Writes(BTreeMap<String, u64>);

/// What the kubelet, the scheduler and kwok write, and what every cluster writes at rest.
const OTHERS: [&str; 7] = [
    "bindings",
    "leases",
    "nodes",
    "nodes/status",
    "pods/binding",
    "pods/status",
    "serviceaccounts/token",
];

impl Writes {
    /// All since the API server started.
    pub(super) async fn read(client: &Client) -> anyhow::Result<Self> {
        let request = Request::get("/metrics").body(Vec::new())?;
        let text = client.request_text(request).await.context("read the API server's metrics")?;
        Ok(Self::of(&text))
    }

    /// All since the API server started, once none came for `pause`.
    pub(super) async fn settled(
        client: &Client,
        pause: Duration,
        limit: Duration,
    ) -> anyhow::Result<Self> {
        let began = Instant::now();
        let mut last = Self::read(client).await?;
        loop {
            sleep(pause).await;
            let now = Self::read(client).await?;
            let new = now.since(&last);
            if new.total() == 0 {
                return Ok(now);
            }
            ensure!(began.elapsed() < limit, "still written: {}", new.text(1.0));
            last = now;
        }
    }

    fn of(metrics: &str) -> Self {
        let mut writes = BTreeMap::new();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("apiserver_request_total{") else { continue };
            let Some((labels, count)) = rest.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let value = labels.split(&format!("{name}=\"")).nth(1)?;
                value.split('"').next()
            };
            let is_write = matches!(
                label("verb"),
                Some("POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" | "DELETECOLLECTION")
            );
            // Refused ones changed nothing, but cost as much; only lost creations are not counted.
            let Some(resource) = label("resource").filter(|_| is_write) else { continue };
            let name = match label("subresource").unwrap_or_default() {
                "" => resource.to_owned(),
                subresource => format!("{resource}/{subresource}"),
            };
            let count = count.parse::<f64>().unwrap_or_default();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a counter is a whole number"
            )]
            let count = count as u64;
            *writes.entry(name).or_default() += count;
        }
        Self(writes)
    }

    /// What came since `before`, without what others write.
    pub(super) fn since(&self, before: &Self) -> Self {
        let new = self.0.iter().map(|(name, count)| {
            let before = before.0.get(name).copied().unwrap_or_default();
            (name.clone(), count.saturating_sub(before))
        });
        let new = new.filter(|(name, count)| *count > 0 && !OTHERS.contains(&name.as_str()));
        Self(new.collect())
    }

    /// The same without so many of one resource.
    pub(super) fn less(mut self, resource: &str, count: u64) -> Self {
        if let Some(all) = self.0.get_mut(resource) {
            *all = all.saturating_sub(count);
        }
        self
    }

    pub(super) fn get(&self, resource: &str) -> u64 {
        self.0.get(resource).copied().unwrap_or_default()
    }

    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// `resource n.n` for each, the most written first, per `unit`.
    pub(super) fn text(&self, unit: f64) -> String {
        let mut entries: Vec<_> = self.0.iter().collect();
        entries.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
        #[expect(clippy::cast_precision_loss, reason = "a count of one run")]
        let entries =
            entries.iter().map(|(name, count)| format!("{name} {:.2}", **count as f64 / unit));
        entries.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_and_reads_are_not() {
        let metrics = |apps: u32, binding: u32| {
            format!(
                "apiserver_request_total{{code=\"200\",group=\"portolan.dev\",resource=\"apps\",\
                 subresource=\"status\",verb=\"APPLY\"}} {apps}\n\
                 apiserver_request_total{{code=\"201\",resource=\"pods\",subresource=\"binding\",\
                 verb=\"POST\"}} {binding}\n\
                 apiserver_request_total{{code=\"200\",resource=\"apps\",subresource=\"\",\
                 verb=\"LIST\"}} 99\n"
            )
        };
        let (before, after) = (Writes::of(&metrics(2, 1)), Writes::of(&metrics(7, 9)));
        let new = after.since(&before);
        assert_eq!((new.total(), new.get("apps/status"), new.get("apps")), (5, 5, 0));
        assert_eq!(new.text(2.0), "apps/status 2.50");
    }
}
