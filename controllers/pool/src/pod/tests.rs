use serde_json::{Value, json};

use super::*;
use crate::fixture::{pool, settings, yaml};

fn new() -> NewSandbox {
    NewSandbox { ordinal: 2, incarnation: 17, slots: Some("gw-a=5,gw-b=5".to_owned()) }
}

fn rendered(pool: &SandboxPool) -> Value {
    serde_json::to_value(render(pool, &new(), &settings())).unwrap()
}

/// A pool whose sandbox has this template.
fn with_template(template: &str) -> SandboxPool {
    let mut pool = pool();
    pool.spec.sandbox.template = Some(yaml(template));
    pool
}

#[track_caller]
fn check(pool: &SandboxPool, pointer: &str, expected: &Value) {
    let rendered = rendered(pool);
    let found = rendered.pointer(pointer).unwrap_or(&Value::Null);
    assert_eq!(found, expected, "{pointer} of {rendered:#}");
}

#[test]
fn a_plain_service_is_this_pod() {
    let expected: Value = yaml(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: shop-web-5f3k9q2m-2-17
  namespace: team-a
  labels:
    app.kubernetes.io/managed-by: portolan
    portolan.dev/app: shop
    portolan.dev/service: web
    portolan.dev/pool: shop-web-5f3k9q2m
  annotations:
    cluster-autoscaler.kubernetes.io/safe-to-evict: "true"
    kubectl.kubernetes.io/default-container: app
    portolan.dev/slots: gw-a=5,gw-b=5
  ownerReferences:
  - { apiVersion: portolan.dev/v1alpha1, kind: SandboxPool, name: shop-web-5f3k9q2m, uid: uid-of-the-pool, controller: true }
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: Always
  terminationGracePeriodSeconds: 35
  securityContext: { runAsNonRoot: true, seccompProfile: { type: RuntimeDefault } }
  topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: { matchLabels: { portolan.dev/pool: shop-web-5f3k9q2m } }
  containers:
  - name: app
    image: registry.example/shop:1
    env:
    - { name: PORT, value: "3000" }
    - { name: PORTOLAN_APP, value: shop }
    - { name: PORTOLAN_SERVICE, value: web }
    - { name: PORTOLAN_SANDBOX, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    ports: [ { name: http, containerPort: 3000, protocol: TCP } ]
    readinessProbe: { tcpSocket: { port: 3000 } }
    lifecycle: { preStop: { sleep: { seconds: 5 } } }
    securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ ALL ] } }
    terminationMessagePolicy: FallbackToLogsOnError
"#,
    );
    assert_eq!(rendered(&pool()), expected);
}

#[test]
fn everything_a_service_says_reaches_the_program() {
    let mut pool = pool();
    pool.spec.sandbox = yaml(
        "
image: registry.example/irc:2
command: [ ./ircd ]
args: [ --listen, $(PORT) ]
workingDir: /srv
env:
- { name: MODE, value: a }
- { name: PASSWORD, valueFrom: { secretKeyRef: { name: irc, key: password } } }
ports:
- { name: irc, port: 6667, type: tcp }
- { name: stats, port: 8080, type: http }
- { name: voice, port: 6667, type: udp }
liveness: { httpGet: { path: /live, port: stats } }
startup: { exec: { command: [ true ] } }
terminationGraceSeconds: 0
listenTimeoutSeconds: 15
",
    );
    let expected: Value = yaml(
        r#"
name: app
image: registry.example/irc:2
command: [ ./ircd ]
args: [ --listen, $(PORT) ]
workingDir: /srv
env:
- { name: MODE, value: a }
- { name: PASSWORD, valueFrom: { secretKeyRef: { name: irc, key: password } } }
- { name: PORT, value: "8080" }
- { name: PORTOLAN_APP, value: shop }
- { name: PORTOLAN_SERVICE, value: web }
- { name: PORTOLAN_SANDBOX, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
ports:
- { name: irc, containerPort: 6667, protocol: TCP }
- { name: stats, containerPort: 8080, protocol: TCP }
- { name: voice, containerPort: 6667, protocol: UDP }
livenessProbe: { httpGet: { path: /live, port: stats } }
startupProbe: { exec: { command: [ "true" ] } }
lifecycle: { preStop: { sleep: { seconds: 5 } } }
securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: [ ALL ] } }
terminationMessagePolicy: FallbackToLogsOnError
"#,
    );
    check(&pool, "/spec/containers/0", &expected);
    check(&pool, "/spec/terminationGracePeriodSeconds", &json!(5));
}

#[test]
fn port_is_the_first_http_port_else_the_first_else_absent() {
    for (ports, expected) in [
        (
            "[ { name: a, port: 7000, type: tcp }, { name: b, port: 3000, type: http } ]",
            Some("3000"),
        ),
        (
            "[ { name: a, port: 7000, type: tcp }, { name: b, port: 7001, type: tcp } ]",
            Some("7000"),
        ),
        ("[ { name: a, port: 7000, type: udp } ]", Some("7000")),
        ("[]", None),
    ] {
        let mut pool = pool();
        pool.spec.sandbox.ports = yaml(ports);
        let env = env(&pool);
        let port = env.iter().find(|var| var.name == "PORT");
        assert_eq!(port.and_then(|var| var.value.as_deref()), expected, "{ports}");
    }
}

