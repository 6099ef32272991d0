//! Whether what we want differs from what is there, before anything is written.
//!
//! An object that we apply carries a hash of what was applied. It tells a changed wish, one that
//! sends less than before included: the hash differs, we apply, and the API server removes what
//! our field manager no longer sends. Comparing what we send with what is there tells a foreign
//! edit. `managedFields` would tell both, but keeping them in memory costs more than the rest of
//! the object, so caches drop them.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Annotation of every object that we apply: a hash of what was applied.
pub const APPLIED_HASH: &str = "portolan.dev/applied-hash";

/// Lists of Kubernetes' own kinds to which others may add items of their own, with the fields that
/// tell items apart; an empty list of fields stands for a set of plain values. In every other list
/// an item too many is a foreign edit. `ownerReferences` and `finalizers` are in it because
/// server-side apply merges them: an item of somebody else cannot be removed by applying ours.
const SHARED_LISTS: [(&str, &[&str]); 13] = [
    ("finalizers", &[]),
    ("ownerReferences", &["uid"]),
    ("conditions", &["type"]),
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("env", &["name"]),
    ("volumes", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("imagePullSecrets", &["name"]),
    ("hostAliases", &["ip"]),
    ("schedulingGates", &["name"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
];

/// Maps whose values are quantities, which the API server rewrites: `0.5` comes back as `500m`.
const QUANTITY_MAPS: [&str; 5] = ["limits", "requests", "capacity", "overhead", "hard"];

/// Single fields that are quantities.
const QUANTITY_FIELDS: [&str; 2] = ["sizeLimit", "divisor"];

/// Whether `live` has everything that `desired` says; more is allowed where others may add.
pub(crate) fn covers(desired: &Value, live: &Value) -> bool {
    covers_at("", desired, live)
}

/// Whether two values say the same, where an absent field, `null` and an empty map, list or text
/// are the same thing: the API server stores none of them, or stores them as written.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let each = |from: &Map<String, Value>, to: &Map<String, Value>| {
                from.iter().all(|(name, value)| same(value, to.get(name).unwrap_or(&Value::Null)))
            };
            each(one, other) && each(other, one)
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (one, other) => one == other || (is_empty(one) && is_empty(other)),
    }
}

/// A hash of a value that does not depend on the order of its fields: 16 bytes in hexadecimal.
pub(crate) fn hash(value: &Value) -> String {
    let mut hasher = Sha256::new();
    feed(&mut hasher, value);
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn covers_at(field: &str, desired: &Value, live: &Value) -> bool {
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired.iter().all(|(name, value)| {
            let found = live.get(name).unwrap_or(&Value::Null);
            if QUANTITY_MAPS.contains(&field) || QUANTITY_FIELDS.contains(&name.as_str()) {
                return same_quantity(value, found);
            }
            covers_at(name, value, found)
        }),
        (Value::Array(desired), Value::Array(live)) => {
            match SHARED_LISTS.iter().find(|(name, _)| *name == field) {
                Some((_, keys)) => desired.iter().all(|item| {
                    live.iter().any(|found| same_item(keys, item, found) && covers(item, found))
                }),
                None => {
                    desired.len() == live.len()
                        && desired.iter().zip(live).all(|(item, found)| covers(item, found))
                }
            }
        }
        (desired, live) => desired == live || (is_empty(desired) && is_empty(live)),
    }
}

fn same_item(keys: &[&str], desired: &Value, live: &Value) -> bool {
    keys.iter().all(|key| desired.get(key) == live.get(key))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        // Zero and false are dropped from some fields, too, but mean something in others.
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn same_quantity(desired: &Value, live: &Value) -> bool {
    match (quantity(desired), quantity(live)) {
        (Some(desired), Some(live)) => desired == live,
        _ => desired == live,
    }
}

/// A quantity in billionths. `None` for what is none or too large to count, which is then compared
/// as text.
fn quantity(value: &Value) -> Option<i128> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let digits = text.trim_start_matches(['+', '-']);
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    let billionths = whole.checked_mul(1_000_000_000)?.checked_add(fraction)?;
    let (factor, divisor) = scale(suffix)?;
    let scaled = billionths.checked_mul(factor)?;
    // What is finer than a billionth the API server rounds up, too.
    let scaled = scaled.checked_add(divisor - 1)? / divisor;
    Some(if text.starts_with('-') { -scaled } else { scaled })
}

