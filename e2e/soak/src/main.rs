//! `portolan-soak`: arguments and the table.

use std::process::ExitCode;

use clap::Parser;
use portolan_soak::{Extent, Report, Scenario, Scene, play, table};

/// Does to a cluster what operators and failures do, while visitors ask, and prints what they
/// noticed. It starts a cluster of its own and takes it down.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Do only these, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    /// As little of each as the tests do.
    #[arg(long)]
    short: bool,
    /// Leave the cluster up.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { scenario, short, keep } = Arguments::parse();
    let extent = if short { Extent::SHORT } else { Extent::LONG };
    let scenarios = match scenario.is_empty() {
        true => Scenario::all().to_vec(),
        false => scenario,
    };
    let mut scene = Scene::set("soak").await?;
    let reports = play(&mut scene, &scenarios, &extent).await;
    // Before anything else can fail.
    print!("{}", table(&reports));
    if !keep {
        scene.strike()?;
    }
    let is_good = reports.iter().all(Report::is_good);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
