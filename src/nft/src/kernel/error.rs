//! Why the kernel did not do what it was told.

use std::io;

use nix::errno::Errno;

use crate::decode;
use crate::element::{Element, Owner, Set};
use crate::wire::{self, Complaint, HEADER};

/// Why the kernel did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed before anything was sent or read.
    #[error("talk to nf_tables")]
    Socket(#[source] io::Error),
    /// It refused a batch; nothing of it was done.
    #[error("nf_tables refuses {}: {}", refused(*.element), .reason.as_deref().unwrap_or("no reason given"))]
    Refused {
        /// The element that it stumbled over, if it says.
        element: Option<Element>,
        /// Its words, if it has any.
        reason: Option<String>,
        /// Its error number.
        #[source]
        errno: io::Error,
    },
    /// The batch was for another generation; nothing of it was done.
    #[error("the ruleset was changed meanwhile")]
    Stale,
    /// The table belongs to another process; nothing was done.
    #[error("another process owns the table")]
    Owned,
    /// It lost its answer: the batch was done or was not.
    #[error("the outcome of a batch is unknown")]
    Unknown,
    /// The table changed all the time while it was read.
    #[error("the table changes too fast to be read")]
    Restless,
}

impl Error {
    /// The label of metrics and the reason of events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Socket(_) => "Socket",
            Self::Refused { .. } => "Refused",
            Self::Stale => "Stale",
            Self::Owned => "Owned",
            Self::Unknown => "Unknown",
            Self::Restless => "Restless",
        }
    }

    /// Whose element the kernel refused, if it says.
    pub fn owner(&self) -> Option<Owner> {
        match self {
            Self::Refused { element, .. } => element.map(|element| element.owner()),
            _ => None,
        }
    }

    /// Whether the table is not what it was thought to be, and must be read.
    pub(crate) fn asks_for_reading(&self) -> bool {
        let mismatch = [Errno::EEXIST, Errno::ENOENT].map(|errno| Some(errno as i32));
        match self {
            Self::Refused { errno, .. } => mismatch.contains(&errno.raw_os_error()),
            Self::Stale | Self::Unknown => true,
            Self::Socket(_) | Self::Owned | Self::Restless => false,
        }
    }

    /// Whether it is about something in the batch, and does not say about what.
    pub(crate) fn is_anonymous(&self) -> bool {
        // These say how the kernel is, whatever it was sent.
        let passing = [Errno::ENOBUFS, Errno::ENOMEM, Errno::EINTR, Errno::EAGAIN, Errno::EBUSY];
        let passing = passing.map(|errno| Some(errno as i32));
        match self {
            Self::Refused { element: None, errno, .. } => !passing.contains(&errno.raw_os_error()),
            _ => false,
        }
    }
}

fn refused(element: Option<Element>) -> String {
    element.map_or_else(
        || "a batch".to_owned(),
        |e| format!("an element of {} of {:?}", e.set, e.owner()),
    )
}

/// What a complaint about one of the messages in `bytes` means.
pub(super) fn explain(bytes: &[u8], complaint: Complaint) -> Error {
    match Errno::from_raw(complaint.errno) {
        Errno::ERESTART => Error::Stale,
        Errno::EPERM => Error::Owned,
        errno => Error::Refused {
            element: stumbled(bytes, &complaint),
            reason: complaint.text,
            errno: io::Error::from(errno),
        },
    }
}

/// The element in a message that a complaint points at.
fn stumbled(bytes: &[u8], complaint: &Complaint) -> Option<Element> {
    let mut rest = bytes;
    let message = loop {
        let size = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let message = rest.get(..size)?;
        if message.get(8..12)? == complaint.sequence.to_ne_bytes() {
            break message;
        }
        rest = rest.get(size.next_multiple_of(4).max(HEADER)..)?;
    };
    let body = message.get(HEADER + 4..)?;
    let set = Set::from_name(wire::text(body, 2)?)?;
    let list = wire::attribute(body, 3)?;
    let end = |item: &[u8]| item.as_ptr() as usize + item.len() - message.as_ptr() as usize;
    let mut items = wire::attributes(list).map(|(_, item)| item);
    let offset = complaint.offset?;
    // The offset is that of the element or of something in it.
    items.find(|item| end(item) > offset).map(|item| decode::element(set, item).0)
}