/// The factor and the divisor that a quantity's suffix stands for.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| 10_i128.checked_pow(power);
    let binary = |power: u32| 1024_i128.checked_pow(power);
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, decimal(9)?)),
        "u" => Some((1, decimal(6)?)),
        "m" => Some((1, decimal(3)?)),
        "k" => Some((decimal(3)?, 1)),
        "M" => Some((decimal(6)?, 1)),
        "G" => Some((decimal(9)?, 1)),
        "T" => Some((decimal(12)?, 1)),
        "P" => Some((decimal(15)?, 1)),
        "E" => Some((decimal(18)?, 1)),
        "Ki" => Some((binary(1)?, 1)),
        "Mi" => Some((binary(2)?, 1)),
        "Gi" => Some((binary(3)?, 1)),
        "Ti" => Some((binary(4)?, 1)),
        "Pi" => Some((binary(5)?, 1)),
        "Ei" => Some((binary(6)?, 1)),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = decimal(power.unsigned_abs())?;
            Some(if power < 0 { (1, factor) } else { (factor, 1) })
        }
    }
}

fn feed(hasher: &mut Sha256, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.keys().collect();
            names.sort();
            hasher.update(b"{");
            for name in names {
                feed(hasher, &Value::String(name.clone()));
                feed(hasher, &fields[name]);
            }
            hasher.update(b"}");
        }
        Value::Array(items) => {
            hasher.update(b"[");
            items.iter().for_each(|item| feed(hasher, item));
            hasher.update(b"]");
        }
        scalar => {
            // Quoted strings cannot be mistaken for anything else; the comma ends a number.
            hasher.update(scalar.to_string());
            hasher.update(b",");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(desired: Value, live: Value, expected: bool) {
        assert_eq!(covers(&desired, &live), expected, "desired {desired}, live {live}");
    }

    #[test]
    fn what_the_server_adds_is_no_difference() {
        check(json!({"a": 1}), json!({"a": 1, "status": {"b": 2}}), true);
        check(
            json!({"ports": [{"port": 80}]}),
            json!({"ports": [{"port": 80, "protocol": "TCP"}]}),
            true,
        );
    }

    #[test]
    fn a_changed_or_missing_value_is_a_difference() {
        check(json!({"a": 1}), json!({"a": 2}), false);
        check(json!({"a": {"b": "x"}}), json!({"a": {}}), false);
        check(json!({"command": ["a", "b"]}), json!({"command": ["a"]}), false);
        check(json!({"command": ["a", "b"]}), json!({"command": ["b", "a"]}), false);
    }

    #[test]
    fn an_item_too_many_is_a_difference_unless_others_may_add_to_the_list() {
        check(json!({"args": ["a"]}), json!({"args": ["a", "b"]}), false);
        let ours = json!({"ownerReferences": [{"uid": "1", "name": "a"}]});
        let with_theirs = json!({"ownerReferences": [{"uid": "2"}, {"uid": "1", "name": "a"}]});
        check(ours.clone(), with_theirs, true);
        check(ours, json!({"ownerReferences": [{"uid": "2", "name": "a"}]}), false);
        check(json!({"finalizers": ["a"]}), json!({"finalizers": ["b", "a"]}), true);
    }

    #[test]
    fn nothing_is_nothing_however_it_is_written() {
        check(json!({"a": null, "b": [], "c": {}, "d": ""}), json!({}), true);
        check(json!({}), json!({"a": 1}), true);
        check(json!({"a": []}), json!({"a": [1]}), false);
    }

    #[test]
    fn quantities_are_compared_by_value() {
        let limits = |cpu: Value| json!({"resources": {"limits": {"cpu": cpu}}});
        check(limits(json!("0.5")), limits(json!("500m")), true);
        check(limits(json!("1Gi")), limits(json!("1024Mi")), true);
        check(limits(json!(2)), limits(json!("2")), true);
        check(limits(json!("1e3")), limits(json!("1k")), true);
        check(limits(json!("1")), limits(json!("2")), false);
        check(limits(json!("1G")), limits(json!("1Gi")), false);
        // The same text elsewhere is text.
        check(json!({"labels": {"cpu": "0.5"}}), json!({"labels": {"cpu": "500m"}}), false);
    }

    #[test]
    fn statuses_are_the_same_only_if_neither_says_more() {
        assert!(same(&json!({"a": 1, "b": null}), &json!({"a": 1, "c": []})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 1, "b": 2})));
        assert!(!same(&json!({"a": 1, "b": 2}), &json!({"a": 1})));
        assert!(!same(&json!([1]), &json!([1, 2])));
        assert!(!same(&json!({"a": false}), &json!({})));
    }

    #[test]
    fn the_hash_ignores_order_and_nothing_else() {
        assert_eq!(hash(&json!({"a": 1, "b": 2})), hash(&json!({"b": 2, "a": 1})));
        let different = [
            json!({"a": 1}),
            json!({"a": "1"}),
            json!({"a": [1]}),
            json!({"a": [1, 1]}),
            json!({"a": 11}),
            json!({"a": {"b": 1}}),
            json!({}),
            json!({"a": null}),
        ];
        for (index, one) in different.iter().enumerate() {
            for other in &different[index + 1..] {
                assert_ne!(hash(one), hash(other), "{one} and {other}");
            }
        }
        assert_eq!(hash(&json!({})).len(), 32);
    }
}
