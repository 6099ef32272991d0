//! Why a sandbox is not ready, in words for its owner. Pure: time is an argument.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Probe;
use portolan_api::{SandboxSpec, conditions::reason};

use crate::sandbox::{CONTAINER, ContainerView, Exit, Hurdle, Sandbox, State};

/// How long a container may take to be created before the message says where to look.
const CREATION_PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// How long a cluster may take to have a node for a sandbox.
const SCHEDULING_PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// How long a Secret or ConfigMap that exists may take to be mounted; it takes a second.
const MOUNT_PATIENCE: SignedDuration = SignedDuration::from_secs(20);
/// Bytes of a program's last words that a message quotes.
const LAST_WORDS_MAX: usize = 400;

/// What is known of a sandbox that is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Diagnosis {
    /// On its way. `until`: when time alone changes the diagnosis.
    Starting {
        /// What it waits for, where that is worth saying.
        note: Option<String>,
        until: Option<Timestamp>,
    },
    /// Something must be done.
    Failing {
        /// One of [`reason`]'s words.
        reason: &'static str,
        message: String,
    },
}

/// Looks at one sandbox that stands and is not ready.
pub(crate) fn diagnose(sandbox: &Sandbox, spec: &SandboxSpec, now: Timestamp) -> Diagnosis {
    let name = &sandbox.key.name;
    match sandbox.hurdle.as_deref() {
        None => starting(None),
        Some(Hurdle::Unschedulable(why)) => unschedulable(sandbox, why, now),
        Some(Hurdle::NodeSilent) => {
            starting(Some(format!("the node of sandbox {name} does not report")))
        }
        Some(Hurdle::NotSetUp { since }) => not_set_up(name, *since, spec, now),
        Some(Hurdle::Container(container)) => match &container.state {
            State::Waiting { reason, message } => waiting(sandbox, container, reason, message, now),
            State::Exited(exit) if exit.has_lived => starting(Some(format!(
                "{} of sandbox {name} exited with code {} and is started again",
                described(container),
                exit.code
            ))),
            State::Exited(exit) => exited(name, container, exit),
            State::Running { since } => running(name, container, *since, spec, now),
        },
    }
}

/// The more a reason tells about the cause, the earlier it comes; of several sandboxes the first
/// one's is reported.
pub(crate) fn rank(reason: &str) -> usize {
    const ORDER: [&str; 7] = [
        reason::CONFIG_MISSING,
        reason::IMAGE_PULL_FAILED,
        reason::START_FAILED,
        reason::CRASH_LOOPING,
        reason::NOT_LISTENING,
        reason::PROBE_FAILING,
        reason::UNSCHEDULABLE,
    ];
    ORDER.iter().position(|known| *known == reason).unwrap_or(ORDER.len())
}

fn waiting(
    sandbox: &Sandbox,
    container: &ContainerView,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Diagnosis {
    let name = &sandbox.key.name;
    let what = described(container);
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            // The kubelet alternates between two texts, the second of which quotes the first.
            let cause = message.split_once("ErrImagePull: ").map_or(message, |(_, cause)| cause);
            let message = format!("{what} of sandbox {name} has no image: {cause}");
            failing(reason::IMAGE_PULL_FAILED, message)
        }
        "CreateContainerConfigError" if message.contains("runAsNonRoot") => failing(
            reason::START_FAILED,
            format!(
                "{what} of sandbox {name} would run as root: {message}; give the image a numeric \
                 USER, or set template.securityContext.runAsUser"
            ),
        ),
        "CreateContainerConfigError" => failing(
            reason::CONFIG_MISSING,
            format!("{what} of sandbox {name} cannot be made: {message}"),
        ),
        "CreateContainerError"
        | "RunContainerError"
        | "PostStartHookError"
        | "PreCreateHookError"
        | "PreStartHookError" => failing(
            reason::START_FAILED,
            format!("{what} of sandbox {name} cannot be started: {message}"),
        ),
        "CrashLoopBackOff" => match &container.last_exit {
            Some(exit) => exited(name, container, exit),
            None => failing(
                reason::CRASH_LOOPING,
                format!("{what} of sandbox {name} exits again and again: {message}"),
            ),
        },
        _ => creating(sandbox, &what, now),
    }
}

