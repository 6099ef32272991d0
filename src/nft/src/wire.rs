//! Netlink as bytes, to be read. Bounds are checked by `netlink-packet-core`: what does not parse
//! is skipped or an error, never a panic.

use netlink_packet_core::{NLM_F_REQUEST, NetlinkBuffer, NlasIterator};

/// `NLMSG_ERROR`: an answer to a message; the number is 0 for success.
pub(crate) const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub(crate) const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: something changed while it was dumped.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: the error says more than its number.
const EXPLAINED: u16 = 0x200;
/// Bytes of a message's header, and of the header that netfilter adds.
pub(crate) const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// A message from the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// Subsystem and kind.
    pub(crate) kind: u16,
    /// Of the request that it answers.
    pub(crate) sequence: u32,
    /// Whose request it answers or tells of.
    pub(crate) port: u32,
    /// Whether a dump it belongs to is of no use.
    pub(crate) interrupted: bool,
    flags: u16,
    payload: &'a [u8],
}

/// What the kernel says about a message that it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// The number of the message.
    pub(crate) sequence: u32,
    /// Why, as an error number; 0 for none.
    pub(crate) errno: i32,
    /// Why, in words, if the kernel has any.
    pub(crate) text: Option<String>,
    /// Where in the message, in bytes from its start, if the kernel knows.
    pub(crate) offset: Option<usize>,
}

/// The messages in a datagram, up to the first that is broken.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(bytes).ok()?;
        let size = usize::try_from(buffer.length()).ok()?;
        let payload = bytes.get(HEADER..size)?;
        bytes = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
        let flags = buffer.flags();
        Some(Message {
            kind: buffer.message_type(),
            sequence: buffer.sequence_number(),
            port: buffer.port_number(),
            interrupted: flags & INTERRUPTED != 0,
            flags,
            payload,
        })
    })
}

/// The attributes in a payload, up to the first that is broken.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    NlasIterator::new(bytes).map_while(Result::ok).map_while(move |attribute| {
        // The iterator's values borrow from its buffer, not from ours.
        let size = usize::from(attribute.length());
        let value = rest.get(4..size)?;
        rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        Some((attribute.kind(), value))
    })
}

/// The first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number as netfilter's attributes have it.
pub(crate) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    attribute(bytes, kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// A text without its end.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<&str> {
    let value = attribute(bytes, kind)?;
    str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

impl<'a> Message<'a> {
    /// The attributes, without netfilter's header.
    pub(crate) fn body(&self) -> &'a [u8] {
        self.payload.get(NETFILTER_HEADER..).unwrap_or_default()
    }

    /// What an error says; `None` if this is none.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        const TEXT: u16 = 1;
        const OFFSET: u16 = 2;
        if self.kind != ERROR {
            return None;
        }
        let errno = -i32::from_ne_bytes(*self.payload.first_chunk()?);
        // Only the header of the refused message follows, as the socket asks for no more.
        let explained = self.flags & EXPLAINED != 0;
        let more = self.payload.get(4 + HEADER..).filter(|_| explained).unwrap_or_default();
        let offset = attribute(more, OFFSET).and_then(|bytes| bytes.first_chunk());
        Some(Complaint {
            sequence: self.sequence,
            errno,
            text: text(more, TEXT).map(ToOwned::to_owned),
            offset: offset.and_then(|bytes| usize::try_from(u32::from_ne_bytes(*bytes)).ok()),
        })
    }
}

/// A request to netfilter with attributes of text.
pub(crate) fn request(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    texts: &[(u16, &str)],
) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend([family, 0, 0, 0]);
    for (attribute, text) in texts {
        let size = u16::try_from(4 + text.len() + 1).expect("names are short");
        bytes.extend(size.to_ne_bytes());
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let size = u32::try_from(bytes.len()).expect("a request is short");
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(size);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | flags);
    header.set_sequence_number(sequence);
    bytes
}
