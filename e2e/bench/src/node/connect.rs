//! How long a connection takes to be made through a node, with and without services on it.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use super::workload::{ENDPOINT_RANGE, Workload, endpoint, service};
use crate::figures::Figure;
use crate::space::Space;

/// A client, a node, and who answers at every endpoint's address.
struct Way {
    client: Space,
    node: Space,
    server: Space,
}

/// Rounds over the three kinds of connections, in turns: what else happens on the machine happens
/// to all of them.
const TURNS: usize = 40;
/// Connections of a kind in a turn.
const BATCH: usize = 50;

/// The medians of one round in microseconds.
pub(super) struct Latency {
    /// To the first of all services.
    pub(super) first: f64,
    /// To the last.
    pub(super) last: f64,
    /// To an endpoint, through a node that has no rules at all.
    pub(super) plain: f64,
}

/// Connects to the first and the last of so many services, and through a node without rules.
pub(super) fn measure(services: u32, endpoints: u32) -> anyhow::Result<Latency> {
    let (ruled, plain) = (Way::new()?, Way::new()?);
    let mut workload = Workload::start(&ruled.node, services, endpoints)?;
    workload.program()?;
    let listeners = [ruled.listen()?, plain.listen()?];
    let targets = [
        (&ruled, &listeners[0], service(0)),
        (&ruled, &listeners[0], service(services - 1)),
        (&plain, &listeners[1], endpoint(0)),
    ];
    let mut times = [const { Vec::new() }; 3];
    for turn in 0..=TURNS {
        for place in 0..targets.len() {
            let kind = (turn + place) % targets.len();
            let (way, listener, target) = targets[kind];
            let took = way.connect(listener, target)?;
            // The first turn finds neighbours and fills caches.
            if turn > 0 {
                times[kind].extend(took);
            }
        }
    }
    let [first, last, plain] = times.map(|times| Figure::of(times).median());
    Ok(Latency { first, last, plain })
}

impl Way {
    fn new() -> anyhow::Result<Self> {
        let way = Self { client: Space::new()?, node: Space::new()?, server: Space::new()? };
        way.node.forward()?;
        way.node.connect("c0", &way.client, "eth0")?;
        way.node.connect("s0", &way.server, "eth0")?;
        way.client.ip("address add 10.95.1.2/24 dev eth0\n\
             link set eth0 up\n")?;
        way.server.ip(&format!(
            "address add 10.95.2.2/24 dev eth0\n\
             link set eth0 up\n\
             route add local {ENDPOINT_RANGE} dev lo\n"
        ))?;
        way.node.ip(&format!(
            "address add 10.95.1.1/24 dev c0\n\
             address add 10.95.2.1/24 dev s0\n\
             link set c0 up\n\
             link set s0 up\n\
             route add {ENDPOINT_RANGE} via 10.95.2.2\n"
        ))?;
        way.client.ip("route add default via 10.95.1.1\n")?;
        way.server.ip("route add default via 10.95.2.1\n")?;
        Ok(way)
    }

    fn listen(&self) -> anyhow::Result<TcpListener> {
        let any = endpoint(0).port();
        self.server.run(|| TcpListener::bind(("0.0.0.0", any)).context("listen"))
    }

    /// Connects a few times, one after the other; in microseconds.
    fn connect(&self, listener: &TcpListener, target: SocketAddr) -> anyhow::Result<Vec<f64>> {
        let sockets = self.client.run(|| {
            let sockets = (0..BATCH).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None));
            sockets.collect::<Result<Vec<_>, _>>().context("make sockets")
        })?;
        let target = target.into();
        let times = sockets.into_iter().map(|socket| {
            let begun = Instant::now();
            socket.connect(&target).context("connect")?;
            let took = begun.elapsed();
            // Reset rather than closed, so that no port waits for late packets.
            socket.set_linger(Some(Duration::ZERO)).context("reset a connection")?;
            listener.accept().context("accept")?;
            Ok(took.as_secs_f64() * 1e6)
        });
        times.collect()
    }
}
