//! From what the API server says of a service to the kernel, and to the first datagram.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use portolan_api::labels;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::ground::{Ground, NAMESPACE, SANDBOXES};
use super::monitor::Monitor;
use super::objects::{ENDPOINTS, PORT, addresses, elsewhere, here, name};
use super::workload::service;
use crate::space::Space;

/// Pause between two changes, longer than those within which the agent takes several together.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Where endpoints come from that no service has yet.
const SPARES: Ipv4Addr = Ipv4Addr::new(10, 223, 0, 0);

/// Writes slices, and sees when others see them.
pub(super) struct Writer {
    slices: Api<EndpointSlice>,
    seen: UnboundedReceiver<(Instant, String)>,
}

/// When a change was made.
#[derive(Clone, Copy)]
struct Made {
    /// When the API server was asked.
    asked: Instant,
    /// When it had said so: to who asked, or to a watch like that of the agent.
    said: Instant,
}

impl Writer {
    /// Watches slices from now on.
    pub(super) async fn start(client: &Client) -> anyhow::Result<Self> {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
        let one = slices.list_metadata(&ListParams::default().limit(1)).await.context("list")?;
        let version = one.metadata.resource_version.context("a list has no version")?;
        let ours = format!("{}={}", labels::SLICE_MANAGED_BY, labels::SLICE_MANAGER);
        let watch = slices.watch(&WatchParams::default().labels(&ours), &version).await;
        let mut watch = watch.context("watch slices")?.boxed();
        let (sender, seen) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(event)) = watch.next().await {
                let WatchEvent::Modified(slice) = event else { continue };
                let version = slice.resource_version().unwrap_or_default();
                if sender.send((Instant::now(), version)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { slices, seen })
    }

    async fn write(&mut self, service: u32, endpoints: Value) -> anyhow::Result<Made> {
        let patch = Patch::Merge(json!({ "endpoints": endpoints }));
        let asked = Instant::now();
        let patched = self.slices.patch(&name(service), &PatchParams::default(), &patch).await;
        let answered = Instant::now();
        let version = patched.context("change a slice")?.resource_version();
        let seen = timeout(LIMIT, async {
            while let Some((at, seen)) = self.seen.recv().await {
                if Some(seen) == version {
                    return Ok(at);
                }
            }
            anyhow::bail!("the watch ended")
        });
        let seen = seen.await.context("a change is not seen")??;
        Ok(Made { asked, said: seen.min(answered) })
    }
}

/// Milliseconds of changes, in order of size.
pub(super) struct Times {
    /// Since the API server said it.
    pub(super) said: Vec<f64>,
    /// Since it was asked.
    pub(super) asked: Vec<f64>,
}

impl Times {
    fn new() -> Self {
        Self { said: Vec::new(), asked: Vec::new() }
    }

    fn note(&mut self, made: Made, done: Instant) {
        self.said.push(milliseconds(made.said, done));
        self.asked.push(milliseconds(made.asked, done));
    }

    fn sorted(mut self) -> Self {
        self.said.sort_by(f64::total_cmp);
        self.asked.sort_by(f64::total_cmp);
        self
    }
}

/// Gives as many services one other endpoint each, and sees them come into the kernel. `first`
/// is the first of endpoints that no service had before.
pub(super) async fn change(
    ground: &Ground,
    writer: &mut Writer,
    services: u32,
    (first, count): (u32, u32),
) -> anyhow::Result<Times> {
    let mut monitor = Monitor::open(&ground.node)?;
    let mut times = Times::new();
    for change in first..first + count {
        let spare = Ipv4Addr::from_bits(SPARES.to_bits() + change);
        // Any but the first, which is for datagrams.
        let service = 1 + change.wrapping_mul(7919) % (services - 1);
        let kept = addresses(service).take(ENDPOINTS as usize - 1);
        let endpoints = elsewhere(kept.chain([spare]));
        sleep(PAUSE).await;
        monitor.forget();
        let made = writer.write(service, endpoints).await?;
        let done = monitor.leads_to(SocketAddrV4::new(spare, PORT)).await?;
        times.note(made, done);
    }
    Ok(times.sorted())
}

/// Moves a service over UDP from one sandbox to the other and back, while a client sends to it, and
/// sees the first datagram come. `count` is even, so that all is as before in the end.
pub(super) async fn lead(
    ground: &Ground,
    writer: &mut Writer,
    count: usize,
) -> anyhow::Result<Times> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut arrivals =
        [receive(&ground.sandboxes[0], &stop)?, receive(&ground.sandboxes[1], &stop)?];
    send(&ground.client, service(0), stop.clone())?;
    let times = async {
        let mut times = Times::new();
        for change in 1..=count {
            let next = change % 2;
            sleep(PAUSE).await;
            while arrivals[next].try_recv().is_ok() {}
            let made = writer.write(0, here(SANDBOXES[next])).await?;
            let came = timeout(LIMIT, arrivals[next].recv()).await;
            let came = came.context("no datagram came")?.context("the sandbox ended")?;
            times.note(made, came);
        }
        anyhow::Ok(times.sorted())
    };
    let times = times.await;
    stop.store(true, Ordering::Relaxed);
    times
}

/// Sends datagrams from one port, without end: to the kernel they are one connection.
fn send(space: &Space, to: SocketAddr, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let socket = space.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a client"))?;
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            // Nobody there is a way to be: the next one may arrive.
            let _refused = socket.send_to(b"datagram", to);
            thread::sleep(PACE);
        }
    });
    Ok(())
}

/// When datagrams come to a sandbox.
fn receive(space: &Space, stop: &Arc<AtomicBool>) -> anyhow::Result<UnboundedReceiver<Instant>> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let socket = space.run(|| UdpSocket::bind((any, PORT)).context("a sandbox"))?;
    socket.set_read_timeout(Some(PAUSE))?;
    let (sender, arrivals) = unbounded_channel();
    let stop = stop.clone();
    thread::spawn(move || note_arrivals(&socket, &sender, &stop));
    Ok(arrivals)
}

fn note_arrivals(socket: &UdpSocket, sender: &UnboundedSender<Instant>, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() && sender.send(Instant::now()).is_err() {
            return;
        }
    }
}

/// From one time to another, which may be the earlier one.
fn milliseconds(from: Instant, to: Instant) -> f64 {
    let ahead = from.saturating_duration_since(to).as_secs_f64();
    (to.saturating_duration_since(from).as_secs_f64() - ahead) * 1e3
}
