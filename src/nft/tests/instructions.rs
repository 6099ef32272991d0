//! What a change costs on a node with many services.

use std::net::{IpAddr, Ipv4Addr};

use portolan_instructions::Hot;
use portolan_nft::{Affinity, Backends, Endpoint, Protocol, Ruleset, ServicePort, Table};

const SERVICES: u32 = 10_000;

#[test]
fn one_endpoint_among_ten_thousand_services_costs_what_is_committed() {
    let hot = Hot {
        row: "node: the difference of one endpoint among 10 000 services",
        module: module_path!(),
        test: "one_endpoint_among_ten_thousand_services_costs_what_is_committed",
        rounds: 1_000,
    };
    let prepare = || {
        let services = (0..SERVICES).map(|number| (port(number), backends(0..3)));
        let desired = Ruleset { services: services.collect(), ..Ruleset::default() };
        let mut table = Table::new(desired);
        table.recovered(table.elements());
        table.settled();
        table
    };
    hot.check(prepare, |table, round| {
        let last = 100 + u8::try_from(round % 2).expect("0 or 1");
        table.set_service(port(round), backends([0, 1, last]));
        let transaction = table.pending();
        for batch in transaction.batches() {
            table.committed(batch);
        }
        table.settled();
        transaction
    });
}

fn port(number: u32) -> ServicePort {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + number);
    ServicePort { address: address.into(), protocol: Protocol::Tcp, port: 80 }
}

fn backends(hosts: impl IntoIterator<Item = u8>) -> Backends {
    let endpoint =
        |host| Endpoint { address: IpAddr::from([10, 244, 1, host]), port: 3_000, local: false };
    let endpoints = hosts.into_iter().map(endpoint).collect();
    Backends { affinity: Affinity::None, endpoints }
}
