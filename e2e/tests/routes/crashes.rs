//! A crash at any write settles to the same state as none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use portolan_reconcile::testing::{Crash, Strike};

use crate::stage::{Stage, alone};

/// Three Routes hold their hosts; then, while nobody looks, one changes its host, one of another
/// namespace asks for the host it leaves, one goes, and one is made again.
async fn prepare(stage: &Stage) {
    let (ours, theirs) = (&stage.ours, &stage.theirs);
    let running = stage.start(stage.client.clone());
    for (name, host) in [("moves", "old"), ("goes", "gone"), ("again", "again")] {
        stage.apply(ours, name, &stage.host(host)).await;
        stage.until_claimed(ours, name).await;
    }
    running.stop().await;
    stage.apply(ours, "moves", &stage.host("new")).await;
    stage.apply(theirs, "follows", &stage.host("old")).await;
    stage.delete(ours, "goes").await;
    stage.delete(ours, "again").await;
    stage.apply(ours, "again", &stage.host("again")).await;
}

/// What must come of it.
async fn settled(stage: &Stage) {
    let (ours, theirs) = (&stage.ours, &stage.theirs);
    let hosts = ["again", "new", "old"].map(|prefix| stage.host(prefix));
    let [again, new, old] = &hosts;
    stage
        .until_held(&[(again, ours, "again"), (new, ours, "moves"), (old, theirs, "follows")])
        .await;
    for (namespace, name) in [(ours, "again"), (ours, "moves"), (theirs, "follows")] {
        stage.until_claimed(namespace, name).await;
    }
}

/// Lives until everything has settled, with a second life after the crash; returns whether it
/// struck.
async fn run(stage: &Stage, crash: &Crash) -> bool {
    prepare(stage).await;
    let doomed = stage.start(crash.client(stage.client.clone()));
    tokio::select! {
        () = crash.struck() => {
            doomed.kill();
            let second = stage.start(stage.client.clone());
            settled(stage).await;
            second.stop().await;
            true
        }
        () = settled(stage) => {
            doomed.kill();
            false
        }
    }
}

#[tokio::test]
async fn a_crash_at_any_write_settles_to_the_same_state() -> anyhow::Result<()> {
    let counting = Crash::never();
    let crash = counting.clone();
    alone(|stage| async move {
        run(&stage, &crash).await;
    })
    .await?;
    let writes = counting.writes();
    assert!(writes >= 8, "three Claims go, three come, and there are two new statuses: {writes}");
    let strikes = Arc::new(AtomicUsize::new(0));
    for nth in 1..=writes {
        for strike in [Strike::Before, Strike::After] {
            let strikes = strikes.clone();
            alone(move |stage| async move {
                let struck = run(&stage, &Crash::at(nth, strike)).await;
                strikes.fetch_add(usize::from(struck), Ordering::Relaxed);
            })
            .await
            .map_err(|error| error.context(format!("crash {strike:?} write {nth}")))?;
        }
    }
    // What settles before its last write is a life without a crash; few may be that.
    let strikes = strikes.load(Ordering::Relaxed);
    assert!(strikes >= 2 * (writes - 2), "{strikes} crashes at {writes} writes");
    Ok(())
}
