//! What the gateway keeps of each object. Pure translations; tenants' text is checked here.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{HTTPGetAction, Pod, Probe as KubeProbe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portolan_api::conditions::reason;
use portolan_api::{self as api, App, Claim, ClaimKind, Route, SandboxPool, SandboxSpec, labels};
use portolan_reconcile::ObjectKey;

use crate::host::HostPattern;
use crate::model::{
    AppProtocol, BootFailure, Concurrency, FailureKind, PlainHttp, PoolConfig, PoolId, PoolName,
    Probe, RouteConfig, RouteTimeouts, SandboxConfig, SandboxId, SandboxPhase, ServiceKey, Slots,
};
use crate::peers::Absent;
use crate::report::Identity;

/// A Route.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RouteFacts {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) uid: String,
    /// The host as written, which is what Claims name.
    pub(crate) host: Arc<str>,
    pub(crate) config: RouteConfig,
    /// Name of the Secret with its certificate.
    pub(crate) secret: Option<String>,
}

impl RouteFacts {
    /// `None` for a Route whose host the schema would have refused, or that is going.
    pub(crate) fn of(route: Route) -> Option<Self> {
        if route.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let key = ObjectKey::new(route.metadata.namespace?, route.metadata.name?);
        let spec = route.spec;
        let service = ServiceKey {
            namespace: key.namespace.as_str().into(),
            app: spec.app.into(),
            service: spec.service.into(),
        };
        let config = RouteConfig {
            host: HostPattern::parse(&spec.host).ok()?,
            service,
            timeouts: timeouts(spec.timeouts.as_ref()),
            request_body_max: spec.max_body_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            plain_http: match spec.redirect.unwrap_or_default() {
                api::Redirect::Auto => PlainHttp::Redirect,
                api::Redirect::Disabled => PlainHttp::Serve,
            },
        };
        let (uid, secret) = (route.metadata.uid?, spec.tls.map(|tls| tls.secret_name));
        Some(Self { key: key.shared(), uid, host: written(&spec.host, &config), config, secret })
    }
}

/// The host of a Route as it is written, which is nearly always the text that its pattern has.
pub(crate) fn written(host: &str, config: &RouteConfig) -> Arc<str> {
    match &config.host {
        HostPattern::Exact(normal) if **normal == *host => normal.clone(),
        _ => host.into(),
    }
}

fn timeouts(spec: Option<&api::RouteTimeouts>) -> RouteTimeouts {
    let mut timeouts = RouteTimeouts::standard();
    let seconds = |value: Option<i32>| {
        value.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs)
    };
    if let Some(response) = spec.and_then(|spec| seconds(spec.response_seconds)) {
        timeouts.response_header = response;
    }
    if let Some(idle) = spec.and_then(|spec| seconds(spec.idle_seconds)) {
        timeouts.idle = idle;
        timeouts.upgrade_idle = idle;
    }
    timeouts
}

/// The Claim of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClaimFacts {
    pub(crate) host: Arc<str>,
    pub(crate) namespace: String,
    pub(crate) uid: String,
}

impl ClaimFacts {
    /// `None` for the Claim of something else, or one that is going.
    pub(crate) fn of(claim: Claim) -> Option<Self> {
        let is_host = claim.spec.kind == ClaimKind::Host && claim.spec.holder.kind == "Route";
        if !is_host || claim.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let holder = claim.spec.holder;
        Some(Self { host: claim.spec.value.into(), namespace: holder.namespace, uid: holder.uid })
    }
}

/// The activation of an App.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AppFacts {
    pub(crate) uid: Arc<str>,
    pub(crate) epoch: u64,
    /// The services of the active version and the pools that run them.
    pub(crate) services: Vec<(ServiceKey, PoolName)>,
    /// All gateways have reported the epoch.
    pub(crate) is_settled: bool,
}

impl AppFacts {
    /// `None` for an App of which nothing has been activated.
    pub(crate) fn of(app: App) -> Option<Self> {
        let namespace: Arc<str> = app.metadata.namespace?.into();
        let name: Arc<str> = app.metadata.name?.into();
        let status = app.status?;
        let epoch = status.activation?.epoch;
        let services = status.services.into_iter().map(|service| {
            let key = ServiceKey {
                namespace: namespace.clone(),
                app: name.clone(),
                service: service.name.into(),
            };
            (key, PoolName { namespace: namespace.clone(), name: service.pool.into() })
        });
        Some(Self {
            services: services.collect(),
            uid: app.metadata.uid?.into(),
            epoch: u64::try_from(epoch).ok()?,
            is_settled: status.settled_epoch == Some(epoch),
        })
    }
}

