//! The types and the schemas are the same thing said twice: whatever the schema of a kind allows,
//! its type reads and writes back whole.

use portolan_api::{
    App, AppService, AppVersion, Claim, Domain, GatewayReport, NodeReport, Route, SandboxPool,
    crds, resolve,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::string::string_regex;
use proptest::test_runner::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// How many objects of each kind are tried.
const CASES: u32 = 32;

/// Times as users write them.
const TIMES: &[&str] = &["2026-11-20T10:00:00Z", "1999-01-02T03:04:05Z"];

macro_rules! round_trip {
    ($($name:ident: $kind:ident;)*) => { $(
        #[test]
        fn $name() {
            proptest!(config(), |(object in object(stringify!($kind)))| {
                check::<$kind>(&object);
            });
        }
    )* };
}

round_trip! {
    an_app_is_read_and_written_whole: App;
    an_app_service_is_read_and_written_whole: AppService;
    a_version_is_read_and_written_whole: AppVersion;
    a_claim_is_read_and_written_whole: Claim;
    a_domain_is_read_and_written_whole: Domain;
    a_report_is_read_and_written_whole: GatewayReport;
    a_node_report_is_read_and_written_whole: NodeReport;
    a_route_is_read_and_written_whole: Route;
    a_pool_is_read_and_written_whole: SandboxPool;
}

/// A controller that is older than the CRDs meets fields that it does not know.
#[test]
fn fields_of_a_later_release_are_passed_over() {
    proptest!(config(), |(object in object("App"))| {
        let known: App = read(&object);
        let mut later = object;
        add_unknown(&schema("App"), &mut later);
        prop_assert_eq!(read::<App>(&later).spec, known.spec);
    });
}

#[test]
fn every_app_that_the_schema_allows_resolves_and_keeps_its_name() {
    proptest!(config(), |(object in object("App"), turn in 0usize..8)| {
        let app: App = read(&object);
        let version = resolve::resolve("shop", &app.spec);
        prop_assert_eq!(version.services.len(), app.spec.services.len());
        let mut turned = read::<App>(&write(&app)).spec;
        let services = turned.services.len();
        turned.services.rotate_left(turn % services);
        prop_assert_eq!(resolve::digest(&turned), version.digest);
    });
}

fn config() -> Config {
    Config { cases: CASES, failure_persistence: None, ..Config::default() }
}

#[track_caller]
fn check<K: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(object: &Value) {
    let typed: K = read(object);
    let written = write(&typed);
    assert_eq!(read::<K>(&written), typed, "what was written reads back differently");
    let mut lost = Vec::new();
    compare("", object, &written, &mut lost);
    assert!(lost.is_empty(), "lost or changed: {lost:?}\n{object:#}\n{written:#}");
}

#[track_caller]
fn read<K: DeserializeOwned>(object: &Value) -> K {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| {
        panic!("the type refuses what the schema allows: {error}\n{object:#}")
    })
}

fn write<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("the types of the API are plain data")
}

/// Collects the paths of what `written` lacks. Empty lists, maps and zero counts may be left out,
/// and times and amounts may be written in another way.
fn compare(path: &str, given: &Value, written: &Value, lost: &mut Vec<String>) {
    match (given, written) {
        (Value::Object(given), Value::Object(written)) => {
            for (key, value) in given {
                let other = written.get(key).unwrap_or(&Value::Null);
                compare(&format!("{path}.{key}"), value, other, lost);
            }
        }
        (Value::Array(given), Value::Array(written)) if given.len() == written.len() => {
            for (i, (value, other)) in given.iter().zip(written).enumerate() {
                compare(&format!("{path}[{i}]"), value, other, lost);
            }
        }
        _ if given == written || is_time(given) && is_time(written) => {}
        (Value::Number(amount), Value::String(text)) if amount.to_string() == *text => {}
        _ if is_nothing(given) && written.is_null() => {}
        _ => lost.push(format!("{path}: {given} became {written}")),
    }
}

fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok())
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
        other => *other == 0,
    }
}

/// Adds a field to every object, but not to maps, whose keys are the user's.
fn add_unknown(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let inner = &schema["properties"][name];
                add_unknown(
                    if inner.is_null() { &schema["additionalProperties"] } else { inner },
                    value,
                );
            }
            if schema["properties"].is_object() {
                fields.insert("fromALaterRelease".into(), json!({ "deep": [1, "two"] }));
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| add_unknown(&schema["items"], item));
        }
        _ => {}
    }
}

