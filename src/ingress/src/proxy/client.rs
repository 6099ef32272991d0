//! Who is at the other end of a connection from outside.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::stall::Streams;
use crate::buffers::Share;
use crate::ingress::Shared;
use crate::listener::Place;
use crate::settings::Settings;
use crate::tls::CertificateKey;

/// One connection from outside, as its requests see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    /// The address as headers show it.
    pub(crate) address: HeaderValue,
    /// May speak for others.
    pub(crate) is_trusted: bool,
    pub(crate) audience: Audience,
    pub(crate) security: Security,
    pub(crate) pulse: Pulse,
    pub(crate) streams: Streams,
    /// Held here and not by the connection's task, which ends when the protocol is switched.
    _place: Place,
}

/// From where a client comes, which decides what hosts there are for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// From anywhere: the hosts of routes.
    Public,
    /// From inside the cluster: the names of services.
    Internal,
}

/// Plain text or TLS.
#[derive(Debug)]
pub(crate) enum Security {
    Plain {
        /// Where redirects lead to; `None`: nowhere.
        https_port: Option<u16>,
    },
    Tls {
        /// The entry whose certificate the client was shown for the name it asked for; `None`: it
        /// asked for no name.
        certificate: Option<CertificateKey>,
    },
}

impl Client {
    pub(crate) fn new(
        shared: Arc<Shared>,
        address: IpAddr,
        is_trusted: bool,
        audience: Audience,
        security: Security,
        place: Place,
    ) -> Self {
        let text = address.to_canonical().to_string();
        let address = HeaderValue::from_str(&text).expect("an address is a header value");
        let share = place.share().unwrap_or_else(|| Arc::new(Share::new(Arc::clone(&shared.core))));
        let (pulse, streams) = (Pulse::new(), Streams::new(share));
        Self { shared, address, is_trusted, audience, security, pulse, streams, _place: place }
    }
}

/// What a connection does right now, for its time limits. Written on the request path with plain
/// stores; read by one coarse timer per connection.
#[derive(Debug)]
pub(crate) struct Pulse {
    born: Instant,
    requests: AtomicU32,
    /// Milliseconds after `born`; when the last request ended.
    idle_since: AtomicU64,
    /// Milliseconds after `born`, plus one; zero: no head is being read.
    head_since: AtomicU64,
    /// Milliseconds after `born`, plus one; zero: the client takes what is sent to it.
    blocked_since: AtomicU64,
    is_h2: AtomicBool,
    /// Requests whose client did not wait for the response to begin, less those whose did.
    given_up: AtomicU32,
}

/// What the time limits of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vitality {
    /// Look again after this.
    Alive(Duration),
    /// Nothing was asked for too long.
    Idle,
    /// A head began and did not end.
    SlowHead,
    /// The client takes nothing of what is sent to it.
    Stuck,
}

