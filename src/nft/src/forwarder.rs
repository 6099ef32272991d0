//! The table and the kernel together: what is desired gets there, whatever happens to it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::conntrack::{Conntrack, ConntrackError, Unended};
use crate::element::Owner;
use crate::kernel::{Error, Found, Kernel};
use crate::table::{self, Programmed, Table};
use crate::transaction::{Batch, Transaction};
use crate::value::{Flows, Former, Ruleset};

/// Keeps the kernel's table as desired. It owns both; there is one for a network namespace.
pub struct Forwarder {
    kernel: Kernel,
    table: Table,
    /// Whether no packet is under way any more that was led by what the kernel had before the last
    /// commit that leads any elsewhere.
    awaited: bool,
    /// The generation at which the table was read that others may change: what follows from the
    /// reading is done only if nobody did since.
    read_at: Option<u32>,
    /// Where the table led that was found at the start, until somebody takes it.
    former: Former,
}

/// What was done to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Batches that were committed.
    pub commits: usize,
    /// Elements that were added or replaced.
    pub added: usize,
    /// Elements that were deleted, those that were replaced too.
    pub deleted: usize,
    /// Whether the whole table was made anew.
    pub replaced: bool,
    /// How often the table had to be read because it was not what it was thought to be.
    pub resyncs: usize,
}

/// How far a flush goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// What is new is there.
    Made,
    /// And what is old is gone.
    Settled,
}

/// Why a start or a flush ended without the desired state in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is a table of this name that this program did not make. It is left alone.
    #[error("a table of this name has the comment {0:?}, so it is not ours")]
    Foreign(Option<String>),
    /// The kernel does not do it. What is not done is tried with the next flush.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// How often one flush reads the table again before it takes a refusal as final.
const READS: usize = 2;

impl Forwarder {
    /// Takes the table there is, or makes one, and brings it to the desired state.
    ///
    /// `desired` must be complete: what is in the table and not in it is deleted. If the table is
    /// already as desired, the kernel is only read.
    ///
    /// # Errors
    /// [`ForwardError::Foreign`], or what the kernel says.
    pub fn start(kernel: Kernel, desired: Ruleset) -> Result<(Self, Change), ForwardError> {
        let (table, former) = (Table::new(desired), Former::default());
        let mut forwarder = Self { kernel, table, awaited: false, read_at: None, former };
        let mut change = Change::default();
        forwarder.resync(&mut change)?;
        // Before the flush: nobody else remembers what goes with it.
        forwarder.former = forwarder.table.led();
        // That was the first reading, not a repair.
        change.resyncs = 0;
        forwarder.flush_into(&mut change, Until::Settled)?;
        forwarder.kernel.remove_stand_in()?;
        Ok((forwarder, change))
    }

    /// The desired state, to be changed; [`Self::flush`] brings changes to the kernel.
    pub fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    /// Where the table led connections that was found at the start, once; for
    /// [`Conntrack::sweep`]. Of a table of another version only what is desired is known.
    pub fn take_former(&mut self) -> Former {
        std::mem::take(&mut self.former)
    }

    /// The kernel, to ask it what it can do and what it has. Who changes it here makes the next
    /// flush fail, and repair that.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Brings the kernel to the desired state, with as few elements as differ.
    ///
    /// Before something goes that packets under way may still look for, it waits for them, some
    /// 10 ms; see [`Self::advance`].
    ///
    /// # Errors
    /// As for [`Self::start`]. The next flush goes on where this one ended.
    pub fn flush(&mut self) -> Result<Change, ForwardError> {
        let mut change = Change::default();
        self.flush_into(&mut change, Until::Settled)?;
        Ok(change)
    }

