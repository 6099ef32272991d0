//! The node's data plane: `portolan-nft` in namespaces of its own beside kube-proxy's rules, and
//! the agent against a real API server.
//!
//! Everything is in network namespaces that this program makes, or in those of its cluster, and
//! goes with them.

mod connect;
mod events;
mod ground;
mod memory;
mod monitor;
mod objects;
mod proxy;
mod workload;

use std::path::PathBuf;

use anyhow::ensure;

use self::connect::Latency;
use self::events::Writer;
use self::ground::{Agent, Ground};
use self::memory::Group;
use self::objects::ENDPOINTS;
use self::workload::Workload;
use crate::figures::{Figure, Row, machine, publish};
use crate::resident::Resident;
use crate::space::Space;

/// Services with many endpoints, and how many.
const WIDE: (u32, u32) = (5_000, 50);
/// Changes of one endpoint in a round: in the kernel alone, from the API, and of a sandbox that
/// gets datagrams.
const KERNEL_CHANGES: usize = 1_000;
const API_CHANGES: u32 = 100;
const LED: usize = 20;
const _: () = assert!(LED.is_multiple_of(2), "the last round leaves what the next begins with");
const MEGABYTE: f64 = 1e6;

/// The node's data plane: programming, changes, latency of connections, memory.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// How many services there are.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// How many rounds; each has every figure once.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Name of the cluster with the API server; one that runs is replaced.
    #[arg(long, default_value = "bench")]
    cluster: String,
    /// The page to write to.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

/// One round in the kernel.
struct Kernel {
    /// Seconds from nothing to all services: ours, and kube-proxy's rules by `nft`.
    programmed: f64,
    proxy: f64,
    /// Seconds for services with many endpoints.
    wide: f64,
    /// Microseconds of a change in the middle.
    change: f64,
    /// Bytes that the kernel allocated for whom it programmed for.
    charged: f64,
    latency: Latency,
}

/// One round of the agent.
struct Served {
    /// Seconds of the first programming, as the agent says.
    first: f64,
    /// When it was ready, and after all changes.
    ready: Resident,
    worked: Resident,
    /// Milliseconds from what the API server says to the kernel.
    said: (f64, f64),
    /// The same since it was asked.
    asked: f64,
    /// Milliseconds to the first datagram, at the worst.
    led: f64,
}

impl NodeArgs {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { services, rounds, cluster, page } = self;
        ensure!((2..=100_000).contains(&services), "2 to 100000 services fit into the ranges");
        let mut kernel = Vec::new();
        for round in 1..=rounds {
            eprintln!("==> the kernel, round {round} of {rounds}");
            kernel.push(in_kernel(services)?);
        }
        let ground = Ground::start(&cluster).await?;
        let served = ground.control.run_async(async || serve(&ground, services, rounds).await);
        ground.end()?;
        let served = served?;
        let mut rows = kernel_rows(services, &kernel);
        rows.extend(agent_rows(services, &served));
        publish(&page, "Node", &notes(services, rounds), &rows)
    }
}

/// Each in a namespace of its own, which is empty at first.
fn in_kernel(services: u32) -> anyhow::Result<Kernel> {
    let proxy = proxy::load(services, ENDPOINTS)?;
    let space = Space::new()?;
    let mut workload = Workload::start(&space, services, ENDPOINTS)?;
    let group = Group::of(workload.pid())?;
    let before = group.kernel()?;
    let programmed = workload.program()?;
    let charged = group.kernel()? - before;
    let changes = workload.change(KERNEL_CHANGES)?;
    let change = Figure::of(changes).median();
    drop(workload);
    drop(group);
    let wide = Workload::start(&Space::new()?, WIDE.0, WIDE.1)?.program()?;
    let latency = connect::measure(services, ENDPOINTS)?;
    Ok(Kernel { programmed, proxy, wide, change, charged, latency })
}

/// The agent, started anew in each round.
async fn serve(ground: &Ground, services: u32, rounds: usize) -> anyhow::Result<Vec<Served>> {
    let client = ground.connect().await?;
    eprintln!("==> {services} services in the API server");
    objects::make(&client, services).await?;
    let mut served = Vec::new();
    for round in 0..rounds {
        eprintln!("==> the agent, round {} of {rounds}", round + 1);
        let agent = Agent::start(ground)?;
        let ready = agent.resident()?;
        let first = agent.metric("portolan_node_first_programming_seconds")?;
        let mut writer = Writer::start(&client).await?;
        let begin = u32::try_from(round)? * API_CHANGES;
        let changes = (begin, API_CHANGES);
        let times = events::change(ground, &mut writer, services, changes).await?;
        let led = events::lead(ground, &mut writer, LED).await?;
        served.push(Served {
            first,
            ready,
            worked: agent.resident()?,
            said: (share(&times.said, 50), share(&times.said, 99)),
            asked: share(&times.asked, 50),
            led: led.said.last().copied().unwrap_or_default(),
        });
    }
    Ok(served)
}

