//! The same services in the shape that kube-proxy's nftables mode gives them: a verdict map to a
//! chain for each service, and in it one rule with an anonymous map of its endpoints.

use std::fmt::Write;
use std::time::{Duration, Instant};

use portolan_nft::{Ruleset, ServicePort};

use crate::lab::Namespace;

/// All of it, as `nft` reads it.
pub(crate) fn text(ruleset: &Ruleset) -> String {
    let mut text = "add table ip chains
add map ip chains services { type ipv4_addr . inet_proto . inet_service : verdict; }
add chain ip chains prerouting { type nat hook prerouting priority -100; }
add rule ip chains prerouting ip daddr . meta l4proto . th dport vmap @services
"
    .to_owned();
    for (number, port) in ruleset.services.keys().enumerate() {
        writeln!(text, "add chain ip chains svc-{number}").expect("a string");
        writeln!(text, "{}", rule(ruleset, number, *port)).expect("a string");
        let ServicePort { address, port, .. } = port;
        writeln!(
            text,
            "add element ip chains services {{ {address} . tcp . {port} : goto svc-{number} }}"
        )
        .expect("a string");
    }
    text
}

/// What it sends when an endpoint of the first service changes: the chain is made anew.
pub(crate) fn one_change(ruleset: &Ruleset) -> String {
    let port = ruleset.services.keys().next().expect("a service");
    format!("flush chain ip chains svc-0\n{}\n", rule(ruleset, 0, *port))
}

/// Gives a file to `nft`, and how long that takes without starting the program.
pub(crate) fn load(node: &Namespace, text: &str) -> Duration {
    let file = std::env::temp_dir().join(format!("portolan-nft-{}", std::process::id()));
    std::fs::write(&file, "").expect("a file");
    let path = file.to_str().expect("a path").to_owned();
    let time = || {
        let began = Instant::now();
        node.output("nft", &["-f", &path]);
        began.elapsed()
    };
    let start = (0..5).map(|_| time()).min().unwrap_or_default();
    std::fs::write(&file, text).expect("a file");
    let took = time();
    std::fs::remove_file(file).expect("a file");
    took.saturating_sub(start)
}

fn rule(ruleset: &Ruleset, number: usize, port: ServicePort) -> String {
    let endpoints = ruleset.services[&port].endpoints.iter().enumerate();
    let map = endpoints.map(|(slot, end)| format!("{slot} : {} . {}", end.address, end.port));
    let map: Vec<_> = map.collect();
    let count = map.len();
    format!(
        "add rule ip chains svc-{number} meta l4proto tcp dnat ip addr . port to numgen random mod \
         {count} map {{ {} }}",
        map.join(", ")
    )
}
