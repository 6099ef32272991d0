//! The CRDs as the API server gets them: what the derives give, made structural and bounded where
//! they are not, and without the prose of Kubernetes' own types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::schema::{REFUSED_TEMPLATE_FIELDS, refused};
use crate::{
    App, AppService, AppVersion, Claim, Domain, GatewayReport, NodeReport, Route, SandboxPool,
};

/// Kept by Helm when the chart is uninstalled: a CRD that goes takes every object with it.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// Kinds that carry what an App's rules have let through. They have no rules on their content, so
/// that a rule which a later release tightens does not refuse a version that exists.
const DERIVED: [&str; 2] = ["AppVersion", "SandboxPool"];

/// Every CRD, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        App::crd(),
        AppService::crd(),
        AppVersion::crd(),
        Claim::crd(),
        Domain::crd(),
        GatewayReport::crd(),
        NodeReport::crd(),
        Route::crd(),
        SandboxPool::crd(),
    ];
    crds.iter_mut().for_each(finish);
    crds.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    crds
}

/// Every CRD as its file holds it, in the order of their names: keys sorted, no `null`, and whole
/// numbers without a fraction (the typed form knows only floating point bounds).
pub fn manifests() -> Vec<Value> {
    let plain = |crd| {
        let mut value = serde_json::to_value(crd).expect("a CRD is plain data");
        tidy(&mut value);
        value
    };
    all().iter().map(plain).collect()
}

fn finish(crd: &mut CustomResourceDefinition) {
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert(KEEP.0.into(), KEEP.1.into());
    let derived = DERIVED.contains(&crd.spec.names.kind.as_str());
    for version in &mut crd.spec.versions {
        let Some(schema) = version.schema.take() else { continue };
        let mut value = serde_json::to_value(schema).expect("a schema is plain data");
        let root = &mut value["openAPIV3Schema"];
        describe(root);
        if derived {
            without_rules(&mut root["properties"]["spec"]);
        }
        rewrite(root, derived);
        version.schema =
            Some(serde_json::from_value(value).expect("a rewritten schema is still one"));
    }
}

/// The derive describes the kind at its `spec` and the whole as generated; `kubectl explain` shows
/// the whole first.
fn describe(root: &mut Value) {
    let spec = root["properties"]["spec"]["description"].take();
    root["description"] = spec;
    root["properties"]["spec"]["description"] = json!("What is wanted.");
    if let Some(root) = root.as_object_mut() {
        root.remove("title");
    }
}

fn without_rules(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.remove("x-kubernetes-validations");
            object.values_mut().for_each(without_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules),
        _ => {}
    }
}

fn rewrite(schema: &mut Value, derived: bool) {
    match schema {
        Value::Object(object) => {
            normalise(object);
            let template = !derived && is_template(object);
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                if template {
                    declare_refused(properties);
                }
                for (name, property) in properties.iter_mut() {
                    if FOREIGN.contains(&name.as_str()) {
                        strip_nested(property);
                    }
                    bound(name, property);
                }
            }
            if template {
                refuse(object);
            }
            object.values_mut().for_each(|value| rewrite(value, derived));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| rewrite(value, derived)),
        _ => {}
    }
}

/// A field that may be absent is not one that may be `null`: without `nullable` the API server
/// drops an explicit null, so that absent and null are the same to rules, digests and controllers.
fn normalise(schema: &mut Map<String, Value>) {
    if schema.get("nullable").is_some_and(Value::is_boolean) {
        schema.remove("nullable");
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = unwrapped(text);
    }
}

/// Joins the lines of each paragraph: where they break is the source's business.
fn unwrapped(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

fn is_template(schema: &Map<String, Value>) -> bool {
    let Some(Value::Object(properties)) = schema.get("properties") else { return false };
    properties.contains_key("initContainers") && properties.contains_key("containerSecurityContext")
}

fn declare_refused(properties: &mut Map<String, Value>) {
    for (field, kind, instead) in REFUSED_TEMPLATE_FIELDS {
        let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let mut property = match kind {
            "object" => open,
            "array" => json!({ "type": "array", "maxItems": 16, "items": open }),
            "string" => json!({ "type": "string", "maxLength": 253 }),
            _ => json!({ "type": kind }),
        };
        property["description"] = json!(format!("Refused: {instead}."));
        properties.insert(field.into(), property);
    }
}

fn refuse(template: &mut Map<String, Value>) {
    let rules = template.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Value::Array(rules) = rules {
        rules.extend(
            REFUSED_TEMPLATE_FIELDS.iter().map(|(field, _, instead)| refused(field, instead)),
        );
    }
}

/// Kubernetes' own types, by the name of the field that holds one: their descriptions make up
/// nine tenths of the CRD and are in Kubernetes' own reference.
const FOREIGN: [&str; 17] = [
    "affinity",
    "conditions",
    "containerSecurityContext",
    "dnsConfig",
    "env",
    "hostAliases",
    "imagePullSecrets",
    "initContainers",
    "liveness",
    "readiness",
    "resources",
    "securityContext",
    "startup",
    "tolerations",
    "topologySpreadConstraints",
    "volumeMounts",
    "volumes",
];

/// Greatest lengths of strings in lists of Kubernetes' own types, by field and key. Without them
/// the API server has to assume the worst and refuses the rules that read these strings.
const FOREIGN_LENGTHS: [(&str, &str, usize); 12] = [
    ("conditions", "message", 32768),
    ("conditions", "reason", 1024),
    ("conditions", "type", 316),
    ("env", "name", 256),
    ("env", "value", 131_072),
    ("hostAliases", "ip", 45),
    ("imagePullSecrets", "name", 253),
    ("initContainers", "image", 1024),
    ("initContainers", "name", 63),
    ("volumeMounts", "mountPath", 1024),
    ("volumeMounts", "name", 63),
    ("volumes", "name", 63),
];

/// Greatest number of resources with an amount, and characters in one amount.
const AMOUNTS: (usize, usize) = (32, 64);

fn bound(field: &str, property: &mut Value) {
    let lengths = FOREIGN_LENGTHS.iter().filter(|(name, _, _)| *name == field);
    for (_, key, length) in lengths {
        if let Some(item) = property.pointer_mut(&format!("/items/properties/{key}")) {
            item["maxLength"] = json!(length);
        }
    }
    match field {
        "conditions" => {
            property["maxItems"] = json!(16);
            property["items"]["properties"]["status"]["enum"] = json!(["True", "False", "Unknown"]);
        }
        "resources" => {
            for amounts in ["limits", "requests"] {
                let Some(map) = property.pointer_mut(&format!("/properties/{amounts}")) else {
                    continue;
                };
                map["maxProperties"] = json!(AMOUNTS.0);
                map["additionalProperties"]["maxLength"] = json!(AMOUNTS.1);
            }
        }
        _ => {}
    }
}

/// Drops the descriptions below `property`, but keeps its own.
fn strip_nested(property: &mut Value) {
    let own = property.get("description").cloned();
    strip(property);
    if let (Some(object), Some(own)) = (property.as_object_mut(), own) {
        object.insert("description".into(), own);
    }
}

fn strip(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15) {
                #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
                let whole = whole as i64;
                *value = json!(whole);
            }
        }
        _ => {}
    }
}
