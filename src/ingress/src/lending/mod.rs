//! Slots on loan: gateways lend each other what they do not use (decision record 0011).
//!
//! A gateway's limit on a sandbox is what it was granted, and what it borrowed, less what it lent.
//! A slot moves in two steps, down at the lender and then up at the borrower, so that the sum of
//! all limits is never above what the sandbox takes.
//!
//! - [`message`]: what gateways say to each other, and how it is written.
//! - [`books`]: the accounts of one pool with every other gateway; pure.
//! - [`link`]: the messages of one connection, from and to the books of all pools.
//!
//! Does not know how messages travel, nor which gateways there are.

pub(crate) mod books;
pub(crate) mod link;
pub(crate) mod message;

/// How another gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEnd {
    /// In order: nothing that it sent runs anywhere, and what it was lent is free.
    Left,
    /// Without a word: what it sent may still run.
    Lost,
}

/// The other end breaks the protocol: what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolError(pub(crate) &'static str);

#[cfg(test)]
mod tests;
