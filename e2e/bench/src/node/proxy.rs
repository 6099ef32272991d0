//! The peer: the rules that kube-proxy 1.36 makes in its nftables mode, loaded by `nft`.
//!
//! Each service has a chain of its own with a map of its own, and is found through a map of
//! verdicts; a service with affinity would have a chain for each endpoint besides.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use portolan_cluster::command;

use super::workload::{endpoint, service};
use crate::space::Space;

/// What is there once, whatever the number of services.
const BASE: &str = "\
add table ip kube-proxy
add chain ip kube-proxy services
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy masquerading mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
";

/// Loads so many services into a new namespace; in seconds.
pub(super) fn load(services: u32, endpoints: u32) -> anyhow::Result<f64> {
    let rules = ruleset(services, endpoints);
    let space = Space::new()?;
    space.run(|| {
        let begun = Instant::now();
        command::feed(Command::new("nft").args(["-f", "-"]), &rules)?;
        Ok(begun.elapsed().as_secs_f64())
    })
}

fn ruleset(services: u32, endpoints: u32) -> String {
    let mut rules = BASE.to_owned();
    for number in 0..services {
        let address = service(number).ip();
        let chain = format!("service-{number:08X}-bench/app-{number:05}/tcp/p80");
        let targets = (0..endpoints).map(|index| {
            let end = endpoint(number * endpoints + index);
            format!("{index} : {} . {}", end.ip(), end.port())
        });
        let targets = targets.collect::<Vec<_>>().join(" , ");
        let written = write!(
            rules,
            "add chain ip kube-proxy {chain}\n\
             add rule ip kube-proxy {chain} meta l4proto tcp dnat ip addr . port to \
             numgen random mod {endpoints} map {{ {targets} }}\n\
             add element ip kube-proxy cluster-ips {{ {address} }}\n\
             add element ip kube-proxy service-ips {{ {address} . tcp . 80 : goto {chain} }}\n"
        );
        written.expect("a text grows");
    }
    rules
}
