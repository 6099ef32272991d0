use std::sync::Arc;

use portolan_instructions::Hot;

use super::{Found, Table};
use crate::activator::Registry;
use crate::core::Core;
use crate::host::{HostPattern, normalize};
use crate::metrics::Metrics;
use crate::model::{PlainHttp, RouteConfig, RouteId, RouteTimeouts, ServiceKey};
use crate::settings::Settings;

struct Fixture {
    registry: Registry,
    table: Table,
}

impl Fixture {
    fn new() -> Self {
        let core = Core::new(Settings::standard(), Arc::new(Metrics::new()));
        Self { registry: Registry::new(Arc::new(core)), table: Table::new() }
    }

    fn upsert(&mut self, name: &str, host: &str) {
        let config = RouteConfig {
            host: HostPattern::parse(host).unwrap(),
            service: mk_service(name),
            timeouts: RouteTimeouts::standard(),
            request_body_max: None,
            plain_http: PlainHttp::Serve,
        };
        let service = self.registry.service(&config.service);
        for key in self.table.upsert(mk_id(name), &config, service) {
            self.registry.release(&key);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(key) = self.table.remove(&mk_id(name)) {
            self.registry.release(&key);
        }
    }

    #[track_caller]
    fn check(&self, host: &str, expected: &str) {
        let host = normalize(host).unwrap();
        let found = match self.table.find(&host) {
            Found::Exact(route) | Found::Pattern(route) => route.id.name.to_string(),
            Found::UnknownPreview => "unknown preview".to_owned(),
            Found::Nothing => "nothing".to_owned(),
        };
        assert_eq!(found, expected, "{host}");
    }
}

fn mk_id(name: &str) -> RouteId {
    RouteId { namespace: "team-a".into(), name: name.into() }
}

fn mk_service(app: &str) -> ServiceKey {
    ServiceKey { namespace: "team-a".into(), app: app.into(), service: "web".into() }
}

#[tokio::test]
async fn exact_then_wildcard_then_preview_then_default() {
    let mut fixture = Fixture::new();
    fixture.upsert("exact", "a.example.com");
    fixture.upsert("wild", "*.example.com");
    fixture.check("A.Example.com:8080", "exact");
    fixture.check("b.example.com", "wild");
    fixture.check("example.com", "nothing");
    fixture.check("x.b.example.com", "nothing");
    fixture.check("x.a.example.com", "unknown preview");
    fixture.check("[::1]:80", "nothing");

    fixture.upsert("default", "*");
    fixture.check("x.b.example.com", "default");
    fixture.check("[::1]:80", "default");
    fixture.check("x.a.example.com", "unknown preview");
}

#[tokio::test]
async fn a_wildcard_over_an_exact_parent_keeps_its_ordinary_traffic() {
    let mut fixture = Fixture::new();
    fixture.upsert("parent", "example.com");
    fixture.check("foo.example.com", "unknown preview");
    fixture.upsert("wild", "*.example.com");
    fixture.check("foo.example.com", "wild");
}

#[tokio::test]
async fn a_route_that_moves_leaves_its_old_host() {
    let mut fixture = Fixture::new();
    fixture.upsert("shop", "old.example.com");
    fixture.upsert("shop", "new.example.com");
    fixture.check("old.example.com", "nothing");
    fixture.check("new.example.com", "shop");
}

#[tokio::test]
async fn removing_a_route_spares_the_one_that_took_its_host() {
    let mut fixture = Fixture::new();
    fixture.upsert("first", "shop.example.com");
    fixture.upsert("second", "shop.example.com");
    fixture.remove("first");
    fixture.check("shop.example.com", "second");
    fixture.remove("second");
    fixture.check("shop.example.com", "nothing");
    assert_eq!(fixture.registry.sizes(), (0, 0), "services nobody names are forgotten");
}

#[test]
fn a_look_up_among_thousands_costs_what_is_committed() {
    const ROUTES: u32 = 3_000;
    let host = |number: u32| format!("app-{number}.example.com");
    let hot = Hot {
        row: "gateway: find one of 3 000 routes",
        module: module_path!(),
        test: "a_look_up_among_thousands_costs_what_is_committed",
        rounds: ROUTES,
    };
    let prepare = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let mut fixture = Fixture::new();
        let hosts: Vec<_> = (0..ROUTES).map(host).collect();
        for host in &hosts {
            fixture.upsert(host, host);
        }
        (fixture, hosts)
    };
    hot.check(prepare, |(fixture, hosts), round| {
        let found = fixture.table.find(&hosts[round as usize]);
        assert!(matches!(found, Found::Exact(_)));
    });
}
