//! What a Route reports in each situation.

use std::sync::Arc;

use portolan_api::conditions::{self, reason};
use portolan_api::{CertificateReport, Holder, Route, RouteStatus};
use portolan_reconcile::{Next, ObjectKey, Observed};
use serde_json::json;

use crate::Settings;
use crate::apply::{Creation, Outcome};
use crate::error::Error;
use crate::fixtures::{at, later, route, route_with};
use crate::observe::{CertificateSightings, Situation};
use crate::plan::{Hold, Plan, Rival, Step};
use crate::policy::Denial;
use crate::status::{Report, report};
use crate::view::AppServices;

const HOST: &str = "shop.example.com";
const GENERATION: i64 = 2;

/// Status, reason, and a part of the message.
type Expected<'a> = (&'a str, &'a str, &'a str);

fn settings() -> Settings {
    Settings {
        system_namespace: "portolan-system".into(),
        gateway_service_account: "gateway".into(),
    }
}

/// Route `shop` of `team-a`, to an App that is there.
fn situation() -> Situation {
    with_route(route("team-a", "shop", HOST, 10))
}

fn with_route(route: Route) -> Situation {
    Situation {
        route: Arc::new(route),
        namesakes: vec![],
        domains: vec![],
        claim: None,
        above: vec![],
        own: vec![],
        app: Observed::Present(Arc::new(app(&[("web", true)]))),
        certificate: CertificateSightings::default(),
    }
}

fn app(services: &[(&str, bool)]) -> AppServices {
    let has_http = services.iter().map(|&(name, http)| (name.into(), http)).collect();
    AppServices { key: ObjectKey::new("team-a", "shop"), has_http }
}

/// A Route with a certificate, and what gateways say about it.
fn with_certificate(certificate: CertificateSightings) -> Situation {
    let spec = json!({ "host": HOST, "app": "shop", "tls": { "secretName": "shop-tls" } });
    Situation { certificate, ..with_route(route_with("team-a", "shop", 10, spec)) }
}

fn problems(problems: &[(&str, &str)]) -> CertificateSightings {
    let problem = |&(reason, message): &(&str, &str)| CertificateReport {
        namespace: "team-a".into(),
        name: "shop-tls".into(),
        reason: reason.into(),
        message: message.into(),
    };
    CertificateSightings {
        gateways: 3,
        problems: problems.iter().map(problem).collect(),
        until: Some(at(50)),
    }
}

fn plan(hold: Hold) -> Plan {
    Plan { steps: vec![], hold, look_again: None }
}

fn holder() -> Holder {
    Holder {
        kind: "Route".into(),
        namespace: "team-a".into(),
        name: "shop".into(),
        uid: "uid-shop".into(),
    }
}

/// A plan that claims the host.
fn claiming() -> Plan {
    let create = Step::Create { host: HOST.into(), holder: holder() };
    Plan { steps: vec![create], ..plan(Hold::Ours) }
}

fn created(created: Creation) -> Outcome {
    Outcome { created: Some(created), failure: None }
}

fn failed() -> Outcome {
    Outcome { created: None, failure: Some(Error::Claim(portolan_claims::Error::Stale)) }
}

fn run(situation: &Situation, plan: &Plan, outcome: &Outcome) -> Report {
    report(situation, plan, outcome, &settings(), later())
}

/// The Route after it has been reported so.
fn reported(situation: Situation, report: &Report) -> Situation {
    let mut route = (*situation.route).clone();
    route.status = Some(report.status.clone());
    Situation { route: Arc::new(route), ..situation }
}

#[track_caller]
fn check_condition(status: &RouteStatus, type_: &str, expected: Expected<'_>) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_);
    let found = found.unwrap_or_else(|| panic!("{type_} is reported: {status:?}"));
    let (verdict, reason, message) = expected;
    assert_eq!((&*found.status, &*found.reason), (verdict, reason), "{type_}: {}", found.message);
    assert!(found.message.contains(message), "{type_} says {message:?}: {}", found.message);
}

/// Checks a condition and that `Ready` repeats it.
#[track_caller]
fn check_lacking(report: &Report, type_: &str, expected: Expected<'_>) {
    check_condition(&report.status, type_, expected);
    check_condition(&report.status, conditions::READY, expected);
}

#[test]
fn a_route_that_has_everything_is_ready() {
    let report = run(&situation(), &plan(Hold::Ours), &Outcome::default());
    let status = &report.status;
    check_condition(status, conditions::HOST_CLAIMED, ("True", reason::CLAIMED, HOST));
    check_condition(status, conditions::BACKEND_RESOLVED, ("True", reason::RESOLVED, "web"));
    let certificate = ("True", reason::NO_CERTIFICATE, "default certificate");
    check_condition(status, conditions::CERTIFICATE_READY, certificate);
    check_condition(status, conditions::READY, ("True", reason::CLAIMED, HOST));
    assert_eq!(status.url.as_deref(), Some("http://shop.example.com"));
    assert_eq!(status.observed_generation, Some(GENERATION));
    assert_eq!(report.transitions.len(), 4);
    assert_eq!(report.next, Next::Settled);
}

