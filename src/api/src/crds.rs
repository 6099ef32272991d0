//! The CRDs as the API server gets them: what the derives give, made structural where they are
//! not, and without the prose of Kubernetes' own types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::schema::REFUSED_TEMPLATE_FIELDS;
use crate::{App, AppVersion, Claim, Domain, GatewayReport, Route, SandboxPool};

/// Kept by Helm when the chart is uninstalled: a CRD that goes takes every object with it.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// Every CRD, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        App::crd(),
        AppVersion::crd(),
        Claim::crd(),
        Domain::crd(),
        GatewayReport::crd(),
        Route::crd(),
        SandboxPool::crd(),
    ];
    crds.iter_mut().for_each(finish);
    crds.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    crds
}

fn finish(crd: &mut CustomResourceDefinition) {
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert(KEEP.0.into(), KEEP.1.into());
    for version in &mut crd.spec.versions {
        let Some(schema) = version.schema.take() else { continue };
        let mut value = serde_json::to_value(schema).expect("a schema is plain data");
        rewrite(&mut value);
        version.schema =
            Some(serde_json::from_value(value).expect("a rewritten schema is still one"));
    }
}

/// Kubernetes' own types, by the name of the field that holds one: their descriptions make up
/// nine tenths of the CRD and are in Kubernetes' own reference.
const FOREIGN: [&str; 19] = [
    "affinity",
    "conditions",
    "containerSecurityContext",
    "dnsConfig",
    "env",
    "hostAliases",
    "imagePullSecrets",
    "initContainers",
    "liveness",
    "livenessProbe",
    "readiness",
    "resources",
    "securityContext",
    "startup",
    "tolerations",
    "topologySpreadConstraints",
    "volumeMounts",
    "volumes",
    "ephemeral_containers",
];

fn rewrite(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                if is_template(properties) {
                    declare_refused(properties);
                }
                for (name, property) in properties.iter_mut() {
                    if FOREIGN.contains(&name.as_str()) {
                        strip_nested(property);
                    }
                }
            }
            object.values_mut().for_each(rewrite);
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        _ => {}
    }
}

fn is_template(properties: &Map<String, Value>) -> bool {
    properties.contains_key("initContainers") && properties.contains_key("containerSecurityContext")
}

fn declare_refused(properties: &mut Map<String, Value>) {
    for field in REFUSED_TEMPLATE_FIELDS {
        properties.insert(
            field.into(),
            json!({
                "description": "Set by Portolan; refused here.",
                "x-kubernetes-preserve-unknown-fields": true,
            }),
        );
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
