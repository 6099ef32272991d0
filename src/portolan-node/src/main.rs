//! The `portolan-node` program: arguments and wiring, nothing else.

mod args;

use std::process::ExitCode;

use clap::Parser;
use portolan_process::{ErrorChain, logs};

use crate::args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = logs::init(args.log_format, &args.log) {
        eprintln!("portolan-node: {}", ErrorChain(&error));
        return ExitCode::from(2);
    }
    match args.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %ErrorChain(error.as_ref()), "Stopped");
            ExitCode::FAILURE
        }
    }
}
