//! This gateway's Lease: that it lives, how far it is, and how other gateways reach it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use portolan_api::{GatewayPhase, gateway};
use portolan_process::ErrorChain;
use portolan_reconcile::{Context, RunError, Target, WriteError, Writer};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::report::{COMPONENT, Identity, PAUSE};

/// How often the Lease is renewed.
const RENEWAL: Duration = Duration::from_secs(4);
/// How long a Lease holds, in seconds: three renewals may be lost.
const HOLDS_SECONDS: i32 = 15;
/// How long the last word may take: the process is ending, and nobody waits longer for it.
const LAST_WORD: Duration = Duration::from_millis(800);

/// How other gateways reach this one and recognise it.
#[derive(Debug)]
pub struct Shown {
    /// Where this gateway listens for others.
    pub address: SocketAddr,
    /// Digests of the certificates to show, as they are at any time.
    pub certificates: watch::Receiver<Vec<String>>,
    /// What of them the API server has taken: whoever holds a certificate waits for that.
    pub published: watch::Sender<Vec<String>>,
}

/// This gateway's Lease, by which controllers and other gateways count it among the living.
pub struct HeldLease {
    ctx: Context,
    writer: Writer,
    identity: Identity,
    shown: Option<Shown>,
    target: watch::Sender<Option<Target>>,
    /// Whether the API server took it when it was last asked; `None`: it has not been yet.
    last: watch::Sender<Option<bool>>,
}

