//! `App`: names, images, environment, ports, scale.

use serde_json::{Value, json};

use crate::support::{ACCEPTED, Rows, check, object, yaml};

#[tokio::test]
async fn a_name_leaves_room_for_the_names_made_from_it() -> anyhow::Result<()> {
    let named = |name: Value| {
        object(
            "App",
            name.as_str().unwrap_or_default(),
            &yaml("{image: a, services: [{name: web}]}"),
        )
    };
    let rows: Rows<'_> = &[
        ("shop", ACCEPTED),
        ("shop-2", ACCEPTED),
        ("a123456789012345678901234567890123456789", ACCEPTED),
        ("a1234567890123456789012345678901234567890", "metadata.name | has at most 40 characters"),
        ("2shop", "metadata.name | starts with a letter"),
        ("my.shop", "metadata.name | lower-case letters, digits and hyphens"),
    ];
    check(named, rows).await
}

#[tokio::test]
async fn what_an_app_is_made_of() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{image: a, services: [{name: web}]}", ACCEPTED),
        ("{services: [{name: web, image: a}, {name: worker, image: b}]}", ACCEPTED),
        ("{services: [{name: web}]}", "an image is missing: set spec.image"),
        ("{services: [{name: web, image: a}, {name: worker}]}", "an image is missing"),
        ("{image: '', services: [{name: web}]}", "spec.image | should be at least 1 chars long"),
        ("{image: null, services: [{name: web, image: a}]}", ACCEPTED),
        ("{image: a}", "spec.services: Required value"),
        ("{image: a, services: []}", "spec.services | should have at least 1 items"),
        (
            "{image: a, services: [{name: web}, {name: web}]}",
            "spec.services[1]: Duplicate value | \"name\":\"web\"",
        ),
        ("{image: a, services: [{port: 3000}]}", "spec.services[0].name: Required value"),
        ("{image: a, services: [{name: web}], replicas: 3}", "unknown field \"spec.replicas\""),
        (
            "{image: a, services: [{name: web, ports: [{name: http, port: 80, targetPort: 8080}]}]}",
            "unknown field \"spec.services[0].ports[0].targetPort\"",
        ),
        ("{image: a, services: [{name: web}], version: shop-0a1b2c3d}", ACCEPTED),
        ("{image: a, services: [{name: web}], version: ''}", "spec.version | at least 1 chars"),
        ("{image: a, services: [{name: web}], restartedAt: '2026-11-20T10:00:00Z'}", ACCEPTED),
        ("{image: a, services: [{name: web}], restartedAt: now}", "spec.restartedAt | date-time"),
        (
            "{image: a, services: [{name: web}], restartedAt: '2026-11-20T10:00:00.5+05:30'}",
            ACCEPTED,
        ),
        (
            "{image: a, services: [{name: web}], restartedAt: '0000-01-01T00:00:00+01:00'}",
            "spec.restartedAt | should match",
        ),
        (
            "{image: a, services: [{name: web}], restartedAt: '2026-01-01T00:00:00+99:00'}",
            "spec.restartedAt | should match",
        ),
        ("{image: a, services: [{name: web}], revisionHistoryLimit: 0}", ACCEPTED),
        (
            "{image: a, services: [{name: web}], revisionHistoryLimit: -1}",
            "spec.revisionHistoryLimit | greater than or equal to 0",
        ),
        (
            "{image: a, services: [{name: web}], progressDeadlineSeconds: 0}",
            "spec.progressDeadlineSeconds | greater than or equal to 1",
        ),
        (
            "{image: a, services: [{name: web}], ephemeral: {max: 10, defaultTTLSeconds: 86400}}",
            ACCEPTED,
        ),
        (
            "{image: a, services: [{name: web}], ephemeral: {defaultTTLSeconds: 0}}",
            "spec.ephemeral.defaultTTLSeconds | greater than or equal to 1",
        ),
    ];
    check(app, rows).await
}

