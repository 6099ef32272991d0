//! TCP and UDP echo.

use std::io;

use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

/// Largest datagram there is.
const DATAGRAM_SIZE_MAX: usize = 65_535;

/// Sends every byte back, and ends when the peer has ended its side.
pub(crate) async fn echo_stream(mut stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut writer).await
}

/// Sends every datagram back to where it came from, until told to stop.
pub(crate) async fn echo_datagrams(socket: UdpSocket, stop: CancellationToken) -> io::Result<()> {
    let mut datagram = vec![0; DATAGRAM_SIZE_MAX];
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            received = socket.recv_from(&mut datagram) => match received {
                // A peer that is gone makes the next receive fail; that is its affair.
                Ok((size, peer)) => { let _ = socket.send_to(&datagram[..size], peer).await; }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            },
        }
    }
}
