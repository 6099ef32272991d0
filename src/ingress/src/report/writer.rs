//! The reports of a gateway: its demand, its state.

use std::time::Duration;

use portolan_api::{GatewayReport, GatewayReportSpec, ReportShard, SandboxPool};
use portolan_process::ErrorChain;
use portolan_reconcile::{Cache, Context, ObjectKey, RunError, Writer};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::Ingress;
use crate::feed::PoolFacts;
use crate::report::book::{Book, Due};
use crate::report::{COMPONENT, Identity, PAUSE, State};

/// Least time between two reports: what comes within it goes into one. Somebody who comes alone
/// waits for nothing.
const BATCH: Duration = Duration::from_millis(10);
/// Least time between two reports of which nobody waits for the second.
const LEISURE: Duration = Duration::from_secs(1);

/// Writes what one gateway sees.
pub struct Reporter {
    writer: Writer,
    identity: Identity,
    ingress: Ingress,
    state: State,
    pools: Cache<SandboxPool, PoolFacts>,
    ctx: Context,
}

impl Reporter {
    /// A reporter for what `ingress` serves and `state` holds.
    pub fn new(
        ctx: &Context,
        identity: Identity,
        ingress: Ingress,
        state: State,
        feed: &crate::feed::Feed,
    ) -> Self {
        let pools = feed.pools.clone();
        Self { writer: ctx.writer(COMPONENT), identity, ingress, state, pools, ctx: ctx.clone() }
    }

    /// Writes until the context shuts down.
    ///
    /// # Errors
    ///
    /// None: what cannot be written is logged and tried again.
    pub async fn run(self) -> Result<(), RunError> {
        let shutdown = self.ctx.shutdown();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.report_demand() => {}
            () = self.report_state() => {}
        }
        Ok(())
    }

    async fn report_demand(&self) {
        // What an earlier process of this Pod has left behind is not true any more.
        self.write("demand", self.spec(ReportShard::Demand)).await;
        let mut book = Book::default();
        let mut last = Instant::now();
        loop {
            self.ingress.changed().await;
            let begun = Instant::now();
            let mut due = self.take(&mut book);
            // A change that is not urgent waits its time out, unless an urgent one comes.
            while due < Due::Now {
                let until = last.max(begun) + LEISURE;
                match timeout_at(until, self.ingress.changed()).await {
                    Ok(()) => due = due.max(self.take(&mut book)),
                    Err(_) => break,
                }
            }
            if due == Due::Never {
                continue;
            }
            if due == Due::Now {
                sleep_until(last + BATCH).await;
                self.take(&mut book);
            }
            let entries = book.entries(self.ctx.now());
            let spec =
                GatewayReportSpec { pools: entries.clone(), ..self.spec(ReportShard::Demand) };
            self.write("demand", spec).await;
            book.written(entries);
            last = Instant::now();
        }
    }

    fn take(&self, book: &mut Book) -> Due {
        let now = self.ctx.now();
        let changes = self.ingress.take_changes().into_iter().map(|demand| {
            let name = &demand.pool.name;
            let key = ObjectKey::new(name.namespace.as_ref(), name.name.as_ref());
            let delay = self.pools.get(&key).and_then(|pool| pool.delay);
            book.enter(&demand, delay, now)
        });
        changes.max().unwrap_or(Due::Never)
    }

    async fn report_state(&self) {
        loop {
            let spec = GatewayReportSpec {
                epochs: self.state.epochs(),
                certificates: self.state.certificates(),
                ..self.spec(ReportShard::State)
            };
            self.write("state", spec).await;
            self.state.changed().await;
            sleep(BATCH).await;
        }
    }

    fn spec(&self, shard: ReportShard) -> GatewayReportSpec {
        GatewayReportSpec {
            gateway: self.identity.pod.clone(),
            shard,
            pools: Vec::new(),
            epochs: Vec::new(),
            certificates: Vec::new(),
        }
    }

    /// Writes until it is written: what is reported is waited for.
    async fn write(&self, shard: &str, spec: GatewayReportSpec) {
        let metadata = self.identity.metadata(format!("{}-{shard}", self.identity.pod));
        let report = GatewayReport { metadata, spec };
        while let Err(error) = self.writer.apply(&report).await {
            tracing::warn!(shard, error = %ErrorChain(&error), "Report not written");
            sleep(PAUSE).await;
        }
    }
}