#[tokio::test]
async fn a_service_has_a_short_name() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{name: a}", ACCEPTED),
        ("{name: web-2}", ACCEPTED),
        ("{name: a1234567890123456789}", ACCEPTED),
        ("{name: a12345678901234567890}", "spec.services[0].name | may not be more than 20"),
        ("{name: Web}", "spec.services[0].name | lower-case letters, digits and hyphens"),
        ("{name: web_api}", "spec.services[0].name | lower-case letters, digits and hyphens"),
        ("{name: 2web}", "spec.services[0].name | starts with a letter"),
        ("{name: web-}", "spec.services[0].name | does not end with a hyphen"),
        ("{name: ''}", "spec.services[0].name | should be at least 1 chars long"),
    ];
    check(service, rows).await
}

#[tokio::test]
async fn a_port_has_a_name_a_number_and_a_type() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{name: http, port: 1}", ACCEPTED),
        ("{name: http, port: 65535}", ACCEPTED),
        ("{name: http, port: 0}", "ports[0].port | greater than or equal to 1"),
        ("{name: http, port: -1}", "ports[0].port | greater than or equal to 1"),
        ("{name: http, port: 65536}", "ports[0].port | less than or equal to 65535"),
        ("{name: http, port: '80'}", "ports[0].port | must be of type integer"),
        ("{name: http}", "ports[0].port: Required value"),
        ("{port: 80}", "ports[0].name: Required value"),
        ("{name: '', port: 80}", "ports[0].name | at least 1 chars"),
        ("{name: a12345678901234, port: 80}", ACCEPTED),
        ("{name: a123456789012345, port: 80}", "ports[0].name | may not be more than 15"),
        ("{name: HTTP, port: 80}", "ports[0].name | lower-case letters, digits and hyphens"),
        ("{name: '80', port: 80}", "ports[0].name | starts with a letter"),
        ("{name: a, port: 80, type: http}", ACCEPTED),
        ("{name: a, port: 80, type: tcp}", ACCEPTED),
        ("{name: a, port: 80, type: udp}", ACCEPTED),
        (
            "{name: a, port: 80, type: grpc}",
            "ports[0].type: Unsupported value: \"grpc\" | \"http\", \"tcp\", \"udp\"",
        ),
        ("{name: a, port: 80, type: TCP}", "ports[0].type: Unsupported value: \"TCP\""),
        ("{name: a, port: 80, type: null}", ACCEPTED),
        ("{name: a, port: 80, nodePort: 1}", ACCEPTED),
        ("{name: a, port: 80, nodePort: 65535}", ACCEPTED),
        ("{name: a, port: 80, nodePort: 0}", "ports[0].nodePort | greater than or equal to 1"),
        ("{name: a, port: 80, nodePort: -1}", "ports[0].nodePort | greater than or equal to 1"),
        ("{name: a, port: 80, nodePort: 65536}", "nodePort | less than or equal to 65535"),
        ("{name: a, port: 80, nodePort: 70000}", "nodePort | less than or equal to 65535"),
        ("{name: a, port: 80, appProtocol: http}", ACCEPTED),
        ("{name: a, port: 80, type: http, appProtocol: kubernetes.io/h2c}", ACCEPTED),
        (
            "{name: a, port: 80, type: tcp, appProtocol: http}",
            "ports[0] | appProtocol applies to ports of type http only",
        ),
        ("{name: a, port: 80, appProtocol: h2}", "appProtocol: Unsupported value: \"h2\""),
    ];
    check(|port| service(json!({ "name": "irc", "ports": [port] })), rows).await
}

#[tokio::test]
async fn a_number_and_transport_is_named_once() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("[{name: a, port: 53, type: udp}, {name: b, port: 53, type: tcp}]", ACCEPTED),
        ("[{name: a, port: 53, type: udp}, {name: b, port: 53}]", ACCEPTED),
        (
            "[{name: a, port: 8080}, {name: b, port: 8080, type: tcp}]",
            "spec.services[0].ports | duplicate port 8080/tcp: http and tcp share the transport",
        ),
        (
            "[{name: a, port: 8080, type: http}, {name: b, port: 8080, type: tcp}]",
            "duplicate port 8080/tcp",
        ),
        (
            "[{name: a, port: 53, type: udp}, {name: b, port: 53, type: udp}]",
            "duplicate port 53/udp",
        ),
        (
            "[{name: a, port: 80}, {name: a, port: 81}]",
            "spec.services[0].ports[1]: Duplicate value | \"name\":\"a\"",
        ),
    ];
    check(|ports| service(json!({ "name": "irc", "ports": ports })), rows).await
}

