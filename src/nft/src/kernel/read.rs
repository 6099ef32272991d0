//! What the kernel has: read without changing it, but for taking the table.

use nftnl::nftnl_sys::libc;
use nix::errno::Errno;

use super::error::explain;
use super::{Error, Found, Kernel, MARKER, PERSISTS, TABLE};
use crate::element::Set;
use crate::socket::Request;
use crate::transaction::Elements;
use crate::{decode, layout, wire};

/// Names of nf_tables' messages, in its subsystem.
const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const GET_TABLE: u16 = SUBSYSTEM | libc::NFT_MSG_GETTABLE as u16;
const GET_CHAIN: u16 = SUBSYSTEM | libc::NFT_MSG_GETCHAIN as u16;
const GET_RULE: u16 = SUBSYSTEM | libc::NFT_MSG_GETRULE as u16;
const GET_SET: u16 = SUBSYSTEM | libc::NFT_MSG_GETSET as u16;
const GET_ELEMENTS: u16 = SUBSYSTEM | libc::NFT_MSG_GETSETELEM as u16;
const GET_GENERATION: u16 = SUBSYSTEM | libc::NFT_MSG_GETGEN as u16;
/// Family of the table, and of none.
const INET: u8 = libc::NFPROTO_INET as u8;
const UNSPECIFIED: u8 = libc::NFPROTO_UNSPEC as u8;
/// How often a table that changes is read again before giving up.
const READS: usize = 16;
/// A set with fewer elements is dumped in one piece, since each takes less than 100 bytes.
const ONE_PIECE: usize = 256;

/// What a table says of itself.
pub(super) struct Header {
    pub(super) comment: Option<String>,
    flags: u32,
    /// How many chains and sets it has.
    uses: usize,
}

/// How a request was answered.
enum Asked<T> {
    Whole(T),
    Interrupted,
    Absent,
}

