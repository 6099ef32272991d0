//! How many requests were in a sandbox at once, by its program's own count.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use portolan_cluster::cluster::Cluster;
use portolan_cluster::network::node_name;
use portolan_soak::concurrency::Concurrency;
use portolan_soak::inside::Inside;
use tokio::time::sleep;

use crate::scene::TEAM;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A look at all sandboxes of an App, those on their way out included, again and again.
pub(crate) struct Counts {
    inside: Inside<()>,
    addresses: tokio::task::JoinHandle<()>,
    seen: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
}

impl Counts {
    /// Begins to look at the sandboxes of `app`.
    pub(crate) async fn start(cluster: &Cluster, app: &str) -> anyhow::Result<Self> {
        let pods: Api<Pod> = Api::namespaced(cluster.client().await?, TEAM);
        let selector = ListParams::default().labels(&format!("portolan.dev/app={app}"));
        let (tell, known) = tokio::sync::watch::channel(Vec::new());
        // The API server is reached from here, and the programs from a node.
        let addresses = tokio::spawn(async move {
            loop {
                if let Ok(pods) = pods.list(&selector).await {
                    let now = pods.items.iter().filter_map(address_of).collect();
                    tell.send_replace(now);
                }
                sleep(LOOK_INTERVAL).await;
            }
        });
        let seen = Arc::<Mutex<BTreeMap<IpAddr, u64>>>::default();
        let noted = Arc::clone(&seen);
        let inside = Inside::start(cluster, &node_name(1), move |stop| async move {
            while !stop.is_cancelled() {
                let known: Vec<IpAddr> = known.borrow().clone();
                for address in known {
                    if let Ok(Concurrency { max, .. }) = Concurrency::of(address).await {
                        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                        let most = noted.entry(address).or_default();
                        *most = max.max(*most);
                    }
                }
                sleep(LOOK_INTERVAL).await;
            }
        })?;
        Ok(Self { inside, addresses, seen })
    }

    /// Looks a last time. No sandbox had more than `limit` at once, and somebody asked.
    pub(crate) async fn never_more_than(self, limit: u64) -> anyhow::Result<()> {
        sleep(3 * LOOK_INTERVAL).await;
        self.addresses.abort();
        self.inside.end().await?;
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let most = seen.values().copied().max().unwrap_or_default();
        ensure!(most > 0, "nobody asked: {seen:?}");
        ensure!(most <= limit, "the most at once, by address: {seen:?}, and {limit} are allowed");
        Ok(())
    }
}

fn address_of(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}