impl Pulse {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            requests: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            is_h2: AtomicBool::new(false),
            given_up: AtomicU32::new(0),
        }
    }

    pub(crate) fn set_h2(&self) {
        self.is_h2.store(true, Ordering::Relaxed);
    }

    /// Bytes came in.
    pub(crate) fn read(&self) {
        let is_head = self.requests.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == 0;
        if is_head {
            self.head_since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    /// Bytes went out.
    pub(crate) fn written(&self) {
        if self.blocked_since.load(Ordering::Relaxed) > 0 {
            self.blocked_since.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes could not go out.
    pub(crate) fn blocked(&self) {
        if self.blocked_since.load(Ordering::Relaxed) == 0 {
            self.blocked_since.store(self.now() + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn request_began(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn request_ended(&self, now: Instant, was_answered: bool) {
        if !was_answered {
            self.given_up.fetch_add(1, Ordering::Relaxed);
        } else if self.given_up.load(Ordering::Relaxed) > 0 {
            // Beside another that ends just now it may fall below zero by one and wrap, which
            // `is_fickle` must not take for many.
            self.given_up.fetch_sub(1, Ordering::Relaxed);
        }
        let now = millis(now - self.born);
        self.idle_since.store(now, Ordering::Relaxed);
        self.requests.fetch_sub(1, Ordering::Release);
    }

    /// Whether the client gives up more than it lets be answered, by more than `max` requests:
    /// each may have reached a sandbox, and costs the client next to nothing.
    pub(crate) fn is_fickle(&self, max: u32) -> bool {
        let given_up = self.given_up.load(Ordering::Relaxed);
        given_up > max && given_up < u32::MAX / 2
    }

    pub(crate) fn is_h2(&self) -> bool {
        self.is_h2.load(Ordering::Relaxed)
    }

    /// Judges the connection.
    pub(crate) fn check(&self, settings: &Settings) -> Vitality {
        let Settings { header_timeout: header, keep_alive, write_stall, .. } = *settings;
        let now = self.now();
        let blocked_since = self.blocked_since.load(Ordering::Relaxed);
        if blocked_since > 0 {
            let blocked = Duration::from_millis(now.saturating_sub(blocked_since - 1));
            if blocked >= write_stall {
                return Vitality::Stuck;
            }
        }
        if self.requests.load(Ordering::Acquire) > 0 {
            return Vitality::Alive(header.min(write_stall));
        }
        // HTTP/2 exchanges frames between requests too; only the pause between requests counts.
        let head_since = self.head_since.load(Ordering::Relaxed);
        if head_since > 0 && !self.is_h2() {
            let spent = Duration::from_millis(now.saturating_sub(head_since - 1));
            return match header.checked_sub(spent).filter(|left| !left.is_zero()) {
                Some(left) => Vitality::Alive(left),
                None => Vitality::SlowHead,
            };
        }
        let idle = now.saturating_sub(self.idle_since.load(Ordering::Relaxed));
        match keep_alive.checked_sub(Duration::from_millis(idle)).filter(|left| !left.is_zero()) {
            // A head may begin any moment, and its limit is the shorter one.
            Some(left) => Vitality::Alive(left.min(header)),
            None => Vitality::Idle,
        }
    }

    fn now(&self) -> u64 {
        millis(self.born.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, advance};

    use super::{Pulse, Vitality};
    use crate::settings::Settings;

    /// Ten seconds for a head, 75 between requests, 60 to take what is sent.
    const SETTINGS: Settings = Settings::standard();
    const HEADER: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn limits_follow_what_the_connection_does() {
        let pulse = Pulse::new();
        let check = || pulse.check(&SETTINGS);
        assert_eq!(check(), Vitality::Alive(HEADER));
        pulse.read();
        advance(Duration::from_secs(4)).await;
        pulse.read();
        assert_eq!(check(), Vitality::Alive(Duration::from_secs(6)), "a trickle gains nothing");
        pulse.request_began();
        advance(Duration::from_secs(600)).await;
        assert_eq!(check(), Vitality::Alive(HEADER), "requests have their own limits");
        pulse.request_ended(Instant::now(), true);
        advance(Duration::from_secs(74)).await;
        assert_eq!(check(), Vitality::Alive(Duration::from_secs(1)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(check(), Vitality::Idle);
        pulse.read();
        advance(HEADER).await;
        assert_eq!(check(), Vitality::SlowHead);
        pulse.set_h2();
        assert_eq!(check(), Vitality::Idle);
        pulse.request_began();
        pulse.blocked();
        advance(Duration::from_secs(59)).await;
        assert_eq!(check(), Vitality::Alive(HEADER));
        pulse.blocked();
        advance(Duration::from_secs(1)).await;
        assert_eq!(check(), Vitality::Stuck);
        pulse.written();
        assert_eq!(check(), Vitality::Alive(HEADER));
    }

    #[tokio::test]
    async fn giving_up_more_than_is_answered_is_noticed() {
        let pulse = Pulse::new();
        let end = |was_answered| {
            pulse.request_began();
            pulse.request_ended(Instant::now(), was_answered);
        };
        end(true);
        for _ in 0..3 {
            end(false);
        }
        assert!(!pulse.is_fickle(3));
        end(false);
        assert!(pulse.is_fickle(3));
        end(true);
        assert!(!pulse.is_fickle(3), "who waits for answers again is forgiven");
    }
}
