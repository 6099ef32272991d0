//! Messages of elements, written attribute by attribute. Pure.
//!
//! Of a large batch nearly all is elements, and libnftnl would allocate half a kilobyte for each;
//! here one is some dozen words at the end of a buffer. All other messages are libnftnl's, and
//! what it and the kernel agree upon holds here too: headers have the order of the host, numbers
//! that of the network, each attribute is padded to four bytes, and the length of an attribute
//! has 16 bits, so that many elements are many messages.

use std::ffi::CStr;

use netlink_packet_core::{NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use nftnl::nftnl_sys::libc;

use crate::element::{Data, Element, Key};
use crate::wire::HEADER;

/// Names of the messages, in nf_tables' subsystem.
const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const NEW: u16 = SUBSYSTEM | libc::NFT_MSG_NEWSETELEM as u16;
const DELETE: u16 = SUBSYSTEM | libc::NFT_MSG_DELSETELEM as u16;
/// Netfilter's own header: the family of the table, and no version or resource.
const NETFILTER: [u8; 4] = [libc::NFPROTO_INET as u8, 0, 0, 0];
/// Attributes of a message; the kernel's header `nf_tables.h` has these and those below.
const TABLE: u16 = 1;
const SET: u16 = 2;
const LIST: u16 = 3;
/// The kind of each item of the list.
const ITEM: u16 = 1;
/// Attributes of an element.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
/// What a key and data have their bytes in.
const VALUE: u16 = 1;
/// That an interval ends before an element.
const INTERVAL_END: u32 = libc::NFT_SET_ELEM_INTERVAL_END as u32;

/// Bytes of an attribute without its value.
const ATTRIBUTE: usize = 4;
/// The most bytes of an attribute, as its length says.
const ATTRIBUTE_MAX: usize = u16::MAX as usize;
/// The most bytes of an element in a list: it holds flags, a key and data, the latter nested.
const ELEMENT_MAX: usize = ATTRIBUTE
    + (ATTRIBUTE + size_of::<u32>())
    + (2 * ATTRIBUTE + Key::SIZE_MAX.next_multiple_of(4))
    + (2 * ATTRIBUTE + Data::SIZE_MAX.next_multiple_of(4));

// Each message takes one element at least, so that writing them comes to an end.
const _: () = assert!(ATTRIBUTE + ELEMENT_MAX <= ATTRIBUTE_MAX);

/// What becomes of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// They come; one that is there already is an error.
    Add,
    /// They go; one that is not there is an error.
    Delete,
}

/// What the messages of a change have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// What becomes of the elements.
    pub(crate) change: Change,
    /// The table; its name has at most 255 bytes, as all of nf_tables' names.
    pub(crate) table: &'a CStr,
    /// Its set that all of the elements are in.
    pub(crate) set: &'a CStr,
}

/// Appends messages of elements, as many as their limit of 64 KiB makes necessary: none if there
/// are no elements. `sequence` numbers the first; gives the number of what comes next.
///
/// `bytes` holds whole messages, before and after.
pub(crate) fn append<'a>(
    bytes: &mut Vec<u8>,
    head: Head<'_>,
    mut sequence: u32,
    elements: impl Iterator<Item = (&'a Element, &'a Data)>,
) -> u32 {
    let mut elements = elements.peekable();
    while elements.peek().is_some() {
        message(bytes, head, sequence, &mut elements);
        sequence = sequence.wrapping_add(1);
    }
    sequence
}

/// Appends one message, with as many of the elements as it is sure to have room for.
fn message<'a>(
    bytes: &mut Vec<u8>,
    head: Head<'_>,
    sequence: u32,
    elements: &mut impl Iterator<Item = (&'a Element, &'a Data)>,
) {
    let (kind, flags) = match head.change {
        Change::Add => (NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL),
        Change::Delete => (DELETE, NLM_F_REQUEST),
    };
    let start = bytes.len();
    // The length comes last; the sender's port is left to the kernel.
    bytes.extend_from_slice(&[0; HEADER]);
    bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
    bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
    bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&NETFILTER);
    attribute(bytes, SET, head.set.to_bytes_with_nul());
    attribute(bytes, TABLE, head.table.to_bytes_with_nul());
    nest(bytes, LIST, |bytes| {
        let start = bytes.len() - ATTRIBUTE;
        while bytes.len() - start <= ATTRIBUTE_MAX - ELEMENT_MAX
            && let Some((element, data)) = elements.next()
        {
            item(bytes, element, data);
        }
    });
    let size = u32::try_from(bytes.len() - start).expect("names and one list are some 64 KiB");
    bytes[start..start + 4].copy_from_slice(&size.to_ne_bytes());
}

/// Appends an element to a list: at most [`ELEMENT_MAX`] bytes.
fn item(bytes: &mut Vec<u8>, element: &Element, data: &Data) {
    nest(bytes, ITEM, |bytes| {
        if element.end {
            attribute(bytes, FLAGS, &INTERVAL_END.to_be_bytes());
        }
        nest(bytes, KEY, |bytes| attribute(bytes, VALUE, element.key.as_slice()));
        if !data.as_slice().is_empty() {
            nest(bytes, DATA, |bytes| attribute(bytes, VALUE, data.as_slice()));
        }
    });
}

/// Appends an attribute that holds what `write` appends: whole attributes.
fn nest(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&header(0, NLA_F_NESTED | kind));
    write(bytes);
    let size = bytes.len() - start;
    bytes[start..start + ATTRIBUTE].copy_from_slice(&header(size, NLA_F_NESTED | kind));
}

/// Appends an attribute with its padding.
fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    const PADDING: [u8; 3] = [0; 3];
    bytes.extend_from_slice(&header(ATTRIBUTE + value.len(), kind));
    bytes.extend_from_slice(value);
    bytes.extend_from_slice(&PADDING[..value.len().next_multiple_of(4) - value.len()]);
}

/// What an attribute of this size, without its padding, begins with.
fn header(size: usize, kind: u16) -> [u8; ATTRIBUTE] {
    let size = u16::try_from(size).expect("names, keys and data are short, and a list ends before");
    let ([a, b], [c, d]) = (size.to_ne_bytes(), kind.to_ne_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests;
