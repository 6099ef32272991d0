use portolan_api::SandboxSpec;

use super::*;
use crate::fixture::{at, pending, pool, sandbox, unready, with_state, yaml};

const NAME: &str = "shop-web-5f3k9q2m-0-1";

fn spec() -> SandboxSpec {
    pool().spec.sandbox
}

/// The reason, and what the message must contain.
#[track_caller]
fn check(sandbox: &Sandbox, spec: &SandboxSpec, expected: &str, words: &[&str]) {
    match diagnose(sandbox, spec, at(16)) {
        Diagnosis::Failing { reason, message } => {
            assert_eq!(reason, expected, "{message}");
            for word in words.iter().chain(&[NAME]) {
                assert!(message.contains(word), "no '{word}' in: {message}");
            }
        }
        other => panic!("expected {expected}, found {other:?}"),
    }
}

fn waiting(reason: &str, message: &str) -> Sandbox {
    let state = State::Waiting { reason: reason.to_owned(), message: message.to_owned() };
    with_state(sandbox(0, 1), state)
}

fn exit(code: i32, reason: &str, message: &str) -> Exit {
    Exit { code, reason: reason.to_owned(), message: message.to_owned(), has_lived: false }
}

fn crashed(state: State, restarts: i32, last_exit: Option<Exit>) -> Sandbox {
    let view = ContainerView { name: CONTAINER.to_owned(), state, restarts, last_exit };
    let hurdle = Some(Box::new(Hurdle::Container(view)));
    Sandbox { ready: false, hurdle, ..sandbox(0, 1) }
}

fn backing_off() -> State {
    State::Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 40s".into() }
}

#[test]
fn an_image_that_cannot_be_pulled() {
    for reason in ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"] {
        check(&waiting(reason, "not found"), &spec(), reason::IMAGE_PULL_FAILED, &["not found"]);
    }
}

#[test]
fn the_two_texts_of_a_failing_pull_are_one() {
    let cause = "failed to pull: not found";
    let first = waiting("ErrImagePull", cause);
    let second = waiting(
        "ImagePullBackOff",
        &format!("Back-off pulling image \"x\": ErrImagePull: {cause}"),
    );
    assert_eq!(diagnose(&first, &spec(), at(0)), diagnose(&second, &spec(), at(0)));
}

#[test]
fn a_missing_secret() {
    let message = "secret \"db\" not found";
    check(
        &waiting("CreateContainerConfigError", message),
        &spec(),
        reason::CONFIG_MISSING,
        &[message],
    );
}

#[test]
fn an_image_that_would_run_as_root() {
    let message = "container has runAsNonRoot and image will run as root";
    check(
        &waiting("CreateContainerConfigError", message),
        &spec(),
        reason::START_FAILED,
        &["numeric USER", "runAsUser"],
    );
}

#[test]
fn a_command_that_does_not_exist() {
    let message = "exec: \"./nope\": no such file or directory";
    for reason in ["CreateContainerError", "RunContainerError"] {
        check(&waiting(reason, message), &spec(), reason::START_FAILED, &[message]);
    }
    let exit = exit(128, "StartError", message);
    let again = crashed(backing_off(), 2, Some(exit));
    check(&again, &spec(), reason::START_FAILED, &[message]);
}

#[test]
fn a_program_that_crashes() {
    let words = &["exited with code 1,", "restarted 3 times", "its last output: panic: no config"];
    let crash = exit(1, "Error", "panic:\n  no config\n");
    let again = crashed(backing_off(), 3, Some(crash.clone()));
    check(&again, &spec(), reason::CRASH_LOOPING, words);
    let running = crashed(State::Running { since: at(15) }, 3, Some(crash.clone()));
    check(&running, &spec(), reason::CRASH_LOOPING, words);
    let first = crashed(State::Exited(crash), 0, None);
    check(&first, &spec(), reason::CRASH_LOOPING, &["exited with code 1;"]);
}