#[tokio::test]
async fn the_shorthand_and_the_list_of_ports_exclude_each_other() -> anyhow::Result<()> {
    const EXCLUDE: &str = "spec.services[0] | shorthand (port, portName, portType) exclude";
    let rows: Rows<'_> = &[
        ("{name: a, port: 3000}", ACCEPTED),
        ("{name: a, port: 25, portName: smtp, portType: tcp}", ACCEPTED),
        ("{name: a, port: 3000, ports: []}", ACCEPTED),
        ("{name: a, port: 3000, ports: [{name: b, port: 1}]}", EXCLUDE),
        ("{name: a, portName: b, ports: [{name: b, port: 1}]}", EXCLUDE),
        ("{name: a, portType: tcp, ports: [{name: b, port: 1}]}", EXCLUDE),
        (
            "{name: a, port: -1, ports: [{name: b, port: 1}]}",
            "spec.services[0].port | greater than or equal to 1",
        ),
        ("{name: a, port: 0}", "spec.services[0].port | greater than or equal to 1"),
        ("{name: a, port: 65536}", "spec.services[0].port | less than or equal to 65535"),
        ("{name: a, portName: b}", "spec.services[0] | portName and portType belong to port"),
        ("{name: web, portType: tcp}", "spec.services[0] | portName and portType belong to port"),
        ("{name: a, port: 1, portType: grpc}", "portType: Unsupported value: \"grpc\""),
        ("{name: a, port: 1, portName: A}", "portName | lower-case letters"),
    ];
    check(service, rows).await
}

#[tokio::test]
async fn a_node_port_is_asked_for_once() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        (
            "[{name: a, ports: [{name: x, port: 1, type: tcp, nodePort: 26697}]},
              {name: b, ports: [{name: x, port: 1, type: udp, nodePort: 26697}]}]",
            ACCEPTED,
        ),
        (
            "[{name: a, ports: [{name: x, port: 1, type: tcp, nodePort: 26697}]},
              {name: b, ports: [{name: x, port: 2, nodePort: 26697}]}, {name: c}]",
            "spec | services [\"a\", \"b\"] ask for the same nodePort and transport",
        ),
        (
            "[{name: a, ports: [{name: x, port: 1, nodePort: 20080}, {name: z, port: 2, nodePort: 20080}]}]",
            "spec.services[0].ports | nodePort 20080/tcp is asked for by two ports",
        ),
        (
            "[{name: a, ports: [{name: x, port: 1, nodePort: 20080}, \
                                {name: z, port: 2, type: udp, nodePort: 20080}]}]",
            ACCEPTED,
        ),
    ];
    check(|services| app(json!({ "image": "a", "services": services })), rows).await
}

#[tokio::test]
async fn affinity_needs_a_port_that_routes_do_not_serve() -> anyhow::Result<()> {
    const NEEDS: &str =
        "spec.services[0] | ClientIP needs a port of type tcp or udp, or a nodePort";
    let rows: Rows<'_> = &[
        ("{sessionAffinity: ClientIP, ports: [{name: a, port: 1, type: tcp}]}", ACCEPTED),
        ("{sessionAffinity: ClientIP, ports: [{name: a, port: 1, type: udp}]}", ACCEPTED),
        ("{sessionAffinity: ClientIP, ports: [{name: a, port: 1, nodePort: 20080}]}", ACCEPTED),
        ("{sessionAffinity: ClientIP, port: 1, portType: udp}", ACCEPTED),
        ("{sessionAffinity: None}", ACCEPTED),
        ("{sessionAffinity: ClientIP}", NEEDS),
        ("{sessionAffinity: ClientIP, port: 1}", NEEDS),
        ("{sessionAffinity: ClientIP, port: 1, portType: http}", NEEDS),
        ("{sessionAffinity: ClientIP, ports: [{name: a, port: 1}]}", NEEDS),
        (
            "{sessionAffinity: Cookie, port: 1, portType: tcp}",
            "sessionAffinity: Unsupported value: \"Cookie\" | \"None\", \"ClientIP\"",
        ),
    ];
    let named = |mut spec: Value| {
        spec["name"] = json!("irc");
        service(spec)
    };
    check(named, rows).await
}