#[test]
fn a_second_report_says_nothing_new() {
    let situation = situation();
    let first = run(&situation, &claiming(), &created(Creation::Won));
    let again = run(&reported(situation, &first), &plan(Hold::Ours), &Outcome::default());
    assert_eq!((again.status, again.transitions), (first.status, vec![]));
}

#[test]
fn a_lost_host_says_who_holds_it_and_no_more_than_a_tenant_may_know() {
    let cases = [
        (Rival::Sibling("older".into()), "Route older of this namespace"),
        (Rival::Namespace("team-b".into()), "a Route in namespace team-b"),
        (Rival::Reserved("Gateway".into()), "reserved by a Claim for a Gateway"),
    ];
    for (rival, message) in cases {
        let report = run(&situation(), &plan(Hold::Lost(rival)), &Outcome::default());
        let expected = ("False", reason::HOST_CONFLICT, message);
        check_lacking(&report, conditions::HOST_CLAIMED, expected);
        assert_eq!(report.status.url, None, "another answers there");
    }
}

#[test]
fn a_race_that_is_lost_reads_as_one_that_was_never_run() {
    let winner = Holder { namespace: "team-b".into(), name: "secret".into(), ..holder() };
    let raced = run(&situation(), &claiming(), &created(Creation::Lost(winner)));
    let rival = Rival::Namespace("team-b".into());
    let known = run(&situation(), &plan(Hold::Lost(rival)), &Outcome::default());
    assert_eq!(raced, known);
}

#[test]
fn a_denied_host_says_which_domain_would_help() {
    let covered = Denial::Domain { name: "corp".into(), suffix: "example.com".into() };
    let under = Denial::Under { host: "*.example.com".into(), namespace: "team-b".into() };
    let cases = [
        (covered, "Domain corp (suffix example.com) does not let namespace team-a"),
        (Denial::DefaultRoute, "a Domain with suffix '*' that lists namespace team-a"),
        (under, "a Domain of suffix shop.example.com that lists namespace team-a"),
    ];
    for (denial, message) in cases {
        let report = run(&situation(), &plan(Hold::Denied(denial)), &Outcome::default());
        let expected = ("False", reason::DOMAIN_DENIED, message);
        check_lacking(&report, conditions::HOST_CLAIMED, expected);
        assert_eq!(report.status.url, None);
    }
}

#[test]
fn the_backend_says_what_is_missing() {
    let services = Arc::new(app(&[("irc", false), ("site", true)]));
    let cases = [
        (Observed::Absent, "False", reason::APP_NOT_FOUND, "no App shop"),
        (Observed::Unknown("bad".into()), "Unknown", reason::APP_NOT_FOUND, "cannot be read"),
        (Observed::Present(services), "False", reason::SERVICE_NOT_FOUND, "it has: irc, site"),
        (
            Observed::Present(Arc::new(app(&[("web", false)]))),
            "False",
            reason::NO_HTTP_PORT,
            "service web of App shop has no port of type http",
        ),
    ];
    for (app, verdict, reason, message) in cases {
        let situation = Situation { app, ..situation() };
        let report = run(&situation, &plan(Hold::Ours), &Outcome::default());
        check_lacking(&report, conditions::BACKEND_RESOLVED, (verdict, reason, message));
        assert!(report.status.url.is_some(), "the host is ours all the same");
    }
}

#[test]
fn a_certificate_without_complaint_is_in_use() {
    let sightings = CertificateSightings { gateways: 1, ..CertificateSightings::default() };
    let report = run(&with_certificate(sightings), &plan(Hold::Ours), &Outcome::default());
    let expected = ("True", reason::CERTIFICATE_IN_USE, "Secret shop-tls");
    check_condition(&report.status, conditions::CERTIFICATE_READY, expected);
    check_condition(&report.status, conditions::READY, ("True", reason::CLAIMED, HOST));
    assert_eq!(report.status.url.as_deref(), Some("https://shop.example.com"));
}

#[test]
fn a_certificate_that_a_gateway_cannot_use_says_what_to_do() {
    let cases = [
        (reason::SECRET_NOT_FOUND, reason::SECRET_NOT_FOUND, "no Secret shop-tls"),
        (
            reason::SECRET_FORBIDDEN,
            reason::SECRET_FORBIDDEN,
            "--resource-name=shop-tls && kubectl -n team-a create rolebinding \
             portolan-gateway-shop-tls --role=portolan-gateway-shop-tls \
             --serviceaccount=portolan-system:gateway",
        ),
        (reason::CERTIFICATE_INVALID, reason::CERTIFICATE_INVALID, "cannot be used: expired"),
        ("FromTheFuture", reason::CERTIFICATE_INVALID, "cannot be used: expired"),
    ];
    for (reported, reason, message) in cases {
        let situation = with_certificate(problems(&[(reported, "expired")]));
        let report = run(&situation, &plan(Hold::Ours), &Outcome::default());
        check_lacking(&report, conditions::CERTIFICATE_READY, ("False", reason, message));
        assert_eq!(report.next, Next::At(at(50)), "a report counts while its gateway lives");
    }
}

