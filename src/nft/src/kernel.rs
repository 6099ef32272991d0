//! The executor: the one owner of the netlink socket that changes the table.
//!
//! Every batch is one datagram, which the kernel does as a whole or not at all.
//! Calls do not wait for anything but the kernel's own work: some 20 µs for a small batch, some
//! 100 ms for a table of ten thousand services; a caller with an event loop runs them on a
//! thread of their own.

mod error;
mod read;

use std::borrow::Borrow;

use nix::errno::Errno;
use nix::sys::utsname::uname;

use crate::element::{Data, Element, Set};
use crate::ffi::{self, Encoder};
use crate::layout;
use crate::socket::{DATAGRAM, Link};
use crate::transaction::{self, Batch, Elements};
use crate::wire::{self, Complaint};

pub use error::Error;
use error::explain;

/// The name of the table, in the family `inet`.
pub const TABLE: &str = "portolan";

/// The kernel's nf_tables, in the network namespace of the thread that opened it.
pub struct Kernel {
    link: Link,
    features: Features,
    /// Whether the table is this process's, so that nobody else changes it.
    owned: bool,
    /// Comment of a table that this program made, with these chains, rules and sets.
    marker: String,
}

/// What this kernel can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether a table can have an owner, against whose will nobody changes it, and that it
    /// outlives (Linux 6.9). Without, what others do to it is found and repaired.
    pub owned_tables: bool,
    /// Whether the end of a batch is answered (Linux 6.10). Without, silence means success.
    pub proves_commits: bool,
    /// Whether a set says how many elements it has (Linux 6.16). Without, large sets are read
    /// twice.
    pub counts_elements: bool,
    /// Whether a refusal says which element it is about (Linux 6.0). Without, it is found by
    /// trying.
    pub names_elements: bool,
}

/// What there is under the table's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No table.
    Absent,
    /// A table that this program did not make; its comment, if it has one.
    Foreign(Option<String>),
    /// A table of another version of this program, or whose rules somebody changed.
    Outdated,
    /// The table with its elements, at a generation of the kernel's ruleset.
    Current(Elements, u32),
}

/// `NFT_TABLE_F_PERSIST`, and the same with `NFT_TABLE_F_OWNER`.
const PERSISTS: u32 = 4;
const OWNED: u32 = 2 | PERSISTS;
/// What the comment of any table of this program begins with.
const MARKER: &str = "owner=portolan-node";
/// The copy of the table that forwards while the table is replaced.
const STAND_IN: &str = "portolan-next";
/// The table of probes; it is gone before anybody sees it.
const PROBE: &str = "portolan-probe";

impl Kernel {
    /// Opens the socket and finds out what the kernel can do, without changing anything.
    ///
    /// # Errors
    /// [`Error::Socket`] without the privilege; [`Error::Refused`] if the kernel lacks something
    /// that the rules need.
    pub fn open() -> Result<Self, Error> {
        let link = Link::open().map_err(Error::Socket)?;
        let version = version();
        let features = Features {
            owned_tables: false,
            proves_commits: version >= (6, 10),
            counts_elements: version >= (6, 16),
            names_elements: version >= (6, 0),
        };
        let mut encoder = Encoder::new(TABLE, 0);
        encode_layout(&mut encoder);
        let marker = format!("{MARKER} layout={:016x}", digest(&encoder.finish().0));
        let mut kernel = Self { link, features, owned: false, marker };
        // Made and deleted in one batch, so that the kernel checks all and keeps nothing.
        kernel.probe(OWNED, &[]).map(|()| kernel.features.owned_tables = true).or_else(
            |error| {
                tracing::debug!(%error, "Cannot own tables");
                kernel.probe(0, &[])
            },
        )?;
        Ok(kernel)
    }

    /// What the kernel can do.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The same kernel, without using a feature even if it is there.
    pub fn without(mut self, features: Features) -> Self {
        self.features.owned_tables &= !features.owned_tables;
        self.features.proves_commits &= !features.proves_commits;
        self.features.counts_elements &= !features.counts_elements;
        self.features.names_elements &= !features.names_elements;
        self
    }

