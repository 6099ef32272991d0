//! Objects for tests: minimal YAML, read as the API server's JSON would be.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use portolan_api::{DrainReport, GatewayPhase, SandboxPool};
use portolan_reconcile::ObjectKey;
use serde::de::DeserializeOwned;

use crate::{
    gateway::{Demand, Gateway},
    observe::Situation,
    sandbox::{ContainerView, End, Hurdle, Sandbox, State},
    settings::Settings,
};

pub(crate) const POOL: &str = "shop-web-5f3k9q2m";
pub(crate) const POOL_UID: &str = "uid-of-the-pool";

/// The beginning of every test's time, plus seconds.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("within the calendar")
}

pub(crate) fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

#[track_caller]
pub(crate) fn yaml<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub(crate) fn settings() -> Settings {
    Settings::standard("portolan-system")
}

/// An Active pool of `web`: Auto, 10 requests each, asleep after 900 s, one sandbox wanted.
pub(crate) fn pool() -> SandboxPool {
    yaml(&format!(
        "
apiVersion: portolan.dev/v1alpha1
kind: SandboxPool
metadata: {{ name: {POOL}, namespace: team-a, uid: {POOL_UID}, generation: 4 }}
spec:
  app: shop
  service: web
  role: Active
  replicas: 1
  scale: {{ min: 0, max: 20, requestsPerInstance: 10, scaleDownDelaySeconds: 900, concurrency: Soft }}
  sandbox:
    image: registry.example/shop:1
    ports: [ {{ name: http, port: 3000, type: http }} ]
    readiness: {{ tcpSocket: {{ port: 3000 }} }}
    terminationGraceSeconds: 30
    listenTimeoutSeconds: 15
"
    ))
}

/// A ready sandbox of [`pool`], created `ordinal` seconds into the test.
pub(crate) fn sandbox(ordinal: i32, incarnation: i64) -> Sandbox {
    let name = format!("{POOL}-{ordinal}-{incarnation}");
    Sandbox {
        uid: format!("uid-of-{name}"),
        key: ObjectKey::new("team-a", name),
        pool: ObjectKey::new("team-a", POOL),
        owner: Some(POOL_UID.to_owned()),
        created: at(i64::from(ordinal)),
        ended: None,
        deleting: false,
        scheduled: true,
        addressed: true,
        ready: true,
        slots: Some("gw-a=10".to_owned()),
        drain: None,
        hurdle: None,
    }
}

/// The same, ended by its node, before or after its program had lived.
pub(crate) fn ended(sandbox: Sandbox, has_lived: bool) -> Sandbox {
    let words = "Evicted: the node was low on resource: memory".to_owned();
    Sandbox { ended: Some(Box::new(End { has_lived, words })), ready: false, ..sandbox }
}

/// A sandbox that was created and that nobody has looked at yet.
pub(crate) fn pending(ordinal: i32, incarnation: i64) -> Sandbox {
    let new = sandbox(ordinal, incarnation);
    Sandbox { scheduled: false, addressed: false, ready: false, ..new }
}

/// A sandbox whose program runs since that second, and is not ready.
pub(crate) fn unready(ordinal: i32, incarnation: i64, since: i64) -> Sandbox {
    let state = State::Running { since: at(since) };
    with_state(Sandbox { ready: false, ..sandbox(ordinal, incarnation) }, state)
}

pub(crate) fn with_state(sandbox: Sandbox, state: State) -> Sandbox {
    let container = ContainerView { name: "app".to_owned(), state, restarts: 0, last_exit: None };
    let hurdle = Some(Box::new(Hurdle::Container(container)));
    Sandbox { ready: false, hurdle, ..sandbox }
}

/// A gateway whose Lease holds for 15 s from the beginning of the test.
pub(crate) fn gateway(name: &str, queued: i64, running: i64) -> Gateway {
    let demand = Demand { queued, running, ..Demand::default() };
    Gateway {
        name: name.to_owned(),
        instance: name.to_owned(),
        phase: GatewayPhase::Serving,
        expires: at(15),
        demand,
    }
}

/// The same gateway with a report on a draining sandbox.
pub(crate) fn reporting(gateway: Gateway, sandbox: &Sandbox, epoch: i64, running: i64) -> Gateway {
    let mut gateway = gateway;
    let pod = sandbox.key.name.clone();
    gateway.demand.draining.push(DrainReport { pod, epoch, running });
    gateway
}

pub(crate) fn situation(
    pool: SandboxPool,
    sandboxes: Vec<Sandbox>,
    gateways: Vec<Gateway>,
) -> Situation {
    let sandboxes = sandboxes.into_iter().map(Arc::new).collect();
    let pool = Arc::new(pool);
    Situation {
        pool,
        sandboxes,
        gateways,
        all_seen: at(0),
        reports_fresh: at(0),
        history: None,
        incarnation: 0,
        unwritten: 0,
        setback: None,
    }
}

/// The view of a Pod with this status.
pub(crate) fn viewed(status: &str) -> Sandbox {
    let indented = status.replace('\n', "\n  ");
    let pod: Pod = yaml(&format!(
        "
metadata:
  name: {POOL}-0-1
  namespace: team-a
  uid: uid-of-the-pod
  labels: {{ portolan.dev/pool: {POOL} }}
  creationTimestamp: 2027-01-15T08:00:00Z
spec: {{ containers: [], nodeName: node-1 }}
status:
  {indented}
"
    ));
    Sandbox::of(pod).expect("it has the label")
}