/// A pool with an http port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolFacts {
    pub(crate) id: PoolId,
    pub(crate) config: PoolConfig,
    pub(crate) failure: Option<BootFailure>,
    /// Time without a request after which its sandboxes are stopped.
    pub(crate) delay: Option<Duration>,
}

impl PoolFacts {
    /// `None` for a pool that serves no http: nothing reaches it through here.
    pub(crate) fn of(pool: SandboxPool) -> Option<Self> {
        let failure = failure(&pool);
        let id = PoolId {
            name: PoolName {
                namespace: pool.metadata.namespace?.into(),
                name: pool.metadata.name?.into(),
            },
            uid: pool.metadata.uid?.into(),
        };
        let http = pool.spec.sandbox.http_port()?;
        let port = u16::try_from(http.port).ok()?;
        let protocol = match http.app_protocol {
            Some(api::AppProtocol::H2c) => AppProtocol::H2c,
            Some(api::AppProtocol::Http) | None => AppProtocol::Http1,
        };
        let concurrency = match pool.spec.scale.concurrency {
            api::Concurrency::Soft => Concurrency::Soft,
            api::Concurrency::Strict => Concurrency::Strict,
        };
        let probe = probe(&pool.spec.sandbox, port);
        let delay = pool.spec.scale.scale_down_delay_seconds;
        let delay = delay.and_then(|delay| u64::try_from(delay).ok()).map(Duration::from_secs);
        Some(Self { id, config: PoolConfig { port, protocol, probe, concurrency }, failure, delay })
    }
}

/// Why no sandbox comes up, in the pool controller's word.
fn failure(pool: &SandboxPool) -> Option<BootFailure> {
    let ready = pool.ready().filter(|condition| condition.status == "False")?;
    let kind = match ready.reason.as_str() {
        reason::UNSCHEDULABLE | reason::POD_REFUSED => FailureKind::NoCapacity,
        reason::CRASH_LOOPING
        | reason::IMAGE_PULL_FAILED
        | reason::CONFIG_MISSING
        | reason::START_FAILED
        | reason::NOT_LISTENING
        | reason::PROBE_FAILING => FailureKind::Boot,
        _ => return None,
    };
    Some(BootFailure { kind, reason: ready.reason.as_str().into() })
}

/// The service's own readiness probe, where the gateway can run it; the kubelet's word otherwise.
fn probe(sandbox: &SandboxSpec, port: u16) -> Probe {
    let Some(probe) = &sandbox.readiness else { return Probe::Tcp { port } };
    own_probe(sandbox, probe).unwrap_or(Probe::Feed)
}

fn own_probe(sandbox: &SandboxSpec, probe: &KubeProbe) -> Option<Probe> {
    if let Some(http) = &probe.http_get {
        return http_probe(sandbox, http, timeout(probe));
    }
    let tcp = probe.tcp_socket.as_ref()?;
    Some(Probe::Tcp { port: number(sandbox, &tcp.port)? })
}

fn http_probe(sandbox: &SandboxSpec, http: &HTTPGetAction, timeout: Duration) -> Option<Probe> {
    let is_plain = http.scheme.as_deref().is_none_or(|scheme| scheme == "HTTP");
    let headers = http.http_headers.as_deref().unwrap_or_default();
    let only_host = headers.iter().all(|header| header.name.eq_ignore_ascii_case("host"));
    // An address of the tenant's choice is never dialled from here.
    if !is_plain || !only_host || http.host.is_some() {
        return None;
    }
    let path = http.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let is_sane = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    let host = headers.first().map(|header| header.value.as_str());
    let is_sane = is_sane && host.is_none_or(|host| host.bytes().all(|b| b.is_ascii_graphic()));
    is_sane.then_some(Probe::Http {
        port: number(sandbox, &http.port)?,
        path: path.into(),
        host: host.map(Into::into),
        timeout,
    })
}

/// How long an answer may take: one second where the probe does not say, as for the kubelet.
fn timeout(probe: &KubeProbe) -> Duration {
    let seconds = probe.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Duration::from_secs(seconds.filter(|seconds| *seconds > 0).unwrap_or(1))
}

/// A port by number, or by the name that the sandbox gives it.
fn number(sandbox: &SandboxSpec, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            sandbox.ports.iter().find(|port| port.name == *name).map(|port| port.port)?
        }
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) pool: PoolId,
    pub(crate) sandbox: SandboxConfig,
    /// Slots still granted to an earlier process of this gateway's Pod, while this one has none.
    pub(crate) inherited: u32,
    /// Slots that are granted to other gateways, by instance.
    pub(crate) others: Box<[(Arc<str>, u32)]>,
}