/// A cluster that grows on demand makes a node for it, which takes about as long as visitors wait.
fn unschedulable(sandbox: &Sandbox, why: &str, now: Timestamp) -> Diagnosis {
    let message = format!("sandbox {} fits no node: {why}", sandbox.key.name);
    let patience_ends = sandbox.created.saturating_add(SCHEDULING_PATIENCE).unwrap_or(now);
    if now < patience_ends {
        return Diagnosis::Starting { note: Some(message), until: Some(patience_ends) };
    }
    failing(reason::UNSCHEDULABLE, message)
}

/// Volumes come before the network, and the network before images. Why one cannot be mounted the
/// kubelet says in Events only; a Secret or ConfigMap that is not there is the usual cause.
fn not_set_up(name: &str, since: Timestamp, spec: &SandboxSpec, now: Timestamp) -> Diagnosis {
    // A disk that is attached slowly, or is another node's still, tells nothing of them.
    let sources = if has_disk(spec) { Vec::new() } else { mounted_sources(spec) };
    let patience = if sources.is_empty() { CREATION_PATIENCE } else { MOUNT_PATIENCE };
    let patience_ends = since.saturating_add(patience).unwrap_or(now);
    if now < patience_ends {
        return Diagnosis::Starting { note: None, until: Some(patience_ends) };
    }
    if sources.is_empty() {
        return starting(Some(format!(
            "sandbox {name} has no volumes or no network yet; see kubectl describe pod {name}"
        )));
    }
    let sources = sources.join(", ");
    let message = format!(
        "the volumes of sandbox {name} are not mounted after {} s; it needs {sources}, with the \
         keys that it names; see kubectl describe pod {name}",
        patience.as_secs()
    );
    failing(reason::CONFIG_MISSING, message)
}

fn has_disk(spec: &SandboxSpec) -> bool {
    let mut volumes = spec.template.iter().flat_map(|template| &template.volumes);
    volumes.any(|volume| {
        volume.persistent_volume_claim.is_some()
            || volume.ephemeral.is_some()
            || volume.csi.is_some()
    })
}

/// The Secrets and ConfigMaps that must exist for the volumes, in the template's order.
fn mounted_sources(spec: &SandboxSpec) -> Vec<String> {
    let volumes = spec.template.iter().flat_map(|template| &template.volumes);
    let source = |kind: &str, name: Option<&str>, optional: Option<bool>| {
        let name = name.filter(|_| optional != Some(true))?;
        Some(format!("{kind} {name}"))
    };
    let sources = volumes.flat_map(|volume| {
        let secret = volume.secret.as_ref();
        let secret =
            secret.and_then(|one| source("Secret", one.secret_name.as_deref(), one.optional));
        let config = volume.config_map.as_ref();
        let config = config.and_then(|one| source("ConfigMap", Some(&one.name), one.optional));
        let projected = volume.projected.iter().flat_map(|one| one.sources.iter().flatten());
        let projected = projected.flat_map(|one| {
            let secret = one.secret.as_ref();
            let config = one.config_map.as_ref();
            [
                secret.and_then(|one| source("Secret", Some(&one.name), one.optional)),
                config.and_then(|one| source("ConfigMap", Some(&one.name), one.optional)),
            ]
        });
        [secret, config].into_iter().chain(projected).flatten().collect::<Vec<_>>()
    });
    sources.collect()
}

fn creating(sandbox: &Sandbox, what: &str, now: Timestamp) -> Diagnosis {
    let patience_ends = sandbox.created.saturating_add(CREATION_PATIENCE).unwrap_or(now);
    if !sandbox.scheduled || now < patience_ends {
        return Diagnosis::Starting { note: None, until: Some(patience_ends).filter(|t| *t > now) };
    }
    let name = &sandbox.key.name;
    starting(Some(format!(
        "{what} of sandbox {name} is not made yet, its image may be large; see kubectl describe \
         pod {name}"
    )))
}

