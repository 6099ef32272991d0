use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use portolan_reconcile::ObjectKey;

use super::format::{Head, Record};
use super::*;
use crate::feed::facts::{AppFacts, ClaimFacts, PodFacts, PoolFacts, RouteFacts};
use crate::host::HostPattern;
use crate::model::{
    AppProtocol, BootFailure, Concurrency, FailureKind, PlainHttp, PoolConfig, PoolId, PoolName,
    Probe, RouteConfig, RouteTimeouts, SandboxConfig, SandboxId, SandboxPhase, ServiceKey, Slots,
};

const POD: &str = "pod-uid";

/// A directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("portolan-snapshot-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn directory_of(&self, pod: &str, size_max: u64) -> Directory {
        let (directory, pod_uid) = (self.0.clone(), Some(pod.to_owned()));
        Directory::open(&SnapshotSettings { directory, pod_uid, size_max }).expect("it opens")
    }

    fn directory(&self) -> Directory {
        self.directory_of(POD, 1 << 20)
    }

    fn state(&self) -> PathBuf {
        self.0.join(STATE)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pool_name() -> PoolName {
    PoolName { namespace: "team".into(), name: "shop-web-1".into() }
}

fn service(service: &str) -> ServiceKey {
    ServiceKey { namespace: "team".into(), app: "shop".into(), service: service.into() }
}

fn route(host: &str, plain_http: PlainHttp) -> (ObjectKey, RouteFacts) {
    let key = ObjectKey::new("team", format!("route-{}", host.len()));
    let config = RouteConfig {
        host: HostPattern::parse(host).expect("a host"),
        service: service("web"),
        timeouts: RouteTimeouts { idle: Duration::from_secs(7), ..RouteTimeouts::standard() },
        request_body_max: (plain_http == PlainHttp::Serve).then_some(1000),
        plain_http,
    };
    let secret = (plain_http == PlainHttp::Redirect).then(|| "shop-tls".to_owned());
    let (uid, host) = ("r".into(), host.into());
    (key.clone(), RouteFacts { key: key.shared(), uid, host, config, secret })
}

fn pool(uid: &str, concurrency: Concurrency, probe: Probe) -> (ObjectKey, PoolFacts) {
    let id = PoolId { name: pool_name(), uid: uid.into() };
    let protocol = match concurrency {
        Concurrency::Soft => AppProtocol::Http1,
        Concurrency::Strict => AppProtocol::H2c,
    };
    let kind = if uid == "soft" { FailureKind::Boot } else { FailureKind::NoCapacity };
    let failure = Some(BootFailure { kind, reason: "CrashLooping".into() });
    let config = PoolConfig { port: 3000, protocol, probe, concurrency };
    let delay = (uid == "soft").then_some(Duration::from_secs(900));
    (ObjectKey::new("team", "shop-web-1"), PoolFacts { id, config, failure, delay })
}

fn pod(name: &str, pool_uid: &str, phase: SandboxPhase, slots: Slots) -> (ObjectKey, PodFacts) {
    let sandbox = SandboxConfig {
        id: SandboxId { name: name.into(), uid: format!("{name}-uid").into() },
        address: (phase != SandboxPhase::Created).then(|| [10, 0, 0, 7].into()),
        phase,
        slots,
    };
    let pool = PoolId { name: pool_name(), uid: pool_uid.into() };
    (ObjectKey::new("team", name), PodFacts { pool, sandbox, inherited: 0, others: Box::default() })
}

/// Every variant of everything.
fn kept() -> Kept {
    let timeout = Duration::from_secs(3);
    let http = Probe::Http { port: 1, path: "/up?a=b".into(), host: Some("h".into()), timeout };
    let claim =
        ClaimFacts { host: "shop.example.com".into(), namespace: "team".into(), uid: "r".into() };
    let app = AppFacts {
        uid: "a".into(),
        epoch: 7,
        services: vec![(service("web"), pool_name()), (service("api"), pool_name())],
        is_settled: true,
    };
    Kept {
        routes: vec![
            route("shop.example.com", PlainHttp::Redirect),
            route("*.example.com", PlainHttp::Serve),
            route("*", PlainHttp::Redirect),
        ],
        claims: vec![(ObjectKey::new("", "host-1"), claim)],
        apps: vec![(ObjectKey::new("team", "shop"), app)],
        pools: vec![
            pool("soft", Concurrency::Soft, http),
            pool("strict", Concurrency::Strict, Probe::Tcp { port: 2 }),
            pool("third", Concurrency::Strict, Probe::Feed),
        ],
        pods: vec![
            pod("created", "soft", SandboxPhase::Created, Slots::Unlimited),
            pod("scheduled", "soft", SandboxPhase::Scheduled, Slots::Limited(0)),
            pod("ready", "soft", SandboxPhase::Ready, Slots::Limited(5)),
            pod("draining", "soft", SandboxPhase::Draining { epoch: 9 }, Slots::Limited(2)),
        ],
    }
}

fn write(directory: &Directory, kept: &Kept) -> Result<u64, FileError> {
    file::write(&directory.path.join(STATE), directory.size_max, SystemTime::now(), |records| {
        records.add(&Record::Head(Head { pod_uid: Some(POD.into()) }))?;
        for (key, route) in kept.routes.clone() {
            records.add(&Record::route(key, &route))?;
        }
        for (key, claim) in kept.claims.clone() {
            records.add(&Record::claim(key, &claim))?;
        }
        for (key, app) in kept.apps.clone() {
            records.add(&Record::app(key, &app))?;
        }
        for (key, pool) in kept.pools.clone() {
            records.add(&Record::pool(key, &pool))?;
        }
        for (key, pod) in kept.pods.clone() {
            records.add(&Record::sandbox(key, &pod))?;
        }
        Ok(())
    })
}

fn loads(directory: &Directory) -> [u64; 3] {
    ["loaded", "absent", "refused"].map(|result| {
        let loads = &directory.metrics.loads;
        loads.get_or_create(&ResultLabel { result }).get()
    })
}

#[test]
fn what_is_written_is_read_again() {
    let place = Place::new();
    let directory = place.directory();
    assert!(directory.load(SystemTime::now()).is_none(), "there is none");
    let size = write(&directory, &kept()).unwrap();
    assert_eq!(size, fs::metadata(place.state()).unwrap().len());
    let loaded = directory.load(SystemTime::now()).expect("it is good");
    assert_eq!(loaded.kept, kept());
    assert_eq!(loads(&directory), [1, 1, 0]);
    let mode = fs::metadata(place.state()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for nobody else");
}

#[test]
fn strict_slots_of_the_process_before_are_not_used() {
    let place = Place::new();
    let directory = place.directory();
    let all = |slots| {
        let pods = ["soft", "strict", "unknown"];
        let mut kept = kept();
        kept.pods = pods.map(|uid| pod(uid, uid, SandboxPhase::Ready, slots)).to_vec();
        kept
    };
    let slots = |loaded: Loaded| {
        let pods = loaded.kept.pods.into_iter();
        pods.map(|(_, pod)| pod.sandbox.slots).collect::<Vec<_>>()
    };
    write(&directory, &all(Slots::Limited(4))).unwrap();
    let loaded = directory.load(SystemTime::now()).unwrap();
    assert_eq!(slots(loaded), [Slots::Limited(4), Slots::Limited(0), Slots::Limited(0)]);
    write(&directory, &all(Slots::Unlimited)).unwrap();
    let loaded = directory.load(SystemTime::now()).unwrap();
    assert_eq!(slots(loaded), [Slots::Unlimited; 3], "there is nothing to hold");
}

#[test]
fn a_damaged_snapshot_is_refused_wherever_the_damage_is() {
    let place = Place::new();
    let directory = place.directory();
    write(&directory, &kept()).unwrap();
    let good = fs::read(place.state()).unwrap();
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        fs::write(place.state(), &damaged).unwrap();
        assert!(directory.load(SystemTime::now()).is_none(), "byte {at} changed");
        fs::write(place.state(), &good[..at]).unwrap();
        assert!(directory.load(SystemTime::now()).is_none(), "cut at byte {at}");
    }
    assert_eq!(loads(&directory), [0, 0, 2 * good.len() as u64]);
    fs::write(place.state(), &good).unwrap();
    assert!(directory.load(SystemTime::now()).is_some());
}

#[test]
fn a_snapshot_of_something_else_is_refused() {
    let place = Place::new();
    let directory = place.directory();
    let refusal = |directory: &Directory| match directory.read(SystemTime::now()) {
        Err(error) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    };
    write(&directory, &kept()).unwrap();
    let other = place.directory_of("other-pod", 1 << 20);
    assert_eq!(refusal(&other), "snapshot is of another Pod or object");
    let narrow = place.directory_of(POD, 100);
    assert_eq!(refusal(&narrow), "snapshot is larger than 100 bytes");
    let odd = |records: &mut file::Records| {
        records.add(&Record::Head(Head { pod_uid: Some(POD.into()) }))?;
        records.add(&serde_json::json!({"planet": {}}))
    };
    file::write(&place.state(), 1 << 20, SystemTime::now(), odd).unwrap();
    assert_eq!(refusal(&directory), "snapshot has a record that is not understood");
    fs::write(place.state(), "portolan-snapshot 1\n").unwrap();
    assert_eq!(refusal(&directory), "snapshot is of another version");
}

#[test]
fn a_snapshot_that_nobody_vouched_for_of_late_is_refused() {
    let place = Place::new();
    let directory = place.directory();
    write(&directory, &kept()).unwrap();
    let now = SystemTime::now();
    assert!(directory.load(now + AGE_MAX - Duration::from_secs(60)).is_some());
    assert!(directory.load(now + AGE_MAX + Duration::from_secs(60)).is_none());
    file::touch(&place.state(), now + AGE_MAX).unwrap();
    assert!(directory.load(now + AGE_MAX + Duration::from_secs(60)).is_some());
    assert!(directory.load(now).is_some(), "a clock that was set back makes nothing old");
}

#[test]
fn a_snapshot_that_grows_too_large_leaves_the_one_before() {
    let place = Place::new();
    let few = Kept { routes: kept().routes, ..Kept::default() };
    let size = write(&place.directory(), &few).unwrap();
    let narrow = place.directory_of(POD, size);
    assert!(matches!(write(&narrow, &kept()), Err(FileError::TooLarge { .. })));
    assert_eq!(narrow.load(SystemTime::now()).unwrap().kept, few);
    let names: Vec<_> = fs::read_dir(&place.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing half written is left: {names:?}");
}

#[test]
fn a_certificate_is_kept_until_it_is_dropped() {
    let place = Place::new();
    let directory = place.directory();
    let pem = |key: &str| Pem { chain: "chain\n".into(), key: key.into() };
    let (one, other) = (ObjectKey::new("team", "one"), ObjectKey::new("team", "other"));
    let key_of = |secret| directory.certificate(secret).map(|pem: Pem| pem.key);
    assert_eq!(key_of(&one), None);
    directory.keep_certificate(&one, pem("first"));
    directory.keep_certificate(&one, pem("second"));
    assert_eq!(key_of(&one).as_deref(), Some("second"));
    assert_eq!(key_of(&other), None);
    directory.drop_certificate(&one);
    assert_eq!(key_of(&one), None);
}
