//! Traffic through the kernel, in namespaces: who answers, and what address they see.

mod lab;

use lab::{Lab, by, local, service, v4, vip};
use portolan_nft::{Forwarder, Kernel, Protocol, Ruleset};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn a_virtual_address_leads_to_an_endpoint() {
    let lab = Lab::new();
    lab.sandboxes[0].serve((v4(1, 2), 8080).into());
    let mut ruleset = Ruleset::default();
    for protocol in BOTH {
        ruleset.services.insert(service(vip(1), protocol, 80), local([(v4(1, 2), 8080)]));
    }
    let _forwarder = start(&lab, ruleset);
    let expected = by((v4(1, 2), 8080), v4(0, 2));
    assert_eq!(lab.client.tcp((vip(1), 80)), expected, "the client's address stays");
    assert_eq!(lab.client.udp((vip(1), 80)), expected, "the client's address stays");
}

fn start(lab: &Lab, ruleset: Ruleset) -> Forwarder {
    let kernel = lab.node.run(|| Kernel::open().expect("nf_tables"));
    Forwarder::start(kernel, ruleset).expect("the table").0
}