#[test]
fn a_program_that_served_and_is_started_again_is_waited_for() {
    let killed = Exit { has_lived: true, ..exit(137, "OOMKilled", "") };
    let note = format!("the program of sandbox {NAME} exited with code 137 and is started again");
    let ended = crashed(State::Exited(killed.clone()), 0, None);
    assert_eq!(diagnose(&ended, &spec(), at(20)), starting(Some(note)));
    let again = crashed(State::Running { since: at(20) }, 1, Some(killed.clone()));
    let first = crashed(State::Running { since: at(20) }, 0, None);
    assert_eq!(diagnose(&again, &spec(), at(21)), diagnose(&first, &spec(), at(21)));
    // The kubelet lets it rest: it was not the first time.
    let resting = crashed(backing_off(), 2, Some(killed));
    check(&resting, &spec(), reason::CRASH_LOOPING, &["code 137 (OOMKilled)"]);
}

#[test]
fn a_program_that_ends_without_a_word() {
    let done = crashed(backing_off(), 1, Some(exit(0, "Completed", "")));
    let expected = format!("the program of sandbox {NAME} exited with code 0, restarted once");
    assert_eq!(
        diagnose(&done, &spec(), at(0)),
        Diagnosis::Failing { reason: reason::CRASH_LOOPING, message: expected }
    );
    let killed = crashed(backing_off(), 1, Some(exit(137, "OOMKilled", "")));
    check(&killed, &spec(), reason::CRASH_LOOPING, &["code 137 (OOMKilled)"]);
    let unknown = waiting("CrashLoopBackOff", "back-off 10s");
    check(&unknown, &spec(), reason::CRASH_LOOPING, &["back-off 10s"]);
}

#[test]
fn last_words_are_the_last_ones_and_few() {
    let output = format!("{} ü{}", "first ".repeat(100), "x".repeat(LAST_WORDS_MAX - 1));
    let words = last_words(&output);
    assert!(words.len() <= LAST_WORDS_MAX, "{}", words.len());
    assert!(words.ends_with("xxx") && !words.contains("first"), "{words}");
}

#[test]
fn a_program_that_does_not_listen() {
    let words = &["15 s", "port 3000", "0.0.0.0:$PORT"];
    check(&unready(0, 1, 0), &spec(), reason::NOT_LISTENING, words);
}

#[test]
fn a_program_gets_its_time_to_listen() {
    let starting = |now| diagnose(&unready(0, 1, 0), &spec(), now);
    let until = at(15) + TICK;
    assert_eq!(starting(at(15)), Diagnosis::Starting { note: None, until: Some(until) });
    assert!(matches!(starting(until), Diagnosis::Failing { .. }), "strictly after the timeout");
    let slow = SandboxSpec {
        readiness: Some(yaml("{ tcpSocket: { port: 3000 }, initialDelaySeconds: 60 }")),
        ..spec()
    };
    let until = at(75) + TICK;
    assert_eq!(
        diagnose(&unready(0, 1, 0), &slow, at(16)),
        Diagnosis::Starting { note: None, until: Some(until) }
    );
    let slower = SandboxSpec {
        startup: Some(yaml("{ httpGet: { port: 3000 }, periodSeconds: 10, failureThreshold: 30 }")),
        ..spec()
    };
    assert_eq!(
        diagnose(&unready(0, 1, 0), &slower, at(16)),
        Diagnosis::Starting { note: None, until: Some(at(300) + TICK) },
        "the kubelet gives it as long"
    );
}

#[test]
fn a_probe_that_fails() {
    for (probe, words) in [
        ("{ httpGet: { path: /health, port: http } }", "GET /health on port http"),
        ("{ httpGet: { port: 8080 } }", "GET / on port 8080"),
        ("{ exec: { command: [ check ] } }", "its probe command"),
        ("{ grpc: { port: 9090 } }", "gRPC probe on port 9090"),
    ] {
        let probed = SandboxSpec { readiness: Some(yaml(probe)), ..spec() };
        check(&unready(0, 1, 0), &probed, reason::PROBE_FAILING, &[words, "0.0.0.0:$PORT"]);
        let startup = SandboxSpec { startup: Some(yaml(probe)), ..spec() };
        check(&unready(0, 1, -60), &startup, reason::PROBE_FAILING, &[words]);
    }
}

#[test]
fn a_program_without_a_probe_is_starting() {
    let unprobed = SandboxSpec { readiness: None, ..spec() };
    let starting = Diagnosis::Starting { note: None, until: None };
    assert_eq!(diagnose(&unready(0, 1, 0), &unprobed, at(600)), starting);
}

