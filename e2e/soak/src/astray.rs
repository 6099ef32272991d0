//! Connections that a node refuses itself, because its kube-proxy led them nowhere.
//!
//! Visitors come in by a port of a node. While kube-proxy replaces its rules, a packet may be
//! between two of its look-ups, of which one is before the change and the other after it: then it
//! matches nothing, and the node answers that nobody listens. No gateway ever sees it. Nobody sends
//! a reset from that port but a node that led nowhere, so these are counted there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use portolan_cluster::command;

use crate::scene::NODE_PORT;

/// The counter of one node.
#[derive(Clone, Debug)]
pub(crate) struct Astray {
    namespace: PathBuf,
}

impl Astray {
    /// Begins to count, in the network namespace of a node that nobody counts in yet.
    pub(crate) fn start(namespace: PathBuf) -> anyhow::Result<Self> {
        let astray = Self { namespace };
        astray.nft(&format!(
            "table inet soak {{
                counter astray {{}}
                chain output {{
                    type filter hook output priority 0;
                    tcp sport {NODE_PORT} tcp flags & rst == rst counter name astray
                }}
            }}"
        ))?;
        Ok(astray)
    }

    /// How many there were.
    pub(crate) fn count(&self) -> anyhow::Result<usize> {
        let listing = self.nft("list counter inet soak astray")?;
        packets(&listing).with_context(|| format!("no count in {listing:?}"))
    }

    fn nft(&self, script: &str) -> anyhow::Result<String> {
        let mut nft = Command::new("nsenter");
        nft.arg(format!("--net={}", self.namespace.display())).args(["nft", script]);
        command::output(&mut nft)
    }
}

fn packets(listing: &str) -> Option<usize> {
    let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read() {
        let listing = "table inet soak {\n\tcounter astray {\n\t\tpackets 3 bytes 120\n\t}\n}\n";
        assert_eq!(packets(listing), Some(3));
        assert_eq!(packets(""), None);
    }
}
