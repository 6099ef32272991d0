//! A crash at any write settles to the same state as none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portolan_api::conditions::reason;
use portolan_cluster::wait::until_seen;
use portolan_reconcile::testing::{Crash, Strike};

use crate::stage::{Stage, alone, free_port};

/// The node ports of one life.
#[derive(Clone, Copy)]
struct Ports {
    old: i32,
    new: i32,
    gone: i32,
}

/// While nobody looks, one AppService changes its port and node port, one goes, and one comes that
/// asks for the node port of the first.
async fn prepare(stage: &Stage, ports: Ports) {
    let (ours, theirs) = (&stage.ours, &stage.theirs);
    let pool = stage.pool("irc-1", "moves", false).await;
    stage.sandbox(&pool, "irc-1", "a", "10.1.0.1").await;
    let running = stage.start(stage.client.clone());
    let before = [("irc", 6667, "tcp", Some(ports.old))];
    stage.apply(ours, "moves", Some("irc-1"), &before).await;
    stage.apply_port(theirs, "goes", ports.gone).await;
    stage.until_says(ours, "moves", reason::AVAILABLE).await;
    stage.until_idle(theirs, "goes").await;
    running.stop().await;
    stage.delete(theirs, "goes").await;
    let after = [("irc", 7000, "tcp", Some(ports.new))];
    stage.apply(ours, "moves", Some("irc-1"), &after).await;
    stage.apply_port(theirs, "follows", ports.old).await;
}

/// What must come of it.
async fn settled(stage: &Stage, ports: Ports) {
    let (ours, theirs) = (&stage.ours, &stage.theirs);
    stage.until_says(ours, "moves", reason::AVAILABLE).await;
    stage.until_idle(theirs, "follows").await;
    let mut expected = vec![
        (format!("{}/tcp", ports.old), format!("{theirs}/follows")),
        (format!("{}/tcp", ports.new), format!("{ours}/moves")),
    ];
    expected.sort();
    let held = || async {
        let mut held = stage.held().await;
        held.sort();
        held
    };
    until_seen("the node ports are theirs", held, |held| *held == expected).await;
    stage.until_endpoints("moves", &["10.1.0.1 yyn"]).await;
    let slice = || async {
        let slice = stage.slices().get("moves-ipv4").await.expect("it stays");
        slice.ports.and_then(|ports| ports.first()?.port)
    };
    until_seen("the endpoints have the new port", slice, |port| *port == Some(7000)).await;
    let service = stage.services().get("moves").await.expect("it stays");
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [7000]);
}

/// Lives until everything has settled, with a second life after the crash; returns whether it
/// struck.
async fn live(stage: &Stage, crash: &Crash) -> bool {
    let ports = Ports { old: free_port(), new: free_port(), gone: free_port() };
    prepare(stage, ports).await;
    let doomed = stage.start(crash.client(stage.client.clone()));
    tokio::select! {
        () = crash.struck() => {
            doomed.kill();
            let second = stage.start(stage.client.clone());
            settled(stage, ports).await;
            second.stop().await;
            true
        }
        () = settled(stage, ports) => {
            doomed.kill();
            false
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_write_settles_to_the_same() -> anyhow::Result<()> {
    for strike in [Strike::Before, Strike::After] {
        // One more than there are: the last life sees no crash.
        for at in 1.. {
            let struck = Arc::new(AtomicBool::new(false));
            let seen = struck.clone();
            alone(move |stage: Stage| async move {
                let crash = Crash::at(at, strike);
                let hit = live(&stage, &crash).await;
                seen.store(hit, Ordering::Relaxed);
            })
            .await?;
            if !struck.load(Ordering::Relaxed) {
                assert!(at > 5, "there are writes to crash at: {at}");
                break;
            }
        }
    }
    Ok(())
}