#[tokio::test]
async fn scale_says_what_fits_its_mode() -> anyhow::Result<()> {
    const SCALE: &str = "spec.services[0].scale";
    let refused = |text: &str| format!("{SCALE} | {text}");
    let auto_only = refused("apply to mode Auto");
    let needs_auto = "spec.services[0] | need scale.mode: Auto";
    let rows: Rows<'_> = &[
        ("{name: web}", ACCEPTED),
        ("{name: web, scale: {}}", ACCEPTED),
        ("{name: web, scale: {requestsPerInstance: 1, scaleDownDelaySeconds: 1}}", ACCEPTED),
        ("{name: web, scale: {mode: Auto, min: 0, max: 1000, concurrency: Strict}}", ACCEPTED),
        ("{name: web, scale: {min: 20}}", ACCEPTED),
        ("{name: web, scale: {min: 21}}", &refused("min must not exceed max (20 when")),
        ("{name: web, scale: {min: 3, max: 2}}", &refused("min must not exceed max")),
        ("{name: web, scale: {max: 0}}", "scale.max | greater than or equal to 1"),
        ("{name: web, scale: {min: -1}}", "scale.min | greater than or equal to 0"),
        ("{name: web, scale: {max: 1001}}", "scale.max | less than or equal to 1000"),
        ("{name: web, scale: {requestsPerInstance: 0}}", "requestsPerInstance | equal to 1"),
        ("{name: web, scale: {scaleDownDelaySeconds: 0}}", "scaleDownDelaySeconds | equal to 1"),
        ("{name: web, scale: {scaleDownDelaySeconds: 15m}}", "scaleDownDelaySeconds | integer"),
        (
            "{name: web, scale: {instances: 2}}",
            "spec.services[0] | instances needs scale.mode: Fixed",
        ),
        (
            "{name: web, scale: {mode: Auto, instances: 2}}",
            &refused("instances applies to mode Fixed"),
        ),
        ("{name: web, scale: {mode: Fixed}}", &refused("mode Fixed needs instances")),
        ("{name: web, scale: {mode: Fixed, instances: 2}}", ACCEPTED),
        ("{name: web, scale: {mode: Fixed, instances: 0}}", "scale.instances | equal to 1"),
        ("{name: a, scale: {mode: Fixed, instances: 1, scaleDownDelaySeconds: 9}}", &auto_only),
        ("{name: a, scale: {mode: Fixed, instances: 1, requestsPerInstance: 9}}", &auto_only),
        ("{name: a, scale: {mode: Fixed, instances: 1, min: 1}}", &auto_only),
        ("{name: a, scale: {mode: Fixed, instances: 1, max: 1}}", &auto_only),
        ("{name: a, scale: {instances: 3}}", ACCEPTED),
        ("{name: a, scale: {max: 3}}", needs_auto),
        ("{name: a, scale: {requestsPerInstance: 3}}", needs_auto),
        ("{name: a, scale: {scaleDownDelaySeconds: 3}}", needs_auto),
        ("{name: a, scale: {mode: Auto, max: 3}}", ACCEPTED),
        ("{name: a, scale: {mode: auto}}", "scale.mode: Unsupported value | \"Auto\", \"Fixed\""),
        ("{name: a, scale: {mode: null}}", ACCEPTED),
        ("{name: a, scale: {concurrency: Hard}}", "scale.concurrency: Unsupported value"),
    ];
    check(service, rows).await
}

