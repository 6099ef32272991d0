use super::*;
use portolan_api::{Claim, Route};
use serde_json::json;

/// Routes and Claims as they come and go.
#[derive(Default)]
struct World {
    hosts: Hosts,
}

fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

impl World {
    fn route(&mut self, namespace: &str, name: &str, host: &str, secret: Option<&str>) -> Changes {
        let mut spec = json!({ "host": host, "app": "shop" });
        if let Some(secret) = secret {
            spec["tls"] = json!({ "secretName": secret });
        }
        let mut route = Route::new(name, serde_json::from_value(spec).expect("a Route"));
        route.metadata.namespace = Some(namespace.into());
        route.metadata.uid = Some(format!("uid-{namespace}-{name}"));
        let facts = RouteFacts::of(route).expect("a Route with a valid host");
        self.hosts.route(&key(namespace, name), Some(Arc::new(facts)))
    }

    fn claim(&mut self, host: &str, namespace: &str, uid: &str) -> Changes {
        let spec = json!({
            "kind": "Host", "value": host,
            "holder": { "kind": "Route", "namespace": namespace, "name": "x", "uid": uid },
        });
        let claim = Claim::new("claim", serde_json::from_value(spec).expect("a Claim"));
        let facts = ClaimFacts::of(claim).expect("the Claim of a host");
        self.hosts.claim(&host.into(), Some(Arc::new(facts)))
    }

    fn unclaim(&mut self, host: &str) -> Changes {
        self.hosts.claim(&host.into(), None)
    }
}

fn names(changes: &Changes) -> (Vec<String>, Vec<String>) {
    let served = changes.served.iter().map(|route| route.key.to_string()).collect();
    (served, changes.withdrawn.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn check(changes: &Changes, served: &[&str], withdrawn: &[&str]) {
    assert_eq!(names(changes), (to_strings(served), to_strings(withdrawn)));
}

fn to_strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_route_is_served_once_its_claim_names_it() {
    let mut world = World::default();
    check(&world.route("a", "shop", "shop.test", None), &[], &[]);
    check(&world.claim("shop.test", "a", "uid-a-shop"), &["a/shop"], &[]);
    check(&world.route("a", "shop", "shop.test", None), &[], &[]);
}

#[test]
fn a_claim_may_come_before_its_route() {
    let mut world = World::default();
    check(&world.claim("shop.test", "a", "uid-a-shop"), &[], &[]);
    check(&world.route("a", "shop", "shop.test", None), &["a/shop"], &[]);
}

#[test]
fn a_route_of_another_namespace_or_of_an_earlier_life_is_not_served() {
    let mut world = World::default();
    world.claim("shop.test", "a", "uid-a-shop");
    check(&world.route("b", "shop", "shop.test", None), &[], &[]);
    check(&world.claim("shop.test", "a", "another-uid"), &[], &[]);
    check(&world.route("a", "shop", "shop.test", None), &[], &[]);
    check(&world.claim("shop.test", "b", "uid-a-shop"), &[], &[]);
}

#[test]
fn a_host_that_changes_hands_is_withdrawn_before_it_is_served() {
    let mut world = World::default();
    world.claim("shop.test", "a", "uid-a-shop");
    world.route("a", "shop", "shop.test", None);
    world.route("b", "shop", "shop.test", None);
    check(&world.claim("shop.test", "b", "uid-b-shop"), &["b/shop"], &["a/shop"]);
    check(&world.unclaim("shop.test"), &[], &["b/shop"]);
}

#[test]
fn a_route_that_changes_its_host_leaves_the_old_one() {
    let mut world = World::default();
    world.claim("old.test", "a", "uid-a-shop");
    world.claim("new.test", "a", "uid-a-shop");
    world.route("a", "shop", "old.test", None);
    check(&world.route("a", "shop", "new.test", None), &["a/shop"], &[]);
    check(&world.unclaim("old.test"), &[], &[]);
    check(&world.hosts.route(&key("a", "shop"), None), &[], &["a/shop"]);
}

#[test]
fn only_served_routes_want_certificates() {
    let mut world = World::default();
    assert!(!world.route("a", "shop", "shop.test", Some("tls")).certificates);
    let default = key("portolan-system", "default");
    let only_default = Wanted([(default.clone(), vec![HostPattern::Default])].into());
    assert_eq!(world.hosts.certificates(Some(&default)), only_default);
    assert!(world.claim("shop.test", "a", "uid-a-shop").certificates);
    let wanted = world.hosts.certificates(None);
    let host = HostPattern::parse("shop.test").expect("a host");
    assert_eq!(wanted, Wanted([(key("a", "tls"), vec![host])].into()));
    assert!(world.route("a", "shop", "shop.test", Some("other")).certificates);
    assert!(world.unclaim("shop.test").certificates);
    assert_eq!(world.hosts.certificates(None), Wanted::default());
}
