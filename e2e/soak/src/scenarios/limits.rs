//! How many requests are in a sandbox at once, by its own count.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http::Version;
use portolan_cluster::network::node_name;
use portolan_cluster::{platform, wait};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::concurrency::Concurrency;
use crate::extent::Extent;
use crate::get::page;
use crate::inside::Inside;
use crate::report::{Report, killed_at};
use crate::scene::{Scene, TEAM};

/// Between two looks at the programs' counts.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The gateways' port inside the cluster, and the programs'.
const PORT: u16 = 8080;

/// Within what time somebody of a crowd is answered again, whatever happened: a sandbox that had to
/// be replaced has started by then.
const SERVED_AGAIN_MAX: Duration = Duration::from_secs(30);

/// People who ask for one App again and again, through each gateway itself.
#[derive(Debug)]
struct Crowd {
    inside: Inside<()>,
    /// Answers that they got.
    answered: Arc<AtomicUsize>,
}

/// What the people of a crowd share.
#[derive(Clone)]
struct Square {
    /// How many of the gateways are asked.
    gateways: usize,
    known: watch::Receiver<Vec<IpAddr>>,
    host: String,
    stop: CancellationToken,
    /// Answers.
    answered: Arc<AtomicUsize>,
}

/// How a crowd asks.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// How many at once.
    people: usize,
    /// How long a request takes the program.
    milliseconds: u64,
    /// Whether every third one gives up half way.
    is_impatient: bool,
}

/// What the programs counted: the most at once, by sandbox.
type Counts = BTreeMap<String, u64>;

pub(super) async fn strict(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    let scale = "requestsPerInstance: 1, concurrency: Strict, min: 1, max: 2";
    scene.apply(&platform::app(TEAM, "strict", scale))?;
    scene.ready("strict").await?;
    let manner = Manner { people: 6, milliseconds: 30, is_impatient: true };
    let mut counts = Counts::new();
    let killed = Cell::new(None);
    let trial = scene.open(extent, 0).await?;
    for event in [Event::None, Event::Restart, Event::Kill] {
        let crowd = Crowd::gather(scene, "strict", manner)?;
        let happen = async |scene: &Scene| event.happen(scene, &killed).await;
        let seen = counted(scene, "strict", extent.limits, happen);
        add(&mut counts, seen.await?);
        crowd.leave().await?;
        scene.two_gateways().await?;
    }
    // The visitors of another App are there so that there is something to compare with.
    let outcome = trial.end().await?;
    scene.team(&["delete", "app/strict"]).await?;
    let killed = killed.into_inner().context("no gateway was killed")?;
    let is_excused = killed_at(killed, extent.hand_over);
    let mut report = Report::judged("strict: one request at a time".into(), &outcome, is_excused);
    complain(&mut report, &counts, 1);
    Ok(report)
}

pub(super) async fn soft(scene: &mut Scene, extent: &Extent) -> anyhow::Result<Report> {
    // Whatever was done before: slots are divided among those who live.
    scene.two_gateways().await?;
    scene.apply(&platform::app(TEAM, "soft", "requestsPerInstance: 10, min: 1, max: 3"))?;
    scene.ready("soft").await?;
    let manner = Manner { people: 4, milliseconds: 200, is_impatient: false };
    let trial = scene.open(extent, 0).await?;
    // Fewer than one sandbox takes, half of them through each gateway: no second one.
    let mut counts = Counts::new();
    let crowd = Crowd::gather(scene, "soft", manner)?;
    add(&mut counts, counted(scene, "soft", extent.limits, async |_| Ok(())).await?);
    crowd.leave().await?;
    // All of them through one gateway, which holds only a share of the slots.
    let crowd = Crowd::gather_at(scene, "soft", Manner { people: 9, ..manner }, 1)?;
    add(&mut counts, counted(scene, "soft", extent.limits, async |_| Ok(())).await?);
    crowd.leave().await?;
    let before = counts.len();
    // Twice as many: now there must be another.
    let crowd = Crowd::gather(scene, "soft", Manner { people: 10, ..manner })?;
    add(&mut counts, counted(scene, "soft", extent.limits, a_second_sandbox).await?);
    crowd.leave().await?;
    let outcome = trial.end().await?;
    scene.team(&["delete", "app/soft"]).await?;
    let mut report = Report::unnoticed("soft: ten at a time".into(), &outcome);
    if before != 1 {
        report.faults.push(format!("{before} sandboxes while one had free slots: {counts:?}"));
    }
    complain(&mut report, &counts, 10);
    Ok(report)
}

/// Waits until a second sandbox answers.
async fn a_second_sandbox(scene: &Scene) -> anyhow::Result<()> {
    wait::until("a second sandbox", wait::PATIENCE, async || {
        let mut counts = Counts::new();
        look(scene, "soft", &mut counts).await?;
        ensure!(counts.len() > 1, "there is {counts:?}");
        anyhow::Ok(())
    })
    .await
}

/// What happens to the gateways meanwhile.
#[derive(Clone, Copy, Debug)]
enum Event {
    None,
    Restart,
    Kill,
}