#[tokio::test]
async fn environment_is_named_well_and_leaves_alone_what_portolan_sets() -> anyhow::Result<()> {
    const SECRET: &str = "secretKeyRef: {name: s, key: k}";
    let both = format!("[{{name: A, value: x, valueFrom: {{{SECRET}}}}}]");
    let one = format!("[{{name: A, valueFrom: {{{SECRET}}}}}]");
    let two =
        format!("[{{name: A, valueFrom: {{{SECRET}, configMapKeyRef: {{name: s, key: k}}}}}}]");
    let rows: Rows<'_> = &[
        ("[{name: A, value: '1'}, {name: a.b-c, value: ''}, {name: C}]", ACCEPTED),
        (&one, ACCEPTED),
        ("[{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]", ACCEPTED),
        ("[{name: PORT, value: '1'}]", "PORT is set by Portolan | remove it"),
        ("[{name: PORTOLAN_X, value: '1'}]", "PORTOLAN_ are set by Portolan; choose another"),
        ("[{name: SUPPORT, value: '1'}, {name: port, value: '1'}]", ACCEPTED),
        ("[{name: '', value: '1'}]", "the name of a variable is not empty"),
        ("[{name: A=B, value: '1'}]", "the name of a variable is not empty and has no '='"),
        ("[{value: '1'}]", "env[0].name: Required value"),
        ("[{name: A, value: 1}]", "env[0].value | must be of type string"),
        ("[{name: A}, {name: A}]", "env[1]: Duplicate value | \"name\":\"A\""),
        (&both, "a variable has either value, or valueFrom with exactly one source"),
        (&two, "a variable has either value, or valueFrom with exactly one source"),
        ("[{name: A, valueFrom: {}}]", "a variable has either value, or valueFrom with exactly"),
    ];
    check(|env| app(json!({ "image": "a", "env": env, "services": [{ "name": "web" }] })), rows)
        .await?;
    check(|env| service(json!({ "name": "web", "env": env })), rows).await
}

#[tokio::test]
async fn a_service_says_how_it_starts_and_ends() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{name: a, command: [./run], args: ['', -v], workingDir: /srv}", ACCEPTED),
        ("{name: a, command: ./run -v}", "spec.services[0].command | must be of type array"),
        ("{name: a, listenTimeoutSeconds: 1, terminationGracePeriodSeconds: 0}", ACCEPTED),
        ("{name: a, listenTimeoutSeconds: 0}", "listenTimeoutSeconds | equal to 1"),
        (
            "{name: a, terminationGracePeriodSeconds: -1}",
            "terminationGracePeriodSeconds | equal to 0",
        ),
        ("{name: a, terminationGracePeriodSeconds: 3601}", "terminationGracePeriodSeconds | 3600"),
    ];
    check(service, rows).await
}

#[tokio::test]
async fn a_probe_says_how_it_looks() -> anyhow::Result<()> {
    const HANDLER: &str = "exactly one of httpGet, tcpSocket, grpc or exec";
    for kind in ["readiness", "liveness", "startup"] {
        let field = format!("spec.services[0].health.{kind} | {HANDLER}");
        let unknown =
            format!("spec.services[0] | health.{kind} names a port that the service does");
        let rows: Rows<'_> = &[
            ("{httpGet: {path: /healthz, port: 8080}, periodSeconds: 5}", ACCEPTED),
            ("{httpGet: {path: /healthz, port: http}}", ACCEPTED),
            ("{tcpSocket: {port: 8080}}", ACCEPTED),
            ("{httpGet: {path: /healthz, port: htpp}}", &unknown),
            ("{httpGet: {path: /healthz, port: 0}}", &unknown),
            ("{tcpSocket: {port: 4294967296}}", &unknown),
            ("{tcpSocket: {port: web}}", &unknown),
            ("{exec: {command: [./ready]}}", ACCEPTED),
            ("{grpc: {port: 8080}}", ACCEPTED),
            ("{}", &field),
            ("{periodSeconds: 5}", &field),
            ("{httpGet: {port: 8080}, tcpSocket: {port: 8080}}", &field),
            ("{httpGet: {path: /}}", "httpGet.port: Required value"),
        ];
        let build = |probe| service(json!({ "name": "web", "health": { kind: probe } }));
        check(build, rows).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_probe_names_a_port_of_its_service() -> anyhow::Result<()> {
    const UNKNOWN: &str =
        "spec.services[0] | health.liveness names a port that the service does not";
    let rows: Rows<'_> = &[
        ("{name: web, health: {liveness: {httpGet: {port: http}}}}", ACCEPTED),
        ("{name: web, port: 1, health: {liveness: {tcpSocket: {port: http}}}}", ACCEPTED),
        (
            "{name: a, port: 1, portType: tcp, health: {liveness: {tcpSocket: {port: tcp}}}}",
            ACCEPTED,
        ),
        ("{name: a, port: 1, portName: b, health: {liveness: {tcpSocket: {port: b}}}}", ACCEPTED),
        (
            "{name: a, ports: [{name: b, port: 1}], health: {liveness: {tcpSocket: {port: b}}}}",
            ACCEPTED,
        ),
        (
            "{name: a, ports: [{name: b, port: 1}], health: {liveness: {tcpSocket: {port: 2}}}}",
            ACCEPTED,
        ),
        (
            "{name: a, ports: [{name: b, port: 1}], health: {liveness: {tcpSocket: {port: a}}}}",
            UNKNOWN,
        ),
        (
            "{name: a, ports: [{name: b, port: 1}], health: {liveness: {httpGet: {port: http}}}}",
            UNKNOWN,
        ),
        ("{name: a, port: 1, portName: b, health: {liveness: {tcpSocket: {port: http}}}}", UNKNOWN),
    ];
    check(service, rows).await
}

