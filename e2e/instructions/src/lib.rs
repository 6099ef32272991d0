//! How many instructions a hot function takes, as a test that noise cannot blur.
//!
//! A test says what it prepares and what it repeats ([`Hot::check`]). The test's own program is
//! then run once more below callgrind, for that one test, and only what is repeated is counted.
//! The count has to be the one in the section "Instructions" of `docs/benchmarks.md`, give or take
//! [`TOLERANCE_PERCENT`]; with the variable `UPDATE` set it is written there instead.
//!
//! It deliberately knows none of the functions: they are private, and so the tests stand beside
//! them. It counts what the profile of the tests makes of them, which is slower than what ships;
//! what makes one of the two slower does so to the other.
//!
//! Invariants: a count depends on no clock and no neighbour. What is committed was measured.

mod callgrind;
mod page;

use std::hint::black_box;

use crate::page::Page;

/// How far a count may be from the committed one, either way. Hash maps with random keys and
/// another processor's copying of memory move counts by less than one.
pub const TOLERANCE_PERCENT: u64 = 3;

/// Says that this process is the one below callgrind.
const INSIDE: &str = "PORTOLAN_COUNTED";
/// Says that counts are to be written, not compared.
const UPDATE: &str = "UPDATE";

/// A function under count.
#[derive(Debug, Clone, Copy)]
pub struct Hot {
    /// Its row in the table: unique in the repository, no `|` in it.
    pub row: &'static str,
    /// `module_path!()` of the test.
    pub module: &'static str,
    /// The name of the test's function.
    pub test: &'static str,
    /// How often it is done; the count is the mean.
    pub rounds: u32,
}

impl Hot {
    /// Counts `work` after `prepare`. Neither is done outside callgrind.
    ///
    /// `work` gets the number of its round, from 0. Round 0 is done once more before the count
    /// begins, so that what is set up at the first use is not in it.
    ///
    /// # Panics
    ///
    /// If the count is another than the committed one, if there is none, or if callgrind fails.
    #[track_caller]
    pub fn check<S, R>(self, prepare: impl FnOnce() -> S, mut work: impl FnMut(&mut S, u32) -> R) {
        if std::env::var_os(INSIDE).is_some() {
            let mut state = prepare();
            black_box(work(&mut state, 0));
            collected(&mut || {
                for round in 0..self.rounds {
                    black_box(work(&mut state, round));
                }
            });
            return;
        }
        let count = callgrind::count(&self.path()) / u64::from(self.rounds);
        println!("{}: {count} instructions", self.row);
        if std::env::var_os(UPDATE).is_some() {
            Page::update(|page| page.set(self.row, count));
        } else {
            self.compare(count, Page::read().get(self.row));
        }
    }

    #[track_caller]
    fn compare(self, count: u64, committed: Option<u64>) {
        let Self { row, .. } = self;
        let Some(committed) = committed else {
            panic!("{row}: {count} instructions, and none committed: run `make bench-instructions`")
        };
        assert!(
            is_near(count, committed),
            "{row}: {count} instructions, {committed} are committed. If that is meant, run \
             `make bench-instructions` and commit what it writes"
        );
    }

    /// The test's name, as the test program knows it: without the crate.
    fn path(self) -> String {
        match self.module.split_once("::") {
            Some((_, module)) => format!("{module}::{}", self.test),
            None => self.test.to_owned(),
        }
    }
}

fn is_near(count: u64, committed: u64) -> bool {
    count.abs_diff(committed) * 100 <= committed * TOLERANCE_PERCENT
}

/// What callgrind counts is what happens in here. Not generic, so that it is one symbol.
#[inline(never)]
fn collected(work: &mut dyn FnMut()) {
    work();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds the numbers below a bound, in a way that no compiler can shorten.
    fn sum(bound: u64) -> u64 {
        (0..bound).fold(0, |sum, number| black_box(sum + number))
    }

    fn hot(test: &'static str) -> Hot {
        Hot { row: "of a test", module: module_path!(), test, rounds: 10 }
    }

    #[test]
    fn twice_the_work_is_twice_the_count() {
        let hot = hot("twice_the_work_is_twice_the_count");
        if std::env::var_os(INSIDE).is_some() {
            // The same test is both sides: which one it is, is in the variable.
            let bound = std::env::var("BOUND").ok().and_then(|bound| bound.parse().ok());
            hot.check(|| bound.unwrap_or(1_000), |bound, _| sum(*bound));
            return;
        }
        let once = callgrind::count_with(&hot.path(), &[("BOUND", "1000")]);
        let twice = callgrind::count_with(&hot.path(), &[("BOUND", "2000")]);
        assert!(once > 10 * 1_000, "{once}");
        assert!(is_near(twice, 2 * once), "{once} and {twice}");
    }

    #[test]
    fn a_count_may_be_a_little_off() {
        let near = [97, 100, 103].map(|count| is_near(count, 100));
        let far = [0, 96, 104].map(|count| is_near(count, 100));
        assert_eq!((near, far), ([true; 3], [false; 3]));
    }

    #[test]
    #[should_panic(expected = "104 instructions, 100 are committed")]
    fn a_count_that_is_far_off_is_refused() {
        hot("any").compare(104, Some(100));
    }

    #[test]
    #[should_panic(expected = "none committed")]
    fn a_count_without_a_row_is_refused() {
        hot("any").compare(104, None);
    }
}