    /// Whether others may change the table.
    pub(crate) fn is_shared(&self) -> bool {
        !self.owned
    }

    #[cfg(test)]
    pub(crate) fn shrink_receive_buffer(&self) {
        self.link.shrink_receive_buffer();
    }

    /// The number of the socket, by which the kernel names who changed something.
    pub fn port(&self) -> u32 {
        self.link.port()
    }

    /// Makes the table with these elements, which are in order; a large one in several batches, of
    /// which the first lead nobody anywhere. Gives how many.
    ///
    /// # Errors
    /// Any of [`Error`] but the last. No table is left then, unless that fails too.
    pub fn install(&mut self, elements: &[(Element, Data)]) -> Result<usize, Error> {
        let portions = transaction::portions(elements);
        let mut batches = portions.iter();
        self.make(TABLE, batches.next().map(Vec::as_slice).unwrap_or_default(), false)?;
        self.owned = self.features.owned_tables;
        for portion in batches {
            if let Err(error) = self.add(portion) {
                // Made once more, it would have each rule twice.
                self.delete(TABLE)?;
                self.owned = false;
                return Err(error);
            }
        }
        Ok(portions.len())
    }

    /// Makes the table with these elements, which are in order, in place of the one there is.
    ///
    /// One batch would do for whoever asks the kernel, but a packet under way could find the new
    /// chains not yet valid and the old ones no longer. So a copy stands in meanwhile.
    ///
    /// # Errors
    /// Any of [`Error`] but the last; the table there was is then still there, or the new one.
    pub fn replace(&mut self, elements: &[(Element, Data)]) -> Result<(), Error> {
        let elements: Vec<_> = elements.iter().collect();
        self.remove_stand_in()?;
        self.make(STAND_IN, &elements, false)?;
        self.await_packets();
        self.make(TABLE, &elements, true)?;
        self.owned = self.features.owned_tables;
        self.await_packets();
        self.remove_stand_in()
    }

    /// Deletes the copy that a process left when it ended during [`Self::replace`].
    ///
    /// # Errors
    /// Any of [`Error`] but the last.
    pub fn remove_stand_in(&mut self) -> Result<(), Error> {
        let left = self.table(STAND_IN)?;
        let is_ours = |comment: String| comment.starts_with(MARKER);
        if left.and_then(|header| header.comment).is_some_and(is_ours) {
            self.delete(STAND_IN)?;
        }
        Ok(())
    }

    /// Does a batch; with a generation only if nobody committed anything since.
    ///
    /// # Errors
    /// Any of [`Error`] but the last. Whatever it is, all of the batch was done or nothing.
    pub fn commit(&mut self, batch: &Batch, generation: Option<u32>) -> Result<(), Error> {
        let mut encoder = Encoder::new(TABLE, self.link.sequence());
        encoder.begin(generation);
        for set in batch.delete.chunk_by(|one, other| one.set == other.set) {
            encoder.delete_elements(set[0].set, set.iter());
        }
        encode_elements(&mut encoder, &batch.add);
        self.send(encoder)
    }

    /// Whether the kernel takes these elements, which are in order: a table of them is made and
    /// deleted in one batch.
    ///
    /// # Errors
    /// Any of [`Error`] but the last.
    pub(crate) fn try_out(&mut self, elements: &[(Element, Data)]) -> Result<(), Error> {
        self.probe(0, elements)
    }

    /// Waits until each packet that is under way has been dealt with, some 10 ms: those that come
    /// then see what is committed now, in all of their look-ups.
    pub fn await_packets(&self) {
        if !ffi::await_packets() {
            tracing::debug!("Cannot wait for packets under way");
        }
    }