#[test]
fn the_parts_of_the_template_are_kept() {
    let template = "
resources: { limits: { memory: 64Mi } }
volumes: [ { name: data, emptyDir: {} } ]
volumeMounts: [ { name: data, mountPath: /data } ]
serviceAccountName: shop
nodeSelector: { disk: ssd }
tolerations: [ { key: spot, operator: Exists } ]
affinity: { nodeAffinity: {} }
topologySpreadConstraints: [ { maxSkew: 2, topologyKey: zone, whenUnsatisfiable: DoNotSchedule } ]
imagePullSecrets: [ { name: registry } ]
runtimeClassName: gvisor
priorityClassName: high
hostAliases: [ { ip: 10.0.0.1, hostnames: [ db ] } ]
dnsConfig: { searches: [ example.com ] }
";
    let pool = with_template(template);
    let expected: serde_json::Map<String, Value> = yaml(template);
    for (field, value) in &expected {
        let pointer = match field.as_str() {
            "resources" | "volumeMounts" => format!("/spec/containers/0/{field}"),
            _ => format!("/spec/{field}"),
        };
        check(&pool, &pointer, value);
    }
    check(&pool, "/spec/automountServiceAccountToken", &json!(true));
}

#[test]
fn labels_and_annotations_are_added_and_ours_win() {
    let pool = with_template(
        "
labels: { team: red, app.kubernetes.io/managed-by: me, portolan.dev/pool: other }
annotations: { note: x, kubectl.kubernetes.io/default-container: y, portolan.dev/slots: all }
",
    );
    check(&pool, "/metadata/labels/team", &json!("red"));
    check(&pool, "/metadata/labels/app.kubernetes.io~1managed-by", &json!("portolan"));
    check(&pool, "/metadata/labels/portolan.dev~1pool", &json!("shop-web-5f3k9q2m"));
    check(&pool, "/metadata/annotations/note", &json!("x"));
    check(&pool, "/metadata/annotations/kubectl.kubernetes.io~1default-container", &json!("app"));
    check(&pool, "/metadata/annotations/portolan.dev~1slots", &json!("gw-a=5,gw-b=5"));
}

#[test]
fn the_label_of_a_preview_is_passed_on() {
    let mut preview = pool();
    let label = (labels::EPHEMERAL.to_owned(), "pr-7".to_owned());
    preview.metadata.labels = Some([label].into());
    check(&preview, "/metadata/labels/portolan.dev~1ephemeral", &json!("pr-7"));
    check(&pool(), "/metadata/labels/portolan.dev~1ephemeral", &Value::Null);
}

#[test]
fn a_pool_that_counts_no_slots_has_no_annotation_of_them() {
    let pod = render(&pool(), &NewSandbox { slots: None, ..new() }, &settings());
    assert!(!pod.annotations().contains_key(labels::SLOTS));
}

#[test]
fn a_single_sandbox_is_not_spread() {
    let mut single = pool();
    single.spec.scale.max = 1;
    check(&single, "/spec/topologySpreadConstraints", &Value::Null);
}

#[test]
fn security_gives_way_field_by_field() {
    let pool = with_template(
        "
securityContext: { runAsUser: 1000, fsGroup: 2000 }
containerSecurityContext: { readOnlyRootFilesystem: true, capabilities: { add: [ NET_BIND_SERVICE ] } }
",
    );
    check(
        &pool,
        "/spec/securityContext",
        &json!({
            "runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 2000,
            "seccompProfile": { "type": "RuntimeDefault" },
        }),
    );
    check(
        &pool,
        "/spec/containers/0/securityContext",
        &json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
        }),
    );
    let rootful = with_template(
        "
securityContext: { runAsNonRoot: false, seccompProfile: { type: Unconfined } }
containerSecurityContext: { allowPrivilegeEscalation: true, capabilities: { drop: [ NET_RAW ] } }
",
    );
    check(
        &rootful,
        "/spec/securityContext",
        &json!({ "runAsNonRoot": false, "seccompProfile": { "type": "Unconfined" } }),
    );
    check(
        &rootful,
        "/spec/containers/0/securityContext",
        &json!({ "allowPrivilegeEscalation": true, "capabilities": { "drop": ["NET_RAW"] } }),
    );
}

#[test]
fn privilege_is_not_contradicted() {
    for context in ["{ privileged: true }", "{ capabilities: { add: [ SYS_ADMIN ] } }"] {
        let pool = with_template(&format!("containerSecurityContext: {context}"));
        let pointer = "/spec/containers/0/securityContext/allowPrivilegeEscalation";
        check(&pool, pointer, &Value::Null);
    }
}

#[test]
fn init_containers_get_the_same_defaults() {
    let pool = with_template(
        "
initContainers:
- { name: migrate, image: m }
- { name: proxy, image: p, restartPolicy: Always, securityContext: { runAsUser: 7 } }
",
    );
    let restricted = json!({
        "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
    });
    check(&pool, "/spec/initContainers/0/securityContext", &restricted);
    check(&pool, "/spec/initContainers/1/securityContext/runAsUser", &json!(7));
    check(&pool, "/spec/initContainers/1/securityContext/capabilities", &json!({"drop": ["ALL"]}));
    check(&pool, "/spec/initContainers/1/restartPolicy", &json!("Always"));
}