fn exited(name: &str, container: &ContainerView, exit: &Exit) -> Diagnosis {
    let what = described(container);
    if matches!(exit.reason.as_str(), "StartError" | "ContainerCannotRun") {
        let message = format!("{what} of sandbox {name} cannot be started: {}", exit.message);
        return failing(reason::START_FAILED, message);
    }
    let mut message = format!("{what} of sandbox {name} exited with code {}", exit.code);
    if !matches!(exit.reason.as_str(), "" | "Error" | "Completed") {
        message.push_str(&format!(" ({})", exit.reason));
    }
    match container.restarts {
        0 => {}
        1 => message.push_str(", restarted once"),
        times => message.push_str(&format!(", restarted {times} times")),
    }
    let words = last_words(&exit.message);
    if !words.is_empty() {
        message.push_str(&format!("; its last output: {words}"));
    }
    failing(reason::CRASH_LOOPING, message)
}

fn running(
    name: &str,
    container: &ContainerView,
    since: Timestamp,
    spec: &SandboxSpec,
    now: Timestamp,
) -> Diagnosis {
    if let Some(exit) = container.last_exit.as_ref().filter(|exit| !exit.has_lived) {
        return exited(name, container, exit);
    }
    if container.name != CONTAINER {
        return starting(Some(format!("{} of sandbox {name} is running", described(container))));
    }
    let Some(probe) = spec.startup.as_ref().or(spec.readiness.as_ref()) else {
        return starting(None);
    };
    let head_start = i64::from(probe.initial_delay_seconds.unwrap_or_default().max(0));
    let given = spec.startup.as_ref().map_or(0, given);
    let seconds = spec.listen_timeout_seconds.max(given);
    let allowed = SignedDuration::from_secs(seconds.saturating_add(head_start));
    let due = since.saturating_add(allowed).unwrap_or(now);
    if now <= due {
        return Diagnosis::Starting { note: None, until: due.checked_add(TICK).ok() };
    }
    let probed = probed(probe);
    match &probe.tcp_socket {
        Some(_) => failing(
            reason::NOT_LISTENING,
            format!(
                "the program in sandbox {name} has run for more than {seconds} s and {probed}; make \
                 it listen on 0.0.0.0:$PORT, not on 127.0.0.1 or another port"
            ),
        ),
        None => failing(
            reason::PROBE_FAILING,
            format!(
                "the program in sandbox {name} has run for more than {seconds} s and {probed}; it \
                 must succeed, and reach a program that listens on 0.0.0.0:$PORT"
            ),
        ),
    }
}

/// Seconds for which a startup probe may fail before the kubelet ends the program, with its
/// defaults.
fn given(startup: &Probe) -> i64 {
    let count = |field: Option<i32>, default| i64::from(field.unwrap_or(default).max(1));
    count(startup.period_seconds, 10).saturating_mul(count(startup.failure_threshold, 3))
}

/// "More than": the least step of the clock that timers resolve.
const TICK: SignedDuration = SignedDuration::from_millis(1);

fn probed(probe: &Probe) -> String {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    if let Some(tcp) = &probe.tcp_socket {
        return format!("accepts no connection on port {}", port(&tcp.port));
    }
    if let Some(http) = &probe.http_get {
        let path = http.path.as_deref().unwrap_or("/");
        return format!("its probe GET {path} on port {} fails", port(&http.port));
    }
    match &probe.grpc {
        Some(grpc) => format!("its gRPC probe on port {} fails", grpc.port),
        None => "its probe command fails".to_owned(),
    }
}

fn described(container: &ContainerView) -> String {
    match container.name.as_str() {
        CONTAINER => "the program".to_owned(),
        other => format!("container {other}"),
    }
}

/// The end of what a program printed, on one line.
fn last_words(output: &str) -> String {
    let line = output.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut = line.len().saturating_sub(LAST_WORDS_MAX);
    let start = (cut..=line.len()).find(|start| line.is_char_boundary(*start));
    line[start.unwrap_or(0)..].to_owned()
}

fn starting(note: Option<String>) -> Diagnosis {
    Diagnosis::Starting { note, until: None }
}

fn failing(reason: &'static str, message: String) -> Diagnosis {
    Diagnosis::Failing { reason, message }
}

#[cfg(test)]
mod tests;
