//! The `portolan` program: arguments and wiring, nothing else.

mod args;
mod controller;
mod crds;
mod gateway;

use std::process::ExitCode;

use clap::Parser;
use portolan_process::{ErrorChain, logs};

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let Args { log, command } = Args::parse();
    if let Err(error) = logs::init(log.log_format, &log.log) {
        eprintln!("portolan: {}", ErrorChain(&error));
        return ExitCode::from(2);
    }
    let outcome = match command {
        Command::Crds(args) => args.run(),
        Command::Controller(args) => block_on(args.run()),
        Command::Gateway(args) => block_on(args.run()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %ErrorChain(error.as_ref()), "Stopped");
            ExitCode::FAILURE
        }
    }
}

fn block_on(task: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(task)
}
