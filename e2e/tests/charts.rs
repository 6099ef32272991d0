//! The chart `portolan`, rendered by Helm without a cluster: what it asks for and what it refuses.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use portolan_cluster::paths::Paths;
use serde_json::{Value, json};

const NAMESPACE: &str = "portolan-system";

#[test]
fn every_set_of_values_passes_the_linter() {
    for values in value_files() {
        let output = helm(&["lint", "--strict", "-f", values.to_str().unwrap(), &chart()]);
        assert!(output.status.success(), "{}: {}", values.display(), text(&output));
    }
}

#[test]
fn no_object_is_rendered_twice_and_each_says_whose_it_is() {
    for values in value_files() {
        let mut seen = BTreeSet::new();
        for object in render(&values) {
            let metadata = &object["metadata"];
            let key = format!("{}/{}/{}", object["kind"], metadata["namespace"], metadata["name"]);
            assert_eq!(metadata["labels"]["app.kubernetes.io/part-of"], "portolan", "{key}");
            assert!(seen.insert(key.clone()), "{key} is there twice");
        }
    }
}

#[test]
fn pods_meet_the_restricted_level_and_write_nowhere() {
    for values in value_files() {
        let mut pods = pods(&render(&values));
        // The agent alone needs more; what it needs has a test of its own.
        pods.remove("portolan-node");
        assert_eq!(pods.len(), 2);
        for (name, pod) in pods {
            let security = &pod["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{name}");
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for host in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[host].is_null(), "{name}: {host}");
            }
            for volume in pod["volumes"].as_array().into_iter().flatten() {
                // Of the node and the network nothing; in memory, what must not reach a disk.
                assert_eq!(volume["emptyDir"]["medium"], "Memory", "{name}");
                assert!(volume["emptyDir"]["sizeLimit"].is_string(), "{name}");
            }
            for container in pod["containers"].as_array().unwrap() {
                let security = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                });
                assert_eq!(container["securityContext"], security, "{name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            }
        }
    }
}

#[test]
fn the_agent_has_the_network_of_its_node_and_no_more() {
    for values in value_files() {
        let rendered = render(&values);
        let is_namespace = |object: &&Value| object["kind"] == "Namespace";
        let namespaces: Vec<_> = rendered.iter().filter(is_namespace).collect();
        let pods = pods(&rendered);
        let Some(pod) = pods.get("portolan-node") else {
            assert_eq!(namespaces.len(), 0, "{}", values.display());
            continue;
        };
        let [namespace] = namespaces[..] else { panic!("{namespaces:?}") };
        let labels = &namespace["metadata"]["labels"];
        assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
        let is_in_it =
            |object: &&Value| object["metadata"]["namespace"] == namespace["metadata"]["name"];
        let inside: BTreeSet<_> = rendered
            .iter()
            .filter(is_in_it)
            .map(|object| object["kind"].as_str().unwrap())
            .collect();
        let is_scraped = values.ends_with("full-values.yaml");
        let monitor = is_scraped.then_some("PodMonitor");
        let expected: BTreeSet<_> =
            ["DaemonSet", "ResourceQuota", "ServiceAccount"].into_iter().chain(monitor).collect();
        assert_eq!(inside, expected, "{}", values.display());
        for absent in ["hostPID", "hostIPC", "volumes"] {
            assert!(pod[absent].is_null(), "{absent}");
        }
        let [container] = &pod["containers"].as_array().unwrap()[..] else { panic!("{pod}") };
        let security = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
        });
        assert_eq!(container["securityContext"], security);
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
}

