//! The program that has a table of services in a namespace: `src/nft/examples/workload.rs`, which
//! also says which addresses there are.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};

use crate::space::Space;

/// A running workload. It ends when dropped; its table goes with its namespace.
pub(super) struct Workload {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// The first addresses of services and of endpoints.
const SERVICES: u32 = 0x0ac8_0000;
const ENDPOINTS: u32 = 0x0ad0_0000;
/// Where endpoints are.
pub(super) const ENDPOINT_RANGE: &str = "10.208.0.0/12";

/// Where a service is reached.
pub(super) fn service(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(SERVICES + number + 1), 80).into()
}

/// One of all endpoints.
pub(super) fn endpoint(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(ENDPOINTS + number + 1), 8080).into()
}

impl Workload {
    /// Starts it, without any table yet.
    pub(super) fn start(space: &Space, services: u32, endpoints: u32) -> anyhow::Result<Self> {
        let folder = std::env::current_exe().context("find this program")?;
        let program = folder.with_file_name("examples").join("workload");
        ensure!(program.exists(), "{} is missing; `make bench-build` builds it", program.display());
        let mut command = Command::new(program);
        command.args([services, endpoints].map(|number| number.to_string()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = space.spawn(command)?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, input, output })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Programs all services, in seconds.
    pub(super) fn program(&mut self) -> anyhow::Result<f64> {
        let answer = self.ask("program")?;
        answer.trim().parse().context("understand the workload")
    }

    /// Changes one endpoint after the other, in microseconds each, in order of size.
    pub(super) fn change(&mut self, count: usize) -> anyhow::Result<Vec<f64>> {
        let answer = self.ask(&format!("change {count}"))?;
        let times = answer.split_whitespace().map(str::parse);
        let mut times: Vec<f64> = times.collect::<Result<_, _>>().context("understand it")?;
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{line}").context("tell the workload")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer).context("hear the workload")?;
        ensure!(!answer.is_empty(), "the workload ended");
        Ok(answer)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Its namespace goes only when it has ended.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("could not end the workload: {error}");
        }
    }
}