    /// Deletes the table, whoever made it.
    ///
    /// # Errors
    /// Any of [`Error`] but the last.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.remove_stand_in()?;
        self.delete(TABLE)
    }

    /// Makes a table in one batch, after deleting the one there is if `replace`.
    fn make(
        &mut self,
        name: &str,
        elements: &[&(Element, Data)],
        replace: bool,
    ) -> Result<(), Error> {
        let mut encoder = Encoder::new(name, self.link.sequence());
        encoder.begin(None);
        if replace {
            encoder.delete_table();
        }
        encoder.add_table(&self.marker, self.flags());
        encode_layout(&mut encoder);
        encode_elements(&mut encoder, elements);
        self.send(encoder)
    }

    /// Adds elements that are not there, in one batch.
    fn add(&mut self, elements: &[&(Element, Data)]) -> Result<(), Error> {
        let mut encoder = Encoder::new(TABLE, self.link.sequence());
        encoder.begin(None);
        encode_elements(&mut encoder, elements);
        self.send(encoder)
    }

    fn delete(&mut self, name: &str) -> Result<(), Error> {
        let mut encoder = Encoder::new(name, self.link.sequence());
        encoder.begin(None);
        encoder.delete_table();
        self.send(encoder)
    }

    /// Takes the table as it is, where the kernel knows owners. Nobody who lives may have it.
    fn adopt(&mut self) -> Result<(), Error> {
        if self.owned || !self.features.owned_tables {
            return Ok(());
        }
        let mut encoder = Encoder::new(TABLE, self.link.sequence());
        encoder.begin(None);
        encoder.add_table(&self.marker, self.flags());
        self.send(encoder)?;
        self.owned = true;
        Ok(())
    }

    fn probe(&mut self, flags: u32, elements: &[(Element, Data)]) -> Result<(), Error> {
        let mut encoder = Encoder::new(PROBE, self.link.sequence());
        encoder.begin(None);
        encoder.add_table(&self.marker, flags);
        encode_layout(&mut encoder);
        encode_elements(&mut encoder, elements);
        encoder.delete_table();
        self.send(encoder)
    }

    fn flags(&self) -> u32 {
        if self.features.owned_tables { OWNED } else { 0 }
    }

    /// Ends a batch, sends it and finds out what became of it.
    fn send(&mut self, mut encoder: Encoder) -> Result<(), Error> {
        encoder.end(self.features.proves_commits);
        let (bytes, sequence) = encoder.finish();
        let first = self.link.sequence();
        self.link.advance(sequence);
        self.link.send(&bytes).map_err(Error::Socket)?;
        let last = sequence.wrapping_sub(1);
        let mut proven = !self.features.proves_commits;
        let mut complaints = Vec::new();
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            match self.link.receive(&mut buffer) {
                Ok(false) => break,
                Ok(true) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Err(Error::Unknown);
                }
                Err(error) => return Err(Error::Socket(error)),
            }
            for complaint in wire::messages(&buffer).filter_map(|message| message.complaint()) {
                let of_this = complaint.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                proven |= complaint.errno == 0 && complaint.sequence == last;
                if complaint.errno != 0 && of_this {
                    complaints.push(complaint);
                }
            }
        }
        match complaints.into_iter().next() {
            Some(complaint) => {
                let offset = complaint.offset.filter(|_| self.features.names_elements);
                Err(explain(&bytes, Complaint { offset, ..complaint }))
            }
            None if proven => Ok(()),
            None => Err(Error::Unknown),
        }
    }
}

/// Chains, sets and rules, in the order in which they need each other.
fn encode_layout(encoder: &mut Encoder) {
    let chains = layout::chains();
    chains.iter().for_each(|chain| encoder.add_chain(chain));
    Set::all().for_each(|set| encoder.add_set(set));
    chains.iter().for_each(|chain| encoder.add_rules(chain));
}

/// Elements in the order of their sets.
fn encode_elements(encoder: &mut Encoder, elements: &[impl Borrow<(Element, Data)>]) {
    let set_of = |one: &(Element, Data)| one.0.set;
    for set in elements.chunk_by(|one, other| set_of(one.borrow()) == set_of(other.borrow())) {
        let elements = set.iter().map(Borrow::borrow).map(|(element, data)| (element, data));
        encoder.add_elements(set_of(set[0].borrow()), elements);
    }
}

/// FNV-1a: it must be the same in every build, and nobody gains by a collision.
fn digest(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// The kernel's version; what is not known to be newer is old.
fn version() -> (u32, u32) {
    let Ok(name) = uname() else { return (0, 0) };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod tests;
