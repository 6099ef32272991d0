//! Ports that processes of the host listen on, from /proc/net: node ports that nobody should get.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

use portolan_api::{ListeningPort, Transport};

/// As many as a report may have.
pub(crate) const LISTENING_MAX: usize = 1024;

/// States of a socket that waits for whoever comes: a listener's over TCP, and over UDP that of a
/// socket without a peer.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";

/// What listens in the network namespace of this process, at other addresses than the loopback's:
/// what is only reachable from the node itself is in nobody's way.
///
/// A UDP socket in the range of ports that the kernel deals out is as a rule a client's that waits
/// for its answer, and not a server's: it counts only at a port that some AppService asks for.
///
/// # Errors
/// If /proc cannot be read. A family that the kernel does not have is empty.
pub(crate) fn listening(proc: &Path, asked: &BTreeSet<u16>) -> io::Result<BTreeSet<ListeningPort>> {
    let dealt = fs::read_to_string(proc.join("sys/net/ipv4/ip_local_port_range"))?;
    let dealt = range(&dealt);
    let is_clients =
        |port: u16| dealt.as_ref().is_some_and(|all| all.contains(&port)) && !asked.contains(&port);
    let mut found = BTreeSet::new();
    let tables = [
        ("net/tcp", Transport::Tcp),
        ("net/tcp6", Transport::Tcp),
        ("net/udp", Transport::Udp),
        ("net/udp6", Transport::Udp),
    ];
    for (path, transport) in tables {
        let text = match fs::read_to_string(proc.join(path)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        found.extend(sockets(&text, transport, &is_clients));
    }
    Ok(found)
}

fn sockets<'a>(
    table: &'a str,
    transport: Transport,
    is_clients: &'a impl Fn(u16) -> bool,
) -> impl Iterator<Item = ListeningPort> + 'a {
    let state = match transport {
        Transport::Tcp => LISTENS,
        Transport::Udp => UNCONNECTED,
    };
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace();
        let (local, found) = (words.nth(1)?, words.nth(1)?);
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
        let is_clients = transport == Transport::Udp && is_clients(port);
        if found != state || is_clients || address_of(address)?.is_loopback() {
            return None;
        }
        Some(ListeningPort { port: port.into(), transport })
    })
}

/// An address as /proc prints it: words of 32 bits, each in the machine's own order.
fn address_of(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok();
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?.to_ne_bytes()).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?.to_ne_bytes());
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
    Some(numbers.next()??..=numbers.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n";

    #[track_caller]
    fn check(lines: &str, transport: Transport, expected: &[i32]) {
        let table = format!("{HEAD}{lines}");
        let is_clients = |port| (32_768..=60_999).contains(&port);
        let found = sockets(&table, transport, &is_clients);
        assert_eq!(found.map(|found| found.port).collect::<Vec<_>>(), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_told_from_connections_and_from_what_only_the_node_reaches() {
        check(
            "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n   \
                1: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000\n   \
                2: 0A00000A:0016 0B00000A:D431 01 00000000:00000000 02:0006F8E1\n   \
                3: 0A00000A:C350 00000000:0000 0A 00000000:00000000 00:00000000\n",
            Transport::Tcp,
            &[8080, 50_000],
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_client_over_udp_is_no_server() {
        check(
            "  10: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000\n  \
               11: 00000000:A000 00000000:0000 07 00000000:00000000 00:00000000\n  \
               12: 00000000:0044 0B00000A:0043 01 00000000:00000000 00:00000000\n  \
               13: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000\n",
            Transport::Udp,
            &[53],
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_of_the_other_family_are_read() {
        let zero = "00000000000000000000000000000000";
        let one = "00000000000000000000000001000000";
        let mapped = "0000000000000000FFFF00000100007F";
        check(
            &format!(
                "   0: {zero}:0050 {zero}:0000 0A 00000000:00000000 00:00000000\n   \
                    1: {one}:0051 {zero}:0000 0A 00000000:00000000 00:00000000\n   \
                    2: {mapped}:0052 {zero}:0000 0A 00000000:00000000 00:00000000\n"
            ),
            Transport::Tcp,
            &[80],
        );
    }

    #[test]
    fn nonsense_is_skipped() {
        check(
            "x\n 0: zz:0050 a 0A\n 1: 00000000 b 0A\n 2: 00000000:0000 c 0A\n",
            Transport::Tcp,
            &[],
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let found = listening(Path::new("/proc"), &BTreeSet::new()).expect("a readable /proc");
        let own = ListeningPort { port: port.into(), transport: Transport::Tcp };
        assert!(found.contains(&own), "{own:?} is not in {found:?}");
    }

    /// A server may well have a port that the kernel would deal out too.
    #[test]
    fn a_udp_socket_at_a_port_that_is_asked_for_counts() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let own = ListeningPort { port: port.into(), transport: Transport::Udp };
        let is_found = |asked: &[u16]| {
            let asked = asked.iter().copied().collect();
            listening(Path::new("/proc"), &asked).expect("a readable /proc").contains(&own)
        };
        assert!(!is_found(&[]), "{own:?} is a client's for all anybody knows");
        assert!(is_found(&[port]), "{own:?} is in somebody's way");
    }
}