impl HeldLease {
    /// A Lease that is not held yet. Without `shown`, no other gateway will look for this one.
    pub fn new(ctx: &Context, identity: &Identity, shown: Option<Shown>) -> Self {
        let (ctx, identity) = (ctx.clone(), identity.clone());
        let writer = ctx.writer(COMPONENT);
        let (target, last) = (watch::Sender::new(None), watch::Sender::new(None));
        Self { writer, ctx, identity, shown, target, last }
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

    /// Resolves when a try to take the Lease has ended: whether the API server took it.
    pub fn tried(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut last = self.last.subscribe();
        async move {
            let taken = last.wait_for(Option::is_some).await.map(|taken| *taken);
            match taken {
                Ok(taken) => taken.unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Takes the Lease and renews it until `drained`, from the beginning of the shutdown on as one
    /// that leaves: a gateway that drains is still one to wait for.
    ///
    /// Then its last word. If `is_square` says that nothing runs anywhere and that no slot is owed,
    /// it is that the gateway has left, and all that it held is free. Otherwise it says nothing:
    /// the Lease lapses or is collected with the Pod, and the gateway counts as lost.
    ///
    /// # Errors
    ///
    /// None: a write that fails is logged and tried again.
    pub async fn keep(
        mut self,
        drained: CancellationToken,
        is_square: impl Fn() -> bool + Send,
    ) -> Result<(), RunError> {
        tokio::select! {
            () = drained.cancelled() => {}
            never = self.hold() => match never {},
        }
        let target = self.target.borrow().clone();
        let Some(target) = target else { return Ok(()) };
        if !is_square() {
            tracing::warn!("Ended with requests or slots of others outstanding");
            return Ok(());
        }
        match timeout(LAST_WORD, self.leave(&target)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = %ErrorChain(&error), "Lease not given back"),
            Err(_) => tracing::warn!("Lease not given back in time"),
        }
        Ok(())
    }

    async fn hold(&mut self) -> Infallible {
        let shutdown = self.ctx.shutdown();
        loop {
            let phase = match shutdown.is_cancelled() {
                true => GatewayPhase::Leaving,
                false => GatewayPhase::Serving,
            };
            let certificates = self.certificates();
            // One that hangs must not keep the next one, on another connection, from being tried.
            let renewed = timeout(RENEWAL, self.renew(phase, &certificates)).await;
            self.last.send_replace(Some(renewed == Ok(true)));
            let pause = match renewed {
                Ok(true) => RENEWAL,
                Ok(false) => PAUSE,
                Err(_) => {
                    tracing::warn!("Lease not renewed in time");
                    PAUSE
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.cancelled(), if phase == GatewayPhase::Serving => {}
                () = changed(self.shown.as_mut()) => {}
            }
        }
    }

    /// What to show now; from here on a change of it wakes.
    fn certificates(&mut self) -> Vec<String> {
        let shown = self.shown.as_mut();
        shown.map(|shown| shown.certificates.borrow_and_update().clone()).unwrap_or_default()
    }

    /// Whether the Lease was written.
    async fn renew(&self, phase: GatewayPhase, certificates: &[String]) -> bool {
        match self.writer.apply(&self.lease(phase, certificates)).await {
            Ok(lease) => {
                self.target.send_replace(Some(Target::of(&lease)));
                if let Some(shown) = &self.shown {
                    shown.published.send_replace(certificates.to_vec());
                }
                true
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "Lease not renewed");
                false
            }
        }
    }

    /// A Lease that no Pod owns would stay for ever.
    async fn leave(&self, target: &Target) -> Result<(), WriteError> {
        if self.identity.uid.is_none() {
            return self.writer.delete::<Lease>(target).await.map(drop);
        }
        self.writer.apply(&self.lease(GatewayPhase::Left, &[])).await.map(drop)
    }

    fn lease(&self, phase: GatewayPhase, certificates: &[String]) -> Lease {
        let peer = self.shown.as_ref().map(|shown| (shown.address, certificates));
        lease(&self.identity, phase, peer, self.ctx.now())
    }
}

async fn changed(shown: Option<&mut Shown>) {
    if let Some(shown) = shown
        && shown.certificates.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// A gateway without a certificate cannot be reached, so its address is not shown either.
fn lease(
    identity: &Identity,
    phase: GatewayPhase,
    peer: Option<(SocketAddr, &[String])>,
    now: Timestamp,
) -> Lease {
    let mut metadata = identity.metadata(identity.pod.clone());
    let mut annotations = BTreeMap::from([(gateway::PHASE.to_owned(), phase.name().to_owned())]);
    if let Some((address, certificates)) = peer.filter(|(_, shown)| !shown.is_empty()) {
        annotations.insert(gateway::PEER_ADDRESS.to_owned(), address.to_string());
        annotations.insert(gateway::PEER_CERTIFICATES.to_owned(), certificates.join(","));
    }
    metadata.annotations = Some(annotations);
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.instance.to_string()),
            lease_duration_seconds: Some(HOLDS_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use portolan_api::{Gateway, GatewayPeer};

    use super::*;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    fn identity(started: i64) -> Identity {
        Identity::new("system".into(), "gw-1".into(), Some("uid".into()), at(started))
    }

    #[test]
    fn another_process_of_the_pod_is_another_instance() {
        assert_eq!(identity(255).instance.as_ref(), "gw-1.ff");
        assert_ne!(identity(255), identity(256));
    }

    #[test]
    fn controllers_and_gateways_read_what_is_written() {
        let address = "10.0.0.7:8444".parse().unwrap();
        let shown = ["aa".to_owned(), "bb".to_owned()];
        let lease = |phase, shown| lease(&identity(255), phase, Some((address, shown)), at(1_000));
        let gateway = Gateway::of(lease(GatewayPhase::Serving, &shown)).unwrap();
        assert_eq!((gateway.name.as_str(), gateway.instance.as_str()), ("gw-1", "gw-1.ff"));
        assert_eq!((gateway.phase, gateway.lapses()), (GatewayPhase::Serving, at(16_000)));
        let certificates = shown.to_vec();
        assert_eq!(gateway.peer, Some(GatewayPeer { address, certificates }));
        let gateway = Gateway::of(lease(GatewayPhase::Left, &[])).unwrap();
        assert_eq!((gateway.phase, gateway.peer), (GatewayPhase::Left, None));
    }
}
