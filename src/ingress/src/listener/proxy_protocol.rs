//! The PROXY header, versions 1 and 2: for whom a load balancer makes a connection.
//!
//! <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header of version 1, its end included.
const V1_SIZE_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Most bytes of addresses and extensions we take in: sixteen times what balancers send.
const V2_REST_SIZE_MAX: usize = 4096;

/// Why a header was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyHeaderError {
    #[error("connection ended within the PROXY header")]
    Read(#[source] io::Error),
    #[error("PROXY header is malformed")]
    Malformed,
}

impl From<io::Error> for ProxyHeaderError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Reads a header and not one byte more. `None`: the balancer speaks for itself.
pub(super) async fn read<R>(stream: &mut R) -> Result<Option<IpAddr>, ProxyHeaderError>
where
    R: AsyncRead + Unpin,
{
    // Both versions have at least as many bytes: the shortest of version 1 is "PROXY UNKNOWN\r\n".
    let mut start = [0; V2_SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == *V2_SIGNATURE {
        read_v2(stream).await
    } else if start.starts_with(V1_START) {
        read_v1(stream, &start).await
    } else {
        Err(ProxyHeaderError::Malformed)
    }
}

async fn read_v1<R>(stream: &mut R, start: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError>
where
    R: AsyncRead + Unpin,
{
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == V1_SIZE_MAX {
            return Err(ProxyHeaderError::Malformed);
        }
        line.push(stream.read_u8().await?);
    }
    parse_v1(&line).ok_or(ProxyHeaderError::Malformed)
}

/// `None`: malformed.
fn parse_v1(line: &[u8]) -> Option<Option<IpAddr>> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut fields = line.strip_prefix("PROXY ")?.split(' ');
    let family = fields.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination): (IpAddr, IpAddr) =
        (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let _: (u16, u16) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let is_family = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    (is_family && fields.next().is_none()).then_some(Some(source))
}

async fn read_v2<R>(stream: &mut R) -> Result<Option<IpAddr>, ProxyHeaderError>
where
    R: AsyncRead + Unpin,
{
    let version_command = stream.read_u8().await?;
    let family = stream.read_u8().await?;
    let size = usize::from(stream.read_u16().await?);
    if size > V2_REST_SIZE_MAX {
        return Err(ProxyHeaderError::Malformed);
    }
    let mut rest = vec![0; size];
    stream.read_exact(&mut rest).await?;
    parse_v2(version_command, family, &rest).ok_or(ProxyHeaderError::Malformed)
}

/// `None`: malformed.
fn parse_v2(version_command: u8, family: u8, rest: &[u8]) -> Option<Option<IpAddr>> {
    match version_command {
        // A connection of the balancer's own, such as a health check.
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    match family {
        // TCP over IPv4: two addresses, two ports, extensions.
        0x11 => {
            let source: [u8; 4] = rest.get(..12)?.first_chunk().copied()?;
            Some(Some(Ipv4Addr::from(source).into()))
        }
        0x21 => {
            let source: [u8; 16] = rest.get(..36)?.first_chunk().copied()?;
            Some(Some(Ipv6Addr::from(source).into()))
        }
        // Unspecified and Unix sockets say nothing that has an address.
        0x00 | 0x31 => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{V2_SIGNATURE, read};

    /// Expected: the address, or nothing, or `Err` for a refusal; and what is left to read.
    async fn check(input: &[u8], expected: Result<Option<&str>, ()>, left: &[u8]) {
        let mut stream = input;
        let result = read(&mut stream).await.map_err(|_| ());
        let expected = expected.map(|ip| ip.map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(result, expected, "{}", input.escape_ascii());
        if result.is_ok() {
            assert_eq!(stream, left);
        }
    }

    fn mk_v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend(rest);
        header.extend(b"GET");
        header
    }

    #[tokio::test]
    async fn version_1() {
        let refused = Err(());
        check(b"PROXY TCP4 192.0.2.1 10.0.0.1 5 80\r\nGET", Ok(Some("192.0.2.1")), b"GET").await;
        check(b"PROXY TCP6 2001:db8::1 ::1 5 80\r\n", Ok(Some("2001:db8::1")), b"").await;
        check(b"PROXY UNKNOWN\r\nGET", Ok(None), b"GET").await;
        check(b"PROXY UNKNOWN whatever it says\r\n", Ok(None), b"").await;
        check(b"PROXY TCP4 2001:db8::1 ::1 5 80\r\n", refused, b"").await;
        check(b"PROXY TCP4 192.0.2.1 10.0.0.1 5\r\n", refused, b"").await;
        check(b"PROXY TCP4 192.0.2.1 10.0.0.1 5 99999\r\n", refused, b"").await;
        check(b"PROXY TCP4 192.0.2.1 10.0.0.1 5 80 6\r\n", refused, b"").await;
        check(b"PROXY TCP5 192.0.2.1 10.0.0.1 5 80\r\n", refused, b"").await;
        check(b"GET / HTTP/1.1\r\n", refused, b"").await;
        check(&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat(), refused, b"").await;
        check(b"PROXY TCP4 192.0.2.1", refused, b"").await;
    }

    #[tokio::test]
    async fn version_2() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0, 5, 0, 80];
        let with_extension = [&v4[..], &[4, 0, 1, 0]].concat();
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        check(&mk_v2(0x21, 0x11, &v4), Ok(Some("192.0.2.1")), b"GET").await;
        check(&mk_v2(0x21, 0x11, &with_extension), Ok(Some("192.0.2.1")), b"GET").await;
        check(&mk_v2(0x21, 0x21, &v6), Ok(Some("2001:db8::")), b"GET").await;
        check(&mk_v2(0x20, 0x00, &[]), Ok(None), b"GET").await;
        check(&mk_v2(0x21, 0x00, &[]), Ok(None), b"GET").await;
        check(&mk_v2(0x21, 0x11, &v4[..8]), Err(()), b"").await;
        check(&mk_v2(0x11, 0x11, &v4), Err(()), b"").await;
        check(&mk_v2(0x22, 0x11, &v4), Err(()), b"").await;
        check(&mk_v2(0x21, 0x12, &v4), Err(()), b"").await;
        check(&mk_v2(0x21, 0x11, &[0; 5000]), Err(()), b"").await;
    }
}
