//! What a Route reports. Pure: no IO, no clock.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use portolan_api::conditions::{self, reason};
use portolan_api::{CertificateReport, Route, RouteStatus};
use portolan_reconcile::{Conditions, Next, Observed, Transition, Verdict};

use crate::apply::{Creation, Outcome};
use crate::observe::{CertificateSightings, Situation};
use crate::plan::{Hold, Plan, Rival, Step};
use crate::policy::Denial;
use crate::{Settings, host};

/// The conditions that a Route needs to be ready, in the order in which a user should look.
const NEEDED: [&str; 3] =
    [conditions::HOST_CLAIMED, conditions::BACKEND_RESOLVED, conditions::CERTIFICATE_READY];

/// What to write, to tell, and when to look again.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    /// The status.
    pub(crate) status: RouteStatus,
    /// The conditions that flipped.
    pub(crate) transitions: Vec<Transition>,
    /// The next look.
    pub(crate) next: Next,
}

/// One condition, before it is dated.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    verdict: Verdict,
    reason: &'static str,
    message: String,
}

/// Says how the Route is after this pass.
pub(crate) fn report(
    situation: &Situation,
    plan: &Plan,
    outcome: &Outcome,
    settings: &Settings,
    now: Timestamp,
) -> Report {
    let route = &situation.route;
    let generation = route.metadata.generation.unwrap_or_default();
    let observed = route.status.as_ref();
    let before = observed.map_or(&[][..], |status| &status.conditions);
    let mut conditions = Conditions::new(before, generation, now);

    let claimed = host_claimed(route, plan, outcome);
    let backend = backend_resolved(situation);
    let certificate = certificate_ready(situation, before, settings);
    let findings = [claimed.as_ref(), Some(&backend), certificate.as_ref()];
    for (type_, finding) in NEEDED.into_iter().zip(findings) {
        set(&mut conditions, type_, finding);
    }
    let ready = certificate_or_before(certificate, before)
        .and_then(|certificate| Some(ready([claimed.as_ref()?, &backend, &certificate])));
    set(&mut conditions, conditions::READY, ready.as_ref());

    let (conditions, transitions) = conditions.finish();
    // A pass that could not find out who holds the host does not speak of this generation.
    let (observed_generation, url) = match &claimed {
        Some(finding) => {
            let holds = finding.verdict == Verdict::True;
            let url = holds.then(|| host::url(&route.spec.host, route.spec.tls.is_some()));
            (Some(generation), url.flatten())
        }
        None => observed
            .map(|status| (status.observed_generation, status.url.clone()))
            .unwrap_or_default(),
    };
    let status = RouteStatus { observed_generation, url, conditions };
    Report { status, transitions, next: next(plan, &situation.certificate, now) }
}

fn set(conditions: &mut Conditions<'_>, type_: &str, finding: Option<&Finding>) {
    match finding {
        Some(Finding { verdict, reason, message }) => {
            conditions.set(type_, *verdict, reason, message.as_str());
        }
        None => {
            conditions.keep(type_);
        }
    }
}

fn next(plan: &Plan, certificate: &CertificateSightings, now: Timestamp) -> Next {
    let defer = plan.look_again.map_or(Next::Settled, Next::After);
    let lapse = certificate.until.map_or(Next::Settled, Next::At);
    defer.earliest(lapse, now)
}

// === the host ===

/// `None`: this pass could not find out.
fn host_claimed(route: &Route, plan: &Plan, outcome: &Outcome) -> Option<Finding> {
    let host = &route.spec.host;
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    match (&plan.hold, &outcome.created) {
        (Hold::Ours, Some(Creation::Lost(holder))) => {
            Some(conflict(host, &Rival::of(holder, namespace)))
        }
        (Hold::Ours, None) if plan.steps.iter().any(|step| matches!(step, Step::Create { .. })) => {
            None
        }
        (Hold::Ours, _) => Some(Finding {
            verdict: Verdict::True,
            reason: reason::CLAIMED,
            message: format!("host {host} is held by this Route"),
        }),
        (Hold::Lost(rival), _) => Some(conflict(host, rival)),
        (Hold::Denied(denial), _) => Some(Finding {
            verdict: Verdict::False,
            reason: reason::DOMAIN_DENIED,
            message: denied(host, namespace, denial),
        }),
        (Hold::Undecided(_), _) => None,
    }
}

fn conflict(host: &str, rival: &Rival) -> Finding {
    let message = match rival {
        Rival::Sibling(name) => format!(
            "Route {name} of this namespace is older and has the same host {host}; delete one of \
             the two or give it another host"
        ),
        Rival::Namespace(namespace) => format!(
            "host {host} is held by a Route in namespace {namespace}; choose another host, or \
             have it released there"
        ),
        Rival::Reserved(kind) => format!(
            "host {host} is reserved by a Claim for a {kind}; choose another host, or ask an \
             administrator to delete the Claim"
        ),
    };
    Finding { verdict: Verdict::False, reason: reason::HOST_CONFLICT, message }
}

fn denied(wanted: &str, namespace: &str, denial: &Denial) -> String {
    match denial {
        Denial::Domain { name, suffix } => format!(
            "Domain {name} (suffix {suffix}) does not let namespace {namespace} use host {wanted}; \
             ask an administrator to add it to spec.namespaces"
        ),
        Denial::DefaultRoute => format!(
            "the default route needs a Domain with suffix '*' that lists namespace {namespace}, \
             because this cluster has Domains; ask an administrator"
        ),
        Denial::Under { host, namespace: holder } => format!(
            "host {wanted} lies under {host}, which a Route in namespace {holder} holds; an \
             administrator can allow it with a Domain of suffix {} that lists namespace {namespace}",
            host::base(wanted)
        ),
    }
}

