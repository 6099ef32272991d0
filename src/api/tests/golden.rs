//! Names that exist in clusters. An upgrade of Portolan that gave an unchanged App another name
//! would roll out every App at once, so this file only grows: a changed entry is a defect, and a
//! new canonical form takes a new `hashVersion` beside the old one.

use std::collections::BTreeMap;

use portolan_api::{AppSpec, names, resolve};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What was applied, and the names that came of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    /// What the case holds that others do not.
    about: String,
    /// Name of the App.
    app: String,
    /// Its spec.
    spec: Value,
    /// The digest.
    digest: String,
    /// Name of the version.
    version: String,
    /// Names of the pools, by service.
    pools: BTreeMap<String, String>,
}

#[test]
fn an_app_keeps_the_names_that_it_was_given() {
    let known: Vec<Known> = serde_json::from_str(include_str!("golden/names.json")).unwrap();
    for before in known {
        let now = name(before.about.clone(), before.app.clone(), before.spec.clone());
        assert_eq!(now, before, "renamed: {:#}", serde_json::to_value(&now).unwrap());
    }
}

fn name(about: String, app: String, spec: Value) -> Known {
    let parsed: AppSpec = serde_json::from_value(spec.clone()).expect("the spec was accepted");
    let version = resolve::resolve(&app, &parsed);
    let pools = version
        .services
        .iter()
        .map(|service| (service.name.clone(), resolve::pool_name(&app, service)))
        .collect();
    let name = names::version(&app, &version.digest);
    Known { about, app, spec, digest: version.digest, version: name, pools }
}
