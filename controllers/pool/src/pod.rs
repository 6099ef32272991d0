//! The Pod of a sandbox, rendered from its pool. Pure: equal input, equal Pod.
//!
//! What the user's template says is kept, except where Portolan must be able to rely on its own
//! value: labels, environment, ports, the container's name, the grace period. Security settings
//! are those of the restricted Pod Security level, and give way field by field to the template's,
//! which the namespace's own level then judges.

use std::collections::BTreeMap;

use k8s_openapi::{
    DeepMerge,
    api::core::v1::{
        Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, Lifecycle, LifecycleHandler,
        ObjectFieldSelector, Pod, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
        SleepAction, TopologySpreadConstraint,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Resource, ResourceExt, core::ObjectMeta};
use portolan_api::{SandboxPool, SandboxSpec, SandboxTemplate, labels, names};

use crate::{plan::NewSandbox, sandbox::CONTAINER, settings::Settings};

/// Lets cluster-autoscaler move a sandbox: it is disposable, and drains like any other.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// Makes `kubectl logs` and `kubectl exec` choose the program among sidecars.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const HOSTNAME_TOPOLOGY: &str = "kubernetes.io/hostname";

/// The Pod of a new sandbox of this pool.
pub(crate) fn render(pool: &SandboxPool, new: &NewSandbox, settings: &Settings) -> Pod {
    let template = pool.spec.sandbox.template.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(names::pod(&pool.name_any(), new.ordinal, new.incarnation)),
            namespace: pool.namespace(),
            labels: Some(pod_labels(pool, &template)),
            annotations: Some(annotations(new, &template)),
            owner_references: pool.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec(pool, template, settings)),
        status: None,
    }
}

fn pod_labels(pool: &SandboxPool, template: &SandboxTemplate) -> BTreeMap<String, String> {
    let spec = &pool.spec;
    let ours = [
        (labels::APP, names::label_value(&spec.app)),
        (labels::SERVICE, names::label_value(&spec.service)),
        (labels::POOL, pool.name_any()),
        (labels::MANAGED_BY, labels::MANAGER.to_owned()),
    ];
    let ephemeral = pool.labels().get_key_value(labels::EPHEMERAL);
    let mut merged = template.labels.clone();
    merged.extend(ephemeral.map(|(key, value)| (key.clone(), value.clone())));
    merged.extend(ours.map(|(key, value)| (key.to_owned(), value)));
    merged
}

fn annotations(new: &NewSandbox, template: &SandboxTemplate) -> BTreeMap<String, String> {
    let mut merged = template.annotations.clone();
    merged.insert(SAFE_TO_EVICT.to_owned(), "true".to_owned());
    merged.insert(DEFAULT_CONTAINER.to_owned(), CONTAINER.to_owned());
    if let Some(slots) = &new.slots {
        merged.insert(labels::SLOTS.to_owned(), slots.clone());
    }
    merged
}

fn spec(pool: &SandboxPool, template: SandboxTemplate, settings: &Settings) -> PodSpec {
    let sandbox = &pool.spec.sandbox;
    let container = container(pool, &template, settings);
    let SandboxTemplate {
        labels: _,
        annotations: _,
        resources: _,
        volumes,
        volume_mounts: _,
        init_containers,
        service_account_name,
        node_selector,
        tolerations,
        affinity,
        topology_spread_constraints,
        security_context,
        container_security_context: _,
        image_pull_secrets,
        runtime_class_name,
        priority_class_name,
        host_aliases,
        dns_config,
    } = template;
    let spread = if topology_spread_constraints.is_empty() {
        default_spread(pool)
    } else {
        topology_spread_constraints
    };
    PodSpec {
        containers: vec![container],
        init_containers: filled(init_containers.into_iter().map(init_container).collect()),
        restart_policy: Some("Always".to_owned()),
        // The program has its whole grace period after the pause before SIGTERM.
        termination_grace_period_seconds: Some(
            sandbox.termination_grace_seconds.saturating_add(settings.pre_stop_seconds),
        ),
        enable_service_links: Some(false),
        automount_service_account_token: Some(service_account_name.is_some()),
        service_account_name,
        security_context: Some(pod_security(security_context)),
        topology_spread_constraints: filled(spread),
        volumes: filled(volumes),
        node_selector: (!node_selector.is_empty()).then_some(node_selector),
        tolerations: filled(tolerations),
        affinity,
        image_pull_secrets: filled(image_pull_secrets),
        runtime_class_name,
        priority_class_name,
        host_aliases: filled(host_aliases),
        dns_config,
        ..PodSpec::default()
    }
}

