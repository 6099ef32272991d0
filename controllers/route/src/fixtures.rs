//! Objects for tests: minimal, through the real types, with names that cannot be confused.

use std::time::Duration;

use jiff::Timestamp;
use portolan_api::{Claim, ClaimKind, Route, names};
use serde_json::{Value, from_value, json};

use crate::policy::DomainRule;

/// That many seconds after the beginning.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).unwrap()
}

/// A time after all that fixtures mention.
pub(crate) fn later() -> Timestamp {
    at(0) + Duration::from_secs(86_400)
}

/// A Domain's rule; `second` is its age.
pub(crate) fn domain(name: &str, suffix: &str, namespaces: &[&str], second: i64) -> DomainRule {
    DomainRule {
        name: name.into(),
        suffix: suffix.into(),
        namespaces: namespaces.iter().map(|&name| name.into()).collect(),
        created: at(second),
    }
}

/// A Claim on a host, held by a Route.
pub(crate) fn claim(host: &str, namespace: &str, route: &str, uid: &str) -> Claim {
    from_value(json!({
        "metadata": {
            "name": names::claim(ClaimKind::Host, host),
            "uid": format!("claim-of-{uid}-on-{host}"),
            "resourceVersion": "7",
        },
        "spec": {
            "kind": "Host",
            "value": host,
            "holder": { "kind": "Route", "namespace": namespace, "name": route, "uid": uid },
        },
    }))
    .unwrap()
}

/// A Route to service `web` of App `shop`; `second` is its age, its UID is `uid-<name>`.
pub(crate) fn route(namespace: &str, name: &str, host: &str, second: i64) -> Route {
    route_with(namespace, name, second, json!({ "host": host, "app": "shop" }))
}

/// A Route with this spec.
pub(crate) fn route_with(namespace: &str, name: &str, second: i64, spec: Value) -> Route {
    from_value(json!({
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": format!("uid-{name}"),
            "generation": 2,
            "creationTimestamp": at(second).to_string(),
        },
        "spec": spec,
    }))
    .unwrap()
}
