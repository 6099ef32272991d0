//! The only place with `unsafe`: messages for nf_tables, built by libnftnl, and one call of the
//! kernel that no crate here has.
//!
//! Values go in, bytes come out; no pointer leaves this module. What the `nftnl` crate has
//! (chains, rules) is used as it is; tables with a comment, maps, concatenated keys and most
//! expressions it has not, and they are built through the C functions below it. Messages of
//! elements, of which there are many, are written by [`elements`].
//!
//! Rules that hold everywhere here: each object is freed by its guard exactly once, or is given
//! to a parent that frees it; strings and buffers passed to libnftnl are copied by it before the
//! call returns; a message is written to a buffer as large as the largest message can be.
#![expect(unsafe_code, reason = "libnftnl is a C library; this module is its border")]

mod barrier;
mod expression;

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;

use nftnl::nftnl_sys::{self as sys, libc};
use nftnl::{ChainType, MsgType, NlMsg, Policy, ProtoFamily, Table};

use crate::element::{Data, Element, Part, Set};
use crate::elements::{self, Change, Head};
use crate::layout::{Chain, Hook};
use crate::value::Family;

pub(crate) use barrier::await_packets;

/// Bytes of a begin message without attributes.
const BEGIN_SIZE: usize = 20;
/// Bytes of a word of the scratch space.
const WORD: usize = size_of::<u64>();

/// Builds messages, one after the other, as they go to the kernel.
///
/// None of them asks for an answer: a batch is answered as a whole.
pub(crate) struct Encoder {
    table: Table,
    name: CString,
    bytes: Vec<u8>,
    /// Where a message is built; of words, since libmnl wants it aligned.
    scratch: Vec<u64>,
    /// The number of the next message.
    sequence: u32,
}

/// Frees what libnftnl allocated.
struct Guard<T>(NonNull<T>, unsafe extern "C" fn(*const T));

impl Encoder {
    /// An encoder for the table of this name, with no message yet; `sequence` numbers the first.
    pub(crate) fn new(name: &str, sequence: u32) -> Self {
        let name = c_string(name);
        let size = usize::try_from(nftnl::nft_nlmsg_maxsize()).expect("a size fits");
        let table = Table::new(&name, ProtoFamily::Inet);
        Self { table, name, bytes: Vec::new(), scratch: vec![0; size.div_ceil(WORD)], sequence }
    }

    /// The messages so far, and the number of the next one.
    pub(crate) fn finish(self) -> (Vec<u8>, u32) {
        (self.bytes, self.sequence)
    }

    /// Begins a batch. With a generation the kernel refuses it if anything was committed since.
    pub(crate) fn begin(&mut self, generation: Option<u32>) {
        // SAFETY: the buffer has room for any message, which `message` provides.
        self.message(|buffer, seq| unsafe {
            sys::nftnl_batch_begin(buffer.cast::<c_char>(), seq);
        });
        if let Some(generation) = generation {
            const NFNL_BATCH_GENID: u16 = 1;
            // The one attribute of this message, which libnftnl does not know; it is the only
            // message so far, or the last.
            let mut attribute = [0; 8];
            attribute[..2].copy_from_slice(&8_u16.to_ne_bytes());
            attribute[2..4].copy_from_slice(&NFNL_BATCH_GENID.to_ne_bytes());
            attribute[4..].copy_from_slice(&generation.to_be_bytes());
            let start = self.bytes.len() - BEGIN_SIZE;
            self.bytes.extend_from_slice(&attribute);
            let size = u32::try_from(BEGIN_SIZE + attribute.len()).expect("a size fits");
            self.bytes[start..start + 4].copy_from_slice(&size.to_ne_bytes());
        }
    }