/// Where a cluster keeps classes for namespaces with a quota for them, its Pods are let in.
#[test]
fn pods_with_a_priority_class_have_a_quota_for_it() {
    for values in value_files() {
        let rendered = render(&values);
        let (mut asked, mut granted) = (BTreeSet::new(), BTreeSet::new());
        for object in &rendered {
            let namespace = object["metadata"]["namespace"].as_str();
            let template = &object["spec"]["template"]["spec"];
            if let Some(class) = template["priorityClassName"].as_str() {
                asked.insert((namespace, class));
            }
            if object["kind"] == "ResourceQuota" {
                assert_eq!(object["spec"]["hard"], json!({ "pods": "1G" }), "it limits nothing");
                let [scope] =
                    &object["spec"]["scopeSelector"]["matchExpressions"].as_array().unwrap()[..]
                else {
                    panic!("{object}");
                };
                assert_eq!(scope["scopeName"], "PriorityClass");
                let classes = scope["values"].as_array().unwrap().iter();
                granted.extend(classes.map(|class| (namespace, class.as_str().unwrap())));
            }
        }
        assert_eq!(granted, asked, "{}", values.display());
    }
    let off = render_with(&["--set", "resourceQuota.enabled=false"]);
    assert!(off.iter().all(|object| object["kind"] != "ResourceQuota"));
}

#[test]
fn pods_run_on_linux_only_and_agents_where_there_is_a_kernel() {
    for values in value_files() {
        for (name, pod) in pods(&render(&values)) {
            let system = &pod["nodeSelector"]["kubernetes.io/os"];
            assert_eq!(system, "linux", "{name} of {}", values.display());
        }
    }
    let selector = "node.nodeSelector.kubernetes\\.io/os=windows,node.nodeSelector.pool=edge";
    let agent = pods(&render_with(&["--set", selector])).remove("portolan-node").unwrap();
    assert_eq!(agent["nodeSelector"], json!({ "kubernetes.io/os": "linux", "pool": "edge" }));
    let required =
        &agent["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let not =
        |key: &str, value: &str| json!({ "key": key, "operator": "NotIn", "values": [value] });
    let expected =
        [not("eks.amazonaws.com/compute-type", "fargate"), not("type", "virtual-kubelet")];
    assert_eq!(required["nodeSelectorTerms"], json!([{ "matchExpressions": expected }]));
}

/// Numbers of a file of values are floats to Helm, which writes large ones with an exponent.
#[test]
fn a_gateway_is_told_its_limits_in_plain_numbers() {
    #[track_caller]
    fn check(values: &Path, expected: [&str; 2]) {
        let pods = pods(&render(values));
        let arguments = pods["portolan-gateway"]["containers"][0]["args"].as_array().unwrap();
        let is_limit = |word: &&str| word.contains("-bytes-max=");
        let words = arguments.iter().filter_map(Value::as_str).filter(is_limit);
        assert_eq!(words.collect::<Vec<_>>(), expected);
    }
    let [buffers, snapshot] = ["--response-buffer-bytes-max=", "--snapshot-bytes-max="];
    let told = [format!("{buffers}268435456"), format!("{snapshot}67108864")];
    check(&value_files()[0], told.each_ref().map(String::as_str));
    let told = [format!("{buffers}134217728"), format!("{snapshot}134217728")];
    check(&ci("full-values.yaml"), told.each_ref().map(String::as_str));
}

/// Every Pod with an admin port that others reach is selected by one monitor, at a port it has.
#[test]
fn every_process_that_can_be_reached_is_scraped() {
    let rendered = render(&ci("full-values.yaml"));
    let all =
        |kind: &str| rendered.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
    let [service, pod] = [all("ServiceMonitor"), all("PodMonitor")];
    assert_eq!((service.len(), pod.len()), (1, 1));
    for monitor in [service[0], pod[0]] {
        assert_eq!(
            monitor["metadata"]["labels"]["release"], "prometheus",
            "its Prometheus finds it"
        );
    }
    let [endpoint] = &pod[0]["spec"]["podMetricsEndpoints"].as_array().unwrap()[..] else {
        panic!("{}", pod[0]);
    };
    assert_eq!((&endpoint["port"], &endpoint["interval"]), (&json!("admin"), &json!("15s")));
    let agents = all("DaemonSet")[0];
    let template = &agents["spec"]["template"];
    assert_eq!(pod[0]["metadata"]["namespace"], agents["metadata"]["namespace"]);
    for (label, value) in pod[0]["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&template["metadata"]["labels"][label], value, "{label}");
    }
    let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| port["name"] == endpoint["port"]), "{ports:?}");
    assert_eq!(template["spec"]["imagePullSecrets"], json!([{ "name": "registry" }]));
}

