//! What an App's spec asks for: versions, pools, ports, scale, environment.

use portolan_api::resolve::{self, pool_name, resolve};
use portolan_api::{AppSpec, Concurrency, PoolScale, PortType, VersionService, names};

/// What two specs have in common.
#[derive(Debug, PartialEq, Eq)]
enum Common {
    /// The name of the version, and with it everything.
    Version,
    /// The pools: a new version that starts no sandbox.
    Pools,
    /// Nothing: new sandboxes.
    Nothing,
}

/// An App that says as little as it can.
const WEB: &str = "{image: a, services: [{name: web}]}";

/// What differs, one spec, another, and what they have in common.
const CHANGES: &[(&str, &str, &str, Common)] = &[
    ("the same manifest, a rollback", WEB, WEB, Common::Version),
    (
        "the order of services",
        "{image: a, services: [{name: web}, {name: job, command: [x]}]}",
        "{image: a, services: [{name: job, command: [x]}, {name: web}]}",
        Common::Version,
    ),
    (
        "the order of keys",
        "{image: a, services: [{name: web, args: [x], port: 80}]}",
        "{services: [{port: 80, args: [x], name: web}], image: a}",
        Common::Version,
    ),
    (
        "the default of the schema, written out",
        "{image: a, services: [{name: web, ports: [{name: p, port: 80}]}]}",
        "{image: a, services: [{name: web, ports: [{name: p, port: 80, type: http}]}]}",
        Common::Version,
    ),
    (
        "what says nothing about what runs",
        WEB,
        "{image: a, services: [{name: web}], version: x, revisionHistoryLimit: 3, \
          progressDeadlineSeconds: 5, ephemeral: {max: 1}}",
        Common::Version,
    ),
    (
        "empty objects and lists",
        WEB,
        "{image: a, env: [], services: [{name: web, scale: {}, health: {}, command: [], \
          template: {labels: {}, volumes: []}, ports: []}]}",
        Common::Version,
    ),
    (
        "the affinity that is the default, written out",
        "{image: a, services: [{name: irc, port: 1, portType: tcp}]}",
        "{image: a, services: [{name: irc, port: 1, portType: tcp, sessionAffinity: None}]}",
        Common::Version,
    ),
    (
        "affinity",
        "{image: a, services: [{name: irc, port: 1, portType: tcp}]}",
        "{image: a, services: [{name: irc, port: 1, portType: tcp, sessionAffinity: ClientIP}]}",
        Common::Pools,
    ),
    ("scale", WEB, "{image: a, services: [{name: web, scale: {max: 3}}]}", Common::Pools),
    (
        "a default of Portolan, written out",
        WEB,
        "{image: a, services: [{name: web, port: 3000, terminationGracePeriodSeconds: 30}]}",
        Common::Pools,
    ),
    (
        "a node port",
        "{image: a, services: [{name: irc, ports: [{name: p, port: 80, nodePort: 81}]}]}",
        "{image: a, services: [{name: irc, ports: [{name: p, port: 80, nodePort: 82}]}]}",
        Common::Pools,
    ),
    (
        "shorthand or list",
        "{image: a, services: [{name: irc, port: 80}]}",
        "{image: a, services: [{name: irc, ports: [{name: http, port: 80}]}]}",
        Common::Pools,
    ),
    (
        "the image of the App or of the service",
        WEB,
        "{services: [{name: web, image: a}]}",
        Common::Pools,
    ),
    (
        "environment of the App or of the service",
        "{image: a, env: [{name: A, value: x}], services: [{name: web}]}",
        "{image: a, services: [{name: web, env: [{name: A, value: x}]}]}",
        Common::Pools,
    ),
    ("the image", WEB, "{image: b, services: [{name: web}]}", Common::Nothing),
    (
        "the order of environment",
        "{image: a, env: [{name: A}, {name: B}], services: [{name: web}]}",
        "{image: a, env: [{name: B}, {name: A}], services: [{name: web}]}",
        Common::Nothing,
    ),
    (
        "the order of ports, because PORT depends on it",
        "{image: a, services: [{name: a, ports: [{name: a, port: 1}, {name: b, port: 2}]}]}",
        "{image: a, services: [{name: a, ports: [{name: b, port: 2}, {name: a, port: 1}]}]}",
        Common::Nothing,
    ),
    (
        "the protocol of a port",
        "{image: a, services: [{name: web, ports: [{name: a, port: 1}]}]}",
        "{image: a, services: [{name: web, ports: [{name: a, port: 1, \
          appProtocol: kubernetes.io/h2c}]}]}",
        Common::Nothing,
    ),
    (
        "the template",
        WEB,
        "{image: a, services: [{name: web, template: {nodeSelector: {a: b}}}]}",
        Common::Nothing,
    ),
    (
        "a restart",
        WEB,
        "{image: a, services: [{name: web}], restartedAt: '2026-11-20T10:00:00Z'}",
        Common::Nothing,
    ),
    ("the name of a service", WEB, "{image: a, services: [{name: api}]}", Common::Nothing),
];