    /// Brings to the kernel what is new, and what can go at once, and waits for nothing.
    ///
    /// New connections then go where they should, but that a service that got more endpoints
    /// keeps to its former ones, until a [`Self::flush`] takes away what is left. Whether that may
    /// be something, [`Table::is_dirty`] tells.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn advance(&mut self) -> Result<Change, ForwardError> {
        let mut change = Change::default();
        self.flush_into(&mut change, Until::Made)?;
        Ok(change)
    }

    /// Ends what changes left without their endpoint and is tracked by now. For after
    /// [`Self::advance`]: a sender goes on to the new endpoint without a wait. What packets under
    /// way bring back is left to [`Self::end_connections`], and so is what cannot be ended.
    pub fn end_at_once(&self, conntrack: &mut Conntrack) {
        let stale = self.table.stale();
        if !stale.is_empty()
            && let Err(unended) = conntrack.end(stale)
        {
            tracing::debug!(error = %unended.first, "Connections not ended at once");
        }
    }

    /// Ends what changes left without their endpoint, and all that begins or ends at sandboxes
    /// that are gone. For after a flush. What could not be ended stays in `gone`, or is noted, and
    /// the next call tries it again.
    ///
    /// If there is anything to end, packets under way must first have been dealt with: one that was
    /// led by what the kernel had before is tracked only when it leaves, and would bring back a
    /// connection that was ended before. So it waits for them, some 10 ms, unless the flush has.
    ///
    /// # Errors
    /// What went wrong first.
    pub fn end_connections(
        &mut self,
        conntrack: &mut Conntrack,
        gone: &mut BTreeSet<IpAddr>,
    ) -> Result<(), ConntrackError> {
        let mut flows = self.table.take_stale();
        flows.extend(std::mem::take(gone).into_iter().map(Flows::Sandbox));
        if flows.is_empty() {
            return Ok(());
        }
        self.await_packets();
        let Err(Unended { left, first }) = conntrack.end(&flows) else { return Ok(()) };
        for flow in left {
            match flow {
                Flows::Sandbox(address) => drop(gone.insert(address)),
                Flows::Led { .. } => self.table.note_unended([flow]),
            }
        }
        Err(first)
    }

    /// Reads the table, repairs what others did to it, and tries again what was refused.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn verify(&mut self) -> Result<Change, ForwardError> {
        let mut change = Change::default();
        self.table.retry_refused();
        self.resync(&mut change)?;
        self.flush_into(&mut change, Until::Settled)?;
        Ok(change)
    }

    /// Deletes the table, and with it all forwarding. A table of another stays.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn remove(mut kernel: Kernel) -> Result<(), ForwardError> {
        match kernel.read()? {
            Found::Absent => Ok(kernel.remove_stand_in()?),
            Found::Foreign(comment) => Err(ForwardError::Foreign(comment)),
            Found::Outdated | Found::Current(..) => Ok(kernel.remove()?),
        }
    }

    /// Owners that are not forwarded as desired, since the kernel refuses them.
    pub fn refused(&self) -> &BTreeSet<Owner> {
        self.table.refused()
    }

    fn flush_into(&mut self, change: &mut Change, until: Until) -> Result<(), ForwardError> {
        let mut reads = 0;
        while self.table.is_dirty() {
            let Err(error) = self.commit_pending(change, until) else { break };
            tracing::debug!(%error, "Failed to commit");
            if error.asks_for_reading() && reads < READS {
                reads += 1;
                self.resync(change)?;
                // Where others never rest, it has to do without.
                self.read_at = self.read_at.filter(|_| reads < READS);
            } else if error.is_anonymous() {
                self.isolate(change, until)?;
            } else {
                self.leave_out(error)?;
            }
        }
        // Others change tables of theirs all the time, which says nothing of this one.
        self.read_at = None;
        Ok(())
    }

    fn commit_pending(&mut self, change: &mut Change, until: Until) -> Result<(), Error> {
        let transaction = match until {
            Until::Made => self.table.pending_new(),
            Until::Settled => self.table.pending(),
        };
        self.commit_all(transaction, change, until)?;
        match until {
            Until::Made => self.table.made(),
            Until::Settled => self.table.settled(),
        }
        Ok(())
    }

    fn commit_all(
        &mut self,
        transaction: Transaction,
        change: &mut Change,
        until: Until,
    ) -> Result<(), Error> {
        let Transaction { make, divert, discard } = transaction;
        if !make.is_empty() {
            self.awaited = false;
            self.commit(&make, change)?;
        }
        if until == Until::Made {
            return Ok(());
        }
        if !divert.is_empty() {
            self.await_packets();
            self.awaited = false;
            self.commit(&divert, change)?;
        }
        // It leads nobody elsewhere: nobody is led there any more.
        if !discard.is_empty() {
            self.await_packets();
            self.commit(&discard, change)?;
        }
        Ok(())
    }

    /// Brings what is pending to the kernel in parts, when it refuses the whole and does not say
    /// for whom; those that it refuses alone are left out.
    fn isolate(&mut self, change: &mut Change, until: Until) -> Result<(), ForwardError> {
        let owners = self.table.unsettled();
        let found = culprits(owners, |owners| {
            let transaction = self.table.pending_of(owners);
            self.commit_all(transaction, change, until)
        });
        self.leave_out_all(found)
    }

    /// Leaves out those whose elements of a new table the kernel refuses.
    fn isolate_rendered(
        &mut self,
        rendered: &Programmed,
        error: Error,
    ) -> Result<(), ForwardError> {
        let owners = rendered.keys().copied().collect();
        let found = culprits(owners, |owners| {
            let owned = owners.iter().filter_map(|owner| rendered.get_key_value(owner));
            let part = owned.map(|(owner, kept)| (*owner, kept.clone())).collect();
            self.kernel.try_out(&table::in_order(&part))
        });
        if found.alone.is_empty() && found.unfinished.is_none() {
            // They are refused together only, which nothing that is left out would change.
            return Err(error.into());
        }
        self.leave_out_all(found)
    }

    fn await_packets(&mut self) {
        if !self.awaited {
            self.kernel.await_packets();
            self.awaited = true;
        }
    }

    fn commit(&mut self, batch: &Batch, change: &mut Change) -> Result<(), Error> {
        self.kernel.commit(batch, self.read_at.take())?;
        self.table.committed(batch);
        change.commits += 1;
        change.added += batch.add.len();
        change.deleted += batch.delete.len();
        Ok(())
    }

    /// Finds out what the kernel has; makes the table if there is none that can be used.
    fn resync(&mut self, change: &mut Change) -> Result<(), ForwardError> {
        change.resyncs += 1;
        let replace = match self.kernel.read()? {
            Found::Foreign(comment) => return Err(ForwardError::Foreign(comment)),
            Found::Current(elements, generation) => {
                self.table.recovered(elements);
                self.read_at = self.kernel.is_shared().then_some(generation);
                return Ok(());
            }
            Found::Absent => false,
            Found::Outdated => true,
        };
        loop {
            let rendered = self.table.rendered();
            let elements = table::in_order(&rendered);
            self.awaited = false;
            let made = match replace {
                true => self.kernel.replace(&elements).map(|()| 1),
                false => self.kernel.install(&elements),
            };
            match made {
                Ok(batches) => change.commits += batches,
                Err(error) if error.is_anonymous() => {
                    self.isolate_rendered(&rendered, error)?;
                    continue;
                }
                Err(error) => {
                    self.leave_out(error)?;
                    continue;
                }
            }
            change.added += elements.len();
            change.replaced = true;
            self.table.installed(rendered);
            return Ok(());
        }
    }

    /// Leaves out the one that the kernel refuses, so that the others get what they desire.
    ///
    /// Each owner is left out once, so whoever repeats the batch comes to an end.
    fn leave_out(&mut self, error: Error) -> Result<(), ForwardError> {
        let owner = error.owner().filter(|owner| !self.table.refused().contains(owner));
        let Some(owner) = owner else { return Err(error.into()) };
        tracing::warn!(?owner, %error, "Left out what nf_tables refuses");
        self.table.refuse(owner);
        Ok(())
    }

    fn leave_out_all(&mut self, found: Culprits) -> Result<(), ForwardError> {
        for (owner, error) in found.alone {
            tracing::warn!(?owner, %error, "Left out what nf_tables refuses");
            self.table.refuse(owner);
        }
        found.unfinished.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// Who of those whom the kernel refused together is refused alone.
#[derive(Debug, Default)]
struct Culprits {
    alone: Vec<(Owner, Error)>,
    /// Why there may be more.
    unfinished: Option<Error>,
}

/// How many refusals one search takes: each culprit among a thousand costs ten.
const REFUSALS_MAX: usize = 256;

/// Finds them by halves: `attempt` does a part, or says why nothing of it was done.
fn culprits(all: Vec<Owner>, mut attempt: impl FnMut(&[Owner]) -> Result<(), Error>) -> Culprits {
    let mut found = Culprits::default();
    let mut refusals = 0;
    let mut parts = vec![all];
    while let Some(part) = parts.pop() {
        let Err(error) = attempt(&part) else { continue };
        refusals += 1;
        if !error.is_anonymous() || refusals > REFUSALS_MAX {
            found.unfinished = Some(error);
            break;
        }
        match *part {
            [] => found.unfinished = Some(error),
            [owner] => found.alone.push((owner, error)),
            _ => parts.extend(part.chunks(part.len().div_ceil(2)).rev().map(<[_]>::to_vec)),
        }
    }
    found
}

#[cfg(test)]
mod tests;
