//! Judges NetworkPolicies as Kubernetes defines them, for a network that enforces none.
//!
//! Only what isolates incoming traffic is judged. Ports are numbers, and selectors are the ones
//! that a policy of ours may hold; whatever else is met is an error, never a guess.

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

/// Who dials.
#[derive(Debug)]
pub(crate) enum Peer {
    /// A Pod: its labels, and those of its namespace.
    Pod { namespace: String, labels: Value, namespace_labels: Value },
    /// An address that is no Pod's.
    Outside,
}

/// A Pod that is dialled.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Value,
}

/// Whether the policies of the target's namespace let the peer through to a port.
pub(crate) fn allows(
    policies: &[Value],
    target: &Target<'_>,
    peer: &Peer,
    port: i64,
    protocol: &str,
) -> anyhow::Result<bool> {
    let mut is_isolated = false;
    for policy in policies {
        let spec = &policy["spec"];
        let is_ingress = list(&spec["policyTypes"]).iter().any(|kind| kind == "Ingress");
        if !is_ingress || !selects(&spec["podSelector"], target.labels)? {
            continue;
        }
        is_isolated = true;
        for rule in list(&spec["ingress"]) {
            if lets_in(rule, target, peer)? && opens(rule, port, protocol)? {
                return Ok(true);
            }
        }
    }
    Ok(!is_isolated)
}

/// A rule that names nobody is for everyone.
fn lets_in(rule: &Value, target: &Target<'_>, peer: &Peer) -> anyhow::Result<bool> {
    let from = list(&rule["from"]);
    for source in from {
        if matches(source, target, peer)? {
            return Ok(true);
        }
    }
    Ok(from.is_empty())
}

fn matches(source: &Value, target: &Target<'_>, peer: &Peer) -> anyhow::Result<bool> {
    only(source, &["namespaceSelector", "podSelector"])?;
    let Peer::Pod { namespace, labels, namespace_labels } = peer else { return Ok(false) };
    let is_near = match source.get("namespaceSelector") {
        Some(selector) => selects(selector, namespace_labels)?,
        None => namespace == target.namespace,
    };
    let is_chosen = match source.get("podSelector") {
        Some(selector) => selects(selector, labels)?,
        None => true,
    };
    Ok(is_near && is_chosen)
}

/// A rule that names no port is for all of them.
fn opens(rule: &Value, port: i64, protocol: &str) -> anyhow::Result<bool> {
    let ports = list(&rule["ports"]);
    for open in ports {
        only(open, &["port", "protocol"])?;
        let is_number = open["port"].as_i64().context("a port by its number")? == port;
        if is_number && open["protocol"].as_str().unwrap_or("TCP") == protocol {
            return Ok(true);
        }
    }
    Ok(ports.is_empty())
}

/// A selector that says nothing selects all.
fn selects(selector: &Value, labels: &Value) -> anyhow::Result<bool> {
    only(selector, &["matchLabels"])?;
    let none = Map::new();
    let wanted = selector["matchLabels"].as_object().unwrap_or(&none);
    Ok(wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

fn only(object: &Value, known: &[&str]) -> anyhow::Result<()> {
    let object = object.as_object().context("an object in a policy")?;
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => bail!("{unknown} of a NetworkPolicy is not judged here"),
        None => Ok(()),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn policies_are_judged_as_kubernetes_does() -> anyhow::Result<()> {
    use serde_json::json;
    let labels = json!({ "app": "shop" });
    let target = Target { namespace: "ours", labels: &labels };
    let pod = |namespace: &str, labels: Value| Peer::Pod {
        namespace: namespace.to_owned(),
        labels,
        namespace_labels: json!({ "name": namespace }),
    };
    let policy = |selector: Value, ingress: Value| {
        let spec = json!({
            "podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress,
        });
        [json!({ "spec": spec })]
    };
    let friend = || pod("ours", json!({ "app": "friend" }));
    let check = |policies: &[Value], peer: Peer, expected: bool| {
        let is_allowed = allows(policies, &target, &peer, 80, "TCP")?;
        ensure!(is_allowed == expected, "{policies:?} {peer:?}");
        anyhow::Ok(())
    };
    check(&[], Peer::Outside, true)?;
    check(&policy(json!({ "matchLabels": { "app": "other" } }), json!([])), friend(), true)?;
    check(&policy(json!({}), json!([])), friend(), false)?;
    check(&policy(json!({}), json!([{}])), Peer::Outside, true)?;
    let here = json!([{ "from": [{ "podSelector": {} }] }]);
    check(&policy(json!({}), here.clone()), friend(), true)?;
    check(&policy(json!({}), here.clone()), pod("theirs", json!({})), false)?;
    check(&policy(json!({}), here), Peer::Outside, false)?;
    let there = json!({ "namespaceSelector": { "matchLabels": { "name": "theirs" } },
        "podSelector": { "matchLabels": { "app": "friend" } } });
    let there = json!([{ "from": [there], "ports": [{ "port": 80 }] }]);
    check(&policy(json!({}), there.clone()), pod("theirs", json!({ "app": "friend" })), true)?;
    check(&policy(json!({}), there.clone()), pod("theirs", json!({})), false)?;
    check(&policy(json!({}), there), friend(), false)?;
    let udp = json!([{ "ports": [{ "port": 80, "protocol": "UDP" }] }]);
    check(&policy(json!({}), udp), friend(), false)
}
