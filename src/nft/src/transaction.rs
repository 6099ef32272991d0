//! What must change, as a value. Pure.

use std::collections::BTreeMap;

use crate::element::{Data, Element};

/// Elements with what they lead to.
pub type Elements = BTreeMap<Element, Data>;

/// What the kernel does at once: all of it, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Elements that go; each is in the kernel.
    pub delete: Vec<Element>,
    /// Elements that come, after those went: an element in both lists is replaced.
    pub add: Vec<(Element, Data)>,
}

/// Batches that go to the kernel one after the other.
///
/// A batch is atomic for whoever asks the kernel, and not for a packet under way: each of its
/// look-ups sees what is current at that moment. So what leads somewhere new is made before what
/// leads to the old place is broken: `make` adds and replaces, and removes ports that lead
/// nowhere any more; `divert` takes away gates of services that stay behind another gate;
/// `discard` takes away the rest. Between two of them packets under way must come to their end.
/// Whatever gets lost in between, the next difference finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// First.
    pub make: Batch,
    /// Second.
    pub divert: Batch,
    /// Last.
    pub discard: Batch,
}

impl Batch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }

    /// How many elements it touches; one that is replaced counts once for each list.
    pub fn len(&self) -> usize {
        self.delete.len() + self.add.len()
    }

    /// In the order in which the kernel gets them: set by set.
    pub(crate) fn sort(&mut self) {
        self.delete.sort_unstable();
        self.add.sort_unstable_by_key(|(element, _)| *element);
    }
}

impl Transaction {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.batches().next().is_none()
    }

    /// What is to be sent, in this order; no batch is empty.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        [&self.make, &self.divert, &self.discard].into_iter().filter(|batch| !batch.is_empty())
    }
}
