//! The API server hangs: its kernel acknowledges what is sent, and nothing comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use portolan_cluster::{control_plane, wait};
use portolan_e2e::pods;

use crate::scene::Scene;

/// How long it may take to notice: two pauses of 15 s on a connection that is asked for a sign of
/// life. The rest is for a busy machine.
const NOTICE_MAX: Duration = Duration::from_secs(60);
/// How long it may take to know again how things are.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

const STALE: &str = "portolan_cache_stale_seconds";

pub(crate) async fn a_hanging_api_server_is_noticed(scene: &mut Scene) -> anyhow::Result<()> {
    let sandbox = scene.sandbox()?;
    let gateways = pods::gateways(&scene.cluster)?;
    scene
        .visited(async |scene| {
            let state = scene.cluster.state();
            let api = state.processes.get(control_plane::API_SERVER);
            let api = api.context("the API server's process")?.id;
            api.signal(Signal::SIGSTOP)?;
            let hung = Instant::now();
            let noticed = wait::until("the gateways to notice", NOTICE_MAX, async || {
                for gateway in &gateways {
                    let stale = gateway.metric(STALE)?;
                    ensure!(stale > 0.0, "{} says {stale}", gateway.name);
                }
                anyhow::Ok(())
            })
            .await;
            // Before anything else can fail: a cluster whose API server hangs cannot be looked at.
            api.signal(Signal::SIGCONT)?;
            noticed?;
            eprintln!("    the gateways noticed after {:?}", hung.elapsed());
            wait::until("the gateways to catch up", CATCH_UP_MAX, async || {
                for gateway in &gateways {
                    let stale = gateway.metric(STALE)?;
                    ensure!(stale == 0.0, "{} is stale for {stale} s", gateway.name);
                }
                anyhow::Ok(())
            })
            .await
        })
        .await?;
    ensure!(scene.sandbox()?.uid() == sandbox.uid(), "the sandbox was replaced");
    Ok(())
}
