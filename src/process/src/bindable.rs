//! Which address to listen on, where not every kernel has IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses to try one after the other for one that somebody configured; the first that can be
/// bound is it, and else the last error says why none could.
///
/// `[::]` is every address of both families, and of IPv4 alone where the kernel has no IPv6.
pub fn bindable(address: SocketAddr) -> Vec<SocketAddr> {
    let mut all = vec![address];
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        all.push((Ipv4Addr::UNSPECIFIED, address.port()).into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_addresses_have_a_second_choice() {
        let of = |text: &str| bindable(text.parse().expect("an address"));
        assert_eq!(of("[::]:80").last().map(ToString::to_string).as_deref(), Some("0.0.0.0:80"));
        assert!(["[::1]:80", "0.0.0.0:80"].iter().all(|text| of(text).len() == 1));
    }
}
