//! The command line of the test cluster.

mod args;

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    args::Args::parse().run().await
}
