//! One sandbox as the pool knows it.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::wake::Stages;
use crate::lending::books::Lendable;
use crate::model::{PoolConfig, Probe, SandboxConfig, SandboxId, SandboxPhase};
use crate::upstream::Upstream;

/// What is known of a sandbox, and what follows from it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: SandboxId,
    pub(super) phase: SandboxPhase,
    pub(super) stages: Stages,
    address: Option<IpAddr>,
    /// Where its requests go, once address and port are known.
    upstream: Option<Arc<Upstream>>,
    /// Our own probe succeeded, and the feed has not taken readiness back since.
    is_answering: bool,
    /// No connection could be made since the last sign of life.
    is_dead: bool,
    /// Did not end a response in time under `Strict`.
    pub(super) is_retired: bool,
    /// A probe task is at work on it.
    pub(super) is_probing: bool,
}

impl Member {
    pub(super) fn new(id: SandboxId, now: Instant) -> Self {
        Self {
            id,
            phase: SandboxPhase::Created,
            stages: Stages { seen: now, scheduled: None, ready: None },
            address: None,
            upstream: None,
            is_answering: false,
            is_dead: false,
            is_retired: false,
            is_probing: false,
        }
    }

    /// Takes over what the feed says.
    pub(super) fn update(&mut self, new: &SandboxConfig, now: Instant) {
        let was_ready = self.phase == SandboxPhase::Ready;
        let is_ready = new.phase == SandboxPhase::Ready;
        if was_ready && !is_ready {
            self.is_answering = false;
        }
        // Readiness gained is a sign of life; readiness repeated is not, because the feed repeats
        // itself whenever anything about the sandbox changes.
        if self.address != new.address || (is_ready && !was_ready) {
            self.is_dead = false;
        }
        if self.address != new.address {
            self.address = new.address;
            self.upstream = None;
            self.is_answering = false;
        }
        self.phase = new.phase;
        if self.phase != SandboxPhase::Created || self.address.is_some() {
            self.stages.scheduled.get_or_insert(now);
        }
    }

    /// Takes over the pool's part of the address.
    pub(super) fn configure(&mut self, config: Option<&PoolConfig>) {
        let Some((address, config)) = self.address.zip(config) else { return };
        let is_current = self.upstream.as_ref().is_some_and(|upstream| {
            upstream.address().port() == config.port && upstream.protocol() == config.protocol
        });
        if !is_current {
            let address = (address, config.port).into();
            // What was found out about another port says nothing about this one.
            self.is_answering = false;
            self.is_dead = false;
            self.upstream = Some(Arc::new(Upstream::new(address, config.protocol)));
        }
    }

    pub(super) const fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.upstream.as_ref()
    }

    /// Whether new requests may go there.
    pub(super) fn is_usable(&self) -> bool {
        let is_up = match self.phase {
            SandboxPhase::Ready => true,
            SandboxPhase::Created | SandboxPhase::Scheduled => self.is_answering,
            SandboxPhase::Draining { .. } => false,
        };
        is_up && self.upstream.is_some() && !self.is_dead && !self.is_retired
    }

    /// The probe that would tell whether it is usable; `None`: it is, or no probe of ours can.
    pub(super) fn wanted_probe(&self, config: &PoolConfig) -> Option<Probe> {
        let is_draining = matches!(self.phase, SandboxPhase::Draining { .. });
        if self.upstream.is_none() || is_draining || self.is_retired || self.is_usable() {
            return None;
        }
        // The feed vouches for the program and lasts; only that it takes connections again is to be
        // found out, whatever its own probe asks for. The feed may never tell: a program that
        // reopens its listener changes nothing that it can see.
        if self.is_dead && self.phase == SandboxPhase::Ready {
            return Some(Probe::Tcp { port: config.port });
        }
        match &config.probe {
            Probe::Feed => None,
            probe => Some(probe.clone()),
        }
    }

    /// Our probe succeeded.
    pub(super) fn answered(&mut self) {
        self.is_dead = false;
        self.is_answering = true;
    }

    /// No connection could be made.
    pub(super) fn died(&mut self) {
        self.is_dead = true;
        self.is_answering = false;
    }
}

impl Lendable for Member {
    fn uid(&self) -> &Arc<str> {
        &self.id.uid
    }

    fn is_retired(&self) -> bool {
        self.is_retired
    }
}