#[test]
fn only_what_runs_makes_a_new_version_and_only_what_a_sandbox_sees_a_new_pool() {
    for (what, one, other, expected) in CHANGES {
        assert_eq!(common(&spec(one), &spec(other)), *expected, "{what}");
    }
}

fn common(one: &AppSpec, other: &AppSpec) -> Common {
    let version = |spec: &AppSpec| names::version("shop", &resolve::digest(spec));
    if version(one) == version(other) {
        assert_eq!(resolve("shop", one), resolve("shop", other), "a name for two versions");
        Common::Version
    } else if pools("shop", one) == pools("shop", other) {
        Common::Pools
    } else {
        Common::Nothing
    }
}

#[test]
fn a_service_that_comes_or_goes_leaves_the_pools_of_the_others() {
    let one = pools("shop", &spec("{image: a, services: [{name: web}]}"));
    let two = pools("shop", &spec("{image: a, services: [{name: web}, {name: job}]}"));
    assert_eq!((one.len(), two.len()), (1, 2));
    assert!(two.contains(&one[0]), "{one:?} {two:?}");
}

#[test]
fn two_apps_share_neither_versions_nor_pools() {
    let spec = spec("{image: a, services: [{name: web}]}");
    assert_ne!(pools("shop", &spec), pools("chat", &spec));
}

