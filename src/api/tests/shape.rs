//! What holds for every kind: bounded fields, descriptions, conditions, list keys.

use portolan_api::crds;
use serde_json::Value;

/// Fields that hold Kubernetes' own types, whose insides are Kubernetes' business.
const FOREIGN: &[&str] = &[
    "affinity",
    "conditions",
    "containerSecurityContext",
    "containers",
    "dnsConfig",
    "env",
    "hostAliases",
    "imagePullSecrets",
    "initContainers",
    "liveness",
    "metadata",
    "readiness",
    "resources",
    "securityContext",
    "startup",
    "tolerations",
    "topologySpreadConstraints",
    "volumeMounts",
    "volumes",
];

#[test]
fn every_string_list_and_map_has_a_bound() {
    check(|path, field| {
        let has = |key: &str| field.get(key).is_some();
        let bounded = match field["type"].as_str() {
            Some("string") => has("maxLength") || has("enum") || has("format"),
            Some("array") => has("maxItems"),
            Some("object") if has("additionalProperties") => has("maxProperties"),
            _ => true,
        };
        (!bounded).then(|| format!("{path} has no bound"))
    });
}

#[test]
fn every_field_is_described() {
    check(|path, field| {
        let text = field["description"].as_str().unwrap_or_default();
        let item = path.ends_with("[]") || path.ends_with("{}");
        (!item && text.is_empty()).then(|| format!("{path} is not described"))
    });
}

#[test]
fn every_list_of_objects_says_how_it_merges() {
    check(|path, field| {
        let objects = field["items"]["type"] == "object" && !path.ends_with(".containers");
        let declared = field.get("x-kubernetes-list-type").is_some();
        let atomic = ["tolerations", "topologySpreadConstraints"];
        let exempt = atomic.iter().any(|name| path.ends_with(name));
        (objects && !declared && !exempt).then(|| format!("{path} has no list type"))
    });
}

#[test]
fn every_rule_tells_the_user_what_to_do() {
    check(|path, field| {
        let rules = field["x-kubernetes-validations"].as_array()?;
        let silent =
            |rule: &&Value| rule["message"].is_null() && rule["messageExpression"].is_null();
        rules.iter().find(silent).map(|rule| format!("{path}: {rule} has no message"))
    });
}

#[test]
fn every_kind_with_a_status_has_conditions_by_type_and_shows_whether_it_is_ready() {
    for crd in crds::manifests() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let version = &crd["spec"]["versions"][0];
        let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"];
        if status.is_null() {
            assert!(
                ["Claim", "GatewayReport", "NodeReport"].contains(&kind),
                "{kind} has no status"
            );
            continue;
        }
        let fields = &status["properties"];
        assert_eq!(fields["conditions"]["x-kubernetes-list-map-keys"][0], "type", "{kind}");
        assert!(fields["observedGeneration"].is_object(), "{kind}");
        assert!(version["subresources"]["status"].is_object(), "{kind}");
        let columns = version["additionalPrinterColumns"].to_string();
        assert!(columns.contains("@.type=='Ready'"), "{kind} does not show Ready: {columns}");
    }
}

/// The API server would write such a default into the object, and with it into the digest: see
/// docs/decisions/0003.
#[test]
fn what_names_a_version_has_no_default() {
    const KNOWN: [&str; 3] = [
        "App.spec.progressDeadlineSeconds",
        "App.spec.revisionHistoryLimit",
        "App.spec.services[].ports[].type",
    ];
    check(|path, field| {
        let new = path.starts_with("App.") && !KNOWN.contains(&path);
        (new && field.get("default").is_some()).then(|| format!("{path} has a default"))
    });
}

#[test]
fn absent_is_the_only_way_to_say_nothing() {
    for crd in crds::manifests() {
        let text = crd["spec"]["versions"][0]["schema"].to_string();
        assert!(!text.contains("null"), "{} allows a null", crd["metadata"]["name"]);
    }
}

/// Applies `find` to every field of ours in every kind; there must be no complaints.
#[track_caller]
fn check(find: impl Fn(&str, &Value) -> Option<String>) {
    let mut complaints = Vec::new();
    for crd in crds::manifests() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(&kind, schema, &mut |path, field| complaints.extend(find(path, field)));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    let name = path.rsplit('.').next().unwrap_or_default();
    if path.contains('.') && FOREIGN.contains(&name) {
        return;
    }
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(&format!("{path}.{name}"), property, visit);
        }
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}{{}}"), &schema["additionalProperties"], visit);
    }
}
