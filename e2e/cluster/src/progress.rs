//! What a person sees while something longer than a moment is under way.

use std::time::Instant;

use anyhow::Context;

/// Does a piece of work, and says before and after which, and how long it took.
///
/// # Errors
/// With the error of `work`, which then names the step.
pub fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    eprintln!("==> {name}");
    let done = work().with_context(|| name.to_owned())?;
    eprintln!("    {name}: {:.1} s", begun.elapsed().as_secs_f32());
    Ok(done)
}

/// As [`step`], for asynchronous work.
///
/// # Errors
/// With the error of `work`, which then names the step.
pub async fn step_async<T>(
    name: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    eprintln!("==> {name}");
    let done = work.await.with_context(|| name.to_owned())?;
    eprintln!("    {name}: {:.1} s", begun.elapsed().as_secs_f32());
    Ok(done)
}