/// The value that so many percent do not exceed, of values in order.
fn share(values: &[f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn kernel_rows(services: u32, rounds: &[Kernel]) -> Vec<Row> {
    let of = |value: fn(&Kernel) -> f64| Figure::of(rounds.iter().map(value));
    let size = format!("{services} × {ENDPOINTS}");
    vec![
        at_most(&format!("{size} from nothing"), 0.12, "s", 3, &of(|it| it.programmed)),
        known("kube-proxy's rules for the same, by `nft`", "s", 1, &of(|it| it.proxy)),
        at_most(&format!("{} × {} from nothing", WIDE.0, WIDE.1), 1.2, "s", 2, &of(|it| it.wide)),
        at_most(
            &format!("one endpoint changed at {size}: difference and commit, p50"),
            0.04,
            "ms",
            3,
            &of(|it| it.change / 1e3),
        ),
        at_most(
            &format!("connect, last of {services} services − first, p50"),
            2.0,
            "µs",
            2,
            &of(|it| (it.latency.last - it.latency.first).abs()),
        ),
        at_most(
            "connect, last service ÷ without nf_tables, p50",
            1.3,
            "",
            2,
            &of(|it| it.latency.last / it.latency.plain),
        ),
        known("connect without nf_tables, p50", "µs", 1, &of(|it| it.latency.plain)),
        at_most(&format!("kernel memory at {size}"), 4.0, "MB", 2, &of(|it| it.charged / MEGABYTE)),
    ]
}

fn agent_rows(services: u32, rounds: &[Served]) -> Vec<Row> {
    let of = |value: fn(&Served) -> f64| Figure::of(rounds.iter().map(value));
    let size = format!("{services} × {ENDPOINTS}");
    vec![
        at_most("API event → kernel, p50", 3.0, "ms", 2, &of(|it| it.said.0)),
        at_most("API event → kernel, p99", 20.0, "ms", 2, &of(|it| it.said.1)),
        known("API request → kernel, p50", "ms", 2, &of(|it| it.asked)),
        at_most(
            "UDP: old endpoint gone → first datagram at the new",
            30.0,
            "ms",
            1,
            &of(|it| it.led),
        ),
        at_most(
            &format!("agent's memory at {size}, after changes"),
            40.0,
            "MB",
            1,
            &of(|it| it.worked.now / MEGABYTE),
        ),
        known("the same, when it was ready", "MB", 1, &of(|it| it.ready.now / MEGABYTE)),
        at_most("the same, at its peak", 40.0, "MB", 1, &of(|it| it.worked.peak / MEGABYTE)),
        known("the agent's first programming", "s", 3, &of(|it| it.first)),
    ]
}

fn at_most(figure: &str, limit: f64, unit: &str, decimals: usize, measured: &Figure) -> Row {
    Row {
        figure: figure.into(),
        aim: format!("≤ {limit} {unit}").trim_end().into(),
        measured: format!("{} {unit}", measured.text(decimals)).trim_end().into(),
        is_met: Some(measured.median() <= limit),
    }
}

/// A figure without an aim.
fn known(figure: &str, unit: &str, decimals: usize, measured: &Figure) -> Row {
    Row::known(figure, format!("{} {unit}", measured.text(decimals)))
}

fn notes(services: u32, rounds: usize) -> Vec<String> {
    vec![
        format!("Measured on {}", machine()),
        format!(
            "{rounds} rounds, each figure once in each; the median, with the least and the greatest \
             in parentheses."
        ),
        format!(
            "Programming is by `portolan-nft` in an empty network namespace, from the ruleset as a \
             value to the answer of the kernel; in turns with it, `nft` loads what kube-proxy 1.36 \
             makes for the same {services} services: a chain and a map for each, found through a \
             map of verdicts."
        ),
        format!(
            "A change is one of {KERNEL_CHANGES} endpoints that another takes the place of, with \
             the difference, its encoding and the kernel's answer."
        ),
        "Connections go from one namespace through a second to a third; without nf_tables, and so \
         without connection tracking, to the same listener's address."
            .into(),
        "Kernel memory is what a control group of the program counts; the hash tables' buckets \
         the kernel charges to nobody."
            .into(),
        format!(
            "The agent is the program `portolan-node` in a namespace beside a cluster, with a real \
             API server, {API_CHANGES} changes of EndpointSlices in a round, each from when the \
             API server had answered or a second watch had it, whichever was first, until the \
             kernel told of the element; and {LED} replaced sandboxes while a client sends a \
             datagram each millisecond, of which the slowest counts."
        ),
        "Run it with `make bench-node`.".into(),
    ]
}
