//! Clients that mean harm, at a bounded pace.
//!
//! An [`Attack`] is what such clients do, [`press`] lets them do it until they are told to stop, and
//! a [`Tally`] says what it came to: how many connections, how long each was borne, how they were
//! refused. The pace of each is fixed and written beside it, because tests and benchmarks share
//! their processors with what they attack. Nothing here knows what a gateway should do about it,
//! nor anything of Portolan.
//!
//! Bytes are written by hand: no well-behaved library would send them.

mod attack;
mod frames;
mod press;
mod replies;

pub use attack::Attack;
pub use press::{Tally, Target, press};