#[test]
fn an_agent_that_only_its_node_reaches_has_no_monitor() {
    let set = "metrics.serviceMonitor.enabled=true";
    let output = helm(&["template", "portolan", &chart(), "--set", set]);
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    let monitors = objects.iter().filter_map(|object| object["kind"].as_str());
    let monitors: Vec<_> = monitors.filter(|kind| kind.ends_with("Monitor")).collect();
    assert_eq!(monitors, ["ServiceMonitor"]);
}

#[test]
fn a_gateway_keeps_its_snapshot_where_it_may_write() {
    for values in value_files() {
        let pods = pods(&render(&values));
        let gateway = &pods["portolan-gateway"];
        let container = &gateway["containers"][0];
        let arguments = container["args"].as_array().unwrap().iter();
        let directory = arguments
            .filter_map(|argument| argument.as_str()?.strip_prefix("--snapshot-directory="))
            .next();
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let paths: Vec<_> = mounts.map(|mount| mount["mountPath"].as_str().unwrap()).collect();
        assert_eq!(paths, Vec::from_iter(directory), "{}", values.display());
        assert_eq!(gateway["volumes"].as_array().map_or(0, Vec::len), paths.len());
    }
}

#[test]
fn requests_of_every_process_have_the_priority() {
    let rendered = render(&value_files()[0]);
    let named = |kind: &str| {
        let is_it =
            |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == "portolan";
        rendered.iter().find(is_it).unwrap_or_else(|| panic!("no {kind}"))
    };
    let schema = &named("FlowSchema")["spec"];
    let level = named("PriorityLevelConfiguration");
    assert_eq!(schema["priorityLevelConfiguration"]["name"], level["metadata"]["name"]);
    let subjects = schema["rules"][0]["subjects"].as_array().unwrap().iter();
    let accounts: BTreeSet<_> =
        subjects.map(|subject| subject["serviceAccount"]["name"].as_str().unwrap()).collect();
    let pods = pods(&rendered);
    let used: BTreeSet<_> =
        pods.values().map(|pod| pod["serviceAccountName"].as_str().unwrap()).collect();
    assert_eq!(accounts, used);
}

#[test]
fn liveness_and_readiness_are_different_questions() {
    for (name, pod) in pods(&render(&value_files()[0])) {
        let container = &pod["containers"][0];
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz", "{name}");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz", "{name}");
    }
}

#[test]
fn a_gateway_is_killed_only_after_its_drain() {
    let pods = pods(&render(&value_files()[0]));
    let gateway = &pods["portolan-gateway"];
    let pause = &gateway["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
    // What its settings say, which are tested beside them.
    let (lame_duck, drain) = (5, 60);
    let needed = pause.as_i64().unwrap() + lame_duck + drain;
    assert!(gateway["terminationGracePeriodSeconds"].as_i64().unwrap() > needed);
}

#[test]
fn replicas_are_spread_over_nodes_that_are_in_no_zone() {
    for values in value_files() {
        let pods = pods(&render(&values));
        for name in ["portolan-gateway", "portolan-controller"] {
            let constraints = pods[name]["topologySpreadConstraints"].as_array().unwrap();
            let keys: Vec<_> = constraints.iter().map(|one| &one["topologyKey"]).collect();
            // A second key would leave nodes without its label, and with them the first, unrated.
            assert_eq!(keys, ["kubernetes.io/hostname"], "{name} of {}", values.display());
        }
    }
}

#[test]
fn only_gateways_reach_the_port_for_gateways() {
    let rendered = render(&value_files()[0]);
    let is_policy = |object: &&Value| {
        object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == "portolan-gateway"
    };
    let policy = rendered.iter().find(is_policy).expect("gateways have a policy");
    let own = &policy["spec"]["podSelector"];
    let rules = policy["spec"]["ingress"].as_array().unwrap().iter();
    let opens = |rule: &&Value| {
        let ports = rule["ports"].as_array().expect("a rule without ports opens all of them");
        ports.iter().any(|port| port["port"] == "peers")
    };
    let from: Vec<_> = rules.filter(opens).map(|rule| &rule["from"]).collect();
    assert_eq!(from, [&json!([{ "podSelector": own }])]);
    let pods = pods(&rendered);
    let container = &pods["portolan-gateway"]["containers"][0];
    let port = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == "peers");
    let argument = format!("--peer-port={}", port.expect("it is named")["containerPort"]);
    assert!(container["args"].as_array().unwrap().contains(&json!(argument)));
}

