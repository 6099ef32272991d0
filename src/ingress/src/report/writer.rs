//! The reports of a gateway: its demand, its state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portolan_api::{GatewayReport, GatewayReportSpec, ReportShard, SandboxPool};
use portolan_process::ErrorChain;
use portolan_reconcile::{Cache, Context, ObjectKey, RunError, Writer};
use tokio::sync::watch;
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
    unheard: Unheard,
    pools: Cache<SandboxPool, PoolFacts>,
    ctx: Context,
}

/// The processes of other gateways where nobody listens any more, as
/// [`crate::peers::Peers::unheard`] has them.
pub type Unheard = watch::Receiver<BTreeSet<Arc<str>>>;

impl Reporter {
    /// A reporter for what `ingress` serves and `state` holds. Without links to other gateways there
    /// is no `unheard`.
    pub fn new(
        ctx: &Context,
        identity: Identity,
        ingress: Ingress,
        state: State,
        unheard: Option<Unheard>,
        feed: &crate::feed::Feed,
    ) -> Self {
        let (writer, pools) = (ctx.writer(COMPONENT), feed.pools.clone());
        let unheard = unheard.unwrap_or_else(|| watch::channel(BTreeSet::new()).1);
        Self { writer, identity, ingress, state, unheard, pools, ctx: ctx.clone() }
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
        self.write(|| self.spec(ReportShard::Demand)).await;
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
            }
            let mut entries = Vec::new();
            self.write(|| {
                self.take(&mut book);
                entries = book.entries(self.ctx.now());
                GatewayReportSpec { pools: entries.clone(), ..self.spec(ReportShard::Demand) }
            })
            .await;
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
        let mut unheard = self.unheard.clone();
        loop {
            unheard.mark_unchanged();
            self.write(|| GatewayReportSpec {
                epochs: self.state.epochs(),
                certificates: self.state.certificates(),
                unheard: self.unheard.borrow().iter().map(|peer| peer.to_string()).collect(),
                ..self.spec(ReportShard::State)
            })
            .await;
            tokio::select! {
                () = self.state.changed() => {}
                // When its sender is gone there will be no more.
                Ok(()) = unheard.changed() => {}
            }
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
            unheard: Vec::new(),
        }
    }

    /// Writes until it is written: what is reported is waited for. What that is may change
    /// meanwhile, and has to if it is refused for what it says.
    async fn write(&self, mut spec: impl FnMut() -> GatewayReportSpec) {
        loop {
            let spec = spec();
            let shard = match spec.shard {
                ReportShard::Demand => "demand",
                ReportShard::State => "state",
            };
            let metadata = self.identity.metadata(format!("{}-{shard}", self.identity.pod));
            let report = GatewayReport { metadata, spec };
            let Err(error) = self.writer.apply(&report).await else { return };
            tracing::warn!(shard, error = %ErrorChain(&error), "Report not written");
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use portolan_reconcile::Watch;
    use portolan_reconcile::testing::{Answer, Wire, context};
    use serde_json::json;

    use super::*;
    use crate::{Metrics, Settings};

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_not_asked_for_again_when_there_is_something_else_to_say() {
        let state = State::default();
        let app = |name: &str| ObjectKey::new("team-a", name);
        state.follow(&app("one"), 1);
        let (wire, client) = {
            let state = state.clone();
            Wire::answering(move |sent| {
                if sent.body["spec"]["epochs"][0]["name"] == "one" {
                    state.forget(&app("one"));
                    state.follow(&app("two"), 2);
                    return Answer::failure(422, "Invalid", "too much");
                }
                Answer::Json(200, sent.body.clone())
            })
        };
        let ctx = context(client);
        let identity = Identity::new("system".into(), "gw-1".into(), None, Timestamp::UNIX_EPOCH);
        let reporter = Reporter {
            writer: ctx.writer(COMPONENT),
            identity,
            ingress: Ingress::new(Settings::standard(), Arc::new(Metrics::new())),
            state,
            unheard: watch::channel(BTreeSet::new()).1,
            pools: Watch::<SandboxPool>::new().project(PoolFacts::of).start(&ctx, COMPONENT).0,
            ctx,
        };
        let told = async {
            while wire.sent().len() < 2 {
                sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = reporter.report_state() => unreachable!("it never ends"),
            () = told => {}
        }
        let second = &wire.sent()[1].body["spec"]["epochs"];
        assert_eq!(*second, json!([{ "namespace": "team-a", "name": "two", "epoch": 2 }]));
    }
}
