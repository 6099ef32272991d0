//! Services in the kernel, as many as it is told, for the benchmarks of the node.
//!
//! `workload SERVICES ENDPOINTS` works in the network namespace in which it is started. It answers
//! each line of its input with a line: `program` with the seconds from nothing to all services,
//! `change COUNT` with the microseconds of as many changes of one endpoint each. It ends with its
//! input; the table then goes with the namespace.
//!
//! It is a program of its own because `portolan-nft` is under the GPL and the benchmarks are not.
//! Service `n`, from 0, is TCP port 80 of the `n + 1`th address of 10.200.0.0/13; its endpoint `k`
//! is port 8080 of the `n * ENDPOINTS + k + 1`th of 10.208.0.0/12. All are on other nodes.

use std::env;
use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::time::Instant;

use portolan_nft::{
    Affinity, Backends, Endpoint, Endpoints, Forwarder, Kernel, Protocol, Ruleset, ServicePort,
};

/// The first address of services, and that of endpoints.
const SERVICES: u32 = 0x0ac8_0000;
const ENDPOINTS: u32 = 0x0ad0_0000;
/// Endpoints that come in changes, beyond all others of the range.
const SPARES: u32 = 0x0adf_0000;

/// How much there is.
struct Size {
    services: u32,
    endpoints: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let mut number = || args.next().ok_or("workload SERVICES ENDPOINTS")?.parse().map_err(text);
    let size = Size { services: number()?, endpoints: number()? };
    let mut forwarder = None;
    for line in io::stdin().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("program", _) => {
                let desired = size.ruleset();
                let begun = Instant::now();
                let (made, _) = Forwarder::start(Kernel::open()?, desired)?;
                println!("{}", begun.elapsed().as_secs_f64());
                forwarder = Some(made);
            }
            ("change", count) => {
                let forwarder = forwarder.as_mut().ok_or("nothing is programmed")?;
                let times = size.change(forwarder, count.parse()?)?;
                println!("{}", times.join(" "));
            }
            _ => return Err(format!("unknown command {line:?}").into()),
        }
    }
    Ok(())
}

impl Size {
    fn ruleset(&self) -> Ruleset {
        let services = (0..self.services).map(|service| {
            let endpoints = (0..self.endpoints).map(|index| self.endpoint(service, index));
            (port(service), backends(endpoints.collect()))
        });
        Ruleset { services: services.collect(), ..Ruleset::default() }
    }

    fn endpoint(&self, service: u32, index: u32) -> Endpoint {
        endpoint(ENDPOINTS + service * self.endpoints + index + 1)
    }

    /// Replaces one endpoint of one service after the other, and then another of them.
    fn change(&self, forwarder: &mut Forwarder, count: u32) -> Result<Vec<String>, Box<dyn Error>> {
        let mut times = Vec::new();
        for change in 0..count {
            // Neighbours in a set are neighbours in memory; real changes are anywhere.
            let port = port(change.wrapping_mul(7919) % self.services);
            let now = forwarder.table().desired().services.get(&port).ok_or("no such service")?;
            let others = now.endpoints.iter().skip(1).copied();
            let endpoints = others.chain([endpoint(SPARES + change)]).collect();
            let begun = Instant::now();
            forwarder.table().set_service(port, backends(endpoints));
            forwarder.flush()?;
            times.push(format!("{:.2}", begun.elapsed().as_secs_f64() * 1e6));
        }
        Ok(times)
    }
}

fn port(service: u32) -> ServicePort {
    let address = Ipv4Addr::from_bits(SERVICES + service + 1).into();
    ServicePort { address, protocol: Protocol::Tcp, port: 80 }
}

fn endpoint(address: u32) -> Endpoint {
    Endpoint { address: Ipv4Addr::from_bits(address).into(), port: 8080, local: false }
}

fn backends(endpoints: Endpoints) -> Backends {
    Backends { affinity: Affinity::None, endpoints }
}

fn text(error: std::num::ParseIntError) -> String {
    error.to_string()
}