fn schema(kind: &str) -> Value {
    let crd = crds::manifests().into_iter().find(|crd| crd["spec"]["names"]["kind"] == kind);
    let crd = crd.expect("the kind has a CRD");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Any object that the schema of this kind allows, as far as its types and bounds go.
fn object(kind: &str) -> BoxedStrategy<Value> {
    let head = json!({
        "apiVersion": format!("{}/{}", portolan_api::GROUP, portolan_api::VERSION),
        "kind": kind,
        "metadata": { "name": "shop" },
    });
    value(&schema(kind))
        .prop_map(move |mut body| {
            let fields = body.as_object_mut().expect("a kind is an object");
            fields.extend(head.as_object().cloned().unwrap_or_default());
            body
        })
        .boxed()
}

fn value(schema: &Value) -> BoxedStrategy<Value> {
    if let Some(allowed) = schema["enum"].as_array() {
        return select(allowed.clone()).boxed();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return prop_oneof![(1i64..9999).prop_map(Value::from), Just(json!("500m"))].boxed();
    }
    match schema["type"].as_str() {
        Some("string") => string(schema),
        Some("integer") => integer(schema),
        Some("number") => (-1.0e3..1.0e3f64).prop_map(Value::from).boxed(),
        Some("boolean") => any::<bool>().prop_map(Value::from).boxed(),
        Some("array") => {
            let least = schema["minItems"].as_u64().unwrap_or(0) as usize;
            vec(value(&schema["items"]), least..least + 3).prop_map(Value::from).boxed()
        }
        _ if schema["additionalProperties"].is_object() => map(&schema["additionalProperties"]),
        _ => fields(schema),
    }
}

fn string(schema: &Value) -> BoxedStrategy<Value> {
    if schema["format"] == "date-time" {
        return select(TIMES).prop_map(Value::from).boxed();
    }
    let least = schema["minLength"].as_u64().unwrap_or(0);
    let most = schema["maxLength"].as_u64().unwrap_or(12).min(least + 12);
    let pattern = format!("[ -~é世]{{{least},{most}}}");
    string_regex(&pattern).expect("the pattern is valid").prop_map(Value::from).boxed()
}

fn integer(schema: &Value) -> BoxedStrategy<Value> {
    let limits = if schema["format"] == "int32" {
        (i32::MIN.into(), i32::MAX.into())
    } else {
        (i64::MIN, i64::MAX)
    };
    let least = schema["minimum"].as_i64().unwrap_or(limits.0);
    let most = schema["maximum"].as_i64().unwrap_or(limits.1);
    (least..=most).prop_map(Value::from).boxed()
}

fn map(values: &Value) -> BoxedStrategy<Value> {
    let entry = ("[a-z]{1,8}", value(values));
    vec(entry, 0..3).prop_map(|entries| Value::Object(entries.into_iter().collect())).boxed()
}

/// Every field that must be there, and each other one now and then. Fields that are declared only
/// to be refused never reach the type.
fn fields(schema: &Value) -> BoxedStrategy<Value> {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let refused = |field: &Value| {
        field["description"].as_str().is_some_and(|text| text.starts_with("Refused: "))
    };
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    let strategies: Vec<_> = properties
        .into_iter()
        .filter(|(_, field)| !refused(field))
        .map(|(name, field)| {
            let present = match value(&field) {
                always if required.contains(&json!(name)) => always.prop_map(Some).boxed(),
                sometimes => proptest::option::weighted(0.3, sometimes).boxed(),
            };
            (Just(name), present)
        })
        .collect();
    let present = |fields: Vec<(String, Option<Value>)>| {
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Value::Object(fields.collect::<Map<_, _>>())
    };
    strategies.prop_map(present).boxed()
}

#[test]
fn a_time_that_could_not_be_read_again_is_not_read() {
    for (time, is_read) in [
        ("2026-11-20T10:00:00.5+05:30", true),
        // The API server takes these by itself; written again, their year has no four digits.
        ("0000-01-01T00:00:00+01:00", false),
        ("9999-12-31T23:59:59-01:00", false),
    ] {
        let spec = json!({ "services": [{ "name": "web" }], "restartedAt": time });
        let app = json!({ "metadata": { "name": "shop" }, "spec": spec });
        let app = serde_json::from_value::<App>(app);
        assert_eq!(app.is_ok(), is_read, "{time}: {app:?}");
    }
}
