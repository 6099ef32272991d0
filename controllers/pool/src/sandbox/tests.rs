use super::*;
use crate::fixture::{POOL, POOL_UID, viewed, yaml};

#[track_caller]
fn check(status: &str, expected: Option<Hurdle>) {
    assert_eq!(viewed(status).hurdle.map(|hurdle| *hurdle), expected, "{status}");
}

fn container(name: &str, state: State) -> Hurdle {
    Hurdle::Container(ContainerView { name: name.to_owned(), state, restarts: 0, last_exit: None })
}

fn waiting(reason: &str) -> State {
    State::Waiting { reason: reason.to_owned(), message: String::new() }
}

#[test]
fn a_pod_without_the_label_is_not_kept() {
    let pod = yaml("metadata: { name: a, namespace: b }");
    assert_eq!(Sandbox::of(pod), None);
}

#[test]
fn what_decisions_need_is_kept() {
    let pod = yaml(&format!(
        "
metadata:
  name: {POOL}-3-17
  namespace: team-a
  uid: uid-of-the-pod
  labels: {{ portolan.dev/pool: {POOL}, portolan.dev/app: shop }}
  annotations: {{ portolan.dev/slots: gw-a=10, portolan.dev/drain: '17', portolan.dev/drain-reason: Surplus }}
  creationTimestamp: 2027-01-15T08:00:00Z
  deletionTimestamp: 2027-01-15T09:00:00Z
  ownerReferences:
  - {{ apiVersion: v1, kind: ConfigMap, name: other, uid: uid-of-another }}
  - {{ apiVersion: portolan.dev/v1alpha1, kind: SandboxPool, name: {POOL}, uid: {POOL_UID}, controller: true }}
spec: {{ containers: [], nodeName: node-1 }}
status:
  phase: Running
  podIP: 10.0.0.7
  conditions: [ {{ type: Ready, status: 'True' }} ]
"
    ));
    let expected = Sandbox {
        key: ObjectKey::new("team-a", format!("{POOL}-3-17")),
        uid: "uid-of-the-pod".to_owned(),
        pool: ObjectKey::new("team-a", POOL),
        owner: Some(POOL_UID.to_owned()),
        created: "2027-01-15T08:00:00Z".parse().unwrap(),
        ended: None,
        deleting: true,
        scheduled: true,
        addressed: true,
        ready: true,
        slots: Some("gw-a=10".to_owned()),
        drain: Some("17".to_owned()),
        hurdle: None,
    };
    assert_eq!(Sandbox::of(pod), Some(expected));
}

#[test]
fn a_pod_that_ended_is_told_from_one_that_runs() {
    for phase in ["Pending", "Running", "Unknown"] {
        assert_eq!(viewed(&format!("phase: {phase}")).ended, None, "{phase}");
    }
    for phase in ["Failed", "Succeeded"] {
        let ended = viewed(&format!("phase: {phase}\nreason: Evicted")).ended;
        assert_eq!(ended.expect("it ended").words, "Evicted", "{phase}");
    }
}

#[test]
fn what_a_node_refuses_is_told_from_what_it_ends_later() {
    let rejected = "phase: Failed\nreason: SysctlForbidden\nmessage: 'Pod was rejected: no'";
    let ended = viewed(rejected).ended.expect("it ended");
    assert_eq!(ended.words, "SysctlForbidden: Pod was rejected: no");
    assert!(!ended.has_lived);
    let of_program = |state: &str| {
        let status = format!(
            "phase: Failed\nreason: Evicted\ncontainerStatuses:\n- {{ name: app, image: i, imageID: \
             i, ready: false, restartCount: 0, state: {{ {state} }} }}"
        );
        viewed(&status).ended.expect("it ended").has_lived
    };
    let ran = |until: &str| {
        format!(
            "terminated: {{ exitCode: 137, startedAt: '2027-01-15T08:00:00Z', finishedAt: \
             '2027-01-15T08:00:{until}Z' }}"
        )
    };
    assert!(of_program(&ran("10")) && !of_program(&ran("09")));
    assert!(of_program("running: { startedAt: '2027-01-15T08:00:00Z' }"), "its node is gone");
    assert!(of_program("terminated: { exitCode: 137, reason: ContainerStatusUnknown }"));
    assert!(!of_program("waiting: { reason: ContainerCreating }"));
}

#[test]
fn a_pod_that_nobody_has_looked_at_has_no_hurdle() {
    check("phase: Pending", None);
}