#[test]
fn only_pods_reach_the_port_for_callers_inside() {
    for values in value_files() {
        let rendered = render(&values);
        let named = |kind: &str, name: &str| {
            let is_it =
                |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
            rendered.iter().find(is_it).cloned()
        };
        let has_internal = |ports: &Value, key: &str| {
            ports.as_array().is_some_and(|ports| ports.iter().any(|port| port[key] == "internal"))
        };
        if let Some(policy) = named("NetworkPolicy", "portolan-gateway") {
            let rules = policy["spec"]["ingress"].as_array().unwrap().iter();
            let opening = rules.filter(|rule| has_internal(&rule["ports"], "port"));
            let from: Vec<_> = opening.map(|rule| &rule["from"]).collect();
            assert_eq!(from, [&json!([{ "namespaceSelector": {} }])]);
        }
        let inside = named("Service", "portolan-gateway-internal").expect("it has its Service");
        assert!(has_internal(&inside["spec"]["ports"], "targetPort"));
        assert_eq!(inside["spec"]["type"], "ClusterIP");
        let public = named("Service", "portolan-gateway").expect("visitors have theirs");
        assert!(!has_internal(&public["spec"]["ports"], "targetPort"), "it may face the world");
    }
}

#[test]
fn an_admin_port_without_peers_is_open_to_nobody() {
    let rendered = render_with(&["--set-json", "networkPolicy.adminFrom=[]"]);
    let policies = rendered.iter().filter(|object| object["kind"] == "NetworkPolicy");
    let policies: Vec<_> = policies.collect();
    assert_eq!(policies.len(), 2);
    for policy in policies {
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "{policy}");
        for rule in policy["spec"]["ingress"].as_array().expect("rules, or none") {
            assert_ne!(rule["from"], json!([]), "no peers are all peers: {policy}");
            let ports = rule["ports"].as_array().expect("a rule without ports opens all of them");
            assert!(ports.iter().all(|port| port["port"] != "admin"), "{policy}");
        }
    }
}

#[test]
fn node_ports_are_asked_for_only_where_a_service_has_some() {
    #[track_caller]
    fn check(kind: &str, expected: &Value) {
        let kind = format!("gateway.service.type={kind}");
        let ports = "gateway.service.httpNodePort=30080,gateway.service.httpsNodePort=30443";
        let rendered = render_with(&["--set", &kind, "--set", ports]);
        let is_it = |object: &&Value| {
            object["kind"] == "Service" && object["metadata"]["name"] == "portolan-gateway"
        };
        let service = rendered.iter().find(is_it).expect("visitors have a Service");
        let ports = service["spec"]["ports"].as_array().expect("it has ports");
        let found: Vec<_> = ports.iter().map(|port| port["nodePort"].clone()).collect();
        assert_eq!(json!(found), *expected, "{kind}");
    }
    // The API server refuses one there.
    check("ClusterIP", &json!([null, null]));
    check("NodePort", &json!([30080, 30443]));
    check("LoadBalancer", &json!([30080, 30443]));
}

