//! Tables of situations.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use portolan_api::{App, labels};
use portolan_reconcile::{ObjectKey, Observed};
use serde_json::{Value, from_value, json};

use crate::internal::observe::{Led, Named, Names, Situation};
use crate::internal::plan::{Plan, plan};

fn app() -> App {
    from_value(json!({
        "metadata": { "name": "shop", "namespace": "team-a", "uid": "uid-of-shop" },
        "spec": { "image": "registry.example/shop:1", "services": [{ "name": "web" }] },
    }))
    .expect("an app")
}

/// `shop` with the http-only service `web` on this port, and nothing there yet.
fn fresh(port: i32) -> Situation {
    let names = Names {
        app: ObjectKey::new("team-a", "shop"),
        owner: Some("uid-of-shop".into()),
        services: [Led { name: "shop-web".into(), service: "web".into(), port }].into(),
    };
    Situation {
        names: Some(Arc::new(names)),
        there: [("shop-web".into(), Observed::Absent)].into(),
        owned: Vec::new(),
    }
}

/// As an API server answers the creation.
fn stored(mut service: Service) -> Service {
    service.metadata.uid = Some("uid-of-the-service".into());
    service.metadata.resource_version = Some("7".into());
    let spec = service.spec.as_mut().expect("a spec");
    spec.cluster_ips = Some(vec!["10.96.0.7".into()]);
    spec.session_affinity = Some("None".into());
    for port in spec.ports.iter_mut().flatten() {
        let number = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port.port);
        port.target_port = Some(number);
    }
    service
}

fn with(mut situation: Situation, service: Service) -> Situation {
    let named = Arc::new(Named::of(service));
    if named.owner.as_ref().is_some_and(|owner| owner.uid == "uid-of-shop") {
        situation.owned.push(named.clone());
    }
    if situation.there.contains_key(&named.key.name) {
        situation.there.insert(named.key.name.clone(), Observed::Present(named));
    }
    situation
}

fn settled(port: i32) -> Service {
    let mut plan = plan(&app(), &fresh(port));
    stored(plan.create.pop().expect("it is made"))
}

fn named(owner: Value, of: Value) -> Service {
    from_value(json!({ "metadata": {
        "name": "shop-web", "namespace": "team-a", "uid": "uid-of-another",
        "labels": of, "ownerReferences": owner,
    } }))
    .expect("a service")
}

fn owned_by(kind: &str, name: &str) -> Value {
    json!([{ "apiVersion": "portolan.dev/v1alpha1", "kind": kind, "name": name,
        "uid": "uid-of-the-owner", "controller": true }])
}

#[test]
fn an_http_only_service_has_a_name_on_port_80_and_its_own() {
    for (port, expected) in [(3000, vec![80, 3000]), (80, vec![80])] {
        let service = settled(port);
        let labels = service.metadata.labels.clone().expect("labels");
        assert_eq!(labels[labels::INTERNAL], "http");
        assert_eq!(labels[labels::SERVICE_PROXY], "portolan");
        let spec = service.spec.expect("a spec");
        let ports: Vec<_> = spec.ports.iter().flatten().map(|port| port.port).collect();
        assert_eq!((ports, spec.selector), (expected, None));
    }
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let situation = with(fresh(3000), settled(3000));
    assert_eq!(plan(&app(), &situation), Plan::default());
}

#[test]
fn another_port_changes_the_service_in_place() {
    let plan = plan(&app(), &with(fresh(8080), settled(3000)));
    let [changed] = plan.replace.as_slice() else { panic!("one replace: {plan:?}") };
    let spec = changed.spec.as_ref().expect("a spec");
    assert_eq!(spec.cluster_ips, settled(3000).spec.expect("a spec").cluster_ips);
    assert_eq!(spec.ports.as_ref().expect("ports")[1].port, 8080);
    assert_eq!(plan, Plan { replace: plan.replace.clone(), ..Plan::default() });
}

#[test]
fn a_service_that_is_not_wanted_any_more_goes() {
    let mut situation = with(fresh(3000), settled(3000));
    let mut names = (**situation.names.as_ref().expect("names")).clone();
    names.services = Box::default();
    situation.names = Some(Arc::new(names));
    situation.there.clear();
    let plan = plan(&app(), &situation);
    let gone: Vec<_> = plan.delete.iter().map(|target| target.uid.as_str()).collect();
    assert_eq!(gone, ["uid-of-the-service"]);
}

#[test]
fn without_a_version_everything_stays() {
    let situation = Situation { names: None, ..with(fresh(3000), settled(3000)) };
    assert_eq!(plan(&app(), &situation), Plan::default());
}

#[test]
fn what_is_somebody_elses_is_told_and_what_passes_is_waited_for() {
    let of = |service: &str| {
        json!({ labels::SERVICE_PROXY: "portolan", labels::APP: "shop",
            labels::SERVICE: service })
    };
    let bare = json!({ labels::APP: "shop", labels::SERVICE: "web" });
    let cases = [
        ("nobody's", named(json!([]), json!({})), true),
        ("another App's", named(owned_by("App", "shop-x"), of("web")), true),
        ("an earlier App's", named(owned_by("App", "shop"), of("web")), false),
        ("its address without the label", named(owned_by("AppService", "shop-web"), bare), false),
        ("the same service's address", named(owned_by("AppService", "shop-web"), of("web")), false),
        ("another's address", named(owned_by("AppService", "shop-web"), of("x-web")), true),
    ];
    for (whose, service, is_told) in cases {
        let plan = plan(&app(), &with(fresh(3000), service));
        let taken = if is_told { vec!["shop-web".to_owned()] } else { vec![] };
        assert_eq!(plan, Plan { taken, ..Plan::default() }, "{whose}");
    }
}

#[test]
fn what_is_not_known_is_left_alone() {
    let mut situation = fresh(3000);
    situation.there.insert("shop-web".into(), Observed::Unknown("no look".into()));
    let unknown = Some("no look".into());
    assert_eq!(plan(&app(), &situation), Plan { unknown, ..Plan::default() });
}
