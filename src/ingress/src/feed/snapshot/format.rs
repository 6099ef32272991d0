//! What is written of each object, apart from the types it is kept in: a file outlives the process
//! that wrote it, and a record that is not understood refuses the file.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portolan_reconcile::ObjectKey;
use serde::{Deserialize, Serialize};

use super::file::FileError;
use crate::feed::facts::{self, AppFacts, ClaimFacts, PodFacts, PoolFacts, RouteFacts};
use crate::host::HostPattern;
use crate::model::{
    AppProtocol, BootFailure, Concurrency, FailureKind, PlainHttp, PoolConfig, PoolId, PoolName,
    Probe, RouteConfig, RouteTimeouts, SandboxConfig, SandboxId, SandboxPhase, ServiceKey, Slots,
};

/// Everything of a snapshot, as the watches are seeded with it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Kept {
    pub(crate) routes: Vec<(ObjectKey, RouteFacts)>,
    pub(crate) claims: Vec<(ObjectKey, ClaimFacts)>,
    pub(crate) apps: Vec<(ObjectKey, AppFacts)>,
    pub(crate) pools: Vec<(ObjectKey, PoolFacts)>,
    pub(crate) pods: Vec<(ObjectKey, PodFacts)>,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Record {
    Head(Head),
    Route(RouteRecord),
    Claim(ClaimRecord),
    App(AppRecord),
    Pool(PoolRecord),
    Sandbox(SandboxRecord),
}