fn container(pool: &SandboxPool, template: &SandboxTemplate, settings: &Settings) -> Container {
    let sandbox = &pool.spec.sandbox;
    let pause = SleepAction { seconds: settings.pre_stop_seconds };
    let pre_stop = LifecycleHandler { sleep: Some(pause), ..LifecycleHandler::default() };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(sandbox.image.clone()),
        command: filled(sandbox.command.clone()),
        args: filled(sandbox.args.clone()),
        working_dir: sandbox.working_dir.clone(),
        env: Some(env(pool)),
        ports: filled(ports(sandbox)),
        readiness_probe: sandbox.readiness.clone(),
        liveness_probe: sandbox.liveness.clone(),
        startup_probe: sandbox.startup.clone(),
        lifecycle: Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() }),
        resources: template.resources.clone(),
        volume_mounts: filled(template.volume_mounts.clone()),
        security_context: Some(container_security(template.container_security_context.clone())),
        // The last lines of a program that crashes reach the pool's condition.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// The user's variables in their order, then ours: of two with one name the later counts.
fn env(pool: &SandboxPool) -> Vec<EnvVar> {
    let spec = &pool.spec;
    let var = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    let name = ObjectFieldSelector { field_path: "metadata.name".to_owned(), api_version: None };
    let name = EnvVarSource { field_ref: Some(name), ..EnvVarSource::default() };
    let mut env = spec.sandbox.env.clone();
    env.extend(spec.sandbox.main_port().map(|port| var("PORT", port.port.to_string())));
    env.push(var("PORTOLAN_APP", spec.app.clone()));
    env.push(var("PORTOLAN_SERVICE", spec.service.clone()));
    env.push(EnvVar { name: "PORTOLAN_SANDBOX".to_owned(), value: None, value_from: Some(name) });
    env
}

fn ports(sandbox: &SandboxSpec) -> Vec<ContainerPort> {
    let ports = sandbox.ports.iter().map(|port| ContainerPort {
        name: Some(port.name.clone()),
        container_port: port.port,
        protocol: Some(port.r#type.transport().to_owned()),
        ..ContainerPort::default()
    });
    ports.collect()
}

fn init_container(container: Container) -> Container {
    let security_context = Some(container_security(container.security_context));
    Container { security_context, ..container }
}

fn pod_security(user: Option<PodSecurityContext>) -> PodSecurityContext {
    let mut context = PodSecurityContext {
        run_as_non_root: Some(true),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..PodSecurityContext::default()
    };
    context.merge_from(user.unwrap_or_default());
    context
}

fn container_security(user: Option<SecurityContext>) -> SecurityContext {
    let user = user.unwrap_or_default();
    let added = user.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
    // Kubernetes refuses the combination, so asking for the one gives up the other.
    let escalates = user.privileged == Some(true)
        || added.is_some_and(|added| added.iter().any(|capability| capability == "SYS_ADMIN"));
    let mut context = SecurityContext {
        allow_privilege_escalation: (!escalates).then_some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    };
    context.merge_from(user);
    context
}

/// Over nodes, as far as possible: one lost node then takes few sandboxes of a pool.
fn default_spread(pool: &SandboxPool) -> Vec<TopologySpreadConstraint> {
    if pool.spec.scale.max <= 1 {
        return Vec::new();
    }
    let selector = BTreeMap::from([(labels::POOL.to_owned(), pool.name_any())]);
    vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: HOSTNAME_TOPOLOGY.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(selector),
            match_expressions: None,
        }),
        ..TopologySpreadConstraint::default()
    }]
}

/// A list as Kubernetes has it: absent when empty.
fn filled<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests;
