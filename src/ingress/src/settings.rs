//! Every knob of the data path in one place, with its unit and its reason.

use std::borrow::Cow;
use std::time::Duration;

use crate::cidr::Cidr;

/// Limits and times of one ingress. A tenant's behaviour is not here but in its routes and pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Requests that may wait for one service; the next is answered `queue_full`.
    pub queue_limit: usize,
    /// Longest time a request waits for a slot, over all switches of the active pool.
    pub wait: Duration,
    /// How long a request waits where no version is active: whoever has seen that an App is ready
    /// may ask before this gateway has seen it.
    pub no_version_wait: Duration,
    /// Longest time to establish a connection to a sandbox.
    pub connect_timeout: Duration,
    /// Unused connections kept per sandbox.
    pub idle_connections_per_sandbox: usize,
    /// How long an unused connection to a sandbox is kept. A request sent on a connection that the
    /// program is just closing is lost and may not be repeated, so this stays below the shortest
    /// keep-alive in common use (gunicorn: 2 s).
    pub upstream_idle: Duration,
    /// How long a `Strict` sandbox may take to end a response nobody wants before it is retired.
    pub strict_wait: Duration,
    /// How long a sandbox that nobody waits for is probed after it got its address or died.
    pub probe_window: Duration,

    /// How long a borrowed slot is kept without use: a steady imbalance costs nothing per request,
    /// and one that is over holds nothing.
    pub loan_linger: Duration,
    /// How long other gateways may take to say whether they have a free slot before another
    /// sandbox is asked for: many round trips, little beside a start.
    pub loan_answer: Duration,

    /// Connections from outside, all listeners together.
    pub connections_max: usize,
    /// Connections from one client address. Trusted proxies are exempt.
    pub connections_per_client_max: usize,
    /// From accept to the end of the TLS handshake, PROXY header included.
    pub handshake_timeout: Duration,
    /// From the first byte of a request's head to its last.
    pub header_timeout: Duration,
    /// How long a connection without a request is kept. Above the 60 s that common load balancers
    /// in front use, so that they close first.
    pub keep_alive: Duration,
    /// How long a client may take nothing of what is sent to it before its connection is cut, or,
    /// over HTTP/2, before its stream is.
    pub write_stall: Duration,
    /// Bytes of a request's head, and of its decompressed header list over HTTP/2.
    pub header_size_max: usize,
    /// Fields in a request's head.
    pub header_count_max: usize,
    /// Bytes of a request's body where the route says nothing; `None`: unlimited.
    pub request_body_max: Option<u64>,
    /// Requests at once on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Receive window of a client's HTTP/2 stream in bytes: what a slow sandbox makes us hold.
    pub h2_stream_window: u32,
    /// Receive window of a client's HTTP/2 connection in bytes.
    pub h2_connection_window: u32,
    /// Receive window of a stream from a sandbox in bytes: what a slow client makes us hold behind
    /// what was read. Their connection has no window of its own: all visitors share it, and few
    /// who do not read would stop it for the others.
    pub h2_upstream_window: u32,
    /// Bytes of one HTTP/2 stream that wait to be sent before no more is read of its sandbox: what
    /// a client with a wide window that reads nothing makes us hold for each of its streams, beside
    /// the last two reads.
    pub h2_send_buffer: usize,
    /// Bytes of answers held for clients that have not taken them, all together: responses over
    /// HTTP/2, those over HTTP/1.1 beyond what came with their heads, and bodies of requests over
    /// HTTP/2 that a sandbox has not taken. What a connection or a request costs in any case comes
    /// on top.
    pub response_buffers_max: u64,
    /// Streams a peer may reset before we looked at them; more end the connection (rapid reset).
    pub h2_pending_resets_max: usize,
    /// Requests that a client may give up before their answers begin, beyond those that it lets be
    /// answered; more end the connection. A browser that leaves a page resets all that it waits
    /// for at once, so this is twice the streams.
    pub h2_given_up_max: u32,
    /// Pause between pings on an HTTP/2 connection, and the wait for the answer to one: what it
    /// takes to notice a peer that is gone without a word.
    pub h2_ping_interval: Duration,

    /// How long connections are still accepted after shutdown has begun, while answers over
    /// HTTP/1.1 ask their clients to reconnect: whoever balances the load needs a moment to notice,
    /// and a connection closed while it is not used may cross with its next request.
    pub lame_duck: Duration,
    /// How long requests may run on after that: no shorter than `wait`. Streams are cut at the end
    /// of it.
    pub drain: Duration,
    /// Who may say for whom a connection is made: `X-Forwarded-*` is kept and appended to.
    pub trusted_proxies: Vec<Cidr>,
    /// What cluster DNS puts behind `.svc`, in lower case and without dots at its ends.
    pub cluster_domain: Cow<'static, str>,
    /// Whether every connection from outside is logged at the end of each request.
    pub access_log: AccessLog,
}

/// Whether requests are logged (tracing target `access`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// One event at level info per request.
    On,
    /// None.
    Off,
}

impl Settings {
    /// How long after shutdown has begun the last request may run; what runs then is cut.
    #[must_use]
    pub const fn cut_after(&self) -> Duration {
        self.lame_duck.saturating_add(self.drain)
    }

    /// The documented defaults.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            queue_limit: 1_000,
            wait: Duration::from_secs(60),
            no_version_wait: Duration::from_secs(1),
            // A sandbox is in the same cluster: a handshake takes well below a millisecond, and one
            // lost SYN is repeated after one second.
            connect_timeout: Duration::from_secs(3),
            idle_connections_per_sandbox: 256,
            upstream_idle: Duration::from_millis(1_500),
            strict_wait: Duration::from_secs(30),
            probe_window: Duration::from_secs(60),
            loan_linger: Duration::from_secs(1),
            loan_answer: Duration::from_millis(50),
            connections_max: 50_000,
            // Enough for an office behind one address, too little to take all connections.
            connections_per_client_max: 5_000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
            header_size_max: 64 * 1024,
            header_count_max: 100,
            request_body_max: None,
            h2_streams_max: 128,
            h2_stream_window: 256 * 1024,
            h2_connection_window: 512 * 1024,
            // Many programs leave Nagle's algorithm on, and are told of room 40 ms late then: with a
            // quarter of this, some send 1.5 MB/s.
            h2_upstream_window: 256 * 1024,
            // Four frames: the connection has something to send until the stream's task has fetched
            // more. Whatever fits here gives its slot back before the client has taken it.
            h2_send_buffer: 64 * 1024,
            // A quarter of the memory that the chart allows a gateway.
            response_buffers_max: 256 << 20,
            h2_pending_resets_max: 20,
            h2_given_up_max: 256,
            h2_ping_interval: Duration::from_secs(20),
            lame_duck: Duration::from_secs(5),
            // Nobody is cut off who waits for a sandbox: that is the longest wait.
            drain: Duration::from_secs(60),
            trusted_proxies: Vec::new(),
            cluster_domain: Cow::Borrowed("cluster.local"),
            access_log: AccessLog::On,
        }
    }
}