/// The first record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Head {
    /// Whose slots the sandboxes' are.
    pub(super) pod_uid: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RouteRecord {
    namespace: String,
    name: String,
    uid: String,
    host: String,
    app: String,
    service: String,
    /// Response head, idle, idle after an upgrade.
    timeouts_ms: [u64; 3],
    request_body_max: Option<u64>,
    redirect: bool,
    secret: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClaimRecord {
    name: String,
    host: String,
    holder_namespace: String,
    holder_uid: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AppRecord {
    namespace: String,
    name: String,
    uid: String,
    epoch: u64,
    /// Services and their pools.
    services: Vec<(String, String)>,
    is_settled: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PoolRecord {
    namespace: String,
    name: String,
    uid: String,
    port: u16,
    is_h2c: bool,
    probe: ProbeRecord,
    is_strict: bool,
    failure: Option<FailureRecord>,
    delay_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum ProbeRecord {
    Http { port: u16, path: String, host: Option<String>, timeout_ms: u64 },
    Tcp { port: u16 },
    Feed,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FailureRecord {
    is_boot: bool,
    reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SandboxRecord {
    namespace: String,
    name: String,
    uid: String,
    pool: String,
    pool_uid: String,
    address: Option<IpAddr>,
    phase: PhaseRecord,
    /// Absent: not limited.
    slots: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum PhaseRecord {
    Created,
    Scheduled,
    Ready,
    Draining(u64),
}

/// Reads the records of a snapshot that the Pod `pod_uid` may have written.
pub(super) fn parse(text: &[u8], pod_uid: Option<&str>) -> Result<Kept, FileError> {
    let mut records = serde_json::Deserializer::from_slice(text).into_iter::<Record>();
    match records.next().transpose().map_err(FileError::Record)? {
        Some(Record::Head(head)) if head.pod_uid.as_deref() == pod_uid => {}
        _ => return Err(FileError::Foreign),
    }
    let mut kept = Kept::default();
    for record in records {
        match record.map_err(FileError::Record)? {
            Record::Head(_) => return Err(FileError::Damaged),
            Record::Route(route) => kept.routes.push(route.facts().ok_or(FileError::Damaged)?),
            Record::Claim(claim) => kept.claims.push(claim.facts()),
            Record::App(app) => kept.apps.push(app.facts()),
            Record::Pool(pool) => kept.pools.push(pool.facts()),
            Record::Sandbox(sandbox) => kept.pods.push(sandbox.facts()),
        }
    }
    kept.withhold_slots();
    Ok(kept)
}

impl Kept {
    /// Slots were granted to the process that wrote the snapshot, which is gone. Where they are
    /// soft its successor takes them over. Where they are strict, what the former one sent may
    /// still run in the sandbox: they stay unused until the pool controller has granted anew.
    fn withhold_slots(&mut self) {
        let is_soft =
            |pool: &&(ObjectKey, PoolFacts)| pool.1.config.concurrency == Concurrency::Soft;
        let soft = self.pools.iter().filter(is_soft);
        let soft: HashSet<_> = soft.map(|(_, pool)| Arc::clone(&pool.id.uid)).collect();
        for (_, pod) in &mut self.pods {
            if let Slots::Limited(slots) = &mut pod.sandbox.slots
                && !soft.contains(&pod.pool.uid)
            {
                *slots = 0;
            }
        }
    }
}

// --- from what is kept ---

impl Record {
    pub(super) fn route(key: ObjectKey, route: &RouteFacts) -> Self {
        let RouteFacts { key: _, uid, host, config, secret } = route;
        let RouteConfig { host: _, service, timeouts, request_body_max, plain_http } = config;
        let RouteTimeouts { response_header, idle, upgrade_idle } = timeouts;
        Self::Route(RouteRecord {
            namespace: key.namespace,
            name: key.name,
            uid: uid.clone(),
            host: host.to_string(),
            app: service.app.to_string(),
            service: service.service.to_string(),
            timeouts_ms: [response_header, idle, upgrade_idle].map(|time| milliseconds(*time)),
            request_body_max: *request_body_max,
            redirect: *plain_http == PlainHttp::Redirect,
            secret: secret.clone(),
        })
    }

    pub(super) fn claim(key: ObjectKey, claim: &ClaimFacts) -> Self {
        let ClaimFacts { host, namespace, uid } = claim.clone();
        let (host, holder_namespace, holder_uid) = (host.to_string(), namespace, uid);
        Self::Claim(ClaimRecord { name: key.name, host, holder_namespace, holder_uid })
    }

    pub(super) fn app(key: ObjectKey, app: &AppFacts) -> Self {
        let AppFacts { uid, epoch, services, is_settled } = app;
        let services = services.iter();
        let services = services.map(|(key, pool)| (key.service.to_string(), pool.name.to_string()));
        Self::App(AppRecord {
            namespace: key.namespace,
            name: key.name,
            uid: uid.to_string(),
            epoch: *epoch,
            services: services.collect(),
            is_settled: *is_settled,
        })
    }

    pub(super) fn pool(key: ObjectKey, pool: &PoolFacts) -> Self {
        let PoolFacts { id, config, failure, delay } = pool;
        let PoolConfig { port, protocol, probe, concurrency } = config;
        let probe = match probe {
            Probe::Http { port, path, host, timeout } => ProbeRecord::Http {
                port: *port,
                path: path.to_string(),
                host: host.as_ref().map(ToString::to_string),
                timeout_ms: milliseconds(*timeout),
            },
            Probe::Tcp { port } => ProbeRecord::Tcp { port: *port },
            Probe::Feed => ProbeRecord::Feed,
        };
        let failure = failure.as_ref().map(|BootFailure { kind, reason }| FailureRecord {
            is_boot: *kind == FailureKind::Boot,
            reason: reason.to_string(),
        });
        Self::Pool(PoolRecord {
            namespace: key.namespace,
            name: key.name,
            uid: id.uid.to_string(),
            port: *port,
            is_h2c: *protocol == AppProtocol::H2c,
            probe,
            is_strict: *concurrency == Concurrency::Strict,
            failure,
            delay_ms: delay.map(milliseconds),
        })
    }

    pub(super) fn sandbox(key: ObjectKey, pod: &PodFacts) -> Self {
        let PodFacts { pool, sandbox, inherited, others: _ } = pod;
        let SandboxConfig { id, address, phase, slots } = sandbox;
        Self::Sandbox(SandboxRecord {
            namespace: key.namespace,
            name: key.name,
            uid: id.uid.to_string(),
            pool: pool.name.name.to_string(),
            pool_uid: pool.uid.to_string(),
            address: *address,
            phase: match phase {
                SandboxPhase::Created => PhaseRecord::Created,
                SandboxPhase::Scheduled => PhaseRecord::Scheduled,
                SandboxPhase::Ready => PhaseRecord::Ready,
                SandboxPhase::Draining { epoch } => PhaseRecord::Draining(*epoch),
            },
            slots: match slots {
                Slots::Limited(slots) => Some(*slots.max(inherited)),
                Slots::Unlimited => None,
            },
        })
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

// --- to what is kept ---

impl RouteRecord {
    /// `None` for a host that no Route can have.
    fn facts(self) -> Option<(ObjectKey, RouteFacts)> {
        let key = ObjectKey::new(self.namespace, self.name);
        let [response_header, idle, upgrade_idle] = self.timeouts_ms.map(Duration::from_millis);
        let config = RouteConfig {
            host: HostPattern::parse(&self.host).ok()?,
            service: ServiceKey {
                namespace: key.namespace.as_str().into(),
                app: self.app.into(),
                service: self.service.into(),
            },
            timeouts: RouteTimeouts { response_header, idle, upgrade_idle },
            request_body_max: self.request_body_max,
            plain_http: if self.redirect { PlainHttp::Redirect } else { PlainHttp::Serve },
        };
        let (uid, host, secret) = (self.uid, facts::written(&self.host, &config), self.secret);
        Some((key.clone(), RouteFacts { key: key.shared(), uid, host, config, secret }))
    }
}

impl ClaimRecord {
    fn facts(self) -> (ObjectKey, ClaimFacts) {
        let Self { name, host, holder_namespace: namespace, holder_uid: uid } = self;
        (ObjectKey::new("", name), ClaimFacts { host: host.into(), namespace, uid })
    }
}

impl AppRecord {
    fn facts(self) -> (ObjectKey, AppFacts) {
        let Self { namespace, name, uid, epoch, services, is_settled } = self;
        let key = ObjectKey::new(namespace, name);
        let namespace: Arc<str> = key.namespace.as_str().into();
        let app: Arc<str> = key.name.as_str().into();
        let services = services.into_iter().map(|(service, pool)| {
            let (namespace, app) = (Arc::clone(&namespace), Arc::clone(&app));
            let pool = PoolName { namespace: Arc::clone(&namespace), name: pool.into() };
            (ServiceKey { namespace, app, service: service.into() }, pool)
        });
        let services = services.collect();
        (key, AppFacts { uid: uid.into(), epoch, services, is_settled })
    }
}

impl PoolRecord {
    fn facts(self) -> (ObjectKey, PoolFacts) {
        let key = ObjectKey::new(self.namespace, self.name);
        let name =
            PoolName { namespace: key.namespace.as_str().into(), name: key.name.as_str().into() };
        let config = PoolConfig {
            port: self.port,
            protocol: if self.is_h2c { AppProtocol::H2c } else { AppProtocol::Http1 },
            probe: match self.probe {
                ProbeRecord::Http { port, path, host, timeout_ms } => Probe::Http {
                    port,
                    path: path.into(),
                    host: host.map(Into::into),
                    timeout: Duration::from_millis(timeout_ms),
                },
                ProbeRecord::Tcp { port } => Probe::Tcp { port },
                ProbeRecord::Feed => Probe::Feed,
            },
            concurrency: if self.is_strict { Concurrency::Strict } else { Concurrency::Soft },
        };
        let failure = self.failure.map(|FailureRecord { is_boot, reason }| BootFailure {
            kind: if is_boot { FailureKind::Boot } else { FailureKind::NoCapacity },
            reason: reason.into(),
        });
        let delay = self.delay_ms.map(Duration::from_millis);
        (key, PoolFacts { id: PoolId { name, uid: self.uid.into() }, config, failure, delay })
    }
}

impl SandboxRecord {
    fn facts(self) -> (ObjectKey, PodFacts) {
        let key = ObjectKey::new(self.namespace, self.name);
        let name = PoolName { namespace: key.namespace.as_str().into(), name: self.pool.into() };
        let sandbox = SandboxConfig {
            id: SandboxId { name: key.name.as_str().into(), uid: self.uid.into() },
            address: self.address,
            phase: match self.phase {
                PhaseRecord::Created => SandboxPhase::Created,
                PhaseRecord::Scheduled => SandboxPhase::Scheduled,
                PhaseRecord::Ready => SandboxPhase::Ready,
                PhaseRecord::Draining(epoch) => SandboxPhase::Draining { epoch },
            },
            slots: self.slots.map_or(Slots::Unlimited, Slots::Limited),
        };
        let pool = PoolId { name, uid: self.pool_uid.into() };
        (key, PodFacts { pool, sandbox, inherited: 0, others: Box::default() })
    }
}