impl Kernel {
    /// The generation of the ruleset: it grows with each commit of anybody to any table.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn generation(&mut self) -> Result<u32, Error> {
        let mut generation = 0;
        let kind = GET_GENERATION;
        let request = Request { kind, family: UNSPECIFIED, dump: false, texts: &[] };
        self.ask(&request, |body| generation = wire::number(body, 1).unwrap_or_default())?;
        Ok(generation)
    }

    /// Reads what there is under the table's name, as of one moment.
    ///
    /// A table that is usable is first made this process's own, where the kernel knows owners.
    ///
    /// # Errors
    /// [`Error::Owned`] if another process that lives has it; [`Error::Restless`] if the kernel
    /// knows no owners and others change rulesets all the time; [`Error::Socket`].
    pub fn read(&mut self) -> Result<Found, Error> {
        for _ in 0..READS {
            let before = self.generation()?;
            let found = self.read_once(before)?;
            // Generations count changes of all tables. Those of others may not matter, but where
            // anybody may change ours there is no telling.
            if let Some(found) = found
                && (self.owned || self.generation()? == before)
            {
                return Ok(found);
            }
        }
        Err(Error::Restless)
    }

    /// What a table says of itself; `None` if there is none.
    pub(super) fn table(&mut self, name: &str) -> Result<Option<Header>, Error> {
        let mut table = None;
        let request = Request { kind: GET_TABLE, family: INET, dump: false, texts: &[(1, name)] };
        self.ask(&request, |body| {
            let number = |kind| wire::number(body, kind).unwrap_or_default();
            let uses = usize::try_from(number(3)).unwrap_or_default();
            table = Some(Header { comment: comment(body), flags: number(2), uses });
        })?;
        Ok(table)
    }

    /// `None` if a dump was interrupted.
    fn read_once(&mut self, generation: u32) -> Result<Option<Found>, Error> {
        let Some(header) = self.table(TABLE)? else { return Ok(Some(Found::Absent)) };
        if !header.comment.as_ref().is_some_and(|comment| comment.starts_with(MARKER)) {
            return Ok(Some(Found::Foreign(header.comment)));
        }
        let uses = layout::chains().len() + Set::all().count();
        // A table that never had an owner can be given none; one whose owner ended can.
        let is_current = header.comment.as_ref() == Some(&self.marker)
            && header.uses == uses
            && header.flags & PERSISTS == self.flags() & PERSISTS;
        if !is_current {
            return Ok(Some(Found::Outdated));
        }
        self.adopt()?;
        if !self.rules_are_ours()? {
            return Ok(Some(Found::Outdated));
        }
        let mut elements = Elements::new();
        for set in Set::all() {
            match self.elements(set)? {
                Asked::Whole(found) => elements.extend(found),
                Asked::Interrupted => return Ok(None),
                // A set of ours that is no longer there.
                Asked::Absent => return Ok(Some(Found::Outdated)),
            }
        }
        Ok(Some(Found::Current(elements, generation)))
    }

    /// The elements of a set, if all of them could be read.
    ///
    /// A dump comes in pieces. While the kernel moves a set that has grown to a larger table,
    /// which it does some time after the commit, the pieces are of different orders: elements are
    /// missing or there twice, and nothing in the dump says so.
    fn elements(&mut self, set: Set) -> Result<Asked<Elements>, Error> {
        let found = match self.dump(set)? {
            Asked::Whole(found) if found.len() >= ONE_PIECE && !set.is_interval() => found,
            small_or_failed => return Ok(small_or_failed),
        };
        let is_whole = match self.count(set)? {
            Some(count) => count == found.len(),
            None => matches!(self.dump(set)?, Asked::Whole(again) if again == found),
        };
        Ok(if is_whole { Asked::Whole(found) } else { Asked::Interrupted })
    }

    fn dump(&mut self, set: Set) -> Result<Asked<Elements>, Error> {
        let name = set.to_string();
        let texts = [(1, TABLE), (2, name.as_str())];
        let request = Request { kind: GET_ELEMENTS, family: INET, dump: true, texts: &texts };
        let mut found = Elements::new();
        let asked = self.ask(&request, |body| found.extend(decode::elements(set, body)))?;
        Ok(match asked {
            // Interrupted by a change of any table; an owned one is changed by nobody else.
            Asked::Interrupted if !self.owned => Asked::Interrupted,
            Asked::Whole(()) | Asked::Interrupted => Asked::Whole(found),
            Asked::Absent => Asked::Absent,
        })
    }

    /// How many elements a set has, where the kernel says so.
    fn count(&mut self, set: Set) -> Result<Option<usize>, Error> {
        const COUNT: u16 = 20;
        if !self.features.counts_elements {
            return Ok(None);
        }
        let name = set.to_string();
        let texts = [(1, TABLE), (2, name.as_str())];
        let request = Request { kind: GET_SET, family: INET, dump: false, texts: &texts };
        let mut count = None;
        self.ask(&request, |body| count = wire::number(body, COUNT))?;
        Ok(count.and_then(|count| usize::try_from(count).ok()))
    }

    /// Whether chains and rules are what this program makes.
    fn rules_are_ours(&mut self) -> Result<bool, Error> {
        let mut rules: Vec<Option<(String, Vec<_>)>> = Vec::new();
        let request = Request { kind: GET_RULE, family: INET, dump: true, texts: &[(1, TABLE)] };
        self.ask(&request, |body| {
            rules.push(decode::rule(body).map(|(chain, rule)| (chain.to_owned(), rule)));
        })?;
        for chain in layout::chains() {
            let mut found = Vec::new();
            rules.retain_mut(|rule| match rule {
                Some((name, steps)) if *name == chain.name => {
                    found.push(std::mem::take(steps));
                    false
                }
                _ => true,
            });
            if found != chain.rules || !self.hook_is_ours(&chain)? {
                return Ok(false);
            }
        }
        Ok(rules.is_empty())
    }

    /// Whether a chain is where it belongs.
    fn hook_is_ours(&mut self, chain: &layout::Chain) -> Result<bool, Error> {
        let mut found = None;
        let texts = [(1, TABLE), (3, chain.name.as_str())];
        let request = Request { kind: GET_CHAIN, family: INET, dump: false, texts: &texts };
        self.ask(&request, |body| {
            let hook = wire::attribute(body, 4).map(|hook| {
                let priority = wire::number(hook, 2).unwrap_or_default().cast_signed();
                (wire::number(hook, 1).unwrap_or_default(), priority)
            });
            found = Some(hook);
        })?;
        Ok(found == Some(chain.hook.map(|hook| (hook.number(), hook.priority()))))
    }

    /// Asks for something that may be absent.
    fn ask(
        &mut self,
        request: &Request<'_>,
        mut each: impl FnMut(&[u8]),
    ) -> Result<Asked<()>, Error> {
        let answer = self.link.ask(request, |message| each(message.body()));
        match answer.map_err(Error::Socket)? {
            Ok(answer) if answer.interrupted => Ok(Asked::Interrupted),
            Ok(_) => Ok(Asked::Whole(())),
            Err(complaint) if complaint.errno == Errno::ENOENT as i32 => Ok(Asked::Absent),
            Err(complaint) => Err(explain(&[], complaint)),
        }
    }
}

/// The table's comment as `nft` stores it: type 0, length, text with its end.
fn comment(body: &[u8]) -> Option<String> {
    let [0, length, rest @ ..] = wire::attribute(body, 6)? else { return None };
    let text = rest.get(..usize::from(*length))?;
    str::from_utf8(text.strip_suffix(&[0])?).ok().map(ToOwned::to_owned)
}