impl Event {
    /// `killed` is when a gateway was.
    async fn happen(self, scene: &Scene, killed: &Cell<Option<Instant>>) -> anyhow::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Restart => {
                let gateway = "deployment/portolan-gateway";
                scene.system(&["rollout", "restart", gateway]).await?;
                scene.system(&["rollout", "status", gateway, "--timeout=180s"]).await.map(drop)
            }
            Self::Kill => {
                let victim = scene.victim().await?;
                scene.pods.note_killed(&victim);
                killed.set(Some(Instant::now()));
                scene.kill(&victim)
            }
        }
    }
}

impl Crowd {
    fn gather(scene: &Scene, app: &str, manner: Manner) -> anyhow::Result<Self> {
        Self::gather_at(scene, app, manner, usize::MAX)
    }

    /// People at the first few gateways only: `people` at each.
    fn gather_at(
        scene: &Scene,
        app: &str,
        manner: Manner,
        gateways: usize,
    ) -> anyhow::Result<Self> {
        let (known, host) = (scene.pods.watched(), platform::host(app));
        let answered = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&answered);
        let inside = Inside::start(&scene.cluster, &node_name(1), move |stop| async move {
            let square = Square { gateways, known, host, stop, answered: counted };
            let mut people = JoinSet::new();
            for number in 0..manner.people * gateways.min(2) {
                people.spawn(ask(number, manner, square.clone()));
            }
            while people.join_next().await.is_some() {}
        })?;
        Ok(Self { inside, answered })
    }

    /// Sends them home once somebody was answered who had not been yet; an error if nobody is.
    async fn leave(self) -> anyhow::Result<()> {
        let before = self.answered.load(Ordering::Relaxed);
        let served = async {
            while self.answered.load(Ordering::Relaxed) == before {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        let served = timeout(SERVED_AGAIN_MAX, served).await;
        self.inside.end().await?;
        served.with_context(|| format!("nobody was answered after the first {before}"))
    }
}

async fn ask(number: usize, manner: Manner, square: Square) {
    let Square { gateways, known, host, stop, answered } = square;
    for turn in 0_usize.. {
        if stop.is_cancelled() {
            break;
        }
        let gateway = {
            let known = known.borrow();
            known.get(number % known.len().clamp(1, gateways)).copied()
        };
        let Some(gateway) = gateway else {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        };
        // To its end, also after its gateway was killed or its visitor has left.
        let path = format!("/work?ms={}", manner.milliseconds);
        let gives_up = manner.is_impatient && (number + turn).is_multiple_of(3);
        let version = match (number + turn) % 2 {
            0 => Version::HTTP_11,
            _ => Version::HTTP_2,
        };
        // Nobody gives up half a request: its program may hang up and work on all the same.
        let sent = (!gives_up && (number + turn) % 5 < 2).then_some("what is to be worked on");
        let asked = page(SocketAddr::from((gateway, PORT)), &host, &path, version, sent);
        let patience = Duration::from_millis(match gives_up {
            true => manner.milliseconds / 2,
            false => 30_000,
        });
        match timeout(patience, asked).await {
            Ok(Ok(_)) => _ = answered.fetch_add(1, Ordering::Relaxed),
            Err(_) if gives_up => {}
            // A gateway that was killed; whether it may be is not asked here.
            _ => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

/// Looks at the counts of an App's programs for a while in which something happens.
async fn counted(
    scene: &Scene,
    app: &str,
    time: Duration,
    happen: impl AsyncFnOnce(&Scene) -> anyhow::Result<()>,
) -> anyhow::Result<Counts> {
    let done = CancellationToken::new();
    let looking = async {
        let mut counts = Counts::new();
        while !done.is_cancelled() {
            look(scene, app, &mut counts).await?;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        anyhow::Ok(counts)
    };
    let happening = async {
        let begun = Instant::now();
        let happened = happen(scene).await;
        tokio::time::sleep(time.saturating_sub(begun.elapsed())).await;
        done.cancel();
        happened
    };
    let (counts, happened) = tokio::join!(looking, happening);
    happened?;
    counts
}

async fn look(scene: &Scene, app: &str, counts: &mut Counts) -> anyhow::Result<()> {
    for sandbox in scene.running(TEAM, &format!("portolan.dev/app={app}")).await? {
        // One that is starting does not answer yet, one that is leaving not any more.
        let url = format!("http://{}:{PORT}/concurrency", sandbox.address);
        let Ok(page) = scene.fetch(&url).await else { continue };
        let max = Concurrency::read(page.as_bytes())?.max;
        let known = counts.entry(sandbox.pod).or_default();
        *known = max.max(*known);
    }
    Ok(())
}

fn add(counts: &mut Counts, more: Counts) {
    for (sandbox, max) in more {
        let known = counts.entry(sandbox).or_default();
        *known = max.max(*known);
    }
}

fn complain(report: &mut Report, counts: &Counts, limit: u64) {
    for (sandbox, max) in counts.iter().filter(|(_, max)| **max > limit) {
        report.faults.push(format!("{sandbox} had {max} requests at once, and may have {limit}"));
    }
    if counts.values().all(|max| *max == 0) {
        report.faults.push(format!("no program counted a request: {counts:?}"));
    }
}
