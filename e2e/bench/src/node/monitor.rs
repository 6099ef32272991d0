//! When the kernel of a namespace changed its rules, as it says itself.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use crate::space::Space;

/// The group of changes to nf_tables, as a bit.
const CHANGES: u32 = 1 << 6;
/// Room for what comes while nobody looks, and for one message.
const BUFFER: usize = 4 << 20;
const MESSAGE: usize = 64 << 10;
/// How often the thread looks whether anybody still listens.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long a change may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Changes of a namespace's rules, each with its time.
pub(super) struct Monitor {
    changes: UnboundedReceiver<(Instant, Vec<u8>)>,
}

impl Monitor {
    /// Listens, on a thread that ends when this is dropped. While somebody listens the kernel
    /// tells of each element, which costs it something.
    pub(super) fn open(space: &Space) -> anyhow::Result<Self> {
        let socket = space.run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER).context("open netlink")?;
            socket.bind(&SocketAddr::new(0, CHANGES)).context("hear of changes")?;
            socket.as_fd().try_clone_to_owned().context("keep the socket")
        })?;
        let socket = socket2::Socket::from(socket);
        socket.set_recv_buffer_size(BUFFER).context("make room")?;
        socket.set_read_timeout(Some(LOOK_INTERVAL)).context("limit the wait")?;
        let (sender, changes) = unbounded_channel();
        thread::spawn(move || listen(socket, &sender));
        Ok(Self { changes })
    }

    /// Forgets what was heard so far.
    pub(super) fn forget(&mut self) {
        while self.changes.try_recv().is_ok() {}
    }

    /// Waits until a map leads to an endpoint, and says when the kernel told.
    pub(super) async fn leads_to(&mut self, endpoint: SocketAddrV4) -> anyhow::Result<Instant> {
        // As the data of an element has it: the address and the port, one after the other.
        let mut data = endpoint.ip().octets().to_vec();
        data.extend(endpoint.port().to_be_bytes());
        let found = timeout(LIMIT, async {
            loop {
                let (at, message) = self.changes.recv().await.context("the monitor ended")?;
                if message.windows(data.len()).any(|bytes| bytes == data) {
                    return anyhow::Ok(at);
                }
            }
        });
        found.await.with_context(|| format!("{endpoint} does not come into the kernel"))?
    }
}

fn listen(mut socket: socket2::Socket, sender: &UnboundedSender<(Instant, Vec<u8>)>) {
    use std::io::Read;
    let mut buffer = vec![0; MESSAGE];
    while !sender.is_closed() {
        match socket.read(&mut buffer) {
            Ok(size) => {
                let at = Instant::now();
                if sender.send((at, buffer[..size].to_vec())).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                eprintln!("could not hear of changes: {error}");
                return;
            }
        }
    }
}
