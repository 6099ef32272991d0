//! The life of a process: what ends it and how.

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use portolan_process::{TaskError, Tasks};

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_stop_ends_all_tasks_and_the_last_one_after_the_others() {
    let mut tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let drained = Arc::new(AtomicBool::new(false));
    let draining = drained.clone();
    tasks.spawn("worker", async move {
        shutdown.cancelled().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        draining.store(true, Ordering::SeqCst);
        Ok::<_, Infallible>(())
    });
    let seen = Arc::new(AtomicBool::new(false));
    let saw = seen.clone();
    tasks.spawn_last("admin", |stop| async move {
        stop.cancelled().await;
        saw.store(drained.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok::<_, Infallible>(())
    });
    tasks.run(async {}, GRACE).await.unwrap();
    assert!(seen.load(Ordering::SeqCst), "the admin task must end after the worker has drained");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_unasked_ends_the_process_with_an_error() {
    let mut tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    tasks.spawn("feed", async { Ok::<_, Infallible>(()) });
    tasks.spawn("other", async move {
        shutdown.cancelled().await;
        Ok::<_, Infallible>(())
    });
    let error = tasks.run(pending(), GRACE).await.unwrap_err();
    assert!(matches!(error, TaskError::EndedEarly { name: "feed" }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_task_is_named_with_its_error() {
    let mut tasks = Tasks::new();
    tasks.spawn("feed", async { Err("no route to host") });
    let error = tasks.run(pending(), GRACE).await.unwrap_err();
    assert_eq!(error.to_string(), "task feed failed");
    assert!(matches!(error, TaskError::Failed { name: "feed", .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_not_a_silence() {
    let mut tasks = Tasks::new();
    tasks.spawn::<Infallible>("feed", async { panic!("index out of bounds") });
    let error = tasks.run(pending(), GRACE).await.unwrap_err();
    assert!(matches!(error, TaskError::Panicked { name: "feed", .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn tasks_that_outlast_the_grace_are_aborted_and_named() {
    let mut tasks = Tasks::new();
    tasks.spawn::<Infallible>("stuck", pending());
    let error = tasks.run(async {}, GRACE).await.unwrap_err();
    assert!(matches!(&error, TaskError::Overdue { names, .. } if names == &["stuck"]), "{error:?}");
}