    /// Ends a batch; asks for the answer that proves its success where the kernel gives one.
    pub(crate) fn end(&mut self, proof: bool) {
        let start = self.bytes.len();
        // SAFETY: as for `begin`.
        self.message(|buffer, seq| unsafe {
            sys::nftnl_batch_end(buffer.cast::<c_char>(), seq);
        });
        if proof {
            let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
            let flags = u16::try_from(flags).expect("flags of 16 bits");
            self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// Makes the table, with a comment and flags; or takes it, if it is there.
    pub(crate) fn add_table(&mut self, comment: &str, flags: u32) {
        let user = user_data(comment);
        // SAFETY: the table is alive until its guard is dropped, after the message is written;
        // name and user data are copied.
        unsafe {
            let table = self.new_table();
            sys::nftnl_table_set_u32(table.as_ptr(), attribute(sys::NFTNL_TABLE_FLAGS), flags);
            let length = u32::try_from(user.len()).expect("a comment is short");
            let data = user.as_ptr().cast::<c_void>();
            let key = attribute(sys::NFTNL_TABLE_USERDATA);
            assert_eq!(sys::nftnl_table_set_data(table.as_ptr(), key, data, length), 0, "memory");
            self.header(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |header| {
                sys::nftnl_table_nlmsg_build_payload(header, table.as_ptr());
            });
        }
    }

    /// Deletes the table with all that is in it.
    pub(crate) fn delete_table(&mut self) {
        // SAFETY: as for `add_table`.
        unsafe {
            let table = self.new_table();
            self.header(libc::NFT_MSG_DELTABLE, 0, |header| {
                sys::nftnl_table_nlmsg_build_payload(header, table.as_ptr());
            });
        }
    }

    /// Makes a chain, without its rules.
    pub(crate) fn add_chain(&mut self, chain: &Chain) {
        let table = Table::new(&self.name, ProtoFamily::Inet);
        let message = chain_of(&table, chain);
        // SAFETY: the buffer has room for any message.
        self.message(|buffer, seq| unsafe { message.write(buffer, seq, MsgType::Add) });
    }

    /// Makes the rules of a chain. The chains and sets that they name must be there.
    pub(crate) fn add_rules(&mut self, chain: &Chain) {
        let table = Table::new(&self.name, ProtoFamily::Inet);
        let parent = chain_of(&table, chain);
        for expressions in &chain.rules {
            let mut rule = nftnl::Rule::new(&parent);
            expressions.iter().for_each(|expression| rule.add_expr(expression));
            // SAFETY: the buffer has room for any message.
            self.message(|buffer, seq| unsafe { rule.write(buffer, seq, MsgType::Add) });
        }
    }

    /// Makes an empty set or map.
    pub(crate) fn add_set(&mut self, set: Set) {
        let (key_type, key_length) = concatenation(&set.key());
        let (data_type, data_length) = concatenation(&set.data());
        let mut flags = 0;
        if set.is_interval() {
            flags |= libc::NFT_SET_INTERVAL;
        }
        if data_length > 0 {
            flags |= libc::NFT_SET_MAP;
        }
        let id = set.number();
        // SAFETY: the set is alive until its guard is dropped, after the message is written.
        unsafe {
            let list = self.new_set(set);
            let put = |key, value| sys::nftnl_set_set_u32(list.as_ptr(), attribute(key), value);
            put(sys::NFTNL_SET_ID, u32::from(id) + 1);
            put(sys::NFTNL_SET_FLAGS, u32::try_from(flags).expect("flags are positive"));
            put(sys::NFTNL_SET_KEY_TYPE, key_type);
            put(sys::NFTNL_SET_KEY_LEN, key_length);
            if data_length > 0 {
                put(sys::NFTNL_SET_DATA_TYPE, data_type);
                put(sys::NFTNL_SET_DATA_LEN, data_length);
            }
            self.header(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |header| {
                sys::nftnl_set_nlmsg_build_payload(header, list.as_ptr());
            });
        }
    }

    /// Adds elements of one set; one that is there already is an error.
    pub(crate) fn add_elements<'a>(
        &mut self,
        set: Set,
        elements: impl Iterator<Item = (&'a Element, &'a Data)>,
    ) {
        self.elements(Change::Add, set, elements);
    }

    /// Deletes elements of one set; one that is not there is an error.
    pub(crate) fn delete_elements<'a>(
        &mut self,
        set: Set,
        elements: impl Iterator<Item = &'a Element>,
    ) {
        let elements = elements.map(|element| (element, &Data::EMPTY));
        self.elements(Change::Delete, set, elements);
    }

