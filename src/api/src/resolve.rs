//! From an App's spec to the version it asks for. Pure: the same input always gives the same
//! version, on every machine and in every release with the same [`HASH_VERSION`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::app::{AppSpec, ScaleMode, ScaleSpec, ServiceSpec};
use crate::app_service::SessionAffinity;
use crate::names;
use crate::pool::PoolScale;
use crate::sandbox::{Port, PortType, SandboxPort, SandboxSpec};
use crate::version::{AppVersionSpec, VersionService};

/// The canonical form that [`digest`] is computed over today.
pub const HASH_VERSION: i32 = 1;
/// Port of a service named `web` that declares none.
pub const WEB_PORT: i32 = 3000;
/// Auto: requests per sandbox.
pub const REQUESTS_PER_INSTANCE: i32 = 10;
/// Auto: seconds without a request until sleep.
pub const SCALE_DOWN_DELAY_SECONDS: i32 = 900;
/// Auto: greatest number of sandboxes.
pub const MAX_INSTANCES: i32 = 20;
/// Seconds within which a program must listen.
pub const LISTEN_TIMEOUT_SECONDS: i32 = 15;
/// Seconds between SIGTERM and SIGKILL.
pub const TERMINATION_GRACE_SECONDS: i32 = 30;

/// Fields of an App's spec that say nothing about what runs.
const NOT_HASHED: [&str; 4] =
    ["version", "revisionHistoryLimit", "progressDeadlineSeconds", "ephemeral"];

