//! The sample program: arguments and wiring.

use std::io::{Read, Write, stdin, stdout};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use portolan_sample_echo::{Ended, Listen, Server, client};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Echoes over HTTP, WebSocket, gRPC, TCP and UDP, and misbehaves on request.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Instead of serving: ask for this page, print it, and fail unless the answer is 2xx.
    #[arg(long)]
    get: Option<http::Uri>,
    /// Instead of serving: send what comes in to tcp://host:port or udp://host:port, print the
    /// answer, and fail unless there is one.
    #[arg(long, conflicts_with = "get")]
    send_to: Option<http::Uri>,
    /// Address of all ports; a loopback address makes a program that nobody can reach.
    #[arg(long, env = "LISTEN_ADDRESS", default_value = "0.0.0.0")]
    listen_address: IpAddr,
    /// Port of HTTP, WebSocket and gRPC.
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Port of the TCP echo; none if absent.
    #[arg(long, env = "TCP_PORT")]
    tcp_port: Option<u16>,
    /// Port of the UDP echo; none if absent.
    #[arg(long, env = "UDP_PORT")]
    udp_port: Option<u16>,
    /// What the header X-Version says.
    #[arg(long, env = "VERSION", default_value = "dev")]
    version_name: String,
    /// What the header X-Sandbox says; Portolan sets it to the name of the sandbox.
    #[arg(long, env = "PORTOLAN_SANDBOX", default_value = "local")]
    sandbox: String,
    /// Milliseconds before it listens, as a program that takes long to start.
    #[arg(long, env = "START_DELAY_MS", default_value_t = 0)]
    start_delay_ms: u64,
    /// What it does on SIGTERM.
    #[arg(long, env = "ON_TERM", value_enum, default_value_t = OnTerm::Drain)]
    on_term: OnTerm,
    /// Milliseconds that requests may run on after SIGTERM.
    #[arg(long, env = "DRAIN_MS", default_value_t = 25_000)]
    drain_ms: u64,
}

/// What the program does on SIGTERM.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnTerm {
    /// Lets requests end, then ends itself.
    Drain,
    /// Nothing, so that only SIGKILL ends it.
    Ignore,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let answer = match (&arguments.get, &arguments.send_to) {
        (Some(page), _) => client::get(page).await?.to_vec(),
        (None, Some(to)) => {
            let mut bytes = Vec::new();
            stdin().lock().read_to_end(&mut bytes)?;
            client::send(to, &bytes).await?
        }
        (None, None) => return arguments.run().await,
    };
    stdout().write_all(&answer)?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            get: _,
            send_to: _,
            listen_address: address,
            port: http,
            tcp_port: tcp,
            udp_port: udp,
            version_name,
            sandbox,
            start_delay_ms,
            on_term,
            drain_ms,
        } = self;
        let stop = CancellationToken::new();
        let serving = async {
            tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Drained),
                () = tokio::time::sleep(Duration::from_millis(start_delay_ms)) => {}
            }
            let listen = Listen { address, http, tcp, udp };
            let server = Server::bind(listen, &version_name, &sandbox).await;
            let server = server.context("open the ports")?;
            eprintln!("Version {version_name} listens on {address}, port {http} for HTTP");
            server.serve(stop.clone(), Duration::from_millis(drain_ms)).await.context("serve")
        };
        let ended = tokio::select! {
            ended = serving => ended?,
            result = terminated(on_term, &stop) => { result?; Ended::Drained }
        };
        eprintln!("Ended: {ended:?}");
        Ok(match ended {
            Ended::Drained | Ended::Cut => ExitCode::SUCCESS,
            Ended::Crashed(code) => ExitCode::from(code),
        })
    }
}

/// Cancels `stop` on SIGTERM and never returns otherwise: the server decides when it is done.
async fn terminated(on_term: OnTerm, stop: &CancellationToken) -> anyhow::Result<()> {
    let mut signals = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    loop {
        signals.recv().await;
        match on_term {
            OnTerm::Drain => stop.cancel(),
            OnTerm::Ignore => eprintln!("Ignores SIGTERM"),
        }
    }
}
