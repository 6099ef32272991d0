//! Node ports, and which of them an installation hands out. Pure.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use portolan_api::{AppServicePort, ListeningPort, Transport, names};
use serde::Serialize;

/// A port on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NodePort {
    /// Its number, 1 to 65535.
    pub number: i32,
    /// Over which transport.
    pub transport: Transport,
}

impl NodePort {
    /// The node port that a port of an `AppService` asks for.
    pub fn asked(port: &AppServicePort) -> Option<Self> {
        let transport = port.r#type.into();
        port.node_port.map(|number| Self { number, transport })
    }

    /// What a Claim on it says: `6697/tcp`.
    pub fn value(self) -> String {
        names::node_port(self.number, transport_name(self.transport))
    }
}

impl From<ListeningPort> for NodePort {
    fn from(port: ListeningPort) -> Self {
        Self { number: port.port, transport: port.transport }
    }
}

/// `6697/TCP`.
impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, transport_name(self.transport))
    }
}

/// The transport as Kubernetes writes it.
pub(crate) fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

/// Which node ports Apps may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    /// Only these.
    pub allowed: PortRanges,
    /// None of these, even if allowed.
    pub reserved: PortRanges,
}

impl PortPolicy {
    /// Why an App may not have this port, in words that follow its number; `None` if it may.
    pub fn refusal(&self, port: NodePort) -> Option<String> {
        if let Some(range) = self.reserved.range_with(port.number) {
            return Some(format!("is reserved by the installation ({})", Range(range)));
        }
        let is_allowed = self.allowed.range_with(port.number).is_some();
        (!is_allowed).then(|| format!("is not among those that Apps may have ({})", self.allowed))
    }
}

/// Ports and ranges of ports, of any transport: `22,2379-2380`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRanges(Vec<RangeInclusive<i32>>);

/// A text that is no list of ports.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a port (1 to 65535) nor a range such as 2379-2380")]
pub struct ParsePortsError(String);

impl PortRanges {
    fn range_with(&self, port: i32) -> Option<&RangeInclusive<i32>> {
        self.0.iter().find(|range| range.contains(&port))
    }
}

impl FromStr for PortRanges {
    type Err = ParsePortsError;

    fn from_str(text: &str) -> Result<Self, ParsePortsError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(range).collect::<Result<_, _>>().map(Self)
    }
}

fn range(text: &str) -> Result<RangeInclusive<i32>, ParsePortsError> {
    let port = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first.into()..=last.into()),
        _ => Err(ParsePortsError(text.to_owned())),
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", Range(range))?;
        }
        Ok(())
    }
}

struct Range<'a>(&'a RangeInclusive<i32>);

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ports_are_read_and_printed() {
        let ranges: PortRanges = "22, 80,2379-2380,".parse().unwrap();
        assert_eq!(ranges.to_string(), "22, 80, 2379-2380");
        assert_eq!("".parse(), Ok(PortRanges::default()));
        for wrong in ["0", "65536", "-1", "a", "5-4", "1-", "1-2-3"] {
            assert_eq!(wrong.parse::<PortRanges>(), Err(ParsePortsError(wrong.into())), "{wrong}");
        }
    }

    #[track_caller]
    fn check(policy: &PortPolicy, number: i32, expected: Option<&str>) {
        let port = NodePort { number, transport: Transport::Tcp };
        assert_eq!(policy.refusal(port).as_deref(), expected, "{port}");
    }

    #[test]
    fn a_reserved_port_is_refused_even_where_it_is_allowed() {
        let policy = PortPolicy {
            allowed: "1-1000,6697".parse().unwrap(),
            reserved: "22,80-90".parse().unwrap(),
        };
        check(&policy, 1, None);
        check(&policy, 6697, None);
        check(&policy, 22, Some("is reserved by the installation (22)"));
        check(&policy, 81, Some("is reserved by the installation (80-90)"));
        check(&policy, 1001, Some("is not among those that Apps may have (1-1000, 6697)"));
    }

    #[test]
    fn the_transport_follows_from_the_type() {
        let port = |kind| AppServicePort {
            name: "p".into(),
            port: 1,
            r#type: kind,
            target_port: 1,
            node_port: Some(53),
        };
        let values = [portolan_api::PortType::Http, portolan_api::PortType::Udp]
            .map(|kind| NodePort::asked(&port(kind)).unwrap().value());
        assert_eq!(values, ["53/tcp", "53/udp"]);
    }
}