#[test]
fn roles_hold_the_table_of_permissions_and_nothing_else() {
    for values in value_files() {
        let rendered = render(&values);
        let with_agent = pods(&rendered).contains_key("portolan-node");
        for (component, scopes) in permissions() {
            if component == "node" && !with_agent {
                continue;
            }
            let name = format!("portolan-{component}");
            let namespace = match component == "node" {
                true => format!("{NAMESPACE}-node"),
                false => NAMESPACE.to_owned(),
            };
            let role = |kind| {
                let of_name = |object: &&Value| {
                    object["kind"] == kind && object["metadata"]["name"] == name.as_str()
                };
                rendered.iter().find(of_name).unwrap_or_else(|| panic!("no {kind} {name}"))
            };
            assert_eq!(role("ClusterRole")["rules"], rules(&scopes["cluster"]), "{name}");
            let mut bindings = vec!["ClusterRoleBinding"];
            if scopes["namespace"] != json!([]) {
                assert_eq!(role("Role")["rules"], rules(&scopes["namespace"]), "{name}");
                bindings.push("RoleBinding");
            }
            for kind in bindings {
                let binding = role(kind);
                let subject =
                    json!([{ "kind": "ServiceAccount", "name": name, "namespace": namespace }]);
                assert_eq!(binding["subjects"], subject, "{kind} {name}");
                assert_eq!(binding["roleRef"]["name"], name.as_str(), "{kind} {name}");
            }
        }
    }
}

#[test]
fn no_permission_is_wider_than_its_reason() {
    for (component, scopes) in permissions() {
        for (scope, rules) in scopes.as_object().unwrap() {
            for rule in rules.as_array().unwrap() {
                let place = format!("{component}, {scope}: {}", rule["why"]);
                assert!(rule["why"].as_str().is_some_and(|why| !why.is_empty()), "{place}");
                let words = [&rule["groups"], &rule["resources"], &rule["verbs"]];
                let words: Vec<&str> = words
                    .into_iter()
                    .flat_map(|list| list.as_array().unwrap())
                    .map(|word| word.as_str().unwrap())
                    .collect();
                let never =
                    ["*", "secrets", "escalate", "bind", "impersonate", "nodes", "pods/exec"];
                for word in never {
                    let is_own_node = word == "nodes" && component == "node";
                    assert!(!words.contains(&word) || is_own_node, "{place}: {word}");
                }
                let reads = ["get", "list", "watch"];
                let verbs = rule["verbs"].as_array().unwrap();
                let only_reads = verbs.iter().all(|verb| reads.contains(&verb.as_str().unwrap()));
                let is_gateway = component == "gateway" && scope == "cluster";
                assert!(only_reads || !is_gateway, "{place}: a gateway writes in the cluster");
                let is_report = words.contains(&"nodereports");
                let is_agent = component == "node";
                assert!(only_reads || !is_agent || is_report, "{place}: an agent writes");
            }
        }
    }
}

#[test]
fn every_controller_has_its_lease() {
    let mut expected = BTreeSet::new();
    for file in rust_files(&repository().join("controllers")) {
        let source = fs::read_to_string(&file).unwrap();
        for call in source.split("Controller::new(ctx, \"").skip(1) {
            expected.insert(format!("portolan-{}", call.split('"').next().unwrap()));
        }
    }
    assert!(expected.contains("portolan-app"), "controllers are found: {expected:?}");
    let rendered = render(&value_files()[0]);
    let leases = rendered.iter().filter(|object| object["kind"] == "Lease");
    let names = leases.map(|lease| lease["metadata"]["name"].as_str().unwrap().to_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), expected);
}

#[test]
fn the_gateway_reads_only_secrets_that_are_named() {
    let rendered = render(&ci("full-values.yaml"));
    let mut granted = BTreeMap::new();
    for role in rendered.iter().filter(|object| object["kind"] == "Role") {
        for rule in role["rules"].as_array().unwrap() {
            if rule["resources"] == json!(["secrets"]) {
                let namespace = role["metadata"]["namespace"].as_str().unwrap().to_owned();
                assert_eq!(rule["verbs"], json!(["get", "list", "watch"]));
                granted.insert(namespace, rule["resourceNames"].clone());
            }
        }
    }
    let expected = BTreeMap::from([
        (NAMESPACE.to_owned(), json!(["default-tls"])),
        ("team-a".to_owned(), json!(["shop-tls", "blog-tls"])),
        ("team-b".to_owned(), json!(["wiki-tls"])),
    ]);
    assert_eq!(granted, expected);
}