    /// Appends messages of elements, without libnftnl.
    fn elements<'a>(
        &mut self,
        change: Change,
        set: Set,
        elements: impl Iterator<Item = (&'a Element, &'a Data)>,
    ) {
        let set = c_string(&set.to_string());
        let head = Head { change, table: &self.name, set: &set };
        self.sequence = elements::append(&mut self.bytes, head, self.sequence, elements);
    }

    /// A message of a kind: `payload` gets the header and appends the rest.
    fn header(&mut self, kind: c_int, flags: c_int, payload: impl FnOnce(*mut libc::nlmsghdr)) {
        let family = ProtoFamily::Inet as u16;
        let kind = u16::try_from(kind).expect("a kind of message has 16 bits");
        let flags = u16::try_from(flags).expect("flags of a message have 16 bits");
        self.message(|buffer, seq| {
            // SAFETY: the buffer has room for any message.
            let header = unsafe {
                sys::nftnl_nlmsg_build_hdr(buffer.cast::<c_char>(), kind, family, flags, seq)
            };
            payload(header);
        });
    }

    /// Lets `write` write one message to a buffer of the largest size, and appends it.
    fn message(&mut self, write: impl FnOnce(*mut c_void, u32)) {
        write(self.scratch.as_mut_ptr().cast::<c_void>(), self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
        // SAFETY: the scratch space is initialised memory of this many bytes.
        let written = unsafe {
            std::slice::from_raw_parts(
                self.scratch.as_ptr().cast::<u8>(),
                self.scratch.len() * WORD,
            )
        };
        let size = u32::from_ne_bytes(written[..4].try_into().expect("four bytes")) as usize;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&written[..size.next_multiple_of(4)]);
        // The `nftnl` crate asks for an answer to every message. They would fill the receive
        // buffer long before a batch of services ends.
        let flags = u16::from_ne_bytes(written[6..8].try_into().expect("two bytes"));
        let asks = u16::try_from(libc::NLM_F_ACK).expect("a flag of 16 bits");
        self.bytes[start + 6..start + 8].copy_from_slice(&(flags & !asks).to_ne_bytes());
    }

    /// # Safety
    /// None beyond the module's rules: the guard frees the table.
    unsafe fn new_table(&self) -> Guard<sys::nftnl_table> {
        unsafe {
            let table = Guard(allocated(sys::nftnl_table_alloc()), sys::nftnl_table_free);
            let family = ProtoFamily::Inet as u32;
            sys::nftnl_table_set_u32(table.as_ptr(), attribute(sys::NFTNL_TABLE_FAMILY), family);
            let name = self.name.as_ptr();
            sys::nftnl_table_set_str(table.as_ptr(), attribute(sys::NFTNL_TABLE_NAME), name);
            table
        }
    }

    /// # Safety
    /// None beyond the module's rules: the guard frees the set, which has no elements.
    unsafe fn new_set(&self, set: Set) -> Guard<sys::nftnl_set> {
        let name = c_string(&set.to_string());
        unsafe {
            let raw = Guard(allocated(sys::nftnl_set_alloc()), sys::nftnl_set_free);
            let family = ProtoFamily::Inet as u32;
            sys::nftnl_set_set_u32(raw.as_ptr(), attribute(sys::NFTNL_SET_FAMILY), family);
            let table = self.table.get_name().as_ptr();
            sys::nftnl_set_set_str(raw.as_ptr(), attribute(sys::NFTNL_SET_TABLE), table);
            sys::nftnl_set_set_str(raw.as_ptr(), attribute(sys::NFTNL_SET_NAME), name.as_ptr());
            raw
        }
    }
}

impl<T> Guard<T> {
    fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        // SAFETY: the guard alone owns the object, and this is the function that frees its type.
        unsafe { (self.1)(self.0.as_ptr()) }
    }
}

fn chain_of<'a>(table: &'a Table, chain: &Chain) -> nftnl::Chain<'a> {
    let mut message = nftnl::Chain::new(c_string(&chain.name), table);
    if let Some(hook) = chain.hook {
        message.set_type(ChainType::Nat);
        message.set_policy(Policy::Accept);
        let place = match hook {
            Hook::Prerouting => nftnl::Hook::PreRouting,
            Hook::Output => nftnl::Hook::Out,
            Hook::Postrouting => nftnl::Hook::PostRouting,
        };
        message.set_hook(place, hook.priority());
    }
    message
}

/// The type of a concatenation, by which `nft` prints it, and its length in bytes.
fn concatenation(parts: &[Part]) -> (u32, u32) {
    // Numbers of `nft`, six bits each; the kernel stores the type and does not look at it.
    let one = |part: &Part| match part {
        Part::Address(Family::V4) => (7, 4),
        Part::Address(Family::V6) => (8, 16),
        Part::Protocol => (12, 4),
        Part::Port => (13, 4),
        Part::Slot => (19, 4),
    };
    parts.iter().map(one).fold((0, 0), |(kind, length), part| (kind << 6 | part.0, length + part.1))
}

/// A comment as `nft` writes and prints it: type, length, text with its end.
fn user_data(comment: &str) -> Vec<u8> {
    let text = c_string(comment);
    let text = text.as_bytes_with_nul();
    let length = u8::try_from(text.len()).expect("a comment has at most 128 bytes");
    [&[0, length], text].concat()
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("names of ours have no zero byte")
}

/// The name of an attribute, in the width that most functions want.
fn attribute(key: u32) -> u16 {
    u16::try_from(key).expect("libnftnl's attributes are small numbers")
}

/// What libnftnl allocated. Without memory the process ends, as anywhere in Rust.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| handle_alloc_error(Layout::new::<u64>()))
}

/// The text of a static name, for expressions.
fn text(name: &'static CStr) -> *const c_char {
    name.as_ptr()
}

#[cfg(test)]
mod tests;