// === the backend ===

fn backend_resolved(situation: &Situation) -> Finding {
    let spec = &situation.route.spec;
    let (app, service) = (&spec.app, &spec.service);
    let missing = |reason, message| Finding { verdict: Verdict::False, reason, message };
    match &situation.app {
        Observed::Absent => missing(
            reason::APP_NOT_FOUND,
            format!("there is no App {app} in this namespace; apply it or correct spec.app"),
        ),
        Observed::Unknown(_) => Finding {
            verdict: Verdict::Unknown,
            reason: reason::APP_NOT_FOUND,
            message: format!("App {app} cannot be read; apply it again"),
        },
        Observed::Present(found) => match found.has_http(service) {
            None => missing(
                reason::SERVICE_NOT_FOUND,
                format!(
                    "App {app} has no service {service}; it has: {}",
                    found.has_http.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(", ")
                ),
            ),
            Some(false) => missing(
                reason::NO_HTTP_PORT,
                format!("service {service} of App {app} has no port of type http; add one"),
            ),
            Some(true) => Finding {
                verdict: Verdict::True,
                reason: reason::RESOLVED,
                message: format!("requests go to service {service} of App {app}"),
            },
        },
    }
}

// === the certificate ===

/// `None`: nobody can say, and what was said before about this generation still stands.
fn certificate_ready(
    situation: &Situation,
    before: &[Condition],
    settings: &Settings,
) -> Option<Finding> {
    let route = &situation.route;
    let Some(tls) = &route.spec.tls else {
        return Some(Finding {
            verdict: Verdict::True,
            reason: reason::NO_CERTIFICATE,
            message: "spec.tls is not set; https needs the gateway's default certificate".into(),
        });
    };
    let sightings = &situation.certificate;
    if let Some(problem) = sightings.problems.iter().min_by_key(|problem| severity(problem)) {
        return Some(problem_with_certificate(problem, settings));
    }
    if sightings.gateways > 0 {
        return Some(Finding {
            verdict: Verdict::True,
            reason: reason::CERTIFICATE_IN_USE,
            message: format!(
                "no gateway has a problem with the certificate in Secret {}",
                tls.secret_name
            ),
        });
    }
    let known = certificate_before(before)
        .is_some_and(|condition| condition.observed_generation == route.metadata.generation);
    (!known).then(|| Finding {
        verdict: Verdict::Unknown,
        reason: reason::NO_GATEWAY,
        message: "no gateway runs, so nobody has looked at the certificate yet".into(),
    })
}

/// Gateways may differ while a Secret changes; one order keeps the status still.
fn severity(problem: &CertificateReport) -> (usize, &str) {
    let order = [reason::SECRET_NOT_FOUND, reason::SECRET_FORBIDDEN];
    let rank = order.iter().position(|reason| *reason == problem.reason);
    (rank.unwrap_or(order.len()), &problem.message)
}

fn problem_with_certificate(problem: &CertificateReport, settings: &Settings) -> Finding {
    let CertificateReport { namespace, name, reason, message } = problem;
    let (reason, message) = match reason.as_str() {
        reason::SECRET_NOT_FOUND => (
            reason::SECRET_NOT_FOUND,
            format!(
                "there is no Secret {name} in this namespace; create it with type \
                 kubernetes.io/tls, or correct spec.tls.secretName"
            ),
        ),
        reason::SECRET_FORBIDDEN => (reason::SECRET_FORBIDDEN, grant(namespace, name, settings)),
        _ => (reason::CERTIFICATE_INVALID, format!("Secret {name} cannot be used: {message}")),
    };
    Finding { verdict: Verdict::False, reason, message }
}

/// The Role and RoleBinding that let the gateway read one Secret, as commands to copy.
fn grant(namespace: &str, secret: &str, settings: &Settings) -> String {
    let Settings { system_namespace, gateway_service_account } = settings;
    let role = format!("portolan-gateway-{secret}");
    format!(
        "the gateway may not read Secret {secret}; allow it with: \
         kubectl -n {namespace} create role {role} --verb=get,list,watch --resource=secrets \
         --resource-name={secret} && \
         kubectl -n {namespace} create rolebinding {role} --role={role} \
         --serviceaccount={system_namespace}:{gateway_service_account}"
    )
}

fn certificate_before(before: &[Condition]) -> Option<&Condition> {
    before.iter().find(|condition| condition.type_ == conditions::CERTIFICATE_READY)
}

/// What this pass found, or what was found before and stands.
fn certificate_or_before(finding: Option<Finding>, before: &[Condition]) -> Option<Finding> {
    finding.or_else(|| {
        let Condition { status, reason, message, .. } = certificate_before(before)?;
        let reason = reason::ALL.iter().find(|known| *known == reason)?;
        let verdict = match status.as_str() {
            "True" => Verdict::True,
            "False" => Verdict::False,
            _ => Verdict::Unknown,
        };
        Some(Finding { verdict, reason, message: message.clone() })
    })
}

// === ready ===

/// The first that does not hold, what is false before what is unknown; else that all hold.
fn ready(findings: [&Finding; 3]) -> Finding {
    let first = |verdict| findings.iter().find(|finding| finding.verdict == verdict);
    let lacking = first(Verdict::False).or_else(|| first(Verdict::Unknown));
    let [claimed, ..] = findings;
    (*lacking.unwrap_or(&claimed)).clone()
}