#[test]
fn gateways_that_differ_do_not_make_the_status_flap() {
    let one = (reason::CERTIFICATE_INVALID, "expired");
    let other = (reason::SECRET_NOT_FOUND, "");
    let status = |all: &[(&str, &str)]| {
        run(&with_certificate(problems(all)), &plan(Hold::Ours), &Outcome::default()).status
    };
    assert_eq!(status(&[one, other]), status(&[other, one]));
    let expected = ("False", reason::SECRET_NOT_FOUND, "");
    check_condition(&status(&[one, other]), conditions::CERTIFICATE_READY, expected);
}

#[test]
fn without_a_gateway_nobody_knows_the_certificate() {
    let nobody = CertificateSightings::default();
    let report = run(&with_certificate(nobody), &plan(Hold::Ours), &Outcome::default());
    let expected = ("Unknown", reason::NO_GATEWAY, "no gateway runs");
    check_lacking(&report, conditions::CERTIFICATE_READY, expected);
}

#[test]
fn a_certificate_stays_ready_while_gateways_restart() {
    let seen = CertificateSightings { gateways: 1, ..CertificateSightings::default() };
    let situation = with_certificate(seen);
    let before = run(&situation, &plan(Hold::Ours), &Outcome::default());
    let alone = Situation { certificate: CertificateSightings::default(), ..situation };
    let mut restarting = reported(alone, &before);
    let report = run(&restarting, &plan(Hold::Ours), &Outcome::default());
    assert_eq!((&report.status, &*report.transitions), (&before.status, &[][..]));

    let mut route = (*restarting.route).clone();
    route.metadata.generation = Some(GENERATION + 1);
    restarting.route = Arc::new(route);
    let report = run(&restarting, &plan(Hold::Ours), &Outcome::default());
    let expected = ("Unknown", reason::NO_GATEWAY, "");
    check_lacking(&report, conditions::CERTIFICATE_READY, expected);
}

#[test]
fn what_is_false_is_told_before_what_is_unknown() {
    let situation = Situation { app: Observed::Unknown("bad".into()), ..situation() };
    let denied = plan(Hold::Denied(Denial::DefaultRoute));
    let report = run(&situation, &denied, &Outcome::default());
    check_condition(&report.status, conditions::READY, ("False", reason::DOMAIN_DENIED, ""));
    let situation = Situation {
        certificate: problems(&[(reason::SECRET_NOT_FOUND, "")]),
        app: situation.app.clone(),
        ..with_certificate(CertificateSightings::default())
    };
    let report = run(&situation, &plan(Hold::Ours), &Outcome::default());
    check_condition(&report.status, conditions::READY, ("False", reason::SECRET_NOT_FOUND, ""));
}

#[test]
fn a_pass_that_found_nothing_out_leaves_the_host_as_it_was() {
    let situation = situation();
    let won = run(&situation, &claiming(), &created(Creation::Won));
    let mut changed = reported(situation, &won);
    let mut route = (*changed.route).clone();
    route.metadata.generation = Some(GENERATION + 1);
    changed.route = Arc::new(route);
    for (plan, outcome) in
        [(claiming(), failed()), (plan(Hold::Undecided("why".into())), Outcome::default())]
    {
        let status = run(&changed, &plan, &outcome).status;
        assert_eq!(status.observed_generation, Some(GENERATION), "not what this pass is about");
        assert_eq!(status.url, won.status.url);
        for type_ in [conditions::HOST_CLAIMED, conditions::READY] {
            let kept = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
            assert_eq!(kept.observed_generation, Some(GENERATION), "{type_}");
        }
    }
}

#[test]
fn a_first_pass_that_fails_does_not_guess() {
    let status = run(&situation(), &claiming(), &failed()).status;
    let types: Vec<_> = status.conditions.iter().map(|condition| &*condition.type_).collect();
    assert_eq!(types, [conditions::BACKEND_RESOLVED, conditions::CERTIFICATE_READY]);
    assert_eq!((status.observed_generation, status.url), (None, None));
}

#[test]
fn a_release_that_fails_does_not_hide_that_the_host_is_held() {
    let outcome = Outcome {
        created: Some(Creation::Won),
        failure: Some(Error::Claim(portolan_claims::Error::Stale)),
    };
    let report = run(&situation(), &claiming(), &outcome);
    check_condition(&report.status, conditions::HOST_CLAIMED, ("True", reason::CLAIMED, HOST));
}

#[test]
fn a_wildcard_has_no_url() {
    let situation = with_route(route("team-a", "shop", "*.example.com", 10));
    assert_eq!(run(&situation, &plan(Hold::Ours), &Outcome::default()).status.url, None);
}

#[test]
fn deference_to_an_older_route_ends_with_a_look() {
    let deferring = Plan {
        look_again: Some(std::time::Duration::from_secs(2)),
        ..plan(Hold::Lost(Rival::Sibling("older".into())))
    };
    let report = run(&situation(), &deferring, &Outcome::default());
    assert_eq!(report.next, Next::After(std::time::Duration::from_secs(2)));
}
