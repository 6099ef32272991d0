//! `docs/reference.md`: every field of every kind, as the schemas say it.

use std::fmt::Write as _;

use serde_json::Value;

/// Kubernetes' own types, by the name of the field that holds one.
const FOREIGN: &[(&str, &str)] = &[
    ("affinity", "Affinity"),
    ("conditions", "Condition"),
    ("containerSecurityContext", "SecurityContext"),
    ("dnsConfig", "PodDNSConfig"),
    ("env", "EnvVar"),
    ("hostAliases", "HostAlias"),
    ("imagePullSecrets", "LocalObjectReference"),
    ("initContainers", "Container"),
    ("liveness", "Probe"),
    ("readiness", "Probe"),
    ("resources", "ResourceRequirements"),
    ("securityContext", "PodSecurityContext"),
    ("startup", "Probe"),
    ("tolerations", "Toleration"),
    ("topologySpreadConstraints", "TopologySpreadConstraint"),
    ("volumeMounts", "VolumeMount"),
    ("volumes", "Volume"),
];

const HEAD: &str = "\
<!-- Generated from src/api. To change it, change the types and run: make crds -->

# Field reference

Every field of every kind of `portolan.dev/v1alpha1`.
`kubectl explain app.spec.services` shows the same on a cluster.
Types with a capital letter are Kubernetes' own, described by `kubectl explain pod.spec` and its like.
A field without a default is absent unless you write it; what Portolan then does is in its description.
An explicit `null` counts as absent, and an unknown field is refused.
";

/// The whole page.
pub(crate) fn page(manifests: &[Value]) -> String {
    let mut page = String::from(HEAD);
    for manifest in manifests {
        kind(&mut page, manifest).expect("a string takes all that is written");
    }
    page
}

fn kind(page: &mut String, manifest: &Value) -> std::fmt::Result {
    let names = &manifest["spec"]["names"];
    let schema = &manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    writeln!(page, "\n## {}\n", text(&names["kind"]))?;
    writeln!(page, "{}\n", sentences(text(&schema["description"])))?;
    let scope = match text(&manifest["spec"]["scope"]) {
        "Cluster" => "Belongs to the cluster",
        _ => "Lives in a namespace",
    };
    let short = names["shortNames"].as_array().and_then(|names| names.first());
    let short = short.map(|name| format!(", short name `{}`", text(name))).unwrap_or_default();
    writeln!(page, "{scope}; `kubectl get {}`{short}.", text(&names["plural"]))?;
    let mut rules = rules("", schema);
    for part in ["spec", "status"] {
        let part_schema = &schema["properties"][part];
        if part_schema.is_null() {
            continue;
        }
        writeln!(page, "\n### {} `{part}`\n", text(&names["kind"]))?;
        writeln!(page, "| field | type | default | description |\n|---|---|---|---|")?;
        fields(page, "", part_schema, part == "spec", &mut rules)?;
    }
    if !rules.is_empty() {
        writeln!(page, "\n### {} rules\n", text(&names["kind"]))?;
        for rule in rules {
            writeln!(page, "- {rule}")?;
        }
    }
    Ok(())
}

fn fields(
    page: &mut String,
    path: &str,
    schema: &Value,
    spec: bool,
    found: &mut Vec<String>,
) -> std::fmt::Result {
    if spec {
        found.extend(rules(path, schema));
    }
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (name, field) in properties {
        if text(&field["description"]).starts_with("Refused: ") {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = match &field["default"] {
            Value::Null if required.contains(&Value::from(name.as_str())) => "required".into(),
            Value::Null => String::new(),
            Value::String(default) => format!("`{default}`"),
            default => format!("`{default}`"),
        };
        let foreign = FOREIGN.iter().find(|(field, _)| field == name).map(|(_, kind)| *kind);
        let kind = kind_of(field, foreign);
        let meaning = cell(text(&field["description"]));
        writeln!(page, "| `{path}` | {kind} | {default} | {meaning} |")?;
        if foreign.is_none() {
            let list = field["items"]["properties"].is_object();
            let (inner, schema) =
                if list { (format!("{path}[]"), &field["items"]) } else { (path, field) };
            if list && spec {
                found.extend(rules(inner.trim_end_matches("[]"), field));
            }
            fields(page, &inner, schema, spec, found)?;
        } else if spec {
            found.extend(rules(&path, field));
        }
    }
    Ok(())
}

fn kind_of(field: &Value, foreign: Option<&str>) -> String {
    let most = |key: &str| field[key].as_u64().map(|n| format!(" of at most {n}"));
    match (text(&field["type"]), foreign) {
        ("array", _) => {
            let item = match foreign {
                Some(kind) => kind.to_owned(),
                None if field["items"]["properties"].is_object() => String::new(),
                None => kind_of(&field["items"], None),
            };
            let key = field["x-kubernetes-list-map-keys"][0].as_str();
            let key = key.map(|key| format!(", by `{key}`")).unwrap_or_default();
            let items = if item.is_empty() { item } else { format!(": {item}") };
            format!("list{}{key}{items}", most("maxItems").unwrap_or_default())
        }
        (_, Some(kind)) => kind.into(),
        ("object", _) if field["additionalProperties"].is_object() => {
            format!("map{} to strings", most("maxProperties").unwrap_or_default())
        }
        ("string", _) if field["enum"].is_array() => {
            let values = field["enum"].as_array().map(Vec::as_slice).unwrap_or_default();
            values.iter().map(|v| format!("`{}`", text(v))).collect::<Vec<_>>().join(", ")
        }
        ("string", _) if field["format"] == "date-time" => "time".into(),
        ("string", _) => format!("string{}", length(field)),
        ("integer", _) => format!("integer{}", range(field)),
        (kind, _) => kind.into(),
    }
}

fn length(field: &Value) -> String {
    match (field["minLength"].as_u64().unwrap_or(0), field["maxLength"].as_u64()) {
        (0, Some(most)) => format!(", at most {most} characters"),
        (least, Some(most)) => format!(", {least} to {most} characters"),
        _ => String::new(),
    }
}

fn range(field: &Value) -> String {
    match (field["minimum"].as_i64(), field["maximum"].as_i64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) => format!(", at least {least}"),
        _ => String::new(),
    }
}

fn rules(path: &str, schema: &Value) -> Vec<String> {
    let rules = schema["x-kubernetes-validations"].as_array().map(Vec::as_slice);
    let rule = |rule: &Value| match text(&rule["message"]) {
        "" => spoken(text(&rule["messageExpression"])),
        message => message.to_owned(),
    };
    let line = |message: String| match path {
        "" => message,
        path => format!("`{path}`: {message}"),
    };
    rules.unwrap_or_default().iter().map(rule).map(line).collect()
}

/// The words of a message that is computed: its longest quoted text.
fn spoken(expression: &str) -> String {
    let texts = expression.split('\'').skip(1).step_by(2);
    let longest = texts.max_by_key(|text| text.len()).unwrap_or_default();
    longest.replace("%d", "…").replace("%s", "…")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn cell(text: &str) -> String {
    text.replace("\n\n", " ").replace('|', "\\|")
}

/// One sentence per line, as in all pages.
fn sentences(text: &str) -> String {
    text.replace(". ", ".\n")
}