/// The version that this spec asks for, with every default filled in. The order of services does
/// not matter; the order of ports and environment does, because `PORT` and `$(NAME)` depend on it.
pub fn resolve(app: &str, spec: &AppSpec) -> AppVersionSpec {
    let mut services: Vec<_> =
        spec.services.iter().map(|service| resolve_service(spec, service)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    AppVersionSpec { app: app.into(), hash_version: HASH_VERSION, digest: digest(spec), services }
}

/// SHA-256 of the user's canonical input: what was written, without what has no bearing on what
/// runs and without values that only repeat a schema default. Hexadecimal.
pub fn digest(spec: &AppSpec) -> String {
    names::digest(&[text(&canonical(spec)).as_bytes()])
}

/// The digest that names a pool: everything that a sandbox is made from.
pub fn sandbox_digest(sandbox: &SandboxSpec) -> String {
    let value = serde_json::to_value(sandbox).expect("a sandbox is plain data");
    names::digest(&[text(&value).as_bytes()])
}

/// The name of the pool that runs this service of `app`.
pub fn pool_name(app: &str, service: &VersionService) -> String {
    names::pool(app, &service.name, &sandbox_digest(&service.sandbox), None)
}

/// JSON without spaces and with sorted keys. Written out here, because a neighbour that turns on
/// `preserve_order` of `serde_json` would otherwise rename every version.
fn text(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            let field = |(key, value): (&String, &Value)| format!("{}:{}", json!(key), text(value));
            format!("{{{}}}", sorted.into_iter().map(field).collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

fn canonical(spec: &AppSpec) -> Value {
    let mut value = serde_json::to_value(spec).expect("a spec is plain data");
    let root = value.as_object_mut().expect("a spec is an object");
    for field in NOT_HASHED {
        root.remove(field);
    }
    let mut services = match root.remove("services") {
        Some(Value::Array(services)) => services,
        _ => Vec::new(),
    };
    services.iter_mut().for_each(canonical_service);
    services.sort_by_key(|service| service["name"].to_string());
    root.insert("services".into(), Value::Array(services));
    value
}

fn canonical_service(service: &mut Value) {
    if let Some(ports) = service.get_mut("ports").and_then(Value::as_array_mut) {
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            if port.get("type").is_some_and(|kind| kind == "http") {
                port.remove("type");
            }
        }
    }
    if let Some(service) = service.as_object_mut() {
        for field in ["scale", "health", "template"] {
            if service.get(field).and_then(Value::as_object).is_some_and(|o| o.is_empty()) {
                service.remove(field);
            }
        }
        if service.get("sessionAffinity").is_some_and(|affinity| affinity == "None") {
            service.remove("sessionAffinity");
        }
    }
}

fn resolve_service(app: &AppSpec, service: &ServiceSpec) -> VersionService {
    let ports = resolve_ports(service);
    let sandbox_ports: Vec<_> = ports.iter().map(sandbox_port).collect();
    let health = service.health.clone().unwrap_or_default();
    let template = service.template.clone().filter(|t| *t != Default::default());
    let mut sandbox = SandboxSpec {
        image: service.image.clone().or_else(|| app.image.clone()).unwrap_or_default(),
        command: service.command.clone(),
        args: service.args.clone(),
        working_dir: service.working_dir.clone(),
        env: merge_env(&app.env, &service.env),
        ports: sandbox_ports,
        readiness: health.readiness,
        liveness: health.liveness,
        startup: health.startup,
        termination_grace_seconds: service
            .termination_grace_period_seconds
            .unwrap_or(TERMINATION_GRACE_SECONDS)
            .into(),
        listen_timeout_seconds: service
            .listen_timeout_seconds
            .unwrap_or(LISTEN_TIMEOUT_SECONDS)
            .into(),
        template,
        restarted_at: app.restarted_at.as_ref().map(|time| time.0.to_string()),
    };
    if sandbox.readiness.is_none() {
        sandbox.readiness = sandbox.stream_port().map(|port| derived_probe(port.port));
    }
    VersionService {
        name: service.name.clone(),
        sandbox,
        scale: resolve_scale(&service.name, service.scale.as_ref()),
        ports,
        session_affinity: service
            .session_affinity
            .filter(|affinity| *affinity != SessionAffinity::None),
    }
}

fn resolve_ports(service: &ServiceSpec) -> Vec<Port> {
    if !service.ports.is_empty() {
        return service.ports.clone();
    }
    let number = service.port.or((service.name == "web").then_some(WEB_PORT));
    let kind = service.port_type.unwrap_or_default();
    let name = service.port_name.clone().unwrap_or_else(|| kind.name().into());
    let port = |port| Port { name, port, r#type: kind, node_port: None, app_protocol: None };
    number.map(port).into_iter().collect()
}

impl PortType {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

fn sandbox_port(port: &Port) -> SandboxPort {
    SandboxPort {
        name: port.name.clone(),
        port: port.port,
        r#type: port.r#type,
        app_protocol: port.app_protocol,
    }
}

/// The App's variables in order, the service's value in place where both name one, then the
/// service's own.
fn merge_env(app: &[EnvVar], service: &[EnvVar]) -> Vec<EnvVar> {
    let own = |name: &str| service.iter().rfind(|var| var.name == name);
    let mut merged: Vec<EnvVar> =
        app.iter().map(|var| own(&var.name).unwrap_or(var).clone()).collect();
    let extra = service.iter().filter(|var| app.iter().all(|other| other.name != var.name));
    merged.extend(extra.cloned());
    merged
}

/// A connection to the port, each second: what a program that says nothing about health is held
/// to.
fn derived_probe(port: i32) -> Probe {
    Probe {
        tcp_socket: Some(TCPSocketAction { port: IntOrString::Int(port), host: None }),
        period_seconds: Some(1),
        timeout_seconds: Some(1),
        failure_threshold: Some(3),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

fn resolve_scale(service: &str, scale: Option<&ScaleSpec>) -> PoolScale {
    let scale = scale.cloned().unwrap_or_default();
    let by_name = if service == "web" { ScaleMode::Auto } else { ScaleMode::Fixed };
    let concurrency = scale.concurrency.unwrap_or_default();
    match scale.mode.unwrap_or(by_name) {
        ScaleMode::Auto => {
            let max = scale.max.unwrap_or(MAX_INSTANCES);
            PoolScale {
                min: scale.min.unwrap_or(0).min(max),
                max,
                requests_per_instance: Some(
                    scale.requests_per_instance.unwrap_or(REQUESTS_PER_INSTANCE),
                ),
                scale_down_delay_seconds: Some(
                    scale.scale_down_delay_seconds.unwrap_or(SCALE_DOWN_DELAY_SECONDS),
                ),
                concurrency,
            }
        }
        ScaleMode::Fixed => {
            let instances = scale.instances.unwrap_or(1);
            PoolScale {
                min: instances,
                max: instances,
                requests_per_instance: None,
                scale_down_delay_seconds: None,
                concurrency,
            }
        }
    }
}