impl PodFacts {
    /// `None` for a Pod that no pool controls, or one that has ended.
    pub(crate) fn of(pod: &Pod, identity: &Identity) -> Option<Self> {
        let metadata = &pod.metadata;
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let owner = owners
            .iter()
            .find(|owner| owner.controller == Some(true) && owner.kind == "SandboxPool")?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Failed" | "Succeeded")) {
            return None;
        }
        Some(Self {
            pool: PoolId {
                name: PoolName {
                    namespace: metadata.namespace.as_deref()?.into(),
                    name: owner.name.as_str().into(),
                },
                uid: owner.uid.as_str().into(),
            },
            sandbox: SandboxConfig {
                id: SandboxId {
                    name: metadata.name.as_deref()?.into(),
                    uid: metadata.uid.as_deref()?.into(),
                },
                address: status.and_then(|status| status.pod_ip.as_deref()).and_then(parse_address),
                phase: sandbox_phase(pod),
                slots: slots(pod, identity),
            },
            inherited: inherited(pod, identity),
            others: others(pod, identity),
        })
    }

    /// The sandbox as it may be used in its pool, as far as that is known.
    ///
    /// Where slots are soft, those of an earlier process are this one's, and those of gateways that
    /// are there no more are everybody's, until the pool controller has granted anew: that takes a
    /// write for each sandbox, and an API server. Where they are strict they are not, because what
    /// these had sent may still run.
    pub(crate) fn usable(
        &self,
        pool: Option<&PoolFacts>,
        absent: &Absent,
    ) -> Cow<'_, SandboxConfig> {
        let is_soft = |pool: &PoolFacts| {
            pool.id.uid == self.pool.uid && pool.config.concurrency == Concurrency::Soft
        };
        let Slots::Limited(own) = self.sandbox.slots else { return Cow::Borrowed(&self.sandbox) };
        let orphaned = self.others.iter().filter(|(gateway, _)| absent.instances.contains(gateway));
        let orphaned = orphaned.fold(0_u32, |sum, (_, count)| sum.saturating_add(*count));
        let share = orphaned.div_ceil(absent.others.saturating_add(1));
        let slots = own.saturating_add(self.inherited).saturating_add(share);
        if slots == own || !pool.is_some_and(is_soft) {
            return Cow::Borrowed(&self.sandbox);
        }
        Cow::Owned(SandboxConfig { slots: Slots::Limited(slots), ..self.sandbox.clone() })
    }
}

fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// A mark, or a deletion by anyone, ends the flow of new requests.
fn sandbox_phase(pod: &Pod) -> SandboxPhase {
    let mark = annotation(pod, labels::DRAIN).and_then(|mark| mark.parse().ok());
    if mark.is_some() || pod.metadata.deletion_timestamp.is_some() {
        return SandboxPhase::Draining { epoch: mark.unwrap_or(0) };
    }
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let is_ready = conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    match (is_ready, has_node) {
        (true, _) => SandboxPhase::Ready,
        (false, true) => SandboxPhase::Scheduled,
        (false, false) => SandboxPhase::Created,
    }
}

/// The slots that the pool controller granted to this gateway's process: `instance=count`, by
/// commas. One that is not named has none; a Pod without the annotation counts none.
///
/// A controller of a release before grants by the name of the Pod. That is this process as long as
/// nothing says otherwise.
fn slots(pod: &Pod, identity: &Identity) -> Slots {
    if annotation(pod, labels::SLOTS).is_none() {
        return Slots::Unlimited;
    }
    let granted_to = |name: &str| grants(pod).find(|(to, _)| *to == name).map(|(_, count)| count);
    let granted = granted_to(&identity.instance).or_else(|| granted_to(&identity.pod));
    Slots::Limited(granted.unwrap_or(0))
}

fn inherited(pod: &Pod, identity: &Identity) -> u32 {
    if slots(pod, identity) != Slots::Limited(0) {
        return 0;
    }
    let is_earlier = |name: &str| {
        let process = name.strip_prefix(identity.pod.as_str());
        name != &*identity.instance && process.is_some_and(|process| process.starts_with('.'))
    };
    grants(pod).find(|(to, _)| is_earlier(to)).map_or(0, |(_, count)| count)
}

fn others(pod: &Pod, identity: &Identity) -> Box<[(Arc<str>, u32)]> {
    let is_own = |name: &str| {
        let process = name.strip_prefix(identity.pod.as_str());
        process.is_some_and(|process| process.is_empty() || process.starts_with('.'))
    };
    let others = grants(pod).filter(|(name, _)| !is_own(name));
    others.map(|(name, count)| (name.into(), count)).collect()
}

/// Who was granted how many slots of a sandbox.
fn grants(pod: &Pod) -> impl Iterator<Item = (&str, u32)> {
    let grants = annotation(pod, labels::SLOTS).unwrap_or_default().split(',');
    grants.filter_map(|grant| {
        let (name, count) = grant.split_once('=')?;
        Some((name.trim(), count.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests;