#[test]
fn the_schedulers_words_are_kept() {
    let conditions = |reason: &str| {
        format!(
            "conditions: [ {{ type: PodScheduled, status: 'False', reason: {reason}, message: 0/1 nodes }} ]"
        )
    };
    check(&conditions("Unschedulable"), Some(Hurdle::Unschedulable("0/1 nodes".to_owned())));
    check(&conditions("SchedulingGated"), None);
}

#[test]
fn a_pod_without_volumes_or_network_is_told_from_one_that_waits_for_its_image() {
    let status = |ready: &str| {
        format!(
            "conditions: [ {{ type: PodReadyToStartContainers, status: '{ready}', lastTransitionTime: 2027-01-15T08:00:00Z }} ]\n\
             containerStatuses: [ {{ name: app, ready: false, restartCount: 0, image: a, imageID: '', state: {{ waiting: {{ reason: ContainerCreating }} }} }} ]"
        )
    };
    let since = "2027-01-15T08:00:00Z".parse().unwrap();
    check(&status("False"), Some(Hurdle::NotSetUp { since }));
    check(&status("True"), Some(container("app", waiting("ContainerCreating"))));
}

#[test]
fn the_program_is_looked_at_before_what_was_injected() {
    let other = "{ name: proxy, ready: false, restartCount: 0, image: p, imageID: '', state: { waiting: { reason: ErrImagePull } } }";
    let app = "{ name: app, ready: false, restartCount: 0, image: a, imageID: '', state: { waiting: { reason: ContainerCreating } } }";
    check(
        &format!("containerStatuses: [ {other}, {app} ]"),
        Some(container("app", waiting("ContainerCreating"))),
    );
    let app = app.replace("ready: false", "ready: true");
    check(
        &format!("containerStatuses: [ {app}, {other} ]"),
        Some(container("proxy", waiting("ErrImagePull"))),
    );
}

#[test]
fn an_init_container_is_looked_at_until_it_is_done() {
    let app = "containerStatuses: [ { name: app, ready: false, restartCount: 0, image: a, imageID: '', state: { waiting: { reason: PodInitializing } } } ]";
    let init = |state: &str| {
        format!(
            "initContainerStatuses: [ {{ name: migrate, ready: false, restartCount: 0, image: i, imageID: '', {state} }} ]\n{app}"
        )
    };
    let app = || container("app", waiting("PodInitializing"));
    check(&init("state: { terminated: { exitCode: 0 } }"), Some(app()));
    check(&init("started: true, state: { running: {} }"), Some(app()));
    check(
        &init("state: { terminated: { exitCode: 3, reason: Error, message: no database } }"),
        Some(container(
            "migrate",
            State::Exited(Exit {
                code: 3,
                reason: "Error".to_owned(),
                message: "no database".to_owned(),
                has_lived: false,
            }),
        )),
    );
}

#[test]
fn a_crash_is_kept_with_what_came_before() {
    for (second, has_lived) in [("09", false), ("10", true)] {
        let status = format!(
            "containerStatuses: [ {{ name: app, ready: false, restartCount: 4, image: a, imageID: '', \
             state: {{ waiting: {{ reason: CrashLoopBackOff, message: back-off 40s }} }}, \
             lastState: {{ terminated: {{ exitCode: 137, reason: OOMKilled, \
             startedAt: '2026-01-01T00:00:00Z', finishedAt: '2026-01-01T00:00:{second}Z' }} }} }} ]"
        );
        let reason = "OOMKilled".to_owned();
        let exit = Exit { code: 137, reason, message: String::new(), has_lived };
        let state = State::Waiting {
            reason: "CrashLoopBackOff".to_owned(),
            message: "back-off 40s".to_owned(),
        };
        let last_exit = Some(exit);
        let view = ContainerView { name: "app".to_owned(), state, restarts: 4, last_exit };
        check(&status, Some(Hurdle::Container(view)));
    }
}

#[test]
fn ready_containers_in_an_unready_pod_mean_that_the_node_is_silent() {
    check(
        "conditions: [ { type: Ready, status: 'False' } ]\n\
         containerStatuses: [ { name: app, ready: true, restartCount: 0, image: a, imageID: '', state: { running: {} } } ]",
        Some(Hurdle::NodeSilent),
    );
}

#[test]
fn ten_thousand_sandboxes_fit() {
    let size = std::mem::size_of::<Sandbox>();
    assert!(size <= 320, "a sandbox takes {size} bytes before its names");
}