#[tokio::test]
async fn what_has_the_wrong_shape_is_named() -> anyhow::Result<()> {
    let rows: Rows<'_> = &[
        ("{image: 3, services: [{name: web}]}", "spec.image | must be of type string"),
        ("{image: a, services: {web: {port: 80}}}", "unknown field \"spec.services.web\""),
        ("{image: a, services: [web]}", "spec.services[0] | must be of type object"),
        ("{image: a, env: {A: b}, services: [{name: web}]}", "unknown field \"spec.env.A\""),
        ("{image: a, services: [{name: web, ports: [80]}]}", "ports[0] | must be of type object"),
        (
            "{image: a, services: [{name: web, ports: {http: 80}}]}",
            "unknown field \"spec.services[0].ports.http\"",
        ),
        ("{image: a, services: [{name: web, scale: 3}]}", "scale | must be of type object"),
        ("{image: a, services: [{name: web, scale: {min: 0.5}}]}", "scale.min | type integer"),
        ("{image: a, services: [{name: web, scale: {min: '1'}}]}", "scale.min | type integer"),
        ("{image: a, services: [{name: web, template: {volumes: data}}]}", "volumes | type array"),
        ("null", "spec: Required value"),
    ];
    check(app, rows).await
}

#[tokio::test]
async fn the_greatest_app_is_within_the_budget_of_the_rules() -> anyhow::Result<()> {
    let env: Vec<_> =
        (0..256).map(|i| json!({ "name": format!("NAME_{i}"), "value": "x" })).collect();
    let port = |s: i32, p: i32| json!({ "name": format!("p{p}"), "port": 1000 + p, "nodePort": 1000 + s * 16 + p });
    let names =
        |prefix: &str, count| (0..count).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
    let service = |s| {
        json!({
            "name": format!("s{s}"),
            "env": env,
            "ports": (0..16).map(|p| port(s, p)).collect::<Vec<_>>(),
            "template": {
                "volumes": names("v", 64).iter().map(|name| json!({ "name": name, "emptyDir": {} })).collect::<Vec<_>>(),
                "volumeMounts": names("v", 64).iter().map(|name| json!({ "name": name, "mountPath": format!("/{name}") })).collect::<Vec<_>>(),
                "labels": names("label", 32).iter().map(|name| (name.clone(), json!("x"))).collect::<serde_json::Map<_, _>>(),
            },
        })
    };
    let spec =
        json!({ "image": "a", "env": env, "services": (0..16).map(service).collect::<Vec<_>>() });
    check(move |_| app(spec.clone()), &[("{}", ACCEPTED)]).await
}

fn app(spec: Value) -> Value {
    object("App", "shop", &spec)
}

fn service(service: Value) -> Value {
    app(json!({ "image": "registry.example/shop:1", "services": [service] }))
}
