//! The writes of a gateway: its Lease, its demand, its state.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::core::ObjectMeta;
use portolan_api::{GatewayReport, GatewayReportSpec, ReportShard, SandboxPool};
use portolan_process::ErrorChain;
use portolan_reconcile::{Cache, Context, ObjectKey, RunError, Target, Writer};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::Ingress;
use crate::feed::PoolFacts;
use crate::report::book::{Book, Due};
use crate::report::{Identity, State};

/// The component name in metrics and field managers.
const COMPONENT: &str = "gateway";
/// How often the Lease is renewed.
const LEASE_RENEWAL: Duration = Duration::from_secs(4);
/// How long a Lease holds, in seconds: three renewals may be lost.
const LEASE_SECONDS: i32 = 15;
/// What comes within this time of the first urgent change goes into the same report.
const BATCH: Duration = Duration::from_millis(10);
/// Least time between two reports of which nobody waits for the second.
const LEISURE: Duration = Duration::from_secs(1);
/// Pause after a write that failed: the API server is away or overloaded.
const PAUSE: Duration = Duration::from_millis(500);

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
                sleep_until(begun.max(last) + BATCH).await;
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

/// This gateway's Lease, by which controllers count it among the living.
pub struct HeldLease {
    ctx: Context,
    writer: Writer,
    identity: Identity,
    target: watch::Sender<Option<Target>>,
}

impl HeldLease {
    /// A Lease that is not held yet.
    pub fn new(ctx: &Context, identity: &Identity) -> Self {
        let (ctx, identity) = (ctx.clone(), identity.clone());
        Self { writer: ctx.writer(COMPONENT), ctx, identity, target: watch::Sender::new(None) }
    }

    /// Resolves when the Lease is held for the first time. A gateway that nobody knows must not
    /// serve: nobody would wait for it at a switch. One that restarts while the API server is away
    /// is known by the Lease of the process before it.
    pub fn taken(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut target = self.target.subscribe();
        async move {
            // The Lease that went away was not taken, and nothing follows from that.
            if target.wait_for(Option::is_some).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Takes the Lease and renews it until `drained` resolves, then gives it back: a gateway that
    /// drains is still one to wait for.
    ///
    /// # Errors
    ///
    /// None: a write that fails is logged and tried again.
    pub async fn keep(self, drained: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        tokio::select! {
            () = drained => {}
            never = self.hold() => match never {},
        }
        let target = self.target.borrow().clone();
        if let Some(target) = target
            && let Err(error) = self.writer.delete::<Lease>(&target).await
        {
            tracing::warn!(error = %ErrorChain(&error), "Lease not given back");
        }
        Ok(())
    }

    async fn hold(&self) -> Infallible {
        loop {
            // One that hangs must not keep the next one, on another connection, from being tried.
            if timeout(LEASE_RENEWAL, self.renew()).await.is_err() {
                tracing::warn!("Lease not renewed in time");
            }
            let is_taken = self.target.borrow().is_some();
            sleep(if is_taken { LEASE_RENEWAL } else { PAUSE }).await;
        }
    }

    async fn renew(&self) {
        match self.writer.apply(&lease(&self.identity, self.ctx.now())).await {
            Ok(lease) => {
                self.target.send_replace(Some(Target::of(&lease)));
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "Lease not renewed");
            }
        }
    }
}

fn lease(identity: &Identity, now: Timestamp) -> Lease {
    let metadata: ObjectMeta = identity.metadata(identity.pod.clone());
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.pod.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}