#[test]
fn a_version_is_named_after_its_app() {
    let spec = spec("{image: a, services: [{name: web}]}");
    let name = names::version("shop", &resolve::digest(&spec));
    let hash = name.strip_prefix("shop-").unwrap();
    assert!(hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
    let version = resolve("shop", &spec);
    assert_eq!(version.digest, resolve::digest(&spec));
    assert_eq!((version.app.as_str(), version.hash_version), ("shop", resolve::HASH_VERSION));
}

#[test]
fn port_is_the_first_http_port_else_the_first() {
    use PortType::{Http, Tcp, Udp};
    let rows = [
        ("{name: web}", vec![("http", 3000, Http)], Some(3000)),
        ("{name: worker}", vec![], None),
        ("{name: worker, command: [./work]}", vec![], None),
        ("{name: web, port: 8080}", vec![("http", 8080, Http)], Some(8080)),
        ("{name: api, port: 8080}", vec![("http", 8080, Http)], Some(8080)),
        ("{name: mail, port: 25, portType: tcp}", vec![("tcp", 25, Tcp)], Some(25)),
        ("{name: dns, port: 53, portType: udp}", vec![("udp", 53, Udp)], Some(53)),
        ("{name: mail, port: 25, portName: smtp}", vec![("smtp", 25, Http)], Some(25)),
        (
            "{name: api, ports: [{name: a, port: 7000, type: tcp}, {name: b, port: 3000}]}",
            vec![("a", 7000, Tcp), ("b", 3000, Http)],
            Some(3000),
        ),
        (
            "{name: irc, ports: [{name: a, port: 7000, type: tcp}, \
                                 {name: b, port: 7001, type: tcp}]}",
            vec![("a", 7000, Tcp), ("b", 7001, Tcp)],
            Some(7000),
        ),
        // Nothing is added to what `web` says.
        (
            "{name: web, ports: [{name: a, port: 7000, type: tcp}]}",
            vec![("a", 7000, Tcp)],
            Some(7000),
        ),
        ("{name: web, ports: []}", vec![("http", 3000, Http)], Some(3000)),
    ];
    for (service, ports, main) in rows {
        let sandbox = resolved(service).sandbox;
        let found: Vec<_> =
            sandbox.ports.iter().map(|port| (port.name.as_str(), port.port, port.r#type)).collect();
        assert_eq!(found, ports, "{service}");
        assert_eq!(sandbox.main_port().map(|port| port.port), main, "{service}");
    }
}

#[test]
fn a_service_that_says_nothing_about_health_is_ready_when_it_listens() {
    let rows = [
        ("{name: web}", Some(3000)),
        ("{name: worker}", None),
        ("{name: dns, port: 53, portType: udp}", None),
        (
            "{name: dns, ports: [{name: a, port: 53, type: udp}, {name: b, port: 54, type: tcp}]}",
            Some(54),
        ),
        // Its own probe wins.
        ("{name: web, health: {readiness: {exec: {command: [x]}}}}", None),
        // Another probe is no readiness.
        ("{name: web, health: {liveness: {exec: {command: [x]}}}}", Some(3000)),
    ];
    for (service, expected) in rows {
        let probe = resolved(service).sandbox.readiness;
        let socket = probe.and_then(|probe| probe.tcp_socket);
        let port = socket.map(|socket| serde_json::to_value(socket.port).unwrap());
        assert_eq!(port, expected.map(serde_json::Value::from), "{service}");
    }
}

#[test]
fn scale_is_filled_in_field_by_field() {
    let auto = |min, max, requests, delay| PoolScale {
        min,
        max,
        requests_per_instance: Some(requests),
        scale_down_delay_seconds: Some(delay),
        concurrency: Concurrency::Soft,
    };
    let fixed = |instances| PoolScale {
        min: instances,
        max: instances,
        requests_per_instance: None,
        scale_down_delay_seconds: None,
        concurrency: Concurrency::Soft,
    };
    let rows = [
        ("{name: web}", auto(0, 20, 10, 900)),
        ("{name: web, scale: {}}", auto(0, 20, 10, 900)),
        ("{name: web, scale: {mode: Auto}}", auto(0, 20, 10, 900)),
        ("{name: web, scale: {requestsPerInstance: 1}}", auto(0, 20, 1, 900)),
        ("{name: web, scale: {scaleDownDelaySeconds: 1}}", auto(0, 20, 10, 1)),
        ("{name: web, scale: {min: 2, max: 3}}", auto(2, 3, 10, 900)),
        ("{name: web, scale: {mode: Fixed, instances: 2}}", fixed(2)),
        // A worker is never put to sleep by a default: nothing would wake it.
        ("{name: worker, command: [./work]}", fixed(1)),
        ("{name: worker, scale: {instances: 3}}", fixed(3)),
        ("{name: api, scale: {mode: Auto}}", auto(0, 20, 10, 900)),
        (
            "{name: web, scale: {concurrency: Strict}}",
            PoolScale { concurrency: Concurrency::Strict, ..auto(0, 20, 10, 900) },
        ),
    ];
    for (service, expected) in rows {
        assert_eq!(resolved(service).scale, expected, "{service}");
    }
}

#[test]
fn environment_of_a_service_wins_in_place_over_that_of_the_app() {
    let spec = spec(
        "{image: a, env: [{name: A, value: app}, {name: B, value: app}], services: [{name: web, \
          env: [{name: C, value: own}, {name: A, value: own}]}]}",
    );
    let version = resolve("shop", &spec);
    let env = version.services[0].sandbox.env.iter();
    let env: Vec<_> = env.map(|v| (v.name.as_str(), v.value.as_deref().unwrap())).collect();
    assert_eq!(env, [("A", "own"), ("B", "app"), ("C", "own")]);
}

#[test]
fn defaults_are_frozen_into_the_sandbox() {
    let sandbox = resolved("{name: web}").sandbox;
    assert_eq!((sandbox.termination_grace_seconds, sandbox.listen_timeout_seconds), (30, 15));
    let own = "{name: web, terminationGracePeriodSeconds: 5, listenTimeoutSeconds: 60}";
    let sandbox = resolved(own).sandbox;
    assert_eq!((sandbox.termination_grace_seconds, sandbox.listen_timeout_seconds), (5, 60));
}

#[test]
fn a_service_reached_other_than_through_routes_is_told_apart() {
    let rows = [
        ("{name: web}", false, true),
        ("{name: worker}", false, false),
        ("{name: mail, port: 25, portType: tcp}", true, false),
        ("{name: web, ports: [{name: a, port: 80}]}", false, true),
        ("{name: web, ports: [{name: a, port: 80, nodePort: 80}]}", true, false),
        ("{name: web, ports: [{name: a, port: 80}, {name: b, port: 53, type: udp}]}", true, false),
    ];
    for (service, has_l4, can_sleep) in rows {
        let resolved = resolved(service);
        assert_eq!((resolved.has_l4(), resolved.can_sleep()), (has_l4, can_sleep), "{service}");
    }
}

fn spec(yaml: &str) -> AppSpec {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

fn resolved(service: &str) -> VersionService {
    let spec = spec(&format!("{{image: a, services: [{service}]}}"));
    resolve("shop", &spec).services.remove(0)
}

fn pools(app: &str, spec: &AppSpec) -> Vec<String> {
    resolve(app, spec).services.iter().map(|service| pool_name(app, service)).collect()
}