#[test]
fn no_node_has_room() {
    let message = "0/3 nodes are available: 3 Insufficient cpu";
    let hurdle = Some(Box::new(Hurdle::Unschedulable(message.to_owned())));
    let sandbox = Sandbox { hurdle, created: at(0), ..pending(0, 1) };
    let Diagnosis::Starting { note: Some(note), until } = diagnose(&sandbox, &spec(), at(59))
    else {
        panic!("a node may be on its way");
    };
    assert!(note.contains(message) && until == Some(at(60)), "{note}");
    let sandbox = Sandbox { created: at(-60), ..sandbox };
    check(&sandbox, &spec(), reason::UNSCHEDULABLE, &[message]);
}

#[test]
fn a_silent_node_is_said() {
    let hurdle = Some(Box::new(Hurdle::NodeSilent));
    let sandbox = Sandbox { ready: false, hurdle, ..sandbox(0, 1) };
    let note = Some(format!("the node of sandbox {NAME} does not report"));
    assert_eq!(diagnose(&sandbox, &spec(), at(0)), Diagnosis::Starting { note, until: None });
}

#[test]
fn a_container_that_takes_long_to_be_made_is_explained() {
    let creating = waiting("ContainerCreating", "");
    let early = Diagnosis::Starting { note: None, until: Some(at(60)) };
    assert_eq!(diagnose(&creating, &spec(), at(59)), early);
    let Diagnosis::Starting { note: Some(note), until: None } =
        diagnose(&creating, &spec(), at(60))
    else {
        panic!("expected a note after a minute");
    };
    for word in ["image", "kubectl describe pod"] {
        assert!(note.contains(word), "no '{word}' in: {note}");
    }
}

fn not_set_up() -> Sandbox {
    let hurdle = Some(Box::new(Hurdle::NotSetUp { since: at(-4) }));
    Sandbox { ready: false, hurdle, ..sandbox(0, 1) }
}

#[test]
fn a_volume_whose_secret_is_missing() {
    let template = "
volumes:
- { name: a, secret: { secretName: tls } }
- { name: b, configMap: { name: settings } }
- { name: c, secret: { secretName: extra, optional: true } }
- { name: d, projected: { sources: [ { secret: { name: token } }, { configMap: { name: ca } } ] } }
- { name: e, emptyDir: {} }
";
    let mounting = SandboxSpec { template: Some(yaml(template)), ..spec() };
    let words = &["Secret tls, ConfigMap settings, Secret token, ConfigMap ca,", "20 s"];
    check(&not_set_up(), &mounting, reason::CONFIG_MISSING, words);
    let early = Diagnosis::Starting { note: None, until: Some(at(16)) };
    assert_eq!(diagnose(&not_set_up(), &mounting, at(15)), early);

    let disk = "- { name: f, persistentVolumeClaim: { claimName: data } }";
    let attaching = SandboxSpec { template: Some(yaml(&format!("{template}{disk}"))), ..spec() };
    let Diagnosis::Starting { .. } = diagnose(&not_set_up(), &attaching, at(600)) else {
        panic!("it may be the disk");
    };
}

#[test]
fn a_sandbox_without_network_is_explained() {
    let early = Diagnosis::Starting { note: None, until: Some(at(56)) };
    assert_eq!(diagnose(&not_set_up(), &spec(), at(55)), early);
    let late = diagnose(&not_set_up(), &spec(), at(56));
    let Diagnosis::Starting { note: Some(note), until: None } = late else {
        panic!("expected a note after a minute, found {late:?}");
    };
    assert!(note.contains("no network") && note.contains(NAME), "{note}");
}

#[test]
fn a_sandbox_that_nobody_has_looked_at_is_starting() {
    let starting = Diagnosis::Starting { note: None, until: None };
    assert_eq!(diagnose(&pending(0, 1), &spec(), at(600)), starting);
}

#[test]
fn another_container_is_named() {
    let mut failing = waiting("ErrImagePull", "not found");
    if let Some(Hurdle::Container(view)) = failing.hurdle.as_deref_mut() {
        view.name = "migrate".to_owned();
    }
    check(&failing, &spec(), reason::IMAGE_PULL_FAILED, &["container migrate"]);
}