#[test]
fn the_page_on_security_shows_the_table_of_permissions() {
    let page = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let list = |words: &Value| {
        let words = words.as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        words.collect::<Vec<_>>().join(", ")
    };
    for (component, scopes) in permissions() {
        for (scope, rules) in scopes.as_object().unwrap() {
            for rule in rules.as_array().unwrap() {
                let (resources, verbs) = (list(&rule["resources"]), list(&rule["verbs"]));
                let why = rule["why"].as_str().unwrap();
                let row = format!("| {component} | {scope} | {resources} | {verbs} | {why} |");
                assert!(page.contains(&row), "docs/security.md misses the row\n{row}");
            }
        }
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    #[track_caller]
    fn check(set: &str, field: &str) {
        refused(&["--set", set], field);
    }
    check("gatway.replicas=3", "gatway");
    check("gateway.replica=3", "replica");
    check("gateway.replicas=-1", "/gateway/replicas");
    check("gateway.replicas=two", "/gateway/replicas");
    check("gateway.service.type=Ingress", "/gateway/service/type");
    check("gateway.service.httpNodePort=70000", "/gateway/service/httpNodePort");
    check("gateway.trustedProxies={10.0.0.1}", "/gateway/trustedProxies/0");
    check("gateway.proxyProtocol=true", "/gateway/trustedProxies");
    check("gateway.tls.namespaces.Team={a}", "Team");
    check("gateway.tls.namespaces.team={}", "/gateway/tls/namespaces/team");
    check("image.pullPolicy=Sometimes", "/image/pullPolicy");
    check("node.admin.listen=Everywhere", "/node/admin/listen");
    check("node.maxUnavailable=half", "/node/maxUnavailable");
    check("image.digest=abc", "/image/digest");
    check("metrics.serviceMonitor.interval=30", "/metrics/serviceMonitor/interval");
    check("image.repository=registry.example/portolan:1", "/image/repository");
    check("gateway.responseBuffers=256Mi", "/gateway/responseBuffers");
    // The gateway takes no less than 16 MiB.
    check("gateway.responseBuffers=16777215", "/gateway/responseBuffers");
    check("gateway.trustedProxies={10.0.0.0/33}", "/gateway/trustedProxies/0");
    check("gateway.resources.limits.memory=1GB", "/gateway/resources/limits/memory");
    check("node.maxUnavailable=0%", "/node/maxUnavailable");
    check("node.affinity.nodeAfinity.x=y", "nodeAfinity");
    check("node.tolerations[0].keys=x", "keys");
    check("networkPolicy.adminFrom[0].ipblock.cidr=10.0.0.0/8", "ipblock");
    check("nodePorts.reserved={0}", "/nodePorts/reserved/0");
}

#[test]
fn a_value_that_templates_need_cannot_be_taken_away() {
    let values: Value =
        serde_saphyr::from_str(&fs::read_to_string(&value_files()[0]).unwrap()).unwrap();
    let optional = ["imagePullSecrets"];
    for key in values.as_object().unwrap().keys().filter(|key| !optional.contains(&key.as_str())) {
        refused(&["--set", &format!("{key}=null")], &format!("missing property '{key}'"));
    }
    for key in ["gateway.tls", "gateway.accessLog", "node.admin.port", "nodePorts.allowed"] {
        let (_, name) = key.rsplit_once('.').unwrap();
        refused(&["--set", &format!("{key}=null")], &format!("missing property '{name}'"));
    }
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    refused(&["--set-json", r#"nodePorts.reserved=["90-80"]"#], "90-80 ends before it begins");
    refused(&["--set-json", r#"nodePorts.allowed=["1-65536"]"#], "1-65536 is not within");
    let ports = "gateway.service.httpNodePort=30080,gateway.service.httpsNodePort=30080";
    refused(&["--set", ports], "httpNodePort and httpsNodePort are both 30080");
    let size = "gateway.snapshot.bytesMax=134217728";
    refused(&["--set", size], "sizeLimit 192Mi has no room for two snapshots");
    refused(&["--namespace", &"n".repeat(59)], "has more than 63 characters");
}

/// As who has just installed it reads them.
#[test]
fn the_notes_name_the_ways_in_that_there_are() {
    #[track_caller]
    fn check(kind: &str, expected: &str, never: [&str; 2]) {
        let kind = format!("gateway.service.type={kind}");
        let output = helm(&["install", "edge", &chart(), "--dry-run=client", "--set", &kind]);
        let text = text(&output);
        let (_, notes) = text.split_once("NOTES:").expect("there are notes");
        assert!(notes.contains(expected), "{kind}: {notes}");
        assert!(notes.contains(&format!("kubectl -n {NAMESPACE}-node rollout status")), "{notes}");
        for word in never {
            assert!(!notes.contains(word), "{kind}: {word}: {notes}");
        }
    }
    let [forward, port, balancer] = ["port-forward", ".nodePort", "status.loadBalancer.ingress"];
    check("ClusterIP", forward, [port, balancer]);
    check("NodePort", port, [forward, balancer]);
    check("LoadBalancer", balancer, [forward, port]);
}

fn repository() -> PathBuf {
    Paths::discover().repository
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn chart() -> String {
    repository().join("charts/portolan").to_str().unwrap().to_owned()
}

fn ci(name: &str) -> PathBuf {
    Path::new(&chart()).join("ci").join(name)
}

/// The chart's own values, then each file of `ci/`.
fn value_files() -> Vec<PathBuf> {
    let mut files = vec![Path::new(&chart()).join("values.yaml")];
    let folder = fs::read_dir(Path::new(&chart()).join("ci")).unwrap();
    files.extend(folder.map(|entry| entry.unwrap().path()));
    assert!(files.len() > 1, "ci/ has files");
    files
}

fn helm(arguments: &[&str]) -> Output {
    let program = Paths::discover().programs().join("helm");
    let mut command = Command::new(&program);
    // The last one counts: a test may have a namespace of its own.
    command.args(["--namespace", NAMESPACE]).args(arguments);
    command.output().unwrap_or_else(|error| panic!("run {}: {error}", program.display()))
}

/// With these options nothing is rendered, and the error says `why`.
#[track_caller]
fn refused(options: &[&str], why: &str) {
    let chart = chart();
    let mut arguments = vec!["template", "portolan", chart.as_str()];
    arguments.extend_from_slice(options);
    let output = helm(&arguments);
    assert!(!output.status.success(), "{options:?} is accepted");
    assert!(text(&output).contains(why), "{options:?}: {}", text(&output));
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn render(values: &Path) -> Vec<Value> {
    render_with(&["-f", values.to_str().unwrap()])
}

/// What is rendered with the chart's own values and these options.
fn render_with(options: &[&str]) -> Vec<Value> {
    let chart = chart();
    let mut arguments = vec!["template", "portolan", chart.as_str()];
    arguments.extend_from_slice(options);
    let output = helm(&arguments);
    assert!(output.status.success(), "{options:?}: {}", text(&output));
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

/// The Pod specifications of all Deployments and DaemonSets, by name.
fn pods(objects: &[Value]) -> BTreeMap<String, Value> {
    let kinds = ["Deployment", "DaemonSet"];
    let deployments =
        objects.iter().filter(|object| kinds.iter().any(|kind| object["kind"] == *kind));
    let pods = deployments.map(|deployment| {
        let name = deployment["metadata"]["name"].as_str().unwrap().to_owned();
        (name, deployment["spec"]["template"]["spec"].clone())
    });
    pods.collect()
}

/// Component -> scope -> rules.
fn permissions() -> BTreeMap<String, Value> {
    let path = Path::new(&chart()).join("files/permissions.yaml");
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A row of the table as RBAC says it.
fn rules(rows: &Value) -> Value {
    let rule = |row: &Value| {
        let mut rule = json!({
            "apiGroups": row["groups"],
            "resources": row["resources"],
            "verbs": row["verbs"],
        });
        if !row["names"].is_null() {
            rule["resourceNames"] = row["names"].clone();
        }
        rule
    };
    rows.as_array().unwrap().iter().map(rule).collect()
}
